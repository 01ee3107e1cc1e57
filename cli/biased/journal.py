"""What a run of biased dynamics keeps in its folder on the way, so that a killed one goes on to the same bits.

At a checkpoint new rows go to a part of their own, which is never written again, and then the state follows: where the
walkers are, the bias, the generator, how many parts there are, and how long every growing file is.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ...fkc.bias import OpesBias
from ...fkc.checkpoint import exists, load_state, save_state
from ...molecular.dynamics import LangevinState, MetadynamicsState, Staged
from ...molecular.io import opes_table_of, write_opes_state
from ..run_folder import RunFolder
from .build import Setup
from .files import GrowingFiles
from .rows import Rows, values_of
from .tables import Tables
from .watch import Watch

__all__ = ["Journal"]

SECONDS_BETWEEN_CHECKPOINTS = 15.0
_LINES_A_STAGE = 100
_FILES = ("HILLS", "KERNELS", "COLVAR", "COLVAR.fill", "metrics.jsonl")


class Journal:
    """The folder of a run, seen from inside the run.

    Args:
        folder: of the run; what it holds beyond its last checkpoint is cut off.
        setup: what is run.

    Attributes:
        state: of the last checkpoint; None at the start.

    Raises:
        CheckpointError: a checkpoint is damaged.
        UserError: a file is shorter than at the last checkpoint.
    """

    def __init__(self, folder: RunFolder, setup: Setup) -> None:
        self.folder, self.setup = folder, setup
        self.files = GrowingFiles(folder.path, _FILES)
        self.state: MetadynamicsState | None = None
        self._generator: Tensor | None = None
        self._parts, self._calls, self._seconds = 0, 0, 0.0
        watch: dict[str, Tensor] | None = None
        sizes: dict[str, int] = {}
        if exists(self._place("state")):
            tensors, meta = load_state(self._place("state"))
            self.state = _moved(MetadynamicsState.from_state_dict(_under(tensors, "run.")), setup.device)
            self._generator, watch, sizes = tensors["generator"], _under(tensors, "watch."), meta["files"]
            self._parts, self._calls, self._seconds = meta["parts"], meta["energy_calls"], meta["seconds"]
        self.files.cut_back(sizes)
        self.watch = Watch(setup.config.dynamics.walkers, setup.request.difference, watch)
        self.tables, self.rows = Tables(setup, self.files), Rows(setup)
        self._calls_before = self._calls - setup.energy.n_calls
        self._start = self._saved = time.monotonic()
        if self.state is None:
            self.tables.begin()

    @property
    def energy_calls(self) -> int:
        """Evaluations of the energy so far, parts before a resume included."""
        return self._calls_before + self.setup.energy.n_calls

    @property
    def seconds(self) -> float:
        """Wall time so far, parts before a resume included."""
        return self._seconds + time.monotonic() - self._start

    def generator(self) -> Generator:
        """The source of all noise, where it stands."""
        made = torch.Generator(self.setup.device).manual_seed(self.setup.config.sampling.seed)
        if self._generator is not None:
            made.set_state(self._generator)
        return made

    def add(self, staged: Staged) -> None:
        """Take in a record."""
        self.tables.deposited(staged)
        if not self.rows.due(staged):
            return
        values = values_of(self.setup, staged.record)
        self.watch.take(staged, values)
        self.rows.add(staged, values)
        self.tables.visited(staged, values)
        total = max(1, self.rows.total(staged))
        if self.rows.number(staged) % max(1, total // _LINES_A_STAGE) == 0:
            self.folder.append_metrics(self.watch.line(staged, self.energy_calls))
            self.tables.flush()

    def save_if_due(self, state: MetadynamicsState, generator: Generator) -> None:
        """A checkpoint every so often."""
        if time.monotonic() - self._saved >= SECONDS_BETWEEN_CHECKPOINTS:
            self.save(state, generator)

    def save(self, state: MetadynamicsState, generator: Generator) -> None:
        """A checkpoint: what was recorded since the last one, then the state."""
        self.tables.flush()
        new = self.rows.taken()
        if new:
            save_state(self._place(f"part-{self._parts:05d}"), new, {})
            self._parts += 1
        if isinstance(state.bias, OpesBias):
            _replace_state_file(self.folder.path / "STATE", state.bias, state.steps * self.setup.settings.time_step)
        tensors = {
            **{f"run.{name}": tensor for name, tensor in state.state_dict().items()},
            **{f"watch.{name}": tensor for name, tensor in self.watch.state_dict().items()},
            "generator": generator.get_state(),
        }
        meta: dict[str, Any] = {"parts": self._parts, "files": self.files.sizes()}
        meta |= {"energy_calls": self.energy_calls, "seconds": self.seconds}
        save_state(self._place("state"), tensors, meta)
        self.state, self._saved = state, time.monotonic()

    def arrays(self) -> dict[str, Tensor]:
        """Everything that was recorded, (records, ...) each."""
        parts = [load_state(self._place(f"part-{k:05d}"))[0] for k in range(self._parts)]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}

    def _place(self, name: str) -> Path:
        return self.folder.checkpoint / name


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _moved(state: MetadynamicsState, device: torch.device) -> MetadynamicsState:
    moved = {name: tensor.to(device) for name, tensor in state.walkers.state_dict().items()}
    return state._replace(walkers=LangevinState.from_state_dict(moved))


def _replace_state_file(path: Path, bias: OpesBias, time_ps: float) -> None:
    """PLUMED's STATE, always that of the last checkpoint."""
    fresh = path.with_name(path.name + ".tmp")
    fresh.unlink(missing_ok=True)
    write_opes_state(fresh, opes_table_of(bias, time=time_ps))
    os.replace(fresh, path)
