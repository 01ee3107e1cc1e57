"""Free energies that a bias implies: hills, kernels, grids. They have no error bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from ...molecular.io import FileFormatError, PlumedGrid, read_grid, read_openmm_bias, read_opes_kernels, read_opes_state
from ..errors import UserError
from ..printing import print_results
from ..results import Number
from .axes import kernel_axes, unit_of
from .inputs import Inputs
from .landscape import Landscape
from .options import FesOptions, implied_temperature
from .outputs import Outputs, refuse_existing, uncertainty_of, write_rest
from .plots import NEGATIVE_BIAS, Unit, draw_landscape
from .regions import Regions
from .sums import opes_landscape, opes_reach

__all__ = ["CAVEAT", "check_idw", "fes_from_bias", "place_numbers", "shown", "working"]

CAVEAT = (
    "what a bias implies has no error bar: it is off while the bias still fills and by the width of its kernels, and "
    "nothing in this file tells by how much. For an error reweight the frames: feynkac fes COLVAR"
)

_NOT_SAID = (
    "this table holds no errors and does not say what it was made of: a bias that still fills is off by an amount that "
    "nothing here tells; errors of reweighted frames are read where their table (fes_uncertainty.dat) stands beside"
)


def fes_from_bias(console: Console, inputs: Inputs, options: FesOptions) -> None:
    """KERNELS or STATE of OPES, a grid, or OpenMM's biases, to ``fes.dat``, picture and numbers.

    Raises:
        UserError: an option that does not fit.
        FileExistsError: an output is there already.
        FileFormatError: a damaged file.
    """
    reader = {"kernels": _opes, "state": _opes, "grid": _grid, "openmm": _openmm}[inputs.kind]
    make, numbers, redrawn = reader(inputs, options)
    default = "negativebias.dat" if options.negbias else "fes.dat"
    outputs = Outputs.of(options.outfile, default if not redrawn else f"{inputs.paths[0].stem}_drawn.dat")
    drawn = [outputs.beside(".png")] if options.plots else []
    table, record = (None, None) if redrawn else (outputs.table, outputs.beside(".json"))
    tables = [] if table is None else [table]
    records = [] if record is None else [record]
    refuse_existing([*tables, *drawn, *records])
    with working(console, "summing kernels") as advance:
        whole = make(advance)
    regions = Regions.of(options, whole.periods)
    value = regions.on(whole, options)
    landscape = shown(whole, options)
    unit = Unit.of(options.units, options.kT)
    thermal, doubts = implied_temperature(options.kT)
    found = [*numbers, *place_numbers(landscape, unit), *regions.numbers(value, options.kT, unit), *thermal]
    notes = list(doubts)
    if whole.error is None:
        notes.append(_NOT_SAID if inputs.kind == "grid" and options.bias_factor is None else CAVEAT)
    if whole.error is not None and value is not None:
        notes.append("ΔF has no error bar: the errors of cells are correlated, which the file does not hold")
    pictures = pictures_of(landscape, unit, options, regions, outputs, notes)
    if table is not None:
        landscape.write(table)
    write_rest(found, notes, record, pictures)
    print_results(console, found, notes, [*tables, *pictures, *records], heading="files")


Made = tuple[Callable[[Callable[[float], None]], Landscape], list[Number], bool]
"""How to make the landscape, what is known before, and whether the input is only drawn again."""


def _opes(inputs: Inputs, options: FesOptions) -> Made:
    kT = options.needed_kT(f"{inputs.text}: F = -kT ln P")
    (path,) = inputs.paths
    table = read_opes_state(path) if inputs.kind == "state" else read_opes_kernels(path)
    if not len(table):
        raise UserError(f"{path}: no kernel")
    check_idw(options, table.names)
    axes = kernel_axes(table.names, table.domains, table.centers, opes_reach(table), options)
    kind = "merged, of a STATE file" if table.state is not None else "as deposited"
    numbers = [Number("kernels", "kernels", len(table), remark=kind)]
    return lambda advance: opes_landscape(table, axes, kT=kT, advance=advance), numbers, False


def _grid(inputs: Inputs, options: FesOptions) -> Made:
    (path,) = inputs.paths
    grid = read_grid(path)
    axes = tuple(replace(axis, unit=unit_of(axis.period)) for axis in grid.axes)
    free = [name for name in grid.columns if name.endswith("free") or name == "projection"]
    slopes = grid.gradient
    if free:
        if options.bias_factor is not None or options.negbias:
            raise UserError(f"{path} holds free energies: leave --bias-factor and --negbias out")
        error, numbers = grid.columns.get("uncertainty"), []
        if error is None and (beside := _errors_beside(path, grid, free[0])) is not None:
            error, numbers = beside, [_typical_error(path, beside[torch.isfinite(grid.columns[free[0]])], options)]
        made = Landscape(axes, grid.columns[free[0]], slopes, error, free[0])
        changed = options.outfile is not None or options.mintozero or bool(options.idw)
    else:
        biases = [name for name in grid.columns if name.endswith(".bias")]
        if len(biases) != 1:
            raise UserError(f"{path}: neither free energies (file.free) nor one column that ends in .bias")
        factor, numbers = _scale(path, options), []
        made = Landscape(axes, factor * grid.columns[biases[0]], None if slopes is None else factor * slopes)
        changed = True
    check_idw(options, made.names)
    return lambda advance: made, numbers, not changed


def _errors_beside(path: Path, grid: PlumedGrid, column: str) -> Tensor | None:
    """Errors (*bins) from the table that reweighting writes beside this one; None where that is not of this surface."""
    place = uncertainty_of(path)
    try:
        found = read_grid(place)
    except (FileNotFoundError, FileFormatError):
        return None
    values = found.columns.get(column)
    if found.axes != grid.axes or values is None or "uncertainty" not in found.columns:
        return None
    return found.columns["uncertainty"] if torch.equal(values, grid.columns[column]) else None


def _typical_error(path: Path, error: Tensor, options: FesOptions) -> Number:
    unit, known = Unit.of(options.units, options.kT), error[torch.isfinite(error)]
    typical = float(known.median()) * unit.factor if known.numel() else math.nan
    remark = f"of {uncertainty_of(path).name}, beside the table"
    return Number("cell_error", "error of F, median over cells", typical, None, unit.name, remark)


def _openmm(inputs: Inputs, options: FesOptions) -> Made:
    (path,) = inputs.paths
    if options.min is None or options.max is None:
        raise UserError(f"{path}: OpenMM's files do not hold the ranges: give --min and --max, and --periodic if so")
    factor = _scale(path, options)
    found = read_openmm_bias(path)
    d = found.total.ndim
    names = options.cv or tuple(f"s{k + 1}" for k in range(d))
    if not len(names) == len(options.min) == len(options.max) == d:
        raise UserError(f"{path}: the bias has {d} variables; --min, --max and --cv need a value for each")
    if not all(low < high for low, high in zip(options.min, options.max, strict=True)):
        raise UserError("--min and --max: not in order")
    grid = found.grid(names, options.min, options.max, periodic=options.periodic)
    axes = tuple(replace(axis, unit=unit_of(axis.period)) for axis in grid.axes)
    check_idw(options, names)
    numbers = [Number("walkers", "files of walkers, added up", len(found.walkers))]
    return lambda advance: Landscape(axes, factor * grid.bias), numbers, False


def _scale(path: Path, options: FesOptions) -> float:
    """What makes F of V; -1 for the negative bias."""
    if options.negbias:
        return -1.0
    if options.bias_factor is None:
        raise UserError(f"{path} holds a bias V; F = -gamma/(gamma-1) V needs --bias-factor (inf without tempering)")
    return -1.0 / (1.0 - 1.0 / options.bias_factor)


# --- what sums of hills share -----------------------------------------------------------------------------------------


def check_idw(options: FesOptions, names: Sequence[str]) -> None:
    """Refuse a projection that cannot be made.

    Raises:
        UserError: an unknown variable, all of them, or no kT.
    """
    if not options.idw:
        return
    unknown = [name for name in options.idw if name not in names]
    if unknown:
        raise UserError(f"--idw: no variable {unknown[0]!r}; there are {', '.join(names)}")
    if len(options.idw) == len(names):
        raise UserError(f"--idw: {', '.join(names)} are all variables; there is nothing to integrate out")
    options.needed_kT("--idw")


def shown(landscape: Landscape, options: FesOptions) -> Landscape:
    """Projected and shifted as asked for."""
    if options.idw:
        landscape = landscape.projected(options.idw, options.needed_kT("--idw"))
    return landscape.to_zero() if options.mintozero else landscape


def place_numbers(landscape: Landscape, unit: Unit) -> list[Number]:
    """Where the lowest value is, and how far the highest lies above it."""
    values = landscape.values
    finite = torch.isfinite(values)
    if not bool(finite.any()):
        raise UserError("F is not finite anywhere on the grid")
    at = torch.unravel_index(torch.where(finite, values, math.inf).argmin(), values.shape)
    where = ", ".join(
        f"{axis.name} = {float(axis.points()[k]):.3g}" for axis, k in zip(landscape.axes, at, strict=True)
    )
    lowest = float(values[at]) * unit.factor + 0.0  # no -0
    highest = float(values[finite].max()) * unit.factor
    shape = " x ".join(str(axis.bins) for axis in landscape.axes) if len(landscape.axes) > 1 else ""
    return [
        Number("grid_points", "grid points", values.numel(), remark=shape),
        Number("lowest", "lowest value, as the file has it", lowest, None, unit.name, f"at {where}"),
        Number("span", "highest above lowest value", highest - lowest, None, unit.name),
    ]


def pictures_of(
    landscape: Landscape, unit: Unit, options: FesOptions, regions: Regions, outputs: Outputs, notes: list[str]
) -> dict[Path, Figure]:
    """The picture of a landscape of one or two variables."""
    if not options.plots:
        return {}
    if len(landscape.axes) > 2:
        notes.append("no picture of three variables: --idw projects on one or two")
        return {}
    title = NEGATIVE_BIAS if options.negbias else "Free energy"
    boxes = regions.shown_on(landscape)
    return {outputs.beside(".png"): draw_landscape(landscape, unit, title=title, regions=boxes)}


@contextmanager
def working(console: Console, text: str) -> Iterator[Callable[[float], None]]:
    """A bar for work that tells the share that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(text, total=1.0)
        yield lambda share: bar.update(task, completed=share)
