"""One batched call of ``step`` from those of the members, and the members' shares of what it returned."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SteeringError

__all__ = ["Joint", "agreed", "same"]


@dataclass(frozen=True)
class Joint:
    """How the members' rows lie in the batch.

    Attributes:
        members: how many there are, B.
        rows: each member's own in what it passes to ``step``: 1, or the tiles of a pipeline that passes
            [cond, uncond] through its scheduler; row j of member i is row j B + i of the batch.
        stacked: the sample has no particle axis; one is made for the batch and taken away again.
        ndim: axes of a member's sample.
    """

    members: int
    rows: int
    stacked: bool
    ndim: int

    @classmethod
    def of(cls, sample: Tensor, members: int, tiles: int) -> "Joint":
        """Read off one member's sample (rows, ...), or (...) without a particle axis."""
        rows = sample.shape[0] if sample.ndim >= 2 and sample.shape[0] in (1, tiles) else 0
        return cls(members, max(rows, 1), rows == 0, sample.ndim)

    def arguments(self, bounds: Sequence[inspect.BoundArguments]) -> inspect.BoundArguments:
        """The batched call: per-row tensors joined, generators in a list, everything else agreed on.

        Raises:
            SteeringError: members pass different arguments, or some a generator and some none.
        """
        first = bounds[0]
        call = inspect.BoundArguments(first.signature, first.arguments.copy())
        for name in first.arguments:
            if name != "self":
                values = _values(bounds, name)
                call.arguments[name] = _generators(values) if name == "generator" else self._join(name, values)
        return call

    def _join(self, name: str, values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor) and self._per_row(first):
            if not all(isinstance(v, Tensor) and v.shape == first.shape for v in values):
                raise SteeringError(f"{name}: the calls pass tensors of different shapes to step")
            return torch.stack(values) if self.stacked else torch.stack(values, dim=1).flatten(0, 1)
        if isinstance(first, (list, tuple)) and _has_tensor(first):
            if not all(type(v) is type(first) and len(v) == len(first) for v in values):
                raise SteeringError(f"{name}: the calls pass sequences of different lengths to step")
            return type(first)(self._join(name, list(entries)) for entries in zip(*values, strict=True))
        return agreed(name, values)

    def _per_row(self, value: Tensor) -> bool:
        if self.stacked:
            return value.ndim == self.ndim and value.ndim >= 1
        return value.ndim >= 2 and value.shape[0] == self.rows

    def split(self, output: Any) -> dict[int, Any]:
        """What each member that goes on is given, in the form that ``step`` returned: a tuple or an output object.

        After a last choice there may be fewer rows than members: row r of n then goes to member r B / n, which is of
        the same population.

        Raises:
            SteeringError: the rows returned cannot be dealt out to the members.
        """
        kept, rest = divmod(len(_previous(output)), self.rows)
        if rest or kept == 0 or self.members % kept:
            raise SteeringError(
                f"step returned {len(_previous(output))} rows, which cannot be dealt out to {self.members} members "
                f"of {self.rows} rows"
            )
        stride = self.members // kept
        return {r * stride: self._share(output, r, r * stride, kept) for r in range(kept)}

    def _share(self, value: Any, row: int, member: int, kept: int) -> Any:
        if isinstance(value, Tensor):
            for index, count in ((row, kept), (member, self.members)):  # the second: a tensor that was not cut
                if value.ndim >= 2 - self.stacked and len(value) == count * self.rows:
                    return value[index] if self.stacked else value.reshape(self.rows, count, *value.shape[1:])[:, index]
            return value
        if isinstance(value, tuple):
            entries = [self._share(entry, row, member, kept) for entry in value]
            return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
        if isinstance(value, dict):  # diffusers' BaseOutput is an ordered dictionary with attributes
            return type(value)(**{name: self._share(entry, row, member, kept) for name, entry in value.items()})
        return value


def agreed(name: str, values: Sequence[Any]) -> Any:
    """The one value that all members pass.

    Raises:
        SteeringError: they do not.
    """
    for value in values[1:]:
        if not same(values[0], value):
            raise SteeringError(
                f"{name}: the calls must agree on it to run in lock-step, got {values[0]!r} and {value!r}"
            )
    return values[0]


def same(a: Any, b: Any) -> bool:
    """Equal, with arrays compared as wholes; identical objects are not looked into."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return False
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return bool(a == b)


def _values(bounds: Sequence[inspect.BoundArguments], name: str) -> list[Any]:
    if any(bound.arguments.keys() != bounds[0].arguments.keys() for bound in bounds):
        raise SteeringError("the calls pass different arguments to step; they must take the same path")
    return [bound.arguments[name] for bound in bounds]


def _generators(values: list[Any]) -> list[torch.Generator] | None:
    given = [g for value in values if value is not None for g in (value if isinstance(value, list) else [value])]
    if not given:
        return None
    if any(value is None for value in values):
        raise SteeringError("generator: some of the calls pass one to step and some do not")
    return given


def _has_tensor(values: Sequence[Any]) -> bool:
    return any(isinstance(v, Tensor) or (isinstance(v, (list, tuple)) and _has_tensor(v)) for v in values)


def _previous(output: Any) -> Tensor:
    previous: Tensor = output[0] if isinstance(output, tuple) else output.prev_sample
    return previous
