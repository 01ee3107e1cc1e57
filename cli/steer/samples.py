"""Samples of a steering job as PNG files: an image each, the frames of a video side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["middle_frames", "output_samples", "write_samples"]


def output_samples(output: Any) -> list[Any]:
    """The images, or the videos as lists of frames, that a pipeline returned."""
    for name in ("images", "frames"):
        if hasattr(output, name):
            return list(getattr(output, name))
    return list(output[0])


def write_samples(folder: Path, samples: Sequence[Any]) -> int:
    """Write ``000.png``, ``001.png``, ...

    Returns:
        Frames a sample; 1 for images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frames = 1
    for index, sample in enumerate(samples):
        parts = [_image(part) for part in _frames(sample)]
        frames = len(parts)
        _strip(parts).save(folder / f"{index:03d}.png")
    return frames


def middle_frames(folder: Path, count: int, frames: int) -> list[Image.Image]:
    """The samples that :func:`write_samples` wrote; of videos the middle frame.

    Raises:
        FileNotFoundError: one is missing.
    """
    found = []
    for index in range(count):
        with Image.open(folder / f"{index:03d}.png") as image:
            width = image.width // frames
            left = (frames // 2) * width
            found.append(image.crop((left, 0, left + width, image.height)))
    return found


def _frames(sample: Any) -> list[Any]:
    if isinstance(sample, (list, tuple)):
        return list(sample)
    return list(sample) if getattr(sample, "ndim", 0) == 4 else [sample]


def _image(part: Any) -> Image.Image:
    if isinstance(part, Image.Image):
        return part
    array = np.asarray(part)
    if array.dtype != np.uint8:
        array = (array.clip(0.0, 1.0) * 255).round().astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def _strip(parts: Sequence[Image.Image]) -> Image.Image:
    if len(parts) == 1:
        return parts[0]
    strip = Image.new(parts[0].mode, (sum(part.width for part in parts), parts[0].height))
    left = 0
    for part in parts:
        strip.paste(part, (left, 0))
        left += part.width
    return strip
