"""Where a molecule is relative to a surface: its height over it, and its place along it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .base import VariableGradient, check_group, check_positions, wrapped
from .cell import Cell
from .weights import check_weights, normalised

__all__ = ["Height", "Lateral"]

_AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


@dataclass(frozen=True)
class Height:
    r"""Height in nm of a group's centre over a surface, :math:`n \cdot (\bar r - \bar r_\mathrm{surface})`.

    The surface is the centre of a group of slab atoms, or a plane.  With a cell, both groups are put together from
    nearest images along n, and the height is taken modulo the cell's own height H into [lowest, lowest + H).  It is
    an open variable all the same: a group that leaves that interval reappears at its other end, so keep it away from
    there with a wall.

    Args:
        atoms: indices of the group.
        surface: indices of the slab atoms, or the place of a plane along the normal in nm.
        normal: "x", "y", "z" or three numbers of any length; or "a", "b", "c", the normal of the plane of the two
            other cell vectors, on the side of this one.
        cell: the periodic cell, or None.  Two of its vectors must lie in the surface.
        lowest: lower end of the values with a cell, in nm; None for -H/2.
        masses: of ``atoms``, for their centre of mass; None for the mean.
        name: label in files and plots.

    Raises:
        ValueError: for bad atoms, masses or normal, for a cell vector askew to the surface, or ``lowest`` without one.
    """

    atoms: tuple[int, ...]
    surface: tuple[int, ...] | float = 0.0
    normal: str | Sequence[float] = "z"
    cell: Cell | None = None
    lowest: float | None = None
    masses: tuple[float, ...] | None = None
    name: str = "height"

    def __post_init__(self) -> None:
        check_group(self.name, self.atoms)
        check_weights(self.name, self.masses, len(self.atoms))
        if not isinstance(self.surface, tuple):
            if not math.isfinite(self.surface):
                raise ValueError(f"{self.name}: the plane must be at a finite place, got {self.surface}")
        else:
            check_group(self.name, self.surface)
            check_atoms_apart(self.name, self.atoms, self.surface)
        if self.lowest is not None and self.cell is None:
            raise ValueError(f"{self.name}: lowest is for a periodic cell")
        if not isinstance(self.normal, str):
            object.__setattr__(self, "normal", tuple(float(x) for x in self.normal))
        _ = self.span

    @property
    def period(self) -> None:
        """An open variable."""
        return

    @property
    def unit(self) -> str:
        """Nanometres."""
        return "nm"

    @property
    def direction(self) -> tuple[float, float, float]:
        """The unit normal."""
        if isinstance(self.normal, str) and self.normal in ("a", "b", "c"):
            if self.cell is None:
                raise ValueError(f"{self.name}: the normal {self.normal!r} needs a cell")
            x, y, z = self.cell.reciprocal()["abc".index(self.normal)].tolist()
        elif isinstance(self.normal, str):
            if self.normal not in _AXES:
                raise ValueError(f"{self.name}: the normal is x, y, z, a, b, c or three numbers, got {self.normal!r}")
            x, y, z = _AXES[self.normal]
        else:
            if len(self.normal) != 3 or not 0 < math.hypot(*self.normal) < math.inf:
                raise ValueError(f"{self.name}: the normal must be three numbers, not all zero, got {self.normal}")
            x, y, z = self.normal
        length = math.hypot(x, y, z)
        return (x / length, y / length, z / length)

    @property
    def span(self) -> float | None:
        """H, the height of the cell along the normal, or None without a cell."""
        n = self.direction
        if self.cell is None:
            return None
        along = sorted(abs(sum(a * b for a, b in zip(v, n, strict=True))) for v in self.cell.vectors)
        if along[1] > 1e-6 * along[2]:
            raise ValueError(f"{self.name}: two vectors of the cell must lie in the surface, normal to {n}")
        return along[2]

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Heights (B,) in nm of positions (B, N, 3) in nm."""
        slab = self.surface if isinstance(self.surface, tuple) else ()
        check_positions(self.name, positions, (*self.atoms, *slab))
        span = self.span
        normal = positions.new_tensor(self.direction)
        height = _centre(positions @ normal, self.atoms, self.masses, span)
        height = height - (_centre(positions @ normal, slab, None, span) if slab else float(self.surface))  # type: ignore[arg-type]
        return height if span is None else wrapped(height, span, self.lowest)

    def value_and_gradient(self, positions: torch.Tensor) -> VariableGradient:
        """Heights (B,) and their gradient, the same everywhere."""
        with torch.no_grad():
            values = self(positions)
        weights = [normalised(self.masses, len(self.atoms), positions)]
        atoms = self.atoms
        if isinstance(self.surface, tuple):
            atoms = (*atoms, *self.surface)
            weights.append(-normalised(None, len(self.surface), positions))
        normal = positions.new_tensor(self.direction)
        gradient = torch.cat(weights)[:, None] * normal
        return VariableGradient(values, *_uniform(atoms, gradient, values))


@dataclass(frozen=True)
class Lateral:
    r"""Place of a group's centre along a cell vector in nm, a periodic variable.

    It is the fractional coordinate along the vector times its length L, in [-L/2, L/2): in an orthorhombic cell the
    coordinate itself, in others the one that all images of an atom share.  The group is put together from nearest
    images in this coordinate, so it must be shorter than L/2.

    Args:
        atoms: indices of the group.
        axis: "a", "b" or "c".
        cell: the periodic cell.
        relative_to: atoms whose centre is the origin, such as one atom of the slab; None for the cell's own origin.
        masses: of ``atoms``, for their centre of mass; None for the mean.
        name: label in files and plots.

    Raises:
        ValueError: for bad atoms, masses or axis.
    """

    atoms: tuple[int, ...]
    axis: str
    cell: Cell
    relative_to: tuple[int, ...] | None = None
    masses: tuple[float, ...] | None = None
    name: str = "lateral"

    def __post_init__(self) -> None:
        check_group(self.name, self.atoms)
        check_weights(self.name, self.masses, len(self.atoms))
        if self.axis not in ("a", "b", "c"):
            raise ValueError(f"{self.name}: the axis must be a, b or c, got {self.axis!r}")
        if self.relative_to is not None:
            check_group(self.name, self.relative_to)
            check_atoms_apart(self.name, self.atoms, self.relative_to)

    @property
    def period(self) -> float:
        """L, the length of the cell vector."""
        return self.cell.lengths["abc".index(self.axis)]

    @property
    def unit(self) -> str:
        """Nanometres."""
        return "nm"

    def _along(self, positions: torch.Tensor) -> torch.Tensor:
        return (self.period * self.cell.reciprocal()["abc".index(self.axis)]).to(positions)

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Places (B,) in nm of positions (B, N, 3) in nm."""
        origin = self.relative_to or ()
        check_positions(self.name, positions, (*self.atoms, *origin))
        places = positions @ self._along(positions)
        place = _centre(places, self.atoms, self.masses, self.period)
        if origin:
            place = place - _centre(places, origin, None, self.period)
        return wrapped(place, self.period)

    def value_and_gradient(self, positions: torch.Tensor) -> VariableGradient:
        """Places (B,) and their gradient, the same everywhere."""
        with torch.no_grad():
            values = self(positions)
        weights = [normalised(self.masses, len(self.atoms), positions)]
        if self.relative_to is not None:
            weights.append(-normalised(None, len(self.relative_to), positions))
        gradient = torch.cat(weights)[:, None] * self._along(positions)
        return VariableGradient(values, *_uniform((*self.atoms, *(self.relative_to or ())), gradient, values))


def check_atoms_apart(name: str, atoms: tuple[int, ...], others: tuple[int, ...]) -> None:
    """Refuse atoms that are in both groups.

    Raises:
        ValueError: naming the variable and an atom.
    """
    both = sorted(set(atoms) & set(others))
    if both:
        raise ValueError(f"{name}: atom {both[0]} is in the group and in what it is measured from")


def _centre(
    places: torch.Tensor, atoms: tuple[int, ...], masses: tuple[float, ...] | None, period: float | None
) -> torch.Tensor:
    """Weighted means (B,) of places (B, N) along a line, each taken at its image nearest to the first atom's."""
    chosen = places.index_select(1, torch.tensor(atoms, device=places.device))
    if period is not None:
        first = chosen[:, :1]
        chosen = chosen - period * torch.round((chosen - first).detach() / period)
    return (chosen * normalised(masses, len(atoms), places)).sum(-1)


def _uniform(atoms: tuple[int, ...], gradient: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices, and a gradient (k, 3) that all of a batch share, as (B, k, 3)."""
    return torch.tensor(atoms, device=values.device), gradient.expand(len(values), *gradient.shape)
