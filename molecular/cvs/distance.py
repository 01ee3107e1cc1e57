"""The distance between two atoms."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import PointKernel, VariableGradient, check_atoms, check_positions, gradient_of_points, safe_sqrt
from .cell import Cell

__all__ = ["Distance", "distance_kernel"]


@dataclass(frozen=True)
class Distance:
    r"""Distance :math:`|r_j - r_i|` in nm, to the nearest image where a cell is given.

    At zero distance the gradient is undefined and is returned as 0, never NaN.

    Args:
        i, j: atom indices, from 0.
        name: label in files and plots.
        cell: the periodic cell, or None for no periodic images.

    Raises:
        ValueError: for negative or repeated indices.
    """

    i: int
    j: int
    name: str = "distance"
    cell: Cell | None = None

    def __post_init__(self) -> None:
        check_atoms(self.name, self.atoms)

    @property
    def atoms(self) -> tuple[int, int]:
        """The two atom indices."""
        return (self.i, self.j)

    @property
    def period(self) -> None:
        """Distances are not periodic."""
        return

    @property
    def unit(self) -> str:
        """Nanometres."""
        return "nm"

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Distances (B,) in nm of positions (B, N, 3) in nm."""
        check_positions(self.name, positions, self.atoms)
        difference = positions[:, self.j] - positions[:, self.i]
        if self.cell is not None:
            difference = self.cell.minimum_image(difference)
        return safe_sqrt((difference * difference).sum(-1))

    def value_and_gradient(self, positions: torch.Tensor) -> VariableGradient:
        """Distances (B,) and their gradient on the two atoms."""
        check_positions(self.name, positions, self.atoms)
        if self.kernel is not None:
            return gradient_of_points(positions, self.atoms, self.kernel)
        assert self.cell is not None
        atoms = torch.tensor(self.atoms, device=positions.device)
        with torch.no_grad():
            difference = self.cell.minimum_image(positions[:, self.j] - positions[:, self.i])
            values, direction = _length(difference.t())
        return VariableGradient(values, atoms, torch.stack((-direction.t(), direction.t()), 1))

    @property
    def kernel(self) -> PointKernel | None:
        """What computes several distances at once; None under a cell."""
        return distance_kernel if self.cell is None else None


def _length(difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = (difference * difference).sum(0).sqrt()
    return values, difference / torch.where(values == 0, 1.0, values)


def distance_kernel(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances and their gradients of points (2, 3, ...): values (...) and gradients (2, 3, ...)."""
    values, direction = _length(points[1] - points[0])
    return values, torch.stack((-direction, direction))
