"""The torsion (dihedral) angle of four atoms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .base import PointKernel, VariableGradient, check_atoms, check_positions, gradient_of_points

__all__ = ["Torsion", "torsion_kernel"]


@dataclass(frozen=True)
class Torsion:
    r"""Torsion angle of atoms i-j-k-l in radians, in [-pi, pi], with the IUPAC sign.

    With :math:`b_1 = r_j - r_i`, :math:`b_2 = r_k - r_j`, :math:`b_3 = r_l - r_k` the angle is
    :math:`\mathrm{atan2}(|b_2|\, b_1 \cdot (b_2 \times b_3),\; (b_1 \times b_2) \cdot (b_2 \times b_3))`
    (Blondel & Karplus, J. Comput. Chem. 17, 1132 (1996)): looking along j -> k, positive when the far bond is
    turned clockwise from the near one.  L-amino acids have phi < 0 mostly.

    Three atoms on a line, to within rounding, leave the angle undefined; there the value is 0 and its gradient 0,
    never NaN.

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
        points = torch.stack([positions[:, atom].t() for atom in self.atoms])  # (4, 3, B)
        return _measure(points).angle

    def value_and_gradient(self, positions: torch.Tensor) -> VariableGradient:
        """Angles (B,) and their gradient on the four atoms."""
        check_positions(self.name, positions, self.atoms)
        return gradient_of_points(positions, self.atoms, torsion_kernel)

    @property
    def kernel(self) -> PointKernel:
        """What computes several torsions at once."""
        return torsion_kernel


class _Measured(NamedTuple):
    bonds: torch.Tensor  # (3, 3, ...)
    normals: torch.Tensor  # (2, 3, ...)
    normals_squared: torch.Tensor  # (2, ...)
    squared: torch.Tensor  # (3, ...): of the bonds
    middle: torch.Tensor  # (...): length of the middle bond
    straight: torch.Tensor  # (...)
    angle: torch.Tensor  # (...)


def _measure(points: torch.Tensor) -> _Measured:
    """Everything a torsion needs, of points (4, 3, ...)."""
    bonds = points[1:] - points[:-1]
    normals = _cross(bonds[:2], bonds[1:])
    squared = (bonds * bonds).sum(1)
    normals_squared = (normals * normals).sum(1)
    # a sine of the bond angle that rounding alone could make leaves the plane, and the angle, undefined
    rounding = (16 * torch.finfo(points.dtype).eps) ** 2
    straight = (normals_squared <= rounding * squared[:2] * squared[1:]).any(0)
    middle = torch.where(straight, 1.0, squared[1]).sqrt()
    cosine = (normals[0] * normals[1]).sum(0)
    sine = middle * (bonds[0] * normals[1]).sum(0)
    # NaN coordinates are no degenerate geometry: comparisons with NaN are false, so they stay NaN
    angle = torch.atan2(torch.where(straight, 0.0, sine), torch.where(straight, 1.0, cosine))
    return _Measured(bonds, normals, normals_squared, squared, middle, straight, angle)


def _cross(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cross products along dimension 1; faster here than `torch.linalg.cross`."""
    (ax, ay, az), (bx, by, bz) = a.unbind(1), b.unbind(1)
    return torch.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), 1)


def torsion_kernel(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Torsions and their gradients of points (4, 3, ...): values (...) and gradients (4, 3, ...).

    Those of Blondel & Karplus (1996), in the signs of `Torsion`.
    """
    m = _measure(points)
    scale = torch.where(m.straight, 0.0, m.middle / m.normals_squared)
    outer = m.normals * scale[:, None]
    along = (m.bonds[::2] * m.bonds[1]).sum(1) / torch.where(m.straight, 1.0, m.squared[1])
    first, last = outer
    transfer = first * along[0] + last * along[1]
    return m.angle, torch.stack((-first, transfer + first, -transfer - last, last))
