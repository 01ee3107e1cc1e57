"""A grid of weighted samples."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..fkc import Population
from .plot_style import ACCENT, FAINT, Array, saved, styled

__all__ = ["image_grid"]

_COLUMNS = 8
"""Of a grid, unless asked otherwise."""
_CELL, _CAPTION, _TITLE = 1.1, 0.36, 0.34
"""Width of a cell, height of the caption and of a prompt's title, in widths of an image."""


@styled
def image_grid(
    images: Sequence[Any],
    log_weights: Tensor,
    *,
    rewards: Tensor | None = None,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    ordered: bool = True,
    path: str | Path | None = None,
) -> Figure:
    """Samples with their normalised weights: a number, and a bar as long as the weight against the largest one.

    Args:
        images: P x K of them as the pipeline returned them, a prompt's side by side: PIL images, or arrays (H, W),
            (H, W, C) in [0, 1] or uint8, or of a video the list of its frames, of which the middle one is shown.
        log_weights: (P, K), or (K,) for one prompt.
        rewards: of the same shape, written beside the weights.
        columns: images side by side; at most 8 if None. More go into further lines.
        titles: one a prompt.
        ordered: the heaviest first; False keeps the pipeline's order.
        path: where to save the figure too.

    Raises:
        ValueError: numbers of images, weights, rewards or titles that do not fit.
    """
    weights = Population.from_log_weights(log_weights).weights
    count, size = weights.shape
    _check_grid(len(images), weights, rewards, columns, titles)
    columns = min(size, columns or _COLUMNS)
    pictures = [_pixels(image) for image in images]
    tall = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    fig, ax = _empty_grid(columns, tall, count * math.ceil(size / columns), count if titles else 0)
    values = None if rewards is None else rewards.reshape(count, size)
    top = 0.0
    for p in range(count):
        if titles is not None:
            top += _TITLE
            ax.text(0, top - 0.09, titles[p], fontsize=9.5, weight="bold", va="bottom", parse_math=False)
        order = weights[p].argsort(descending=True, stable=True).tolist() if ordered else range(size)
        for place, k in enumerate(order):
            row, column = divmod(place, columns)
            corner = (column * _CELL, top + row * (tall + _CAPTION))
            share = float(weights[p, k])
            text = f"{share:.3f}" if values is None else f"{share:.3f}  r {float(values[p, k]):.3g}"
            _draw_sample(ax, pictures[p * size + k], corner, share / max(float(weights[p].max()), 1e-300), text)
        top += math.ceil(size / columns) * (tall + _CAPTION)
    return saved(fig, path)


def _check_grid(images: int, weights: Tensor, rewards: Tensor | None, columns: Any, titles: Any) -> None:
    if images != weights.numel():
        raise ValueError(f"images: got {images} for {weights.numel()} weights, expected one each")
    if rewards is not None and rewards.numel() != weights.numel():
        raise ValueError(f"rewards: got {rewards.numel()} for {weights.numel()} weights, expected one each")
    if columns is not None and columns < 1:
        raise ValueError(f"columns: got {columns}, expected at least 1")
    if titles is not None and len(titles) != len(weights):
        raise ValueError(f"titles: got {len(titles)} for {len(weights)} prompts, expected one each")


def _empty_grid(columns: int, tall: float, rows: int, titles: int) -> tuple[Figure, Axes]:
    width = columns * _CELL
    height = rows * (tall + _CAPTION) + titles * _TITLE
    inches = min(1.25, 60.0 / height)
    fig = Figure(figsize=(width * inches, height * inches))
    ax = fig.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set_axis_off()
    ax.set_xlim(-0.05, width - 0.05)
    ax.set_ylim(height, 0.0)
    return fig, ax


def _draw_sample(ax: Axes, picture: Array, corner: tuple[float, float], length: float, text: str) -> None:
    left, top = corner
    bottom = top + picture.shape[0] / picture.shape[1]
    how = "nearest" if max(picture.shape[:2]) < 128 else "antialiased"
    box = (left, left + 1.0, bottom, top)
    ax.imshow(picture, extent=box, cmap="gray", vmin=0, vmax=1, interpolation=how, aspect="auto")
    ax.add_patch(Rectangle((left, bottom + 0.03), 1.0, 0.06, color=FAINT, lw=0))
    ax.add_patch(Rectangle((left, bottom + 0.03), length, 0.06, color=ACCENT, lw=0))
    ax.text(left + 0.5, bottom + 0.11, text, fontsize=7, ha="center", va="top")


def _pixels(image: Any) -> Array:
    """(H, W) or (H, W, 3 or 4) float64 in [0, 1]; of a video the middle frame."""
    if isinstance(image, (list, tuple)):
        return _pixels(image[len(image) // 2])
    array = np.asarray(image)
    if array.ndim == 4:
        return _pixels(array[len(array) // 2])
    scaled = array.astype(np.float64) / (255.0 if array.dtype == np.uint8 else 1.0)
    scaled = scaled[..., 0] if scaled.ndim == 3 and scaled.shape[-1] == 1 else scaled
    clipped: Array = scaled.clip(0.0, 1.0)
    return clipped
