"""A step listener that re-indexes the rows of a running pipeline once, as resampling does, and what it saw."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feynkac.steering.gather import gather_arguments, gather_caches, gather_history
from feynkac.steering.hook import listening
from feynkac.steering.schedulers import StepPosition, step_position

from .zoo import Row, Setting, generators, media
from .zoo import row as zoo_row

__all__ = [
    "PERMUTATION",
    "ROWS_RUN",
    "Moving",
    "at_call",
    "at_move",
    "never",
    "permuted",
    "relative_error",
    "run",
    "run_setting",
]

ROWS_RUN = 4
PERMUTATION = (2, 0, 3, 1)  # not its own inverse, no row stays

When = Callable[[int, Callable[[], StepPosition]], bool]


def at_call(number: int) -> When:
    """Before the call of ``step`` of that number."""
    return lambda call, position: call == number


def at_move(number: int) -> When:
    """Before the first call of the move of that number."""
    return lambda call, position: position() == StepPosition(number, 0)


def never(call: int, position: Callable[[], StepPosition]) -> bool:
    """A plain run."""
    return False


@dataclass
class Moving:
    """Re-indexes rows when told, then lets the base step.

    Attributes:
        when: (number of the call, its place) -> whether to re-index before it.
        rows: ancestors of the rows of one tile.
        tiles: ``step`` sees that many repeats of the rows.
        history: re-index the solver's memory too.
        caches: denoisers whose feature caches are re-indexed.
        streams: also re-index the rows' generators, which makes a re-labelling of the particles of it.
        moved: names of the solver's memory that was re-indexed.
        owned: names of the solver's memory that hold the rows' tensors before any of the calls.
        cached: entries of feature caches that were re-indexed.
        last: what the last call returned as the previous sample.
    """

    when: When = never
    rows: Sequence[int] = PERMUTATION
    tiles: int = 1
    history: bool = True
    caches: list[nn.Module] = field(default_factory=list)
    streams: bool = True
    moved: tuple[str, ...] = ()
    owned: set[str] = field(default_factory=set)
    cached: int = 0
    calls: int = 0
    last: Any = None
    generator: list[torch.Generator] | None = None

    def on_run(self, scheduler: Any) -> None:
        """Nothing is kept from before."""

    def on_step(self, scheduler: Any, base_step: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        """Re-index if it is time, and step."""
        arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
        rows = self._rows()
        ndim = arguments["sample"].ndim
        self.owned |= set(gather_history(scheduler, torch.arange(len(rows)), ndim))
        takes = "generator" in bound.signature.parameters
        if takes and self.generator is None:  # where the pipeline passes none, a row gets its own here
            self.generator = arguments.get("generator") or generators(len(rows), seed=7)
        if self.when(self.calls, lambda: step_position(scheduler, arguments["timestep"])):
            arguments = gather_arguments(arguments, rows)
            if self.history:
                self.moved = gather_history(scheduler, rows, ndim)
            self.cached += gather_caches(self.caches, rows)
            if self.streams:
                self.move_streams(scheduler, rows)
        if takes:
            arguments["generator"] = self.generator
        self.calls += 1
        call = inspect.BoundArguments(bound.signature, bound.arguments.copy())
        call.arguments.update(arguments)
        output = base_step(*call.args, **call.kwargs)
        self.last = (output[0] if isinstance(output, tuple) else output.prev_sample).detach().clone()
        return output

    def move_streams(self, scheduler: Any, rows: Tensor) -> None:
        """Re-index the rows' sources of noise."""
        if self.generator is not None:
            self.generator = [self.generator[i] for i in rows.tolist()]

    def _rows(self) -> Tensor:
        one = torch.tensor(list(self.rows))
        return torch.cat([one + tile * len(one) for tile in range(self.tiles)])


def permuted(values: Tensor) -> Tensor:
    """Rows of a plain run in the order of the permutation; tiles likewise."""
    tiles = values.reshape(-1, ROWS_RUN, *values.shape[1:])
    return tiles[:, list(PERMUTATION)].reshape(values.shape)


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value expected."""
    return float((value - expected).abs().max() / expected.abs().max())


def run(pipe: Any, row: Row, listener: Moving | None, steps: int = 8, **more: Any) -> Tensor:
    """The media (rows, ...) that a call makes, listened to or not, from the same seeds every time."""
    with listening(pipe.scheduler, listener) if listener is not None else nullcontext():
        value = media(pipe(**row.call(ROWS_RUN, steps, **({"output_type": "np"} | more))))
    if isinstance(value, Tensor):
        return value
    frames = [np.stack(entry) if isinstance(entry, list) else np.asarray(entry) for entry in value]
    return torch.from_numpy(np.stack(frames))


def run_setting(case: Setting, listener: Moving | None) -> Tensor:
    """Final latents of 8 steps with the setting's scheduler, put for the time into its row's shared pipeline."""
    if case.package is not None:
        pytest.importorskip(case.package)
    row = zoo_row(case.pipeline)
    kept, row.pipe.scheduler = row.pipe.scheduler, case.make()
    try:
        return run(row.pipe, row, listener, output_type="latent", **case.arguments)
    finally:
        row.pipe.scheduler = kept
