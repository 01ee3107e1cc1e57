"""Frames of walkers with their weights, from COLVAR files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...molecular.io import FileFormatError, PlumedTable, read_colvar
from ..errors import UserError
from .options import FesOptions
from .texts import Skip
from .unfinished import reading
from .walkers import split_notes, split_rows
from .weighting import Weighting

__all__ = ["Samples", "read_samples"]

_NO_VARIABLES = {"time", "energy", "walker"}
_MOST = 2
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Samples:
    """T frames of B walkers; what is missing or left out has a log-weight of -inf.

    Attributes:
        names: d variables.
        domains: ends of periodic ones.
        values: (T, B, d).
        log_weights: (T, B) raw.
        spacing: time between frames, as the files have it; None where it is not even.
        rows: in the files, what was skipped included.
        skipped: rows left out at the start.
        invalid: rows left out for numbers that are not finite.
        weighting: what the weights are, in words.
        notes: what a reader should know.
        repeated: rows left out because others have their times.
    """

    names: tuple[str, ...]
    domains: tuple[tuple[float, float] | None, ...]
    values: Tensor
    log_weights: Tensor
    spacing: float | None
    rows: int
    skipped: int
    invalid: int
    weighting: str
    notes: tuple[str, ...]
    repeated: int = 0

    @property
    def columns(self) -> dict[str, Tensor]:
        """Each variable, (T, B)."""
        return dict(zip(self.names, self.values.unbind(-1), strict=True))

    @property
    def periods(self) -> dict[str, float | None]:
        """Of each variable."""
        pairs = zip(self.names, self.domains, strict=True)
        return {name: None if domain is None else domain[1] - domain[0] for name, domain in pairs}


def read_samples(paths: Sequence[Path], options: FesOptions) -> Samples:
    """Read the frames of one or more COLVAR files, each of a walker or of several.

    Raises:
        UserError: naming option and file: unknown columns, no bias, no kT, nothing left.
        FileFormatError: a file that is damaged.
    """
    tables, cut = reading(lambda: [read_colvar(path, unfinished=True) for path in paths])
    for path, table in zip(paths, tables, strict=True):
        if not table.rows:
            raise UserError(f"{path}: no row")
        if list(table.columns) != list(tables[0].columns) or _domains(path, table) != _domains(paths[0], tables[0]):
            raise UserError(f"{path}: its columns or domains are not those of {paths[0]}: {list(table.columns)}")
    first = tables[0]
    names = _variables(paths[0], first, options)
    weigh = Weighting.of(paths[0], first, options)
    walkers: list[Tensor] = []
    skipped = invalid = 0
    splits = [split_rows(path, table, options.walkers) for path, table in zip(paths, tables, strict=True)]
    notes = [*cut, *split_notes(paths, splits), *weigh.notes(tables)]
    for path, table, split in zip(paths, tables, splits, strict=True):
        rows, spoilt = _rows(table, names, weigh)
        for of_walker in split.walkers:
            kept = _after(options.skip, path, table, of_walker)
            skipped += len(of_walker) - len(kept)
            invalid += int(spoilt[kept].sum())
            walkers.append(torch.cat([_times(table)[kept, None], rows[kept]], dim=1))
    if invalid:
        notes.append(f"{invalid:,} rows hold numbers that are not finite (nan, inf) and were left out")
    values, log_weights, time = _stacked(walkers, notes)
    if not bool((log_weights > -math.inf).any()):
        raise UserError(f"{paths[0]}: no row with a weight is left; {skipped:,} skipped, {invalid:,} not finite")
    domains = _domains(paths[0], first)
    return Samples(
        names=names,
        domains=tuple(domains.get(name) for name in names),
        values=values,
        log_weights=log_weights,
        spacing=_spacing(time),
        rows=sum(table.rows for table in tables),
        skipped=skipped,
        invalid=invalid,
        weighting=weigh.text,
        notes=tuple(notes),
        repeated=sum(split.again + split.copies for split in splits),
    )


# --- columns ----------------------------------------------------------------------------------------------------------


def _domains(path: Path, table: PlumedTable) -> dict[str, tuple[float, float]]:
    try:
        return table.domains
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error


def _variables(path: Path, table: PlumedTable, options: FesOptions) -> tuple[str, ...]:
    taken = {*_NO_VARIABLES, *options.bias, options.weights}
    likely = [name for name in table.columns if name not in taken and "." not in name]
    if not options.cv:
        if not 1 <= len(likely) <= _MOST:
            there = ", ".join(likely or [name for name in table.columns if name not in _NO_VARIABLES])
            raise UserError(f"{path}: name one or two variables with --cv; there are {there}")
        return tuple(likely)
    for name in options.cv:
        if name not in table.columns:
            raise UserError(f"--cv: {path} has no column {name!r}; there are {', '.join(table.columns)}")
    if len(options.cv) > _MOST:
        raise UserError(f"--cv: {len(options.cv)} variables; surfaces of samples have one or two")
    return options.cv


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(table: PlumedTable, names: Sequence[str], weigh: Weighting) -> tuple[Tensor, Tensor]:
    """(n, d + 1) variables and log-weights, -inf for rows that cannot be used; and which (n,) those are."""
    values = torch.stack([table.columns[name] for name in names], dim=1)
    log_weights = weigh.log_weights(table.columns)
    spoilt = ~torch.isfinite(values).all(1) | torch.isnan(log_weights)
    log_weights = torch.where(spoilt, -math.inf, log_weights)
    return torch.cat([values, log_weights[:, None]], dim=1), spoilt


def _times(table: PlumedTable) -> Tensor:
    return table.columns.get("time", torch.arange(table.rows, dtype=torch.float64))


def _after(skip: Skip, path: Path, table: PlumedTable, rows: Tensor) -> Tensor:
    if skip.time is None:
        return rows[int(skip.share * len(rows) + 0.5) :]
    if "time" not in table.columns:
        raise UserError(f"--skip: {path} has no column time; give a share such as 0.2")
    time = table.columns["time"][rows]
    return rows[time >= time[0] + skip.time] if len(rows) else rows


def _stacked(walkers: list[Tensor], notes: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Walkers side by side: (T, B, d) values, (T, B) log-weights, (T,) time of the longest."""
    longest = max(walkers, key=len)
    steps = len(longest)
    if any(len(walker) != steps for walker in walkers):
        shortest = min(len(walker) for walker in walkers)
        notes.append(f"walkers have from {shortest:,} to {steps:,} frames; all are used")
    table = torch.full((steps, len(walkers), longest.shape[1]), math.nan, dtype=torch.float64)
    table[..., -1] = -math.inf
    for k, walker in enumerate(walkers):
        table[: len(walker), k] = walker
    return table[..., 1:-1], table[..., -1], longest[:, 0]


def _spacing(time: Tensor) -> float | None:
    steps = time.diff()
    if not len(steps) or not bool(torch.isfinite(steps).all()):
        return None
    step = float(steps.median())
    even = bool(((steps - step).abs() <= _TOLERANCE + 1e-3 * abs(step)).all())
    return step if even and step > 0 else None
