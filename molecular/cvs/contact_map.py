"""Contacts compared with a reference map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from .base import check_atoms, check_positions
from .cell import Cell
from .coordination import pair_distances
from .switch import RationalSwitch

__all__ = ["ContactMap", "native_pairs"]


@dataclass(frozen=True)
class ContactMap:
    r"""Weighted contacts :math:`w_k (s(r_k) - c_k)` of pairs k against a reference c, as one number.

    ``mode="sum"`` adds them, which with c = 0 and w = 1/P is the fraction of contacts made; ``mode="distance"`` adds
    their squares, the squared distance from the reference map.  These are SUM and CMDIST of PLUMED's CONTACTMAP.

    Args:
        pairs: pairs of atom indices, none twice.
        switch: the switching function s.
        reference: c, one a pair; None for 0.
        weights: w, one a pair; None for 1.
        mode: "sum" or "distance".
        cell: the periodic cell for nearest images, or None.
        name: label in files and plots.

    Raises:
        ValueError: for bad pairs, or numbers that do not fit them.
    """

    pairs: tuple[tuple[int, int], ...]
    switch: RationalSwitch
    reference: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None
    mode: Literal["sum", "distance"] = "sum"
    cell: Cell | None = None
    name: str = "contact_map"

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError(f"{self.name}: at least one pair of atoms is needed")
        for pair in self.pairs:
            check_atoms(self.name, pair)
            if len(pair) != 2:
                raise ValueError(f"{self.name}: a contact has two atoms, got {list(pair)}")
        if len({frozenset(pair) for pair in self.pairs}) < len(self.pairs):
            raise ValueError(f"{self.name}: a pair of atoms is given twice")
        for what, numbers in (("reference values", self.reference), ("weights", self.weights)):
            if numbers is not None and len(numbers) != len(self.pairs):
                raise ValueError(f"{self.name}: {len(numbers)} {what} for {len(self.pairs)} pairs")
            if numbers is not None and not all(math.isfinite(x) for x in numbers):
                raise ValueError(f"{self.name}: {what} must be finite")
        if self.mode not in ("sum", "distance"):
            raise ValueError(f"{self.name}: mode must be 'sum' or 'distance', got {self.mode!r}")

    @property
    def atoms(self) -> tuple[int, ...]:
        """All atoms that occur, sorted."""
        return tuple(sorted({atom for pair in self.pairs for atom in pair}))

    @property
    def period(self) -> None:
        """Not periodic."""
        return

    @property
    def unit(self) -> str:
        """A number."""
        return ""

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Values (B,) of positions (B, N, 3) in nm."""
        check_positions(self.name, positions, self.atoms)
        pairs = torch.tensor(self.pairs, device=positions.device)
        contacts = self.switch(pair_distances(positions, pairs, self.cell))
        if self.reference is not None:
            contacts = contacts - contacts.new_tensor(self.reference)
        if self.weights is not None:
            contacts = contacts * contacts.new_tensor(self.weights)
        return (contacts if self.mode == "sum" else contacts * contacts).sum(-1)


def native_pairs(
    positions: torch.Tensor,
    atoms: tuple[int, ...],
    residues: tuple[int, ...],
    *,
    within: float,
    separation: int,
    cell: Cell | None = None,
) -> tuple[tuple[int, int], ...]:
    """Pairs of ``atoms`` that a structure has in contact.

    Args:
        positions: (N, 3) in nm.
        atoms: indices to choose from.
        residues: number of the residue of each of these atoms.
        within: largest distance in nm.
        separation: smallest difference of the residue numbers.
        cell: the periodic cell for nearest images, or None.
    """
    candidates = [
        (i, j)
        for p, (i, m) in enumerate(zip(atoms, residues, strict=True))
        for j, n in list(zip(atoms, residues, strict=True))[p + 1 :]
        if abs(m - n) >= separation
    ]
    if not candidates:
        return ()
    distances = pair_distances(positions[None], torch.tensor(candidates), cell)[0]
    return tuple(pair for pair, near in zip(candidates, (distances <= within).tolist(), strict=True) if near)
