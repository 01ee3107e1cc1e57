"""What the times of a COLVAR say of its rows: walkers in turn, restarts, runs one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError

__all__ = ["Split", "by_times", "tells"]

_IRREGULAR = 0.25
"""With a larger share of jumps back, or of times that stand oftener or less often than most, times tell nothing."""

_MEND = "give each walker a file of its own or a column walker, or --walkers 1 to take the rows as they stand"


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one file by walker, and what the times said.

    Attributes:
        walkers: row numbers (n,) of each.
        in_turn: walkers whose rows stand in turn, found by times that stand so often; 1 without.
        stretches: runs one after the other, found by a clock that starts again; 1 without.
        again: rows left out because their times come again after a restart.
        copies: rows left out that are equal to others, times included.
        told: whether ``--walkers`` said so.
        clockless: whether there are times that tell nothing: all the same, not finite, or in no order.
    """

    walkers: tuple[Tensor, ...]
    in_turn: int = 1
    stretches: int = 1
    again: int = 0
    copies: int = 0
    told: bool = False
    clockless: bool = False


def tells(times: Tensor) -> bool:
    """Whether times (n,) are finite and not all the same."""
    return bool(torch.isfinite(times).all()) and len(times) > 1 and float(times.min()) < float(times.max())


def by_times(path: Path, times: Tensor, data: Tensor) -> Split:
    """The walkers of rows, by blocks of rows with one time.

    Times that stand W times each are those of W walkers in turn. Where time jumps back a run was restarted, and of rows
    whose times come again the later ones stay. Where it jumps back to its start there are runs one after the other,
    each a walker.

    Args:
        path: for messages.
        times: (n,), which `tells`.
        data: (n, C) all columns.

    Raises:
        UserError: times in no order.
    """
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), (times.diff() != 0).nonzero()[:, 0] + 1])
    counts = torch.cat([starts, torch.tensor([len(times)])]).diff()
    bounds = _starts_again(path, times[starts])
    edges = [*starts[bounds[:-1]].tolist(), len(times)]
    stretches = [data[first:last] for first, last in itertools.pairwise(edges)]
    parts = [
        _stretch(path, times[starts[first:last]], data, starts[first:last], counts[first:last])
        for k, (first, last) in enumerate(itertools.pairwise(bounds))
        if not _is_copy(stretches, k)
    ]
    if len({part.in_turn for part in parts}) > 1:
        raise UserError(f"{path}: its times stand now {parts[0].in_turn}, now {parts[-1].in_turn} times; {_MEND}")
    walkers = tuple(walker for part in parts for walker in part.walkers)
    again = sum(part.again for part in parts)
    copies = len(times) - again - sum(map(len, walkers))
    return Split(walkers, in_turn=parts[0].in_turn, stretches=len(parts), again=again, copies=copies)


def _starts_again(path: Path, times: Tensor) -> list[int]:
    """Bounds of the stretches between which times (n,), none equal to the next, go back to their start."""
    steps = times.diff()
    back = (steps < 0).nonzero()[:, 0] + 1
    if len(back) > _IRREGULAR * len(times):
        raise UserError(f"{path}: its times go back {len(back):,} times in {len(times):,}; {_MEND}")
    step = float(steps[steps > 0].median())
    bounds = [0]
    for k in back.tolist():
        if float(times[k]) <= float(times[bounds[-1]]) + step:
            bounds.append(k)
    return [*bounds, len(times)]


def _is_copy(stretches: Sequence[Tensor], k: int) -> bool:
    """Whether a stretch is the beginning of the next or, if it is shorter, of the one before."""
    own = stretches[k]
    for j in (k - 1, k + 1):
        if not 0 <= j < len(stretches) or len(own) > len(stretches[j]) or (len(own) == len(stretches[j]) and j < k):
            continue
        if bool((stretches[j][: len(own)] == own).all()):
            return True
    return False


def _stretch(path: Path, times: Tensor, data: Tensor, starts: Tensor, counts: Tensor) -> Split:
    """The walkers of one run from the times of its blocks, where they start and how many rows (m,) they have."""
    earliest = times.flip(0).cummin(0).values.flip(0)
    kept = torch.cat([times[:-1] < earliest[1:], torch.ones(1, dtype=torch.bool)])
    again = int(counts[~kept].sum())
    starts, counts = starts[kept], counts[kept]
    whole = counts[:-1] if len(counts) > 1 else counts
    width = int(torch.bincount(whole).argmax())
    if int((whole != width).sum()) > _IRREGULAR * len(whole):
        most, least = int(whole.max()), int(whole.min())
        raise UserError(f"{path}: its times stand {least} to {most} times; {_MEND}")
    full = starts[counts == width]
    if width > 1 and bool((data[full[:, None] + torch.arange(width)] == data[full][:, None]).all()):
        ends = starts + counts - 1
        return Split((ends,), again=again)
    whole = counts >= width
    whole[-1] = True  # a run that was stopped: its last frame may lack walkers
    again += int(counts[~whole].sum() + (counts[whole] - width).clamp_min(0).sum())
    there = counts[whole].clamp_max(width)
    begin = starts[whole] + counts[whole] - there
    return Split(tuple((begin + k)[there > k] for k in range(width)), in_turn=width, again=again)
