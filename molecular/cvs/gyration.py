"""The radius of gyration of a group of atoms."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import check_group, check_positions, safe_sqrt
from .weights import check_weights, normalised

__all__ = ["GyrationRadius"]


@dataclass(frozen=True)
class GyrationRadius:
    r"""Radius of gyration :math:`\sqrt{\sum_i w_i |r_i - \bar r|^2}` in nm, with :math:`\bar r = \sum_i w_i r_i`.

    Args:
        atoms: indices, from 0; at least two.
        masses: one for each atom, or None for equal weights; weights w are masses over their sum.
        name: label in files and plots.

    Raises:
        ValueError: for bad indices or masses.
    """

    atoms: tuple[int, ...]
    masses: tuple[float, ...] | None = None
    name: str = "gyration"

    def __post_init__(self) -> None:
        check_group(self.name, self.atoms, at_least=2)
        check_weights(self.name, self.masses, len(self.atoms))

    @property
    def period(self) -> None:
        """Not periodic."""
        return

    @property
    def unit(self) -> str:
        """Nanometres."""
        return "nm"

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Radii (B,) in nm of positions (B, N, 3) in nm."""
        check_positions(self.name, positions, self.atoms)
        weights = normalised(self.masses, len(self.atoms), positions)[:, None]
        points = positions.index_select(1, torch.tensor(self.atoms, device=positions.device))
        centred = points - (weights * points).sum(1, keepdim=True)
        return safe_sqrt((weights * centred * centred).sum((1, 2)))
