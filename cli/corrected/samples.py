"""Weights and samples of a corrected run as files: arrays, and for images a page of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...fkc import distinct_roots
from ..tables import write_arrays
from .results import Outcome, joint_draws

__all__ = ["arrays", "write_outcome"]

_COLUMNS, _ROWS, _LEAST = 16, 16, 32
"""Of a page of images; and pixels that an image is at least enlarged to."""


def arrays(outcomes: Sequence[Outcome]) -> dict[str, NDArray[np.generic]]:
    """``TARGET.WAY.NAME`` for ``weights.npz``; P populations of K, n moves.

    ``log_weights``, ``weights`` (P, K); ``log_evidence``, ``log_evidence_std_error``, ``ess``, ``distinct_roots``
    (P,); ``ess_trace``, ``log_evidence_trace``, ``distinct_roots_trace``, ``resampled`` (n + 1, P); ``classes`` (P, K).
    """
    found: dict[str, Tensor] = {}
    for outcome in outcomes:
        for way, result in outcome.ways():
            record = result.collected
            some = {
                "log_weights": result.log_weights,
                "weights": result.population.weights,
                "log_evidence": result.log_evidence,
                "log_evidence_std_error": result.log_evidence_std_error,
                "ess": result.ess,
                "distinct_roots": distinct_roots(result.population),
                "ess_trace": record["ess"],
                "log_evidence_trace": record["log_evidence"],
                "distinct_roots_trace": record["distinct_roots"],
                "resampled": record["resampled"],
            }
            some |= {"classes": outcome.classes[way]} if way in outcome.classes else {}
            found |= {f"{outcome.name}.{way}.{name}": value for name, value in some.items()}
    return {name: value.contiguous().numpy() for name, value in found.items()}


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write ``TARGET.npz``, and for images ``TARGET_weighted.png`` (equally weighted draws) and
    ``TARGET_unweighted.png``, up to 256 of each."""
    write_arrays(folder / f"{outcome.name}.npz", sample_arrays(outcome))
    if not outcome.is_image:
        return
    for way, result in outcome.ways():
        flat = result.x.flatten(0, 1)
        _page(flat[joint_draws(outcome, way, _COLUMNS * _ROWS)]).save(folder / f"{outcome.name}_{way}.png")


def sample_arrays(outcome: Outcome) -> dict[str, NDArray[np.generic]]:
    """``weighted`` (P, K, *event) with ``log_weights`` (P, K); ``resampled`` (P K, *event), equally weighted draws of
    all populations; ``unweighted`` (P, K, *event)."""
    flat = outcome.weighted.x.flatten(0, 1)
    found = {
        "weighted": outcome.weighted.x,
        "log_weights": outcome.weighted.log_weights,
        "resampled": flat[joint_draws(outcome, "weighted", len(flat))],
    }
    if outcome.unweighted is not None:
        found["unweighted"] = outcome.unweighted.x
    return {name: value.contiguous().numpy() for name, value in found.items()}


def _page(images: Tensor) -> Image.Image:
    """Images (n, C, H, W) in [-1, 1] in rows, a grey line between them."""
    n, channels, height, width = images.shape
    columns = min(n, _COLUMNS)
    rows = math.ceil(n / columns)
    page = torch.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 128, dtype=torch.uint8)
    pixels = ((images.double() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        top, left = row * (height + 1) + 1, column * (width + 1) + 1
        page[top : top + height, left : left + width] = picture
    scale = max(1, _LEAST // width)
    drawn = Image.fromarray(page[..., 0].numpy() if channels == 1 else page.numpy())
    return drawn.resize((drawn.width * scale, drawn.height * scale), Image.Resampling.NEAREST)
