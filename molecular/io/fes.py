"""Free-energy surfaces as PLUMED's fes.dat: the grid with derivatives, projections, the table with uncertainties."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..free_energy import Axis, FreeEnergySurface
from .errors import FileFormatError
from .grid import central_differences, read_grid, write_grid

__all__ = ["FesGrid", "read_fes", "write_fes", "write_fes_projection", "write_fes_uncertainty"]


@dataclass(frozen=True)
class FesGrid:
    """A surface as read: axes, ``free_energy`` (*bins) in kJ/mol, every further column (*bins) by name."""

    axes: tuple[Axis, ...]
    free_energy: Tensor
    columns: dict[str, Tensor]


def write_fes(path: Path, surface: FreeEnergySurface) -> None:
    """Write ``fes.dat`` exactly as PLUMED's ``sum_hills`` does, so that PLUMED reads it as a grid.

    Columns: the variables (the first varies fastest, a blank line between scans), ``file.free`` in kJ/mol,
    and ``der_*`` by central differences (one-sided at the ends of an open axis; NaN beside an empty cell).
    Periodic axes leave out their last point; on open axes min and max are the first and last grid point, the
    centres of the outer cells.  PLUMED 2.10, ``src/tools/Grid.cpp``, ``Grid::writeToFile``.

    Raises:
        FileExistsError: if ``path`` exists.
    """
    slopes = {
        f"der_{axis.name}": central_differences(surface.free_energy, axis, k) for k, axis in enumerate(surface.axes)
    }
    write_grid(path, surface.axes, {"file.free": surface.free_energy, **slopes})


def write_fes_projection(path: Path, surface: FreeEnergySurface) -> None:
    """Write a surface as ``sum_hills --idw`` does: the column ``projection`` in kJ/mol, no derivatives.

    Raises:
        FileExistsError: if ``path`` exists.
    """
    write_grid(path, surface.axes, {"projection": surface.free_energy})


def write_fes_uncertainty(path: Path, surface: FreeEnergySurface) -> None:
    """Write the surface with its error in the columns ``file.free uncertainty``, in kJ/mol.

    This is the layout of PLUMED users' reweighting scripts.  It is a file of its own because PLUMED stops at
    a column of a grid file that it does not know.

    Raises:
        FileExistsError: if ``path`` exists.
    """
    write_grid(path, surface.axes, {"file.free": surface.free_energy, "uncertainty": surface.std_error})


def read_fes(path: Path) -> FesGrid:
    """Read a ``fes.dat`` or a projection of one to three variables written here or by PLUMED.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: for a missing SET line, a number of rows that is not the grid's (truncated), or a file
            without a column of free energies.
    """
    grid = read_grid(path)
    columns = dict(grid.columns)
    value = next((name for name in columns if name.endswith("free") or name == "projection"), None)
    if value is None:
        hint = "; a grid of a bias is read by read_grid" if any(n.endswith(".bias") for n in columns) else ""
        raise FileFormatError(f"{path}: no column 'file.free' or 'projection' among {list(columns)}{hint}")
    return FesGrid(grid.axes, columns.pop(value), columns)
