"""Agreement of images with a text, by a CLIP model in a local folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._pixels import Bounds, pixels, to_pil

__all__ = ["ClipScore"]


@dataclass(frozen=True, eq=False)
class ClipScore:
    """Cosine of the angle between image and text embeddings, in [-1, 1] (Radford et al. 2021). Not differentiable.

    Published "CLIP scores" are multiples of it: 100 max(cos, 0), or 2.5 max(cos, 0) (Hessel et al. 2021).

    Attributes:
        folder: with model, tokenizer and image processor as transformers saves them; nothing is downloaded.
        prompt: the text; it is cut at the model's length.
        bounds: black and white in tensors and arrays.
        device: where the model runs.
    """

    folder: str | Path
    prompt: str
    bounds: Bounds = (0.0, 1.0)
    device: str = "cpu"
    _model: Any = field(init=False, repr=False)
    _processor: Any = field(init=False, repr=False)
    _text: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
        except ImportError as error:
            raise ImportError("ClipScore needs transformers: pip install 'feynkac[diffusion]'") from error
        if not Path(self.folder).is_dir():
            raise ValueError(f"folder: no folder {str(self.folder)!r}, expected a CLIP model on this machine")
        where = str(self.folder)
        model = CLIPModel.from_pretrained(where, local_files_only=True).eval().to(self.device)
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True)
        limit = model.config.text_config.max_position_embeddings
        tokens = tokenizer([self.prompt], return_tensors="pt", truncation=True, max_length=limit).to(self.device)
        object.__setattr__(self, "_model", model)
        object.__setattr__(self, "_processor", AutoImageProcessor.from_pretrained(where, local_files_only=True))
        with torch.no_grad():
            text = model.text_projection(model.text_model(**tokens).pooler_output)
        object.__setattr__(self, "_text", torch.nn.functional.normalize(text.float(), dim=-1)[0])

    @property
    def name(self) -> str:
        """Name and prompt."""
        return f"clip_score({self.prompt!r})"

    @torch.no_grad()
    def __call__(self, images: Any) -> Tensor:
        """Cosine (B,)."""
        files = [to_pil(image).convert("RGB") for image in pixels(images, self.bounds)]
        inputs = self._processor(images=files, return_tensors="pt")["pixel_values"].to(self.device, self._model.dtype)
        embedded = self._model.visual_projection(self._model.vision_model(pixel_values=inputs).pooler_output)
        return torch.nn.functional.normalize(embedded.float(), dim=-1) @ self._text
