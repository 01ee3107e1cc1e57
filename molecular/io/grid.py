"""Grid files of PLUMED: the bias of METAD, free energies, projections; one to three variables.

Layout (PLUMED 2.10, ``src/tools/Grid.cpp``): the variables, then columns of values; SET lines ``min_``, ``max_``,
``nbins_`` and ``periodic_`` of each variable. The first variable varies fastest. ``nbins_`` is the number of points.
A periodic axis leaves out its last point, equal to the first; an open one lists both ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..free_energy import Axis
from .errors import FileFormatError
from .plumed import PlumedTable, parse_plumed_number, plumed_number, read_table

__all__ = ["PlumedGrid", "central_differences", "grid_axis", "read_grid", "write_bias_grid", "write_grid"]

_MOST_VARIABLES = 3


@dataclass(frozen=True)
class PlumedGrid:
    """A grid file.

    Attributes:
        axes: of d variables, d from 1 to 3.
        columns: name -> (*bins) float64, in the order of the file.
    """

    axes: tuple[Axis, ...]
    columns: dict[str, Tensor]

    @property
    def bias(self) -> Tensor:
        """(*bins) the column ``<label>.bias``: V in kJ/mol.

        Raises:
            KeyError: no such column, or several.
        """
        names = [name for name in self.columns if name.endswith(".bias")]
        if len(names) != 1:
            raise KeyError(f"{len(names)} columns end in '.bias' among {list(self.columns)}")
        return self.columns[names[0]]

    @property
    def gradient(self) -> Tensor | None:
        """(*bins, d) from the ``der_`` columns, or None without them."""
        names = [f"der_{axis.name}" for axis in self.axes]
        if not all(name in self.columns for name in names):
            return None
        return torch.stack([self.columns[name] for name in names], dim=-1)

    def points(self) -> Tensor:
        """(*bins, d) coordinates of the grid points."""
        return torch.stack(torch.meshgrid(*(axis.points() for axis in self.axes), indexing="ij"), dim=-1)


def grid_axis(name: str, first: float, last: float, points: int, *, periodic: bool, unit: str = "") -> Axis:
    """An axis by its ends as a grid file has them.

    Args:
        name: of the variable.
        first: first grid point.
        last: last grid point of an open axis; the first one a period on of a periodic axis, where no point is.
        points: number of grid points.
        periodic: do the ends meet?
        unit: label.

    Raises:
        ValueError: fewer than two points, or ends out of order.
    """
    half = 0.0 if periodic or points < 2 else (last - first) / (points - 1) / 2
    return Axis(name=name, lower=first - half, upper=last + half, bins=points, periodic=periodic, unit=unit)


def write_grid(path: Path, axes: Sequence[Axis], columns: Mapping[str, Tensor]) -> None:
    """Write a grid file.

    Args:
        path: file to create.
        axes: of one to three variables.
        columns: name -> (*bins) values.

    Raises:
        FileExistsError: if ``path`` exists.
        ValueError: more variables, values of another shape, no column.
    """
    shape = tuple(axis.bins for axis in axes)
    if not 1 <= len(axes) <= _MOST_VARIABLES or not columns:
        raise ValueError(f"a grid file needs 1 to {_MOST_VARIABLES} variables and a column of values")
    for name, values in columns.items():
        if tuple(values.shape) != shape:
            raise ValueError(f"column {name!r} must have the shape {shape} of the grid, got {tuple(values.shape)}")
    lines = ["#! FIELDS " + " ".join([*(axis.name for axis in axes), *columns])]
    for axis in axes:
        points = axis.points()
        low, high = (axis.lower, axis.upper) if axis.periodic else (float(points[0]), float(points[-1]))
        lines += [
            f"#! SET min_{axis.name} {plumed_number(low)}",
            f"#! SET max_{axis.name} {plumed_number(high)}",
            f"#! SET nbins_{axis.name} {axis.bins}",
            f"#! SET periodic_{axis.name} {str(axis.periodic).lower()}",
        ]
    # Reversed axes, flattened: the first variable then varies fastest.
    order = list(range(len(axes)))[::-1]
    mesh = torch.meshgrid(*(axis.points() for axis in axes), indexing="ij")
    flat = [values.detach().cpu().double().permute(order).reshape(-1) for values in (*mesh, *columns.values())]
    with open(path, "x", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
        for row, numbers in enumerate(torch.stack(flat, dim=1).tolist()):
            if len(axes) > 1 and row > 0 and row % axes[0].bins == 0:
                file.write("\n")
            file.write("".join(f"  {number:14.9f}" for number in numbers) + "\n")


def write_bias_grid(
    path: Path, axes: Sequence[Axis], bias: Tensor, gradient: Tensor | None = None, *, label: str = "metad"
) -> None:
    """Write a bias as METAD's ``GRID_WFILE`` has it: columns ``<label>.bias`` (V, not -F) and ``der_*``.

    Args:
        path: file to create.
        axes: of one to three variables.
        bias: (*bins) V in kJ/mol on the grid points.
        gradient: (*bins, d); None for central differences.
        label: of the METAD action that is to read the file.

    Raises:
        FileExistsError: if ``path`` exists.
        ValueError: shapes that do not fit.
    """
    if gradient is not None and tuple(gradient.shape) != (*bias.shape, len(axes)):
        raise ValueError(f"gradient must be {(*bias.shape, len(axes))}, got {tuple(gradient.shape)}")
    slopes = [
        central_differences(bias, axis, k) if gradient is None else gradient[..., k] for k, axis in enumerate(axes)
    ]
    columns = {f"der_{axis.name}": slope for axis, slope in zip(axes, slopes, strict=True)}
    write_grid(path, axes, {f"{label}.bias": bias, **columns})


def read_grid(path: Path) -> PlumedGrid:
    """Read a grid file of one to three variables, written here or by PLUMED (``GRID``, ``fes.dat``, projections).

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: naming the file: missing or wrong SET lines, a number of rows that is not the grid's
            (truncated), coordinates that are not those of the grid's points in their order.
    """
    table = read_table(path)
    names = [name for name in table.columns if f"min_{name}" in table.constants]
    if not 1 <= len(names) <= _MOST_VARIABLES or names != list(table.columns)[: len(names)]:
        raise FileFormatError(
            f"{path}: needs min_/max_/nbins_/periodic_ SET lines for its first one to {_MOST_VARIABLES} columns"
        )
    axes = tuple(_axis(path, name, table) for name in names)
    shape = [axis.bins for axis in axes]
    if table.rows != math.prod(shape):
        raise FileFormatError(
            f"{path}: truncated or altered: {table.rows} rows for a grid of {' x '.join(map(str, shape))}"
        )
    grids = {
        name: column.reshape(shape[::-1]).permute(*range(len(shape))[::-1]).contiguous()
        for name, column in table.columns.items()
    }
    for k, axis in enumerate(axes):
        _check_points(path, table, grids.pop(axis.name), axis, k)
    return PlumedGrid(axes, grids)


def _check_points(path: Path, table: PlumedTable, coordinates: Tensor, axis: Axis, dim: int) -> None:
    wanted = axis.points().reshape([-1 if d == dim else 1 for d in range(coordinates.ndim)])
    # Files print few digits; half a cell off is another order or another grid.
    wrong = ~((coordinates - wanted).abs() < axis.width / 2)
    if bool(wrong.any()):
        order = list(range(coordinates.ndim))[::-1]
        row = int(wrong.permute(order).reshape(-1).nonzero()[0])
        raise FileFormatError(
            f"{path}, line {table.row_lines[row]}: {axis.name} is {float(table.columns[axis.name][row])!r}, "
            "which is not the grid's point in this row (the first variable varies fastest)"
        )


def _axis(path: Path, name: str, table: PlumedTable) -> Axis:
    try:
        low, high = (parse_plumed_number(table.constants[f"{end}_{name}"]) for end in ("min", "max"))
        bins = int(table.constants[f"nbins_{name}"])
        periodic = table.constants[f"periodic_{name}"]
        if periodic not in ("true", "false"):
            raise ValueError(f"periodic_{name} is {periodic!r}")
        return grid_axis(name, low, high, bins, periodic=periodic == "true")
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{path}: SET lines of {name} are missing or wrong: {error}") from error


def central_differences(values: Tensor, axis: Axis, dim: int) -> Tensor:
    """Derivative (*bins) along one axis: central, one-sided at the ends of an open axis, NaN beside infinite values."""
    ahead, behind = values.roll(-1, dim), values.roll(1, dim)
    span = torch.full((axis.bins,), 2 * axis.width, dtype=torch.float64)
    if not axis.periodic:
        last = axis.bins - 1
        ahead.select(dim, last).copy_(values.select(dim, last))
        behind.select(dim, 0).copy_(values.select(dim, 0))
        span[0] = span[last] = axis.width
    slope = (ahead - behind) / span.reshape([-1 if d == dim else 1 for d in range(values.ndim)])
    return torch.where(torch.isfinite(slope) & torch.isfinite(values), slope, math.nan)
