"""The torsion (dihedral) angle of four atoms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .base import check_atoms, check_positions

__all__ = ["Torsion"]


@dataclass(frozen=True)
class Torsion:
    r"""Torsion angle of atoms i-j-k-l in radians, in [-pi, pi], with the IUPAC sign.

    With :math:`b_1 = r_j - r_i`, :math:`b_2 = r_k - r_j`, :math:`b_3 = r_l - r_k` the angle is
    :math:`\mathrm{atan2}(|b_2|\, b_1 \cdot (b_2 \times b_3),\; (b_1 \times b_2) \cdot (b_2 \times b_3))`
    (Blondel & Karplus, J. Comput. Chem. 17, 1132 (1996)): looking along j -> k, positive when the far bond is
    turned clockwise from the near one.  L-amino acids have phi < 0 mostly.

    Three atoms on a line leave the angle undefined; there the value is 0 and its gradient 0, never NaN.

    Args:
        i, j, k, l: atom indices, from 0.
        name: label in files and plots.

    Raises:
        ValueError: for negative or repeated indices.

    Example:
        >>> phi = Torsion(4, 6, 8, 14, name="phi")  # alanine dipeptide
        >>> phi.period
        6.283185307179586
    """

    i: int
    j: int
    k: int
    l: int  # noqa: E741 - the field's names for the four atoms
    name: str = "torsion"

    def __post_init__(self) -> None:
        check_atoms(self.name, self.atoms)

    @property
    def atoms(self) -> tuple[int, int, int, int]:
        """The four atom indices."""
        return (self.i, self.j, self.k, self.l)

    @property
    def period(self) -> float:
        """2 pi."""
        return 2.0 * math.pi

    @property
    def unit(self) -> str:
        """Radians."""
        return "rad"

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Angles (B,) in rad of positions (B, N, 3) in nm."""
        check_positions(self.name, positions, self.atoms)
        r_i, r_j, r_k, r_l = (positions[:, atom] for atom in self.atoms)
        b1, b2, b3 = r_j - r_i, r_k - r_j, r_l - r_k
        normal_near = torch.linalg.cross(b1, b2)
        normal_far = torch.linalg.cross(b2, b3)
        cosine = (normal_near * normal_far).sum(-1)
        b2_squared = (b2 * b2).sum(-1)
        b2_length = torch.where(b2_squared > 0, b2_squared, torch.ones_like(b2_squared)).sqrt()
        sine = b2_length * (b1 * normal_far).sum(-1)
        tiny = torch.finfo(positions.dtype).tiny
        defined = cosine * cosine + sine * sine > tiny
        angle = torch.atan2(
            torch.where(defined, sine, torch.zeros_like(sine)),
            torch.where(defined, cosine, torch.ones_like(cosine)),
        )
        # NaN coordinates are no degenerate geometry: they stay NaN and are seen by the caller.
        return torch.where(torch.isnan(cosine), cosine, angle)
