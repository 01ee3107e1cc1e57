"""A class-conditional diffusion pipeline in pixel space: what diffusers' DiTPipeline is for latents, for small images.

Classifier-free guidance (Ho and Salimans 2022): with a null class seen in training, the output at guidance g is

    eps = eps(x, null) + g (eps(x, class) - eps(x, null))

and ``scheduler.step`` sees one row an image, guidance included.
"""

import inspect
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError("feynkac.steering.pixel_pipeline needs diffusers: pip install 'feynkac[diffusion]'") from error

__all__ = ["ClassConditionalPixelPipeline", "load_pipeline"]

Labels = int | None | Sequence[int | None]


class ClassConditionalPixelPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Images of given classes from a UNet2DModel over pixels in [-1, 1].

    Args:
        unet: a ``UNet2DModel`` with ``num_class_embeds`` = classes + 1; the last one is the null class of guidance.
        scheduler: any diffusers scheduler; the shipped model was trained for v-prediction on DDPM's linear schedule.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel, scheduler: Any) -> None:
        super().__init__()
        classes = unet.config.num_class_embeds
        if not isinstance(classes, int) or classes < 2:
            raise ValueError(f"unet: num_class_embeds is {classes}, expected at least one class and the null class")
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def null_class(self) -> int:
        """Label that means no class; also the number of classes."""
        return int(self.unet.config.num_class_embeds) - 1

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels,
        num_images_per_label: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images (B = labels x ``num_images_per_label``), a label's images side by side.

        Args:
            class_labels: one label or several, each in [0, classes), or None for no class.
            num_images_per_label: images of every label.
            num_inference_steps: denoiser evaluations an image (twice that where guidance combines two).
            guidance_scale: 1: the class alone; 0: no class; above 1: the class exaggerated.
            generator: one, or one an image.
            eta: noise of the DDIM step, 0 (none) to 1 (as in DDPM); ignored by schedulers that do not take it.
            latents: (B, C, H, W) standard normal start, instead of a draw.
            output_type: ``"pil"``, ``"np"`` (B, H, W, C) in [0, 1] or ``"pt"`` (B, C, H, W) in [0, 1].
            return_dict: False returns a tuple with the images only.

        Raises:
            ValueError: a label, a shape or a setting that has no meaning.
        """
        labels = self._labels(class_labels, num_images_per_label)
        self._check(len(labels), guidance_scale, generator, output_type)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        image = self._start(len(labels), generator, latents)
        extra = self._step_arguments(generator, eta)
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(image, t)
            output = self._guided(scaled, t, labels, guidance_scale)
            image = self.scheduler.step(output, t, image, **extra).prev_sample
        images = self._decoded(image, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _decoded(self, image: Tensor, output_type: str) -> Any:
        image = (image / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return image
        array = image.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array

    def _guided(self, image: Tensor, t: Tensor, labels: Tensor, scale: float) -> Tensor:
        if scale == 1.0:
            output: Tensor = self.unet(image, t, class_labels=labels).sample
            return output
        both = torch.cat([labels, torch.full_like(labels, self.null_class)])
        with_class, without = self.unet(torch.cat([image, image]), t, class_labels=both).sample.chunk(2)
        combined: Tensor = without + scale * (with_class - without)
        return combined

    def _labels(self, labels: Labels, repeats: int) -> Tensor:
        if repeats < 1:
            raise ValueError(f"num_images_per_label: got {repeats}, expected at least 1")
        given = labels.tolist() if isinstance(labels, Tensor) else labels
        values = list(given) if isinstance(given, Sequence) else [given]
        for value in values:
            if value is not None and not (isinstance(value, int) and 0 <= value < self.null_class):
                raise ValueError(f"class_labels: got {value!r}, expected an integer in [0, {self.null_class}) or None")
        if not values:
            raise ValueError("class_labels: got none, expected at least one label")
        numbers = [self.null_class if value is None else value for value in values]
        return torch.tensor(numbers, device=self._execution_device).repeat_interleave(repeats)

    def _start(self, rows: int, generator: Any, latents: Tensor | None) -> Tensor:
        config = self.unet.config
        size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else tuple(config.sample_size)
        shape = (rows, config.in_channels, *size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents: got shape {tuple(latents.shape)}, expected {shape}")
        start: Tensor = latents.to(self._execution_device, self.unet.dtype) * self.scheduler.init_noise_sigma
        return start

    def _step_arguments(self, generator: Any, eta: float) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        return {key: value for key, value in (("generator", generator), ("eta", eta)) if key in accepted}

    @staticmethod
    def _check(rows: int, guidance_scale: float, generator: Any, output_type: str) -> None:
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale: got {guidance_scale}, expected a finite number")
        if isinstance(generator, list) and len(generator) != rows:
            raise ValueError(f"generator: got a list of {len(generator)}, expected one an image, {rows}")
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: got {output_type!r}, expected 'pil', 'np' or 'pt'")


def load_pipeline(folder: str | Path, **options: Any) -> Any:
    """The pipeline saved in a local ``folder``, ours or one of diffusers' own; nothing is downloaded.

    Args:
        folder: what ``save_pretrained`` wrote.
        options: as for ``from_pretrained``.

    Raises:
        FileNotFoundError: no ``model_index.json`` in it.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{folder}: no model_index.json, expected what a pipeline's save_pretrained wrote")
    ours = json.loads(index.read_text())["_class_name"] == ClassConditionalPixelPipeline.__name__
    loader = ClassConditionalPixelPipeline if ours else DiffusionPipeline
    return loader.from_pretrained(str(folder), local_files_only=True, **options)
