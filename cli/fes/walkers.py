"""Whose the rows of a COLVAR are, and what there is to say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...molecular.io import PlumedTable
from ..errors import UserError
from .clock import Split, by_times, tells

__all__ = ["split_notes", "split_rows"]


def split_rows(path: Path, table: PlumedTable, count: int | None) -> Split:
    """The rows of each walker of a file: by its column ``walker``, by ``count``, and by its times.

    Args:
        path: for messages.
        table: of the file.
        count: what ``--walkers`` says, or None.

    Raises:
        UserError: a number of walkers that the file denies, or times that make no sense.
    """
    if "walker" in table.columns:
        return _labelled(path, table, count)
    times = table.columns.get("time")
    if times is None:
        return Split(_in_turn(path, table.rows, count))
    if not tells(times):
        return Split(_in_turn(path, table.rows, count), clockless=count is None and table.rows > 1)
    try:
        found = by_times(path, times, _data(table))
    except UserError:
        if count is None:
            raise
        found = None
    return found if count is None and found is not None else _as_told(path, times, found, count or 1)


def _data(table: PlumedTable) -> Tensor:
    return torch.stack(list(table.columns.values()), dim=1)


def _labelled(path: Path, table: PlumedTable, count: int | None) -> Split:
    labels = table.columns["walker"]
    names = torch.unique(labels).tolist()
    if count not in (None, len(names)):
        raise UserError(f"--walkers {count}: {path} has a column walker with {len(names):,}; leave --walkers out")
    data, parts = _data(table), []
    for name in names:
        rows = (labels == name).nonzero()[:, 0]
        times = table.columns["time"][rows] if "time" in table.columns else rows
        part = by_times(path, times, data[rows]) if tells(times) else Split((torch.arange(len(rows)),))
        if part.in_turn > 1:
            raise UserError(f"{path}: walker {name:g} has each time {part.in_turn} times")
        parts.append(replace(part, walkers=tuple(rows[walker] for walker in part.walkers)))
    again = any(part.stretches > 1 for part in parts)
    return Split(
        tuple(rows for part in parts for rows in part.walkers),
        stretches=sum(part.stretches for part in parts) if again else 1,
        again=sum(part.again for part in parts),
        copies=sum(part.copies for part in parts),
    )


def _in_turn(path: Path, rows: int, count: int | None) -> tuple[Tensor, ...]:
    if count is not None and rows % count:
        raise UserError(f"--walkers {count}: the {rows:,} rows of {path} are no multiple of it")
    return tuple(torch.arange(rows).reshape(-1, count or 1).unbind(1))


def _as_told(path: Path, times: Tensor, found: Split | None, count: int) -> Split:
    """As ``--walkers`` has it, where the times do not deny it; ``found`` None: they are in no order."""
    if count == 1:
        if found is None:
            return Split((torch.arange(len(times)),), told=True, clockless=True)
        return replace(found, walkers=(torch.cat(found.walkers).sort().values,), told=True)
    if found is not None and count in (found.in_turn, len(found.walkers)):
        return replace(found, told=count == len(found.walkers))
    if found is not None and found.in_turn > 1:
        stands = f"each time stands {found.in_turn} times in {path}"
        raise UserError(f"--walkers {count}: {stands}; leave --walkers out, or give {found.in_turn}")
    walkers = _in_turn(path, len(times), count)
    if not all(bool((times[walker].diff() > 0).all()) for walker in walkers):
        raise UserError(f"--walkers {count}: the times of {path} do not grow along each of so many walkers in turn")
    return Split(walkers, told=True)


def split_notes(paths: Sequence[Path], splits: Sequence[Split]) -> list[str]:
    """Warnings about what the times made of the rows."""
    found = list(zip(paths, splits, strict=True))
    notes = []
    if one := [(path, split.in_turn) for path, split in found if split.in_turn > len(split.walkers)]:
        where = _where([path for path, _ in one])
        notes.append(f"each time stands {one[0][1]} times in {where}, but --walkers 1 takes the rows as those of one")
    for width in sorted({split.in_turn for split in splits if split.in_turn > 1 and not split.told}):
        where = _where([path for path, split in found if split.in_turn == width])
        notes.append(
            f"each time stands {width} times in {where}: the rows are taken as frames of {width} walkers in turn, as "
            f"--walkers {width} says; --walkers 1 takes them as those of one"
        )
    if again := [(path, split.again) for path, split in found if split.again]:
        total, where = sum(count for _, count in again), _where([path for path, _ in again])
        notes.append(
            f"times come again in {where}, as after a restart: the later rows are kept, {total:,} earlier ones were "
            "left out"
        )
    if copies := [(path, split.copies) for path, split in found if split.copies]:
        total, where = sum(count for _, count in copies), _where([path for path, _ in copies])
        notes.append(f"{total:,} rows of {where} are copies of others with the same times and were left out")
    if runs := [(path, split.stretches) for path, split in found if split.stretches > 1 and not split.told]:
        total, where = sum(count for _, count in runs), _where([path for path, _ in runs])
        notes.append(
            f"the clock starts again in {where}: {total} stretches are taken as walkers of their own. Where one run "
            "of one walker went on, --walkers 1 takes them as one; where it was done again, leave the first out"
        )
    if clockless := [path for path, split in found if split.clockless]:
        notes.append(
            f"the times of {_where(clockless)} do not tell of walkers and restarts (all the same, not finite, or in no "
            "order): the rows are taken as they stand, as those of one walker; --walkers says how many there are"
        )
    return notes


def _where(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{len(paths)} files ({paths[0]}, ...)"
