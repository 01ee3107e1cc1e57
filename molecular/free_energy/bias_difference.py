"""The free-energy difference that a bias itself implies, without samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fkc.bias import RepulsionBias
from ._contrast import log_ratio
from .axis import Axis

__all__ = ["BiasDifference", "difference_from_bias"]

_POINTS_AT_ONCE = 100_000
_CELLS_A_NODE = {1: 8, 2: 4}
"""Cells between two nodes of the bias's grid in one and two dimensions; one in more."""


@dataclass(frozen=True, kw_only=True)
class BiasDifference:
    """Delta F = F(inside) - F(outside) read off a bias: a value without an error bar.

    Attributes:
        value: in kT; infinite when the axes hold no point of one region.
        kT: in the unit of the bias.
        cells: number of cells of the quadrature.
        caveat: what the value is not.
    """

    value: float
    kT: float
    cells: int
    caveat: str = "no error bar: biased while the bias is still filling, and by the width of its kernels"


def difference_from_bias(
    bias: RepulsionBias,
    inside: Callable[[Tensor], Tensor],
    *,
    outside: Callable[[Tensor], Tensor] | None = None,
    axes: Sequence[Axis] | None = None,
) -> BiasDifference:
    r"""Delta F of two regions from :math:`F(s) = -\frac{\gamma}{\gamma - 1} V(s)`.

    .. math:: \Delta F / kT = \ln \int_{out} e^{-F(s)/kT} ds - \ln \int_{in} e^{-F(s)/kT} ds

    by the midpoint rule.  It holds for a bias that has converged; for numbers to quote, freeze the bias and use
    `free_energy_difference` on samples with the weights of ``bias.reweight``.

    Args:
        bias: of d variables.
        inside: from values (B, d) to bool (B,), whether they lie in the region.
        outside: the same for the region to compare with; everything not inside when left out.
        axes: d axes to integrate over, in the order of the variables; refined from the bias's grid when left out.

    Raises:
        ValueError: without axes for a bias without a grid, for axes that do not fit, or regions that overlap.

    Example:
        >>> difference_from_bias(bias, lambda s: s[:, 0] > 0).value
    """
    chosen = _axes_of(bias) if axes is None else tuple(axes)
    if len(chosen) != bias.dimension:
        raise ValueError(f"{len(chosen)} axes for a bias of {bias.dimension} variables")
    points = torch.cartesian_prod(*(_midpoints(axis) for axis in chosen)).reshape(-1, bias.dimension)
    log_in, log_out = [], []
    for part in torch.split(points, _POINTS_AT_ONCE):
        log_density = -bias.free_energy(part) / bias.kT
        here = inside(part)
        there = ~here if outside is None else outside(part)
        if bool((here & there).any()):
            raise ValueError("the regions overlap")
        log_in.append(log_density[here])
        log_out.append(log_density[there])
    q, p = (torch.logsumexp(torch.cat(parts), 0) for parts in (log_out, log_in))
    top = torch.maximum(q, p)
    return BiasDifference(value=_difference(q - top, p - top), kT=bias.kT, cells=len(points))


def _difference(log_q: Tensor, log_p: Tensor) -> float:
    if bool(torch.isfinite(log_q) & torch.isfinite(log_p)):
        return float(log_q - log_p)
    return log_ratio(float(log_q.exp()), float(log_p.exp()))


def _axes_of(bias: RepulsionBias) -> tuple[Axis, ...]:
    if bias.grid_axes is None:
        raise ValueError("a bias without a grid needs axes to integrate over")
    finer = _CELLS_A_NODE.get(bias.dimension, 1)
    return tuple(
        Axis(name=name, lower=axis.lower, upper=axis.upper, bins=axis.bins * finer, periodic=axis.periodic)
        for name, axis in zip(bias.names, bias.grid_axes, strict=True)
    )


def _midpoints(axis: Axis) -> Tensor:
    """Centres of equal cells from ``lower`` to ``upper``: a region that starts at an end starts between two of them."""
    return axis.lower + axis.width * (torch.arange(axis.bins, dtype=torch.float64) + 0.5)
