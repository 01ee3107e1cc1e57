"""Rewards of images: size as JPEG, brightness, sharpness, log-probability of a class.

All take a list of PIL images, a tensor (B, C, H, W) or an array (B, H, W, C) and return (B,). Brightness, sharpness and
the classifier are differentiable where they are given tensors.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ._pixels import Bounds, luminance, pixel_batch, pixels, to_pil

__all__ = ["Brightness", "ClassLogProb", "JpegSize", "Sharpness"]


@dataclass(frozen=True)
class JpegSize:
    """Minus the size of the image as JPEG, in kilobytes of 1000 bytes (compressibility, Black et al. 2023).

    The file's header, some 330 bytes for grey and 620 for colour images, is part of it, the same for all.

    Attributes:
        quality: of Pillow's encoder, 1 to 95.
        bounds: black and white in tensors and arrays; PIL images need none.
    """

    quality: int = 95
    bounds: Bounds = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality: got {self.quality}, expected 1 to 95")

    @property
    def name(self) -> str:
        """Name and quality."""
        return f"jpeg_size(quality={self.quality})"

    def __call__(self, images: Any) -> Tensor:
        """Minus kilobytes (B,), float64."""
        if isinstance(images, list) and all(isinstance(image, Image.Image) for image in images):
            files = images
        else:
            files = [to_pil(image) for image in pixels(images, self.bounds)]
        return torch.tensor([-self._bytes(image) / 1000.0 for image in files], dtype=torch.float64)

    def _bytes(self, image: Image.Image) -> int:
        buffer = io.BytesIO()
        plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
        plain.save(buffer, format="JPEG", quality=self.quality)
        return buffer.tell()


@dataclass(frozen=True)
class Brightness:
    """Mean luma, 0 for black to 1 for white (ITU-R BT.601 weights).

    Attributes:
        bounds: black and white in tensors and arrays.
    """

    bounds: Bounds = (0.0, 1.0)
    name = "brightness"

    def __call__(self, images: Any) -> Tensor:
        """Brightness (B,)."""
        return torch.stack([luminance(image).mean() for image in pixels(images, self.bounds)])


@dataclass(frozen=True)
class Sharpness:
    """Variance of the Laplacian of the luma (Pech-Pacheco et al. 2000), over the pixels that have four neighbours.

    Attributes:
        bounds: black and white in tensors and arrays.
    """

    bounds: Bounds = (0.0, 1.0)
    name = "sharpness"

    def __call__(self, images: Any) -> Tensor:
        """Variance (B,); a checkerboard of black and white pixels has 16, a constant image 0."""
        laplacians = [_laplacian(luminance(image)) for image in pixels(images, self.bounds)]
        return torch.stack([laplacian.var(unbiased=False) for laplacian in laplacians])


def _laplacian(grey: Tensor) -> Tensor:
    if min(grey.shape) < 3:
        raise ValueError(f"images: got {tuple(grey.shape)} pixels, expected at least 3 x 3")
    return grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]


@dataclass(frozen=True, eq=False)
class ClassLogProb:
    """Log-probability of a class, by a classifier.

    Attributes:
        model: images (B, C, H, W) -> logits (B, classes), in evaluation mode; or the folder of a
            :class:`~feynkac.steering.pixel_classifier.PixelClassifier`.
        label: the class.
        input_bounds: black and white as the model wants them.
        bounds: black and white in tensors and arrays given to the reward.
    """

    model: nn.Module | str | Path
    label: int
    input_bounds: Bounds = (-1.0, 1.0)
    bounds: Bounds = (0.0, 1.0)

    def __post_init__(self) -> None:
        if isinstance(self.model, (str, Path)):
            object.__setattr__(self, "model", _load_classifier(self.model))
        if isinstance(self.model, nn.Module) and self.model.training:
            raise ValueError("model: got one in training mode, expected evaluation mode: call model.eval() first")

    @property
    def name(self) -> str:
        """Name and class."""
        return f"class_log_prob({self.label})"

    def __call__(self, images: Any) -> Tensor:
        """Log-probability (B,).

        Raises:
            ValueError: the model has no such class.
        """
        model = self.model
        assert isinstance(model, nn.Module)
        low, high = self.input_bounds
        batch = pixel_batch(images, self.bounds) * (high - low) + low
        parameter = next(model.parameters(), batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and batch.requires_grad):
            logits: Tensor = model(batch.to(parameter.device, parameter.dtype))
        if not 0 <= self.label < logits.shape[1]:
            raise ValueError(f"label: got {self.label}, expected 0 to {logits.shape[1] - 1}")
        return logits.float().log_softmax(dim=1)[:, self.label]


def _load_classifier(folder: str | Path) -> nn.Module:
    from ..pixel_classifier import PixelClassifier

    if not Path(folder).is_dir():
        raise ValueError(f"model: no folder {str(folder)!r}, expected what PixelClassifier.save_pretrained wrote")
    model: nn.Module = PixelClassifier.from_pretrained(str(folder), local_files_only=True).eval()
    return model
