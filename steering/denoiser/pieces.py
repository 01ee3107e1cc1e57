"""The batch of one denoiser call, cut into pieces and joined again.

A call has n = r x B hidden rows: B rows of the scheduler's step, r guidance branches, the rows of a branch side by
side. A piece holds all r branches of its particles, so that attention that looks across branches still finds them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SteeringError
from .rows import Call, row_ratio

__all__ = ["Plan", "evaluate", "plan_copies", "plan_pieces"]


@dataclass(frozen=True)
class Plan:
    """How n hidden rows are evaluated.

    Attributes:
        pieces: hidden rows of each piece, int64, rows that are run twice to fill the last one included.
        restore: (n,) where each hidden row's result lies in the joined pieces; None: in order, nothing to drop.
    """

    pieces: tuple[Tensor, ...]
    restore: Tensor | None

    @property
    def evaluated(self) -> int:
        """Rows that the denoiser runs."""
        return sum(len(piece) for piece in self.pieces)


@functools.lru_cache(maxsize=64)
def plan_pieces(rows: int, block: int, size: int, pad: bool) -> Plan:
    """Pieces of ``size`` rows of step from n = ``rows`` hidden rows in branches of ``block``.

    Args:
        rows: n.
        block: B, the rows of one branch.
        size: rows of step in a piece.
        pad: the last piece begins with rows of the one before, so that it is as long as the others.
    """
    return _plan(rows, block, torch.arange(block), size, pad)


def plan_copies(rows: int, kept: Tensor, size: int, pad: bool) -> Plan:
    """The same, evaluating only the rows b with ``kept[b] == b`` and copying the others from row ``kept[b]``.

    Args:
        rows: n.
        kept: (B,) int64, idempotent.
        size: rows of step in a piece.
        pad: the last piece begins with rows of the one before, so that it is as long as the others.
    """
    return _plan(rows, len(kept), kept, size, pad)


def _plan(rows: int, block: int, kept: Tensor, size: int, pad: bool) -> Plan:
    distinct, place = torch.unique(kept, return_inverse=True)  # sorted
    branches = torch.arange(rows // block)[:, None]
    pieces, positions, offset = [], [], 0
    for part in torch.split(distinct, size):
        repeated = size - len(part) if pad and len(distinct) > size else 0
        run = distinct[-size:] if repeated else part
        pieces.append((branches * block + run).reshape(-1))
        positions.append(offset + branches * len(run) + torch.arange(repeated, len(run)))
        offset += len(pieces[-1])
    restore = torch.cat(positions, dim=1)[:, place].reshape(-1)
    in_order = offset == rows and bool((restore == torch.arange(rows)).all())
    return Plan(tuple(pieces), None if in_order else restore)


def evaluate(denoiser: Callable[..., Any], call: Call, rows: int, plan: Plan) -> Any:
    """What ``denoiser`` returns for ``call`` with ``rows`` hidden rows, evaluated piece by piece.

    Raises:
        SteeringError: an argument or a result that cannot be cut.
    """
    if len(plan.pieces) == 1 and plan.restore is None:
        return denoiser(*call.args, **call.kwargs)
    results = []
    for piece in plan.pieces:
        part = call.mapped(functools.partial(_cut, rows=rows, piece=piece))
        results.append(denoiser(*part.args, **part.kwargs))
    return _joined(results, plan)


def _cut(name: str, value: Tensor, *, rows: int, piece: Tensor) -> Tensor:
    ratio = row_ratio(name, value, rows)
    return _picked(value, piece, ratio) if ratio else value


def _picked(value: Tensor, index: Tensor, ratio: int) -> Tensor:
    """Rows ``index`` of ``value`` (n x ratio, ...), a view where they are side by side."""
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index) and bool((index.diff() == 1).all()):
        return value[first * ratio : (last + 1) * ratio]
    if value.stride(0) == 0:  # one value for all rows; compiled code notices when an expanded tensor is made a full one
        return value[: len(index) * ratio]
    whole = index if ratio == 1 else (index[:, None] * ratio + torch.arange(ratio)).reshape(-1)
    return value.index_select(0, whole.to(value.device))


def _joined(results: Sequence[Any], plan: Plan) -> Any:
    first = results[0]
    if isinstance(first, Tensor):
        ratio, rest = divmod(sum(len(part) for part in results), plan.evaluated)
        if rest or not ratio:
            raise SteeringError(
                f"a denoiser's result of shape {tuple(first.shape)} does not belong to its rows, so it cannot be "
                "joined: leave chunk_size out"
            )
        whole = torch.cat(list(results))
        return whole if plan.restore is None else _picked(whole, plan.restore, ratio)
    if isinstance(first, dict):  # diffusers' output objects are dictionaries with attributes
        return type(first)(**{name: _joined([part[name] for part in results], plan) for name in first})
    if isinstance(first, (list, tuple)):
        return type(first)(_joined(parts, plan) for parts in zip(*results, strict=True))
    return first
