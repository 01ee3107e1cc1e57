"""Free-energy surfaces from weighted samples, with bootstrap errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ._samples import check_kT, normalized_weights
from .axis import Axis
from .bootstrap import bootstrap_counts, check_groups
from .density import DensityEstimator, HistogramDensity, KernelDensity

__all__ = ["EmptySurface", "FreeEnergySurface", "free_energy_surface"]


class EmptySurface(ValueError):
    """No sample with a positive weight lies inside the axes."""


@dataclass(frozen=True, kw_only=True)
class FreeEnergySurface:
    """F(s) = -kT ln p(s) on a grid, shifted so that its lowest value is zero.

    Attributes:
        axes: one or two axes.
        free_energy: (*bins) kJ/mol; +inf where no weight falls.
        std_error: (*bins) kJ/mol, of -kT ln p(s) with p normalised over all samples (the shift to zero is a
            constant and carries no error of its own); NaN where ``free_energy`` is +inf or no bootstrap was
            asked.
        density: (*bins) probability density per unit of every axis.
        ess: (*bins) effective number of samples behind each value.
        offset: kJ/mol; ``free_energy + offset`` is -kT ln p(s).
        kT: kJ/mol.
        method: "histogram" or "kde".
        bandwidth: of each axis for "kde", else None.
        bootstrap: number of replicates.
        n_samples: number of samples, zero weights included.
        n_outside: samples outside an open axis; they stay in the normalisation of p.
    """

    axes: tuple[Axis, ...]
    free_energy: torch.Tensor
    std_error: torch.Tensor
    density: torch.Tensor
    ess: torch.Tensor
    offset: float
    kT: float
    method: Literal["histogram", "kde"]
    bandwidth: tuple[float, ...] | None
    bootstrap: int
    n_samples: int
    n_outside: int

    @property
    def grid(self) -> tuple[torch.Tensor, ...]:
        """Grid points of each axis, (bins,) each."""
        return tuple(axis.points() for axis in self.axes)

    @property
    def free_energy_kT(self) -> torch.Tensor:
        """(*bins) in units of kT."""
        return self.free_energy / self.kT

    @property
    def std_error_kT(self) -> torch.Tensor:
        """(*bins) in units of kT."""
        return self.std_error / self.kT


def free_energy_surface(
    values: torch.Tensor,
    log_weights: torch.Tensor,
    *,
    kT: float,
    axes: Sequence[Axis],
    method: Literal["histogram", "kde"] = "histogram",
    bandwidth: Sequence[float] | None = None,
    bootstrap: int = 100,
    seed: int | None = None,
    groups: torch.Tensor | None = None,
) -> FreeEnergySurface:
    r"""Free energy :math:`F(s) = -kT \ln p(s)` along one or two collective variables.

    p is the self-normalised estimate :math:`\sum_n w_n K(s, s_n) / \sum_n w_n`, K being the indicator of a
    cell over its volume ("histogram") or a von Mises / Gaussian kernel ("kde").  The error is first order,
    :math:`kT\, \mathrm{sd}_b[p_b(s)] / p(s)` over bootstrap replicates b: a replicate in which a cell is
    empty counts as p = 0 and not as an infinite free energy.  It covers sampling only: not the width of a
    cell, nor the smoothing of a kernel.

    Args:
        values: (n, d) or (n,) values of the d = 1 or 2 variables, in the units of the axes.
        log_weights: (n,) raw log-weights, -inf for zero weight.
        kT: kJ/mol.
        axes: d axes.
        method: "histogram" or "kde".
        bandwidth: d kernel widths in the units of the axes; needed for "kde" and for nothing else.
        bootstrap: number of replicates; 0 for no error.
        seed: of the bootstrap; needed unless ``bootstrap`` is 0.
        groups: (n,) integer labels of walkers or blocks when samples are correlated; the bootstrap draws
            whole groups.

    Returns:
        The surface; empty cells hold +inf with a NaN error.

    Raises:
        EmptySurface: no sample with a positive weight lies inside the axes.
        ValueError: for shapes that do not fit, NaN values, a missing seed or bandwidth.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> phi = torch.randn(1000, generator=generator)
        >>> surface = free_energy_surface(
        ...     phi, torch.zeros(1000), kT=2.494, axes=[Axis.torsion("phi", 36)], seed=0)
        >>> surface.free_energy.shape
        torch.Size([36])
    """
    axes = tuple(axes)
    values = _check_values(values, log_weights, axes)
    check_kT(kT)
    weights = normalized_weights(log_weights)
    estimator = _estimator(values, axes, method, bandwidth)
    density = estimator.density(weights[None])[0]
    if not (density > 0).any():
        raise EmptySurface("no sample with a positive weight lies inside the axes")
    relative_error = _relative_error(estimator, weights, density, bootstrap, seed, groups)
    free_energy = -kT * torch.log(density)
    offset = float(free_energy.min())
    empty = density == 0
    outside = torch.stack([axis.cell(values[:, k]) < 0 for k, axis in enumerate(axes)]).any(0)
    return FreeEnergySurface(
        axes=axes,
        free_energy=torch.where(empty, math.inf, free_energy - offset),
        std_error=torch.where(empty, math.nan, kT * relative_error),
        density=density,
        ess=estimator.effective_samples(weights),
        offset=offset,
        kT=float(kT),
        method=method,
        bandwidth=None if bandwidth is None else tuple(float(h) for h in bandwidth),
        bootstrap=bootstrap,
        n_samples=values.shape[0],
        n_outside=int(outside.sum()),
    )


def _check_values(values: torch.Tensor, log_weights: torch.Tensor, axes: tuple[Axis, ...]) -> torch.Tensor:
    values = values.detach().cpu().double()
    if values.ndim == 1:
        values = values[:, None]
    if len(axes) not in (1, 2):
        raise ValueError(f"a free-energy surface has 1 or 2 axes, got {len(axes)}")
    if values.shape != (log_weights.shape[0], len(axes)):
        raise ValueError(
            f"values must be (n, d) = ({log_weights.shape[0]}, {len(axes)}) to fit log-weights and axes, "
            f"got {tuple(values.shape)}"
        )
    # A sample of zero weight (a non-finite energy) may have any value: it contributes nothing.
    used = log_weights.detach().cpu() > -math.inf
    if not torch.isfinite(values[used]).all():
        raise ValueError("values of samples with a positive weight must be finite")
    return torch.nan_to_num(values, nan=axes[0].lower, posinf=axes[0].lower, neginf=axes[0].lower)


def _estimator(
    values: torch.Tensor, axes: tuple[Axis, ...], method: str, bandwidth: Sequence[float] | None
) -> DensityEstimator:
    if method == "histogram":
        if bandwidth is not None:
            raise ValueError("a histogram has no bandwidth; its resolution is the number of bins")
        return HistogramDensity(values, axes)
    if method != "kde":
        raise ValueError(f"method must be 'histogram' or 'kde', got {method!r}")
    if bandwidth is None or len(bandwidth) != len(axes) or not all(0 < h < math.inf for h in bandwidth):
        raise ValueError(
            "method 'kde' needs a positive bandwidth for every axis, in its unit; the smoothing it causes is "
            f"not in the error bar, so there is no default; got {bandwidth}"
        )
    return KernelDensity(values, axes, bandwidth)


def _relative_error(
    estimator: DensityEstimator,
    weights: torch.Tensor,
    density: torch.Tensor,
    replicates: int,
    seed: int | None,
    groups: torch.Tensor | None,
) -> torch.Tensor:
    """sd over bootstrap replicates of p(s) / p(s), (*bins); NaN without a bootstrap."""
    if replicates == 0:
        return torch.full_like(density, math.nan)
    if seed is None or replicates < 2:
        raise ValueError("the bootstrap needs a seed and at least 2 replicates (or bootstrap=0)")
    generator = torch.Generator().manual_seed(seed)
    total, squares = torch.zeros_like(density), torch.zeros_like(density)
    for counts in bootstrap_counts(generator, check_groups(groups, weights.numel()), replicates):
        drawn = counts * weights
        share = drawn.sum(1, keepdim=True)
        # A replicate without any weight has no density at all: leaving it out would shrink the error.
        if bool((share == 0).any()):
            return torch.full_like(density, math.nan)
        # Deviations from the estimate keep the variance accurate where p is far from zero.
        deviation = estimator.density(drawn / share) - density
        total, squares = total + deviation.sum(0), squares + (deviation * deviation).sum(0)
    variance = (squares - total * total / replicates) / (replicates - 1)
    return variance.clamp_min(0).sqrt() / density
