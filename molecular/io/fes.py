"""Free-energy surfaces as PLUMED's fes.dat: the grid with derivatives, and the table with uncertainties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from ..free_energy import Axis, FreeEnergySurface
from .errors import FileFormatError
from .plumed import PlumedTable, parse_plumed_number, plumed_number, read_table

__all__ = ["FesGrid", "read_fes", "write_fes", "write_fes_uncertainty"]


@dataclass(frozen=True)
class FesGrid:
    """A surface as read: axes, ``free_energy`` (*bins) in kJ/mol, every further column (*bins) by name."""

    axes: tuple[Axis, ...]
    free_energy: torch.Tensor
    columns: dict[str, torch.Tensor]


def write_fes(path: Path, surface: FreeEnergySurface) -> None:
    """Write ``fes.dat`` exactly as PLUMED's ``sum_hills`` does, so that PLUMED reads it as a grid.

    Columns: the variables (the first varies fastest, a blank line between scans), ``file.free`` in kJ/mol,
    and ``der_*`` by central differences (one-sided at the ends of an open axis; NaN beside an empty cell).
    Periodic axes leave out their last point; on open axes min and max are the first and last grid point, the
    centres of the outer cells.  PLUMED 2.10, ``src/tools/Grid.cpp``, ``Grid::writeToFile``.

    Raises:
        FileExistsError: if ``path`` exists.
    """
    derivatives = [_derivative(surface.free_energy, axis, k) for k, axis in enumerate(surface.axes)]
    names = ["file.free", *(f"der_{axis.name}" for axis in surface.axes)]
    _write_grid(path, surface.axes, names, [surface.free_energy, *derivatives])


def write_fes_uncertainty(path: Path, surface: FreeEnergySurface) -> None:
    """Write the surface with its error in the columns ``file.free uncertainty``, in kJ/mol.

    This is the layout of PLUMED users' reweighting scripts.  It is a file of its own because PLUMED stops at
    a column of a grid file that it does not know.

    Raises:
        FileExistsError: if ``path`` exists.
    """
    _write_grid(path, surface.axes, ["file.free", "uncertainty"], [surface.free_energy, surface.std_error])


def _derivative(free_energy: torch.Tensor, axis: Axis, dim: int) -> torch.Tensor:
    ahead, behind = free_energy.roll(-1, dim), free_energy.roll(1, dim)
    span = torch.full((axis.bins,), 2 * axis.width, dtype=torch.float64)
    if not axis.periodic:
        last = axis.bins - 1
        ahead.select(dim, last).copy_(free_energy.select(dim, last))
        behind.select(dim, 0).copy_(free_energy.select(dim, 0))
        span[0] = span[last] = axis.width
    slope = (ahead - behind) / span.reshape([-1 if d == dim else 1 for d in range(free_energy.ndim)])
    return torch.where(torch.isfinite(slope) & torch.isfinite(free_energy), slope, math.nan)


def _write_grid(path: Path, axes: tuple[Axis, ...], names: list[str], values: list[torch.Tensor]) -> None:
    lines = ["#! FIELDS " + " ".join([*(axis.name for axis in axes), *names])]
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
    table = torch.stack([t.double().permute(order).reshape(-1) for t in (*mesh, *values)], dim=1).tolist()
    with open(path, "x", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
        for row, numbers in enumerate(table):
            if len(axes) > 1 and row > 0 and row % axes[0].bins == 0:
                file.write("\n")
            file.write("".join(f"  {number:14.9f}" for number in numbers) + "\n")


def read_fes(path: Path) -> FesGrid:
    """Read a 1-D or 2-D ``fes.dat`` written here or by PLUMED.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: for a missing SET line, or a number of rows that is not the grid's (truncated).
    """
    table = read_table(path)
    names = [name for name in table.columns if f"min_{name}" in table.constants]
    if not names or len(names) > 2:
        raise FileFormatError(f"{path}: needs min_/max_/nbins_/periodic_ SET lines for one or two variables")
    axes = tuple(_axis(path, name, table) for name in names)
    shape = [axis.bins for axis in axes]
    rows = table.columns[names[0]].numel()
    if rows != math.prod(shape):
        raise FileFormatError(f"{path}: truncated or altered: {rows} rows for a grid of {' x '.join(map(str, shape))}")
    grids = {
        name: column.reshape(shape[::-1]).permute(*range(len(shape))[::-1]).contiguous()
        for name, column in table.columns.items()
        if name not in names
    }
    value = next((name for name in grids if name.endswith("free") or name == "projection"), None)
    if value is None:
        raise FileFormatError(f"{path}: no column 'file.free' or 'projection' among {list(table.columns)}")
    return FesGrid(axes, grids.pop(value), grids)


def _axis(path: Path, name: str, table: PlumedTable) -> Axis:
    try:
        low, high = (parse_plumed_number(table.constants[f"{end}_{name}"]) for end in ("min", "max"))
        bins = int(table.constants[f"nbins_{name}"])
        periodic = table.constants[f"periodic_{name}"] == "true"
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{path}: SET lines of {name} are missing or wrong: {error}") from error
    half = 0.0 if periodic or bins < 2 else (high - low) / (bins - 1) / 2
    return Axis(name=name, lower=low - half, upper=high + half, bins=bins, periodic=periodic)
