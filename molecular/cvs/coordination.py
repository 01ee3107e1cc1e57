"""The coordination number: switched contacts between two groups, or within one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import check_group, check_positions, safe_sqrt
from .cell import Cell
from .switch import RationalSwitch

__all__ = ["Coordination", "pair_distances"]


@dataclass(frozen=True)
class Coordination:
    r"""Coordination number :math:`\sum_{(i, j)} s(|r_i - r_j|)` with a switch s, over the pairs of two groups.

    An unordered pair counts once, however often the groups name it, and an atom is no neighbour of itself.

    Args:
        group_a: atom indices.
        group_b: atom indices, or None for the pairs within ``group_a``.
        switch: the switching function.
        name: label in files and plots.
        cell: the periodic cell for nearest images, or None.

    Raises:
        ValueError: for bad indices, or groups that make no pair.

    Example:
        >>> oxygens = Coordination((0,), (3, 6, 9), RationalSwitch(r0=0.35), name="cn")
    """

    group_a: tuple[int, ...]
    group_b: tuple[int, ...] | None
    switch: RationalSwitch
    name: str = "coordination"
    cell: Cell | None = None

    def __post_init__(self) -> None:
        check_group(self.name, self.group_a)
        check_group(self.name, self.group_a if self.group_b is None else self.group_b)
        if not self.pairs:
            raise ValueError(f"{self.name}: the groups {self.group_a} and {self.group_b} make no pair of atoms")

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of atoms, each once, sorted."""
        other = self.group_a if self.group_b is None else self.group_b
        return sorted({(min(i, j), max(i, j)) for i in self.group_a for j in other if i != j})

    @property
    def atoms(self) -> tuple[int, ...]:
        """All atoms that occur, sorted."""
        return tuple(sorted({*self.group_a, *(self.group_b or ())}))

    @property
    def period(self) -> None:
        """Not periodic."""
        return

    @property
    def unit(self) -> str:
        """A number."""
        return ""

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Coordination numbers (B,) of positions (B, N, 3) in nm."""
        check_positions(self.name, positions, self.atoms)
        pairs = torch.tensor(self.pairs, device=positions.device)
        return self.switch(pair_distances(positions, pairs, self.cell)).sum(-1)


def pair_distances(positions: torch.Tensor, pairs: torch.Tensor, cell: Cell | None = None) -> torch.Tensor:
    """Distances (B, P) in nm of pairs (P, 2) of atoms, to nearest images under a cell; gradient 0 at distance 0."""
    difference = positions.index_select(1, pairs[:, 1]) - positions.index_select(1, pairs[:, 0])
    if cell is not None:
        difference = cell.minimum_image(difference)
    return safe_sqrt((difference * difference).sum(-1))
