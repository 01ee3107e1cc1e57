"""Weights of the atoms of a group: masses, or all alike."""

from __future__ import annotations

import math

import torch

__all__ = ["check_weights", "normalised"]


def check_weights(name: str, weights: tuple[float, ...] | None, count: int) -> None:
    """Refuse weights that are not one for each atom, negative, or all zero.

    Raises:
        ValueError: naming the variable.
    """
    if weights is None:
        return
    if len(weights) != count:
        raise ValueError(f"{name}: {len(weights)} weights for {count} atoms")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise ValueError(f"{name}: weights must be finite, none negative and not all zero, got {list(weights)}")


def normalised(weights: tuple[float, ...] | None, count: int, like: torch.Tensor) -> torch.Tensor:
    """Weights (count,) that sum to 1, equal ones for None, in the dtype and on the device of ``like``."""
    raw = torch.ones(count, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64)
    return (raw / raw.sum()).to(like)
