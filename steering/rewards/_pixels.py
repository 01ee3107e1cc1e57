"""Samples as rewards get them, turned into tensors: lists of PIL images, tensors (B, C, H, W), arrays (B, H, W, C)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["Bounds", "luminance", "pixel_batch", "pixels", "to_pil"]

Bounds = tuple[float, float]
"""Values of black and white in tensors and arrays: (0, 1) for what pipelines return, (-1, 1) for pixel-space states."""


def pixels(samples: Any, bounds: Bounds = (0.0, 1.0)) -> Iterator[Tensor]:
    """Every sample as (C, H, W), black 0 and white 1, not clipped; C is 1 (grey) or 3 (RGB) for PIL images.

    Tensors keep their gradient, dtype (at least float32) and device.

    Raises:
        TypeError: samples that are not images.
    """
    if isinstance(samples, np.ndarray):
        samples = torch.from_numpy(samples).movedim(-1, 1) if samples.ndim == 4 else samples
    if isinstance(samples, Tensor):
        if samples.ndim != 4:
            raise TypeError(f"images: got a tensor of shape {tuple(samples.shape)}, expected (B, C, H, W)")
        low, high = bounds
        yield from (_float(samples) - low) / (high - low)
    elif isinstance(samples, Sequence) and not isinstance(samples, str):
        for sample in samples:
            yield _from_pil(sample) if isinstance(sample, Image.Image) else next(pixels(_single(sample), bounds))
    else:
        raise TypeError(f"images: got {type(samples).__name__}, expected a list of PIL images or a tensor (B, C, H, W)")


def pixel_batch(samples: Any, bounds: Bounds = (0.0, 1.0)) -> Tensor:
    """All samples as one tensor (B, C, H, W), black 0 and white 1; they must have one size."""
    return torch.stack(list(pixels(samples, bounds)))


def luminance(image: Tensor) -> Tensor:
    """Luma (H, W) of (C, H, W): the channel itself, or 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)."""
    if len(image) == 1:
        return image[0]
    if len(image) != 3:
        raise TypeError(f"images: got {len(image)} channels, expected 1 (grey) or 3 (RGB)")
    return torch.einsum("c,chw->hw", image.new_tensor([0.299, 0.587, 0.114]), image)


def to_pil(image: Tensor) -> Image.Image:
    """An 8-bit grey or RGB image of (C, H, W), black 0 and white 1, clipped to that, rounded as diffusers does."""
    array = (image.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def _float(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _from_pil(image: Image.Image) -> Tensor:
    array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"), dtype=np.float32)
    planes = torch.from_numpy(array / np.float32(255.0))
    return planes[None] if planes.ndim == 2 else planes.movedim(-1, 0)


def _single(sample: Any) -> Any:
    if isinstance(sample, (Tensor, np.ndarray)) and sample.ndim == 3:
        return sample[None]
    raise TypeError(f"images: got {type(sample).__name__}, expected a PIL image or a tensor (C, H, W)")
