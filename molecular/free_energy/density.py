"""Weighted probability densities on a grid: histogram and kernel estimates, batched over weight vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from .axis import Axis

__all__ = ["DensityEstimator", "HistogramDensity", "KernelDensity"]


class DensityEstimator(Protocol):
    """A linear map from sample weights to grid values: p(s) = sum_n w_n K(s, s_n), K >= 0."""

    def density(self, weights: torch.Tensor) -> torch.Tensor:
        """Densities (R, *bins) of weight vectors (R, n), each summing to one over all samples."""
        ...

    def effective_samples(self, weights: torch.Tensor) -> torch.Tensor:
        """(sum wK)^2 / sum (wK)^2 at each grid point (*bins), of weights (n,); 0 where nothing falls."""
        ...


class HistogramDensity:
    """Share of the weight in each cell over the volume of the cell.

    Args:
        values: (n, d) values of the collective variables.
        axes: d axes.
    """

    def __init__(self, values: torch.Tensor, axes: Sequence[Axis]) -> None:
        self.shape = tuple(axis.bins for axis in axes)
        cells = torch.stack([axis.cell(values[:, k]) for k, axis in enumerate(axes)])
        inside = (cells >= 0).all(0)
        flat = torch.zeros(values.shape[0], dtype=torch.long)
        for axis, cell in zip(axes, cells, strict=True):
            flat = flat * axis.bins + cell
        self._total = math.prod(self.shape)
        # One cell more than the grid has collects what lies outside an open axis.
        self._cell = torch.where(inside, flat, torch.full_like(flat, self._total))
        self._volume = math.prod(axis.width for axis in axes)

    def _sum(self, weights: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(weights.shape[0], self._total + 1, dtype=torch.float64)
        sums.index_add_(1, self._cell, weights)
        return sums[:, :-1].reshape(-1, *self.shape)

    def density(self, weights: torch.Tensor) -> torch.Tensor:
        """Densities (R, *bins) of weights (R, n)."""
        return self._sum(weights) / self._volume

    def effective_samples(self, weights: torch.Tensor) -> torch.Tensor:
        """Kish's effective sample size of each cell (*bins)."""
        first, second = self._sum(torch.stack([weights, weights * weights]))
        return torch.where(second > 0, first * first / torch.where(second > 0, second, 1.0), 0.0)


class KernelDensity:
    r"""Product kernels: von Mises on periodic axes, Gaussian on open ones.

    With bandwidth h on a circle of length L the kernel is
    :math:`\exp(\kappa \cos(2\pi d / L)) / (L\, I_0(\kappa))`, :math:`\kappa = (L / 2\pi h)^2`; both kernels
    integrate to one over the whole axis (Taylor, Comput. Stat. Data Anal. 52, 3493 (2008)).  Nothing
    is reflected at the ends of an open axis.

    Args:
        values: (n, d) values of the collective variables, d = 1 or 2.
        axes: d axes.
        bandwidth: d bandwidths h, in the unit of each axis.
    """

    def __init__(self, values: torch.Tensor, axes: Sequence[Axis], bandwidth: Sequence[float]) -> None:
        self._factors = [
            _kernel(values[:, k].double(), axis, h) for k, (axis, h) in enumerate(zip(axes, bandwidth, strict=True))
        ]

    def _sum(self, weights: torch.Tensor, factors: list[torch.Tensor]) -> torch.Tensor:
        if len(factors) == 1:
            return weights @ factors[0]
        first, second = factors
        return torch.stack([(first * w[:, None]).T @ second for w in weights])

    def density(self, weights: torch.Tensor) -> torch.Tensor:
        """Densities (R, *bins) of weights (R, n)."""
        return self._sum(weights, self._factors)

    def effective_samples(self, weights: torch.Tensor) -> torch.Tensor:
        """Effective number of samples under the kernel at each grid point (*bins)."""
        first = self._sum(weights[None], self._factors)[0]
        second = self._sum((weights * weights)[None], [f * f for f in self._factors])[0]
        return torch.where(second > 0, first * first / torch.where(second > 0, second, 1.0), 0.0)


def _kernel(values: torch.Tensor, axis: Axis, bandwidth: float) -> torch.Tensor:
    distance = values[:, None] - axis.points()
    if axis.period is None:
        norm = bandwidth * math.sqrt(2 * math.pi)
        return torch.exp(-0.5 * (distance / bandwidth) ** 2) / norm
    per_radian = axis.period / (2 * math.pi)
    kappa = torch.tensor((per_radian / bandwidth) ** 2, dtype=torch.float64)
    # exp(kappa cos d) / I0(kappa), each multiplied by exp(-kappa) so that a sharp kernel does not overflow.
    norm = axis.period * float(torch.special.i0e(kappa))
    return (kappa * (torch.cos(distance / per_radian) - 1)).exp() / norm
