"""The angle at the middle one of three atoms."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import PointKernel, VariableGradient, check_atoms, check_positions, gradient_of_points

__all__ = ["Angle", "angle_kernel"]


@dataclass(frozen=True)
class Angle:
    r"""Angle i-j-k at atom j in radians, in [0, pi].

    With :math:`u = r_i - r_j` and :math:`v = r_k - r_j` it is :math:`\mathrm{atan2}(|u \times v|, u \cdot v)`, which is
    accurate at all angles.  Where the three atoms are on a line, to within rounding, the gradient is undefined and is
    returned as 0; so is the value where two atoms coincide.

    Args:
        i, j, k: atom indices, from 0; j is in the middle.
        name: label in files and plots.

    Raises:
        ValueError: for negative or repeated indices.
    """

    i: int
    j: int
    k: int
    name: str = "angle"

    def __post_init__(self) -> None:
        check_atoms(self.name, self.atoms)

    @property
    def atoms(self) -> tuple[int, int, int]:
        """The three atom indices."""
        return (self.i, self.j, self.k)

    @property
    def period(self) -> None:
        """An angle between 0 and pi is not periodic."""
        return

    @property
    def unit(self) -> str:
        """Radians."""
        return "rad"

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Angles (B,) in rad of positions (B, N, 3) in nm."""
        check_positions(self.name, positions, self.atoms)
        u, v, normal, straight = _measure(torch.stack([positions[:, atom].t() for atom in self.atoms]))
        squared = (normal * normal).sum(0)
        sine = torch.where(straight, 0.0, torch.where(straight, 1.0, squared).sqrt())
        return _angle(sine, (u * v).sum(0))

    def value_and_gradient(self, positions: torch.Tensor) -> VariableGradient:
        """Angles (B,) and their gradient on the three atoms."""
        check_positions(self.name, positions, self.atoms)
        return gradient_of_points(positions, self.atoms, angle_kernel)

    @property
    def kernel(self) -> PointKernel:
        """What computes several angles at once."""
        return angle_kernel


def _measure(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two arms (3, ...), their cross product, and where they are parallel, of points (3, 3, ...)."""
    u, v = points[0] - points[1], points[2] - points[1]
    normal = torch.linalg.cross(u, v, dim=0)
    rounding = (16 * torch.finfo(points.dtype).eps) ** 2
    straight = (normal * normal).sum(0) <= rounding * (u * u).sum(0) * (v * v).sum(0)
    return u, v, normal, straight


def _angle(sine: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
    # coinciding atoms: atan2(0, 0) is 0, but its derivative is NaN
    undefined = (sine == 0) & (cosine == 0)
    return torch.atan2(sine, torch.where(undefined, 1.0, cosine))


def angle_kernel(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles and their gradients of points (3, 3, ...): values (...) and gradients (3, 3, ...)."""
    u, v, normal, straight = _measure(points)
    sine = torch.where(straight, 0.0, (normal * normal).sum(0).sqrt())
    bent = torch.where(straight, 1.0, sine)

    def along(arm: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
        squared = torch.where(straight, 1.0, (arm * arm).sum(0))
        return torch.where(straight, 0.0, turned / (squared * bent))

    first = along(u, torch.linalg.cross(u, normal, dim=0))
    last = along(v, torch.linalg.cross(normal, v, dim=0))
    return _angle(sine, (u * v).sum(0)), torch.stack((first, -first - last, last))
