"""A grid axis of a free-energy surface."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["Axis"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: ``bins`` cells of equal width between ``lower`` and ``upper``, each named by a grid point.

    A periodic axis has its grid points at ``lower + i * width`` (PLUMED's grids: the last point, equal to the
    first, is left out) and cell i reaches half a width to either side, around the circle.  An open axis has
    its cells between ``lower`` and ``upper`` and the grid points at their centres.

    Args:
        name: label, the name of the collective variable.
        lower, upper: ends of the axis, in ``unit``; ``upper - lower`` is the period of a periodic axis.
        bins: number of cells.
        periodic: whether the ends meet.
        unit: label of the unit ("rad", "nm", or empty).

    Raises:
        ValueError: for fewer than two bins, or ends that are not finite and in order.
    """

    name: str
    lower: float
    upper: float
    bins: int
    periodic: bool
    unit: str = ""

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"axis {self.name}: needs at least 2 bins, got {self.bins}")
        if not (math.isfinite(self.lower) and math.isfinite(self.upper) and self.lower < self.upper):
            raise ValueError(f"axis {self.name}: ends must be finite and in order, got {self.lower}, {self.upper}")

    @classmethod
    def torsion(cls, name: str, bins: int) -> Axis:
        """The circle [-pi, pi) in radians."""
        return cls(name=name, lower=-math.pi, upper=math.pi, bins=bins, periodic=True, unit="rad")

    @property
    def width(self) -> float:
        """Width of a cell."""
        return (self.upper - self.lower) / self.bins

    @property
    def period(self) -> float | None:
        """Length of the circle, or None on an open axis."""
        return self.upper - self.lower if self.periodic else None

    def points(self) -> torch.Tensor:
        """Grid points (bins,), float64."""
        first = self.lower if self.periodic else self.lower + self.width / 2
        return first + self.width * torch.arange(self.bins, dtype=torch.float64)

    def edges(self) -> torch.Tensor:
        """Ends of the cells (bins + 1,), float64; a periodic axis starts half a width below ``lower``."""
        first = self.lower - self.width / 2 if self.periodic else self.lower
        return first + self.width * torch.arange(self.bins + 1, dtype=torch.float64)

    def cell(self, values: torch.Tensor) -> torch.Tensor:
        """Index (n,) of the cell of each value (n,); -1 for values outside an open axis."""
        first = self.lower - self.width / 2 if self.periodic else self.lower
        index = torch.floor((values.double() - first) / self.width).long()
        if self.periodic:
            return index % self.bins
        outside = (values < self.lower) | (values > self.upper)
        return torch.where(outside, -1, index.clamp(0, self.bins - 1))
