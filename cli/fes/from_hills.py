"""HILLS to free energies: what ``plumed sum_hills`` prints, with pictures and with drift."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from ...molecular.free_energy import Axis
from ...molecular.io import HillsTable, read_hills
from ..errors import UserError
from ..printing import print_results
from ..results import Number
from .axes import kernel_axes
from .from_bias import CAVEAT, check_idw, pictures_of, place_numbers, shown, working
from .inputs import Inputs
from .landscape import Landscape
from .options import FesOptions, implied_temperature
from .outputs import Outputs, refuse_existing, write_rest
from .plots import Unit
from .regions import Regions
from .sums import Dump, hills_dumps, hills_reach, in_order_of_time
from .time_plots import draw_drift
from .unfinished import reading

__all__ = ["fes_from_hills"]

_MOST_FILES = 1000


def fes_from_hills(console: Console, inputs: Inputs, options: FesOptions) -> None:
    """Sum hills on a grid, write the tables of ``sum_hills``, draw them.

    Raises:
        UserError: an option that does not fit.
        FileExistsError: an output is there already.
        FileFormatError: a damaged file, or files of different variables.
    """
    found_hills, cut = reading(lambda: read_hills(inputs.paths, unfinished=True))
    table = in_order_of_time(found_hills)
    if not len(table):
        raise UserError(f"{inputs.paths[0]}: no hill")
    check_idw(options, table.names)
    axes = kernel_axes(table.names, table.domains, table.centers, hills_reach(table), options)
    regions = Regions.of(options, {axis.name: axis.period for axis in axes})
    if regions.inside is not None:
        options.needed_kT("--deltaf")
    dumps_wanted = 1 if options.stride is None else math.ceil(len(table) / options.stride)
    if dumps_wanted > _MOST_FILES:
        raise UserError(
            f"--stride {options.stride}: {len(table):,} hills make {dumps_wanted:,} files; use a larger one"
        )
    outputs = Outputs.of(
        options.outfile, "negativebias.dat" if options.negbias else "fes.dat", stride=options.stride is not None
    )
    tables = outputs.numbered(dumps_wanted) if outputs.table is None else [outputs.table]
    drawn = [outputs.beside(".png"), *([outputs.beside("_drift.png")] if dumps_wanted > 1 else [])]
    record = outputs.beside(".json")
    refuse_existing([*tables, *(drawn if options.plots else []), record])

    dumps: list[Dump] = []
    landscapes: list[Landscape] = []
    differences: list[float] = []
    with working(console, "summing hills") as advance:
        found = hills_dumps(
            table,
            axes,
            stride=options.stride,
            history=not options.nohistory,
            negative_bias=options.negbias,
            advance=advance,
        )
        for path, dump in zip(tables, found, strict=True):
            value = regions.on(dump.landscape, options)
            differences += [] if value is None else [value]
            dumps.append(dump)
            landscapes.append(shown(dump.landscape, options))
            landscapes[-1].write(path)
    unit = Unit.of(options.units, options.kT)
    thermal, doubts = implied_temperature(options.kT)
    numbers = [
        *_hill_numbers(table, inputs),
        *place_numbers(landscapes[-1], unit),
        *regions.numbers(differences[-1] if differences else None, options.kT, unit),
        *_drift_numbers(dumps, landscapes, differences, unit),
        *thermal,
    ]
    notes = [*cut, *doubts, *_counted_twice(inputs.paths), CAVEAT, *_outside(table, axes)]
    pictures = pictures_of(landscapes[-1], unit, options, regions, outputs, notes)
    if options.plots and len(dumps) > 1 and not options.nohistory:
        counts = [dump.last for dump in dumps]
        pictures[outputs.beside("_drift.png")] = draw_drift(counts, landscapes, differences or None, unit)
    write_rest(numbers, notes, record, pictures)
    print_results(console, numbers, notes, [*_abridged(tables), *pictures, record], heading="files")


def _hill_numbers(table: HillsTable, inputs: Inputs) -> list[Number]:
    files = f"{len(inputs.paths)} files" if len(inputs.paths) > 1 else "one file"
    times = f"times {float(table.times.min()):g} to {float(table.times.max()):g}"
    found = [Number("hills", "hills", len(table), remark=f"from {files}, {times}")]
    factor = table.bias_factor
    if factor is None or factor == 1:
        return found
    tenth = max(1, len(table) // 10)
    first, last = float(table.heights[:tenth].mean()), float(table.heights[-tenth:].mean())
    found.append(Number("bias_factor", "bias factor", factor))
    if first > 0:
        remark = "mean of a tenth each; small where the bias has filled"
        found.append(Number("height_ratio", "height of the last hills over the first", last / first, remark=remark))
    return found


def _drift_numbers(
    dumps: Sequence[Dump], landscapes: Sequence[Landscape], differences: Sequence[float], unit: Unit
) -> list[Number]:
    """How the estimate moved over the second half of the files."""
    if len(dumps) < 2:
        return []
    change = landscapes[-1].change_from(landscapes[-2]) * unit.factor
    remark = f"r.m.s. over the grid, {dumps[-2].last:,} to {dumps[-1].last:,} hills"
    found = [Number("last_change", "change of F in the last file", change, None, unit.name, remark)]
    late = torch.tensor(differences[len(differences) // 2 :], dtype=torch.float64) * unit.factor
    if len(late) > 1:
        first, last, low, high = (float(v) for v in (late[0], late[-1], late.min(), late.max()))
        between = f", between {low:.2f} and {high:.2f}" if {low, high} != {first, last} else ""
        remark = f"from {first:.2f} to {last:.2f}{between}: drift, no error bar"
        label = "ΔF over the second half of the files"
        found.append(Number("delta_f_drift", label, last - first, None, unit.name, remark))
    return found


def _outside(table: HillsTable, axes: Sequence[Axis]) -> list[str]:
    """Hills whose centre a grid leaves out."""
    out = torch.zeros(len(table), dtype=torch.bool)
    for axis, centers, period in zip(axes, table.centers.unbind(1), table.periods, strict=True):
        if axis.periodic:
            continue
        low, high = float(axis.points()[0]), float(axis.points()[-1])
        beyond = (centers - low) % period > high - low if period is not None else (centers < low) | (centers > high)
        out |= beyond
    count = int(out.sum())
    return [f"{count:,} of {len(table):,} hills have their centre outside the grid"] if count else []


def _counted_twice(paths: Sequence[Path]) -> list[str]:
    """Files that begin with all the hills of another, as that of a run that started from it does."""
    by_first: dict[str, list[Path]] = {}
    for path in paths:
        by_first.setdefault(next(_rows(path), ""), []).append(path)
    notes = []
    for first, alike in by_first.items():
        for a, b in itertools.combinations(alike if first else [], 2):
            pairs = itertools.zip_longest(_rows(a), _rows(b))
            apart = next(((one, other) for one, other in pairs if one != other), (None, None))
            if None not in apart:
                continue
            whole, longer = (a, b) if apart[0] is None else (b, a)
            notes.append(f"{longer} begins with all hills of {whole}: these are counted twice; leave {whole} out")
    return notes


def _rows(path: Path) -> Iterator[str]:
    """The lines of hills, spaces made single; not a last one that does not end."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if words and not words[0].startswith("#") and line.endswith("\n"):
                yield " ".join(words)


def _abridged(tables: Sequence[Path]) -> list[Path]:
    return list(tables) if len(tables) <= 4 else [tables[0], tables[1], Path("..."), tables[-1]]
