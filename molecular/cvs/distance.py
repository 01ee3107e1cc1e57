"""The distance between two atoms."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import check_atoms, check_positions

__all__ = ["Distance"]


@dataclass(frozen=True)
class Distance:
    r"""Distance :math:`|r_j - r_i|` in nm, without periodic images.

    At zero distance the gradient is undefined and is returned as 0, never NaN.

    Args:
        i, j: atom indices, from 0.
        name: label in files and plots.

    Raises:
        ValueError: for negative or repeated indices.
    """

    i: int
    j: int
    name: str = "distance"

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
        squared = (difference * difference).sum(-1)
        apart = squared != 0
        safe = torch.where(apart, squared, torch.ones_like(squared))
        return torch.where(apart, safe.sqrt(), torch.zeros_like(squared))
