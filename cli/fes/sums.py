"""Sums of kernels on grids: HILLS as PLUMED's ``sum_hills`` prints them, and the density of OPES."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...fkc.bias.shapes import SHAPES, Shape
from ...fkc.bias.variables import shortest
from ...fkc.ops import kernel_sum
from ...molecular.free_energy import Axis
from ...molecular.io import HillsTable, OpesTable, hills_value_and_gradient
from .landscape import Landscape

__all__ = ["Dump", "hills_dumps", "hills_reach", "in_order_of_time", "opes_landscape", "opes_reach"]

_ELEMENTS_AT_ONCE = 400_000
"""Of (points, kernels) arrays: 3 MB of float64."""

_NODES_A_TILE = {1: 64, 2: 12, 3: 6}

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From points (B, d) and the indices (m,) of the kernels near them to value (B,) and gradient (B, d)."""


@dataclass(frozen=True, eq=False)
class Dump:
    """The sum of the hills up to one of them: a file of ``--stride``.

    Attributes:
        first, last: numbers of the hills, from 1.
        time: of the last, as the file has it.
        landscape: F, not shifted.
    """

    first: int
    last: int
    time: float
    landscape: Landscape


def hills_reach(table: HillsTable) -> Tensor:
    """(M, d) distance along each variable at which a hill ends: sqrt(2 * 6.25) widths, 3.54."""
    spread = table.sigmas.square().sum(-1).sqrt() if table.multivariate else table.sigmas
    return SHAPES["stretched-gaussian"].reach * spread


def in_order_of_time(table: HillsTable) -> HillsTable:
    """Hills of several walkers, whose files have clocks, in the order of time; others as they are."""
    return table if table.clocks is None else table.rows(torch.argsort(table.times, stable=True))


def hills_dumps(
    table: HillsTable,
    axes: Sequence[Axis],
    *,
    stride: int | None = None,
    history: bool = True,
    negative_bias: bool = False,
    advance: Callable[[float], None] = lambda share: None,
) -> Iterator[Dump]:
    """F of growing numbers of hills; the last dump has all of them.

    Args:
        table: of hills.
        axes: of the grid.
        stride: hills between dumps; None for one.
        history: whether a dump has the hills before its own too.
        negative_bias: -V in the place of F.
        advance: told the share of the work that is done.
    """
    heights = table.heights if negative_bias else table.file_heights
    flat = replace(table, heights=heights, biasf=torch.full_like(table.biasf, -1.0))
    shape = tuple(axis.bins for axis in axes)
    value = torch.zeros(shape, dtype=torch.float64)
    gradient = torch.zeros((*shape, len(axes)), dtype=torch.float64)
    step = stride or len(table)
    for start in range(0, len(table), step):
        stop = min(start + step, len(table))
        part = flat.rows(slice(start, stop))
        if not history:
            value, gradient = torch.zeros_like(value), torch.zeros_like(gradient)
        share, offset = (stop - start) / len(table), start / len(table)
        found = _on_grid(
            axes,
            part.centers,
            hills_reach(part),
            part.periods,
            lambda points, near, part=part: hills_value_and_gradient(part.rows(near), points),  # type: ignore[misc]
            lambda done, share=share, offset=offset: advance(offset + share * done),  # type: ignore[misc]
        )
        value, gradient = value + found[0], gradient + found[1]
        own = start if not history else 0
        yield Dump(own + 1, stop, float(table.times[stop - 1]), Landscape(tuple(axes), -value, -gradient))


def opes_shape(table: OpesTable) -> Shape:
    """Of the kernels: they are lowered so that they end at zero."""
    return Shape.ending_at(table.kernel_cutoff)


def opes_reach(table: OpesTable) -> Tensor:
    """(M, d) distance along each variable at which a kernel ends."""
    return table.kernel_cutoff * table.sigmas


def opes_landscape(
    table: OpesTable, axes: Sequence[Axis], *, kT: float, advance: Callable[[float], None] = lambda share: None
) -> Landscape:
    r"""F = -kT ln(P/Z + epsilon) from a STATE file; -kT ln P, its lowest at zero, from KERNELS, which lack the sums.

    With OPES_METAD_EXPLORE P is the density of the biased law, and F is gamma times that (Invernizzi and Parrinello, J.
    Chem. Theory Comput. 18, 3988 (2022)).
    """
    form = opes_shape(table)
    periods = torch.tensor([period or 0.0 for period in table.periods], dtype=torch.float64)

    def evaluate(points: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = kernel_sum(
            points,
            table.centers[near],
            table.sigmas[near],
            table.heights[near],
            periods,
            form.scale,
            form.shift,
            form.cutoff,
        )
        return found

    density, slope = _on_grid(axes, table.centers, opes_reach(table), table.periods, evaluate, advance)
    factor = kT * (table.bias_factor if table.explore else 1.0)
    if table.state is None:
        raised = density / density.max()
        slope = slope / density.max()
    else:
        mass = float(table.state.counter) if table.explore else table.state.sum_weights
        scale = 1.0 / (mass * table.state.zed)
        raised, slope = density * scale + table.epsilon, slope * scale
    return Landscape(tuple(axes), -factor * raised.log(), -factor * slope / raised[..., None])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Arrays that fit in the cache gain nothing from threads, which on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def _on_grid(
    axes: Sequence[Axis],
    centers: Tensor,
    reach: Tensor,
    periods: Sequence[float | None],
    evaluate: Evaluate,
    advance: Callable[[float], None],
) -> tuple[Tensor, Tensor]:
    """A sum of kernels that end, on all grid points: tile by tile, from the kernels that reach into each.

    Returns:
        (*bins) and (*bins, d).
    """
    shape = tuple(axis.bins for axis in axes)
    value = torch.zeros(shape, dtype=torch.float64)
    gradient = torch.zeros((*shape, len(axes)), dtype=torch.float64)
    size = _NODES_A_TILE[len(axes)]
    parts = [
        [_Span.of(axis, first, min(first + size, axis.bins), centers[:, k], reach[:, k], periods[k])
         for first in range(0, axis.bins, size)]
        for k, axis in enumerate(axes)
    ]  # fmt: skip
    tiles = list(itertools.product(*parts))
    for number, tile in enumerate(tiles, start=1):
        near = torch.stack([span.near for span in tile]).all(0).nonzero()[:, 0]
        if len(near):
            points = torch.stack(torch.meshgrid(*(span.points for span in tile), indexing="ij"), dim=-1)
            flat, place = points.reshape(-1, len(axes)), tuple(span.place for span in tile)
            for some in torch.split(near, max(1, _ELEMENTS_AT_ONCE // len(flat))):
                v, g = evaluate(flat, some)
                value[place] += v.reshape(points.shape[:-1])
                gradient[place] += g.reshape(points.shape)
        advance(number / len(tiles))
    return value, gradient


@dataclass(frozen=True, eq=False)
class _Span:
    """Neighbouring points of one axis, and the kernels that reach them along it."""

    points: Tensor
    place: slice
    near: Tensor

    @classmethod
    def of(cls, axis: Axis, first: int, stop: int, centers: Tensor, reach: Tensor, period: float | None) -> _Span:
        points = axis.points()[first:stop]
        middle, half = float(points[0] + points[-1]) / 2, float(points[-1] - points[0]) / 2
        away = shortest(centers - middle, period)
        slack = 1e-9 * max(1.0, math.fabs(middle))
        return cls(points, slice(first, stop), away.abs() <= half + reach + slack)
