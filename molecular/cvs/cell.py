"""A periodic cell: nearest images and fractional coordinates, for orthorhombic and general cells."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

__all__ = ["Cell"]

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Cell:
    """A cell with periodic images along its three vectors; it is fixed, the same for all of a batch.

    Args:
        vectors: a, b, c in nm, each (x, y, z), in any orientation.

    Raises:
        ValueError: for vectors that are not three finite triples, or that span no volume.

    Example:
        >>> Cell.from_lengths(3.0, 3.0, 5.0).lengths
        (3.0, 3.0, 5.0)
    """

    vectors: tuple[Vector, Vector, Vector]

    def __post_init__(self) -> None:
        rows = tuple(tuple(float(x) for x in v) for v in self.vectors)
        if len(rows) != 3 or any(len(v) != 3 for v in rows) or not all(math.isfinite(x) for v in rows for x in v):
            raise ValueError(f"a cell is three vectors of three finite numbers in nm, got {self.vectors}")
        object.__setattr__(self, "vectors", rows)
        if not self.volume > 1e-9 * math.prod(self.lengths):
            raise ValueError(f"the cell vectors {rows} span no volume")

    @classmethod
    def from_lengths(
        cls,
        a: float,
        b: float,
        c: float,
        *,
        alpha: float = math.pi / 2,
        beta: float = math.pi / 2,
        gamma: float = math.pi / 2,
    ) -> Cell:
        """From lengths in nm and angles in rad: a along x, b in the plane of x and y."""
        if (alpha, beta, gamma) == (math.pi / 2,) * 3:
            return cls(((a, 0.0, 0.0), (0.0, b, 0.0), (0.0, 0.0, c)))
        x = math.cos(beta)
        y = (math.cos(alpha) - math.cos(beta) * math.cos(gamma)) / math.sin(gamma)
        z = 1.0 - x * x - y * y
        if not z > 0:
            raise ValueError(f"no cell has the angles {alpha:g}, {beta:g}, {gamma:g} rad")
        return cls(((a, 0.0, 0.0), (b * math.cos(gamma), b * math.sin(gamma), 0.0), (c * x, c * y, c * math.sqrt(z))))

    @classmethod
    def of(cls, cell: Cell | Sequence[float] | Sequence[Sequence[float]]) -> Cell:
        """From a cell, three lengths, lengths and angles (a, b, c, alpha, beta, gamma), or three vectors.

        Raises:
            ValueError: for anything else.
        """
        if isinstance(cell, Cell):
            return cell
        values: list[Any] = list(cell)
        if len(values) == 3 and all(isinstance(v, Sequence) for v in values):
            return cls(tuple(tuple(v) for v in values))  # type: ignore[arg-type]
        if len(values) == 3 and not any(isinstance(v, Sequence) for v in values):
            return cls.from_lengths(*values)
        if len(values) == 6:
            a, b, c, alpha, beta, gamma = values
            return cls.from_lengths(a, b, c, alpha=alpha, beta=beta, gamma=gamma)
        raise ValueError(f"a cell is 3 lengths, 3 lengths and 3 angles, or 3 vectors; got {cell!r}")

    @property
    def lengths(self) -> Vector:
        """Lengths of a, b and c in nm."""
        a, b, c = (math.hypot(*v) for v in self.vectors)
        return (a, b, c)

    @property
    def volume(self) -> float:
        """In nm^3."""
        return abs(float(torch.linalg.det(torch.tensor(self.vectors, dtype=torch.float64))))

    @property
    def orthorhombic(self) -> bool:
        """Whether a, b, c lie along x, y, z."""
        return all(self.vectors[i][j] == 0.0 for i, j in product(range(3), repeat=2) if i != j)

    def reciprocal(self) -> torch.Tensor:
        """(3, 3) float64, rows a*, b*, c* in 1/nm: ``positions @ reciprocal().T`` are fractional coordinates."""
        inverse: torch.Tensor = torch.linalg.inv(torch.tensor(self.vectors, dtype=torch.float64))
        return inverse.t().contiguous()

    def minimum_image(self, difference: torch.Tensor) -> torch.Tensor:
        """The shortest periodic image of differences (..., 3) in nm. The shift itself is not differentiated."""
        with torch.no_grad():
            shift = self._orthorhombic_shift(difference) if self.orthorhombic else self._general_shift(difference)
        return difference - shift

    def _orthorhombic_shift(self, difference: torch.Tensor) -> torch.Tensor:
        edges: torch.Tensor = difference.new_tensor([self.vectors[k][k] for k in range(3)])
        shift: torch.Tensor = edges * torch.round(difference / edges)
        return shift

    def _general_shift(self, difference: torch.Tensor) -> torch.Tensor:
        basis = _reduced(self.vectors).to(difference)
        shift = torch.round(difference @ torch.linalg.inv(basis)) @ basis
        rest = difference - shift
        best, shortest = torch.zeros_like(rest), (rest * rest).sum(-1)
        # of a reduced basis the nearest image is the rounded one or a neighbour of it
        for step in torch.tensor(list(product((0.0, -1.0, 1.0), repeat=3))).to(difference) @ basis:
            squared = ((rest - step) ** 2).sum(-1)
            closer = squared < shortest
            best = torch.where(closer[..., None], step, best)
            shortest = torch.where(closer, squared, shortest)
        return shift + best


@functools.lru_cache(maxsize=64)
def _reduced(vectors: tuple[Vector, Vector, Vector]) -> torch.Tensor:
    """A Minkowski-reduced basis of the same lattice (Semaev, LNCS 2146, 181 (2001)), rows by length."""
    basis = torch.tensor(vectors, dtype=torch.float64)
    while True:
        basis = basis[torch.linalg.vector_norm(basis, dim=1).argsort()]
        a, b, c = basis
        b = b - torch.round(a @ b / (a @ a)) * a
        gram = torch.stack((a, b)) @ torch.stack((a, b)).t()
        x = torch.round(torch.linalg.solve(gram, torch.stack((a @ c, b @ c))))
        options = [c - (x[0] + i) * a - (x[1] + j) * b for i, j in product((0.0, -1.0, 1.0), repeat=2)]
        c = min(options, key=lambda v: float(v @ v))
        after = torch.stack((a, b, c))
        if not float((after * after).sum()) < float((basis * basis).sum()) * (1 - 1e-12):
            return after
        basis = after
