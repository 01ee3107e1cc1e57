"""The sum of hills at points: the bias they make, and the free energy it estimates."""

from __future__ import annotations

import torch
from torch import Tensor

from ...fkc.bias import SHAPES
from ...fkc.bias.variables import differences
from ...fkc.ops import kernel_sum
from .hills import HillsTable

__all__ = ["evaluate_hills", "hills_free_energy", "hills_value_and_gradient"]

_SHAPE_OF = {"stretched-gaussian": SHAPES["stretched-gaussian"], "gaussian": SHAPES["truncated-gaussian"]}
_ELEMENTS_AT_ONCE = 500_000


def evaluate_hills(table: HillsTable, points: Tensor) -> Tensor:
    """V at points (B, d): (B,) float64, in the unit of the heights. See `hills_value_and_gradient`."""
    return hills_value_and_gradient(table, points)[0]


def hills_free_energy(table: HillsTable, points: Tensor) -> Tensor:
    """F (B,) = -sum of the hills with the heights of the file: what PLUMED's ``sum_hills`` prints, not shifted.

    For hills of one bias factor this is -gamma / (gamma - 1) V; without well-tempering -V.
    """
    return -_summed(table, points, table.file_heights)[0]


def hills_value_and_gradient(table: HillsTable, points: Tensor) -> tuple[Tensor, Tensor]:
    r"""V and its gradient.

    .. math:: V(s) = \sum_m h_m\,(A e^{-q_m} + B)\,[q_m < 6.25], \quad
              q_m = \tfrac12 (s - c_m)^\top (L_m L_m^\top)^{-1} (s - c_m)

    with A = 1, B = 0 for ``gaussian`` and A = 1/(1 - e^{-6.25}), B = 1 - A for ``stretched-gaussian``; differences
    of a periodic variable are the shortest around its circle.

    Args:
        table: of hills, diagonal or multivariate.
        points: (B, d) in the units of the centres; (B,) for one variable.

    Returns:
        (B,) and (B, d) float64.

    Raises:
        ValueError: points of another dimension.
    """
    return _summed(table, points, table.heights)


def _summed(table: HillsTable, points: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
    d = len(table.names)
    points = points.double()
    if d == 1 and points.ndim == 1:
        points = points[:, None]
    if points.ndim != 2 or points.shape[1] != d:
        raise ValueError(f"points must be (B, {d}) for {list(table.names)}, got {tuple(points.shape)}")
    shape = _SHAPE_OF[table.kernel]
    periods = torch.tensor([period or 0.0 for period in table.periods], dtype=torch.float64)
    if not table.multivariate:
        found: tuple[Tensor, Tensor] = kernel_sum(
            points, table.centers, table.sigmas, heights, periods, shape.scale, shape.shift, shape.cutoff
        )
        return found
    value, gradient = torch.zeros(len(points), dtype=torch.float64), torch.zeros_like(points)
    inverse = torch.linalg.solve_triangular(table.sigmas, torch.eye(d, dtype=torch.float64), upper=False)
    at_once = max(1, _ELEMENTS_AT_ONCE // max(1, len(points)))
    for first in range(0, len(table), at_once):
        some = slice(first, first + at_once)
        away = differences(points[:, None], table.centers[some], periods)
        reduced = torch.einsum("mij,bmj->bmi", inverse[some], away)
        q = 0.5 * reduced.square().sum(-1)
        inside = ~(q >= shape.cutoff)  # NaN is kept
        exponential = torch.where(inside, shape.scale * heights[some] * torch.exp(-q), 0.0)
        value += exponential.sum(1) + torch.where(inside, shape.shift * heights[some], 0.0).sum(1)
        gradient -= torch.einsum("bm,bmi,mij->bj", exponential, reduced, inverse[some])
    return value, gradient
