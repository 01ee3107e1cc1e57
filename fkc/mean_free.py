"""Coordinates of configurations whose mean is at the origin."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["mean_free_basis"]


@functools.cache
def mean_free_basis(particles: int) -> Tensor:
    """(n, n - 1) float64 with orthonormal columns that sum to zero (Helmert's).

    Raises:
        ValueError: fewer than two particles.
    """
    if particles < 2:
        raise ValueError(f"particles: got {particles}, expected at least 2")
    basis = torch.zeros((particles, particles - 1), dtype=torch.float64)
    for k in range(1, particles):
        basis[:k, k - 1] = 1.0
        basis[k, k - 1] = -float(k)
    normed: Tensor = basis / basis.norm(dim=0)
    return normed
