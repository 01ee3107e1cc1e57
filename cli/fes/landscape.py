"""A free energy on a grid: shifted, projected, integrated over regions, written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...molecular.free_energy import Axis, Region
from ...molecular.io import write_grid
from ..errors import UserError
from .texts import Box

__all__ = ["Landscape"]


@dataclass(frozen=True, eq=False)
class Landscape:
    """F on grid points.

    Attributes:
        axes: of one to three variables.
        values: (*bins) kJ/mol; +inf where nothing is known.
        slopes: (*bins, d) gradient, kJ/mol per unit of each variable; None where it is not known.
        error: (*bins) kJ/mol, or None: a bias says nothing of its error.
        column: name of the values in files.
    """

    axes: tuple[Axis, ...]
    values: Tensor
    slopes: Tensor | None = None
    error: Tensor | None = None
    column: str = "file.free"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the variables."""
        return tuple(axis.name for axis in self.axes)

    @property
    def periods(self) -> dict[str, float | None]:
        """Period of each variable, None on an open axis."""
        return {axis.name: axis.period for axis in self.axes}

    def to_zero(self) -> Landscape:
        """With its lowest value at zero (``--mintozero``)."""
        return replace(self, values=self.values - self.values.min())

    def projected(self, names: Sequence[str], kT: float) -> Landscape:
        """-kT ln of the sum of exp(-F/kT) over the grid points of the other variables, as ``sum_hills --idw`` has it.

        The sum has no volume element: a finer grid shifts it by a constant.

        Raises:
            UserError: a name that is not that of an axis.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise UserError(f"--idw: no variable {unknown[0]!r}; there are {', '.join(self.names)}")
        order = [self.names.index(name) for name in names]
        rest = [k for k in range(len(self.axes)) if k not in order]
        moved = (-self.values / kT).permute(*order, *rest)
        summed = torch.logsumexp(moved, dim=tuple(range(len(order), len(self.axes)))) if rest else moved
        return Landscape(tuple(self.axes[k] for k in order), -kT * summed, column="projection")

    def difference(self, inside: Box, outside: Box | None, kT: float) -> float:
        """F(inside) - F(outside) in kJ/mol, by summing exp(-F/kT) over cells; those on a border count in part.

        Raises:
            UserError: a region that no cell of the grid touches.
        """
        share_in = self._share(inside)
        share_out = 1.0 - share_in if outside is None else self._share(outside)
        log_density = -self.values / kT
        sums = []
        for share, box in ((share_out, outside), (share_in, inside)):
            if not bool((share > 0).any()):
                raise UserError(f"no grid point lies in {'the rest' if box is None else box.text}: use a larger grid")
            sums.append(torch.logsumexp((log_density + share.clamp_min(0).log()).reshape(-1), 0))
        return kT * float(sums[0] - sums[1]) if bool(torch.isfinite(torch.stack(sums)).any()) else math.nan

    def change_from(self, other: Landscape) -> float:
        """Root mean square of the difference over the cells, constants apart, kJ/mol."""
        change = self.values - other.values
        known = change[torch.isfinite(change)]
        return float(known.std(correction=0)) if known.numel() else math.nan

    def _share(self, box: Box) -> Tensor:
        """(*bins) part of each cell that lies in a region."""
        share = torch.ones(tuple(axis.bins for axis in self.axes), dtype=torch.float64)
        for name, region in box.sides:
            k = self.names.index(name)
            along = [-1 if j == k else 1 for j in range(len(self.axes))]
            share = share * _overlap(self.axes[k], region).reshape(along)
        return share

    def write(self, path: Path) -> None:
        """Write as ``sum_hills`` does: values, and derivatives where they are known.

        Raises:
            FileExistsError: if ``path`` exists.
        """
        columns = {self.column: self.values}
        if self.slopes is not None:
            columns |= {f"der_{name}": self.slopes[..., k] for k, name in enumerate(self.names)}
        write_grid(path, self.axes, columns)


def _overlap(axis: Axis, region: Region) -> Tensor:
    """(bins,) part of each cell in an interval."""
    low = axis.points() - axis.width / 2
    high = low + axis.width
    if axis.period is None:
        starts = [region.lower]
        length = region.upper - region.lower
    else:
        length = (region.upper - region.lower) % axis.period
        first = region.lower - axis.period * math.ceil((region.lower - axis.lower) / axis.period + 1)
        starts = [first + k * axis.period for k in range(4)]
    found = torch.zeros_like(low)
    for start in starts:
        found += (high.clamp_max(start + length) - low.clamp_min(start)).clamp_min(0)
    return (found / axis.width).clamp(0.0, 1.0)
