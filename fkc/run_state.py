"""The whole state of a run, on disk and back: particles, weights, family tree, generators, records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint as storage
from .cloud import Cloud
from .errors import CheckpointError
from .population import Population
from .streams import Streams

__all__ = ["Checkpoint", "Record", "RunState", "refuse_other_run", "restore_run", "save_run"]


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a run saves its whole state.

    Attributes:
        folder: created if missing; one run each.
        every: steps between saves; the end is always saved.
    """

    folder: Path
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every counts steps and must be at least 1, got {self.every}")

    def refuse_existing(self) -> None:
        """Raises CheckpointError if the folder already holds a state: a new run must not overwrite it."""
        if storage.exists(self.folder):
            raise CheckpointError(f"{self.folder} already holds a checkpoint; resume it or choose another folder")


@dataclass(frozen=True, eq=False)
class Record:
    """What collectors gave so far: one tensor a step under each name."""

    columns: Mapping[str, tuple[Tensor, ...]]

    @classmethod
    def empty(cls) -> Record:
        """Nothing recorded."""
        return cls({})

    def extended(self, row: Mapping[str, Tensor]) -> Record:
        """This record and one more step."""
        return Record({name: (*self.columns.get(name, ()), value) for name, value in row.items()})

    def stacked(self) -> dict[str, Tensor]:
        """``(n_steps + 1, P, ...)`` under each name."""
        return {name: torch.stack(values) for name, values in self.columns.items()}


@dataclass(frozen=True, eq=False)
class RunState:
    """Everything that a later process needs in order to go on.

    Attributes:
        cloud: particles.
        population: weights.
        streams: generators, at their present place.
        index: steps taken.
        record: of the collectors.
    """

    cloud: Cloud
    population: Population
    streams: Streams
    index: int
    record: Record


def save_run(checkpoint: Checkpoint, run: RunState, identity: Mapping[str, Any]) -> None:
    """Writes the run to the checkpoint's folder, atomically."""
    groups = {
        "cloud": run.cloud.state_dict(),
        "population": run.population.state_dict(),
        "streams": run.streams.state_dict(),
        "record": run.record.stacked(),
    }
    tensors = {f"{group}/{name}": value for group, part in groups.items() for name, value in part.items()}
    storage.save_state(checkpoint.folder, tensors, {"index": run.index, "identity": dict(identity)})


def restore_run(checkpoint: Checkpoint, identity: Mapping[str, Any], device: torch.device | str) -> RunState | None:
    """Reads the run back, or None if the folder holds none.

    Raises:
        CheckpointError: damaged, or written by a run with other settings; the message names them.
    """
    if not storage.exists(checkpoint.folder):
        return None
    tensors, meta = storage.load_state(checkpoint.folder)
    refuse_other_run(checkpoint, meta["identity"], identity)
    record = {name: tuple(values.unbind(0)) for name, values in _group("record", tensors, device).items()}
    return RunState(
        Cloud.from_state_dict(_group("cloud", tensors, device)),
        Population.from_state_dict(_group("population", tensors, device)),
        Streams.from_state_dict(_group("streams", tensors, "cpu"), device=device),
        int(meta["index"]),
        Record(record),
    )


def refuse_other_run(checkpoint: Checkpoint, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises CheckpointError where what a run says of itself is not what is ``stored``, naming the differences."""
    differing = [
        f"{key}: {stored.get(key)!r} there, {value!r} here"
        for key, value in identity.items()
        if stored.get(key) != value
    ]
    if differing:
        raise CheckpointError(f"{checkpoint.folder} belongs to another run ({'; '.join(differing)})")


def _group(name: str, tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value.to(device) for key, value in tensors.items() if key.startswith(prefix)}
