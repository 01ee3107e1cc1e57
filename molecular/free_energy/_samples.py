"""Checks that every estimator makes on its weighted samples."""

from __future__ import annotations

import math

import torch

from ...fkc.weights import normalize

__all__ = ["check_kT", "normalized_weights"]


def check_kT(kT: float) -> None:
    """Refuse a kT that is not a positive number.

    Raises:
        ValueError: naming the value.
    """
    if not (math.isfinite(kT) and kT > 0):
        raise ValueError(f"kT must be positive, in kJ/mol, got {kT}")


def normalized_weights(log_weights: torch.Tensor) -> torch.Tensor:
    """Weights (n,) that sum to one, float64 on the CPU, of raw log-weights (n,).

    Raises:
        ValueError: for another shape or fewer than two samples.
        WeightError: for NaN or +inf, or when every weight is zero.
    """
    if log_weights.ndim != 1 or log_weights.numel() < 2:
        raise ValueError(f"log_weights must be (n,) with n >= 2, got {tuple(log_weights.shape)}")
    return normalize(log_weights.detach().cpu())
