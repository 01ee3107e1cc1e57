"""Cubic splines on regular grids, periodic or open along each axis: a bias whose cost does not grow with its hills.

A spline is kept as the coefficients of uniform cubic B-splines (de Boor, A Practical Guide to Splines, 1978, chapter
IX), so that its value is twice continuously differentiable and its gradient is exactly the derivative of its value.
Open axes end with the not-a-knot condition, which keeps fourth order up to the edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .library import define

__all__ = ["cubic_spline", "spline_coefficients"]

# Rows: powers of t; columns: the four B-splines that are not zero on a cell, and their slopes.
_BASIS = (
    (1 / 6, 4 / 6, 1 / 6, 0.0, -1 / 2, 0.0, 1 / 2, 0.0),
    (-1 / 2, 0.0, 1 / 2, 0.0, 1.0, -2.0, 1.0, 0.0),
    (1 / 2, -1.0, 1 / 2, 0.0, -1 / 2, 3 / 2, -3 / 2, 1 / 2),
    (-1 / 6, 1 / 2, -1 / 2, 1 / 6, 0.0, 0.0, 0.0, 0.0),
)


def spline_coefficients(values: Tensor, periodic: Sequence[bool]) -> Tensor:
    """Coefficients of the spline that goes through ``values`` on the nodes of a grid.

    Args:
        values: (n_1, ..., n_d) float64. A periodic axis leaves out its last node, an open one has both ends.
        periodic: d flags.

    Returns:
        (m_1, ..., m_d): m = n + 3 on a periodic axis (three are repeated), n + 2 on an open one.

    Raises:
        ValueError: an axis with fewer than 4 nodes.
    """
    for axis, around in enumerate(periodic):
        matrix = _prefilter(values.shape[axis], bool(around)).to(values)
        values = torch.tensordot(matrix, values, dims=([1], [axis])).movedim(0, axis)
    return values.contiguous()


@lru_cache(maxsize=32)
def _prefilter(nodes: int, periodic: bool) -> Tensor:
    """(m, n) matrix from node values to coefficients, by inverting what takes coefficients to node values."""
    if nodes < 4:
        raise ValueError(f"a cubic spline needs at least 4 nodes along an axis, got {nodes}")
    if periodic:
        rows = torch.arange(nodes)
        collocation = torch.zeros(nodes, nodes, dtype=torch.float64)
        for offset, weight in ((-1, 1.0), (0, 4.0), (1, 1.0)):
            collocation[rows, (rows + offset) % nodes] += weight / 6.0
        around: Tensor = torch.linalg.inv(collocation)
        return around[(torch.arange(nodes + 3) - 1) % nodes]
    size = nodes + 2
    collocation = torch.zeros(size, size, dtype=torch.float64)
    rows = torch.arange(nodes)
    for offset, weight in ((0, 1.0), (1, 4.0), (2, 1.0)):
        collocation[rows, rows + offset] = weight / 6.0
    # not a knot: the third derivative does not jump at the second and the last but one node
    jump = torch.tensor([-1.0, 4.0, -6.0, 4.0, -1.0], dtype=torch.float64)
    collocation[nodes, :5] = jump
    collocation[nodes + 1, -5:] = jump
    inverse: Tensor = torch.linalg.inv(collocation)
    return inverse[:, :nodes]


def _reference(
    points: Tensor, coefficients: Tensor, lower: Tensor, spacing: Tensor, periodic: Tensor
) -> tuple[Tensor, Tensor]:
    end = torch.tensor([size - 3 for size in coefficients.shape], dtype=points.dtype, device=points.device)
    place = (points - lower) / spacing
    kept = torch.minimum(place.clamp_min(0.0), end)
    inside = (place == kept) | periodic
    place = torch.where(periodic, torch.remainder(place, end), kept)
    floor = torch.minimum(torch.nan_to_num(place.floor(), nan=0.0), end - 1.0)
    cell, t = floor.long(), place - floor
    square = t * t
    powers = torch.stack([torch.ones_like(t), t, square, square * t], dim=-1)
    both = powers @ torch.tensor(_BASIS, dtype=points.dtype, device=points.device)
    weights, slopes = both[..., :4], both[..., 4:] / spacing[:, None]
    slopes = slopes * inside[..., None]  # NaN stays NaN
    return _contract(_stencil(coefficients, cell), weights, slopes)


def _shapes(points: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return points.new_empty(points.shape[0]), torch.empty_like(points)


def _stencil(coefficients: Tensor, cell: Tensor) -> Tensor:
    """The 4^d coefficients that act on each point, (B, 4, ..., 4)."""
    dimension = coefficients.ndim
    four = torch.arange(4, device=cell.device)
    flat = torch.zeros((len(cell),) + (1,) * dimension, dtype=torch.int64, device=cell.device)
    for k in range(dimension):
        index = cell[:, k, None] + four
        flat = flat * coefficients.shape[k] + index.reshape(
            [len(cell)] + [4 if j == k else 1 for j in range(dimension)]
        )
    return coefficients.reshape(-1)[flat]


def _contract(stencil: Tensor, weights: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the stencil with the weights of all axes, and with the slope of one of them in turn."""
    value = stencil
    partial: list[Tensor] = []
    for k in reversed(range(weights.shape[1])):
        by_weight, by_slope = weights[:, k], slopes[:, k]
        partial = [_last(value, by_slope), *(_last(p, by_weight) for p in partial)]
        value = _last(value, by_weight)
    return value, torch.stack(partial, dim=1)


def _last(tensor: Tensor, vector: Tensor) -> Tensor:
    return (tensor * vector.reshape([len(vector)] + [1] * (tensor.ndim - 2) + [4])).sum(dim=-1)


_operator = define(
    "cubic_spline(Tensor points, Tensor coefficients, Tensor lower, Tensor spacing, Tensor periodic) "
    "-> (Tensor, Tensor)",
    _reference,
    _shapes,
)


def cubic_spline(
    points: Tensor, coefficients: Tensor, lower: Tensor, spacing: Tensor, periodic: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and gradient of a spline at points.

    Beyond an end of an open axis the value is that of the end, and the gradient along this axis is exactly zero.

    Args:
        points: (B, d) float64.
        coefficients: (m_1, ..., m_d) of :func:`spline_coefficients`.
        lower: (d,) first node of each axis.
        spacing: (d,) between nodes.
        periodic: (d,) bool.

    Returns:
        (B,) and (B, d); NaN where a coordinate is NaN, or infinite on a periodic axis.
    """
    found: tuple[Tensor, Tensor] = _operator(points, coefficients, lower, spacing, periodic)
    return found
