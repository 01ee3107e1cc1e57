"""A run of biased dynamics from its config to the finished folder; resumable at any moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from ...fkc.bias import RepulsionBias
from ...fkc.bias.grid import n_nodes
from ...fkc.checkpoint import load_state, save_state
from ...molecular.dynamics import MetadynamicsState, WalkerExploded, follow, prepare
from ...molecular.io import bias_grid, read_weights, write_grid, write_trajectory
from ...molecular.io import write_weights as save_arrays
from ..caught import collected_warnings
from ..conclude import conclude
from ..errors import UserError
from ..kinds import JobKind
from ..run_folder import RunFolder
from ..tables import write_tables
from .build import Setup, input_files
from .config import MetadynamicsConfig
from .interrupt import interrupt_between_records
from .journal import Journal
from .numbers import doubts_of, numbers, warnings_of
from .page import write_biased_report
from .progress import biasing_progress
from .results import Outcome, outcome_of

__all__ = ["KIND", "BiasedJob"]

_MOST_WRITTEN = 250_000
"""Nodes of a grid that is written as text."""
_FRAMES = "frames.positions"
_BIAS = "bias"
"""Folder of the frozen bias in a finished run."""


def _redraw(folder: RunFolder, config: MetadynamicsConfig, console: Console) -> None:
    """`feynkac report`: numbers, pictures and report again, from ``weights.npz`` and the bias.

    Raises:
        UserError: the run is not complete, or a file is missing.
        CheckpointError: the bias is damaged.
    """
    arrays = read_weights(folder.finished_file("weights.npz"))
    setup = Setup.build(config)
    bias = RepulsionBias.from_state_dict(load_state(folder.path / _BIAS)[0])
    with collected_warnings() as caught, console.status("computing free energies"):
        outcome = outcome_of(setup, arrays, bias)
    _conclude(folder, console, outcome, None, caught)


# --- the job ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BiasedJob:
    """What a config stands for, built and checked before any folder is made."""

    setup: Setup

    @property
    def config(self) -> MetadynamicsConfig:
        """Settled."""
        return self.setup.config

    def execute(self, folder: RunFolder, console: Console) -> None:
        """Run what is not done yet, then write every result, and print the numbers.

        Raises:
            KeyboardInterrupt: Ctrl-C; from the filling on a checkpoint of the record at hand is written first.
        """
        for doubt in doubts_of(self.setup):
            console.print(Text.assemble(("warning: ", "yellow"), doubt), soft_wrap=True)
        with collected_warnings() as caught:
            journal, state = self._sample(folder, console)
            with console.status("computing free energies"):
                arrays = _with_counts(self.setup, journal, state)
                positions = arrays.pop(_FRAMES)
                outcome = outcome_of(self.setup, arrays, state.bias)
        _conclude(folder, console, outcome, positions, caught)

    def _sample(self, folder: RunFolder, console: Console) -> tuple[Journal, MetadynamicsState]:
        setup = self.setup
        journal = Journal(folder, setup)
        generator = journal.generator()
        try:
            with biasing_progress(console, setup.settings) as shown:
                state = journal.state
                if state is None:
                    state = self._prepared(generator, shown.melting)
                with interrupt_between_records(shown.stopping) as interrupt:
                    for staged in follow(setup.method, setup.settings, generator, state):
                        state = staged.state
                        journal.add(staged)
                        shown(staged)
                        if interrupt.pending:
                            break
                        journal.save_if_due(state, generator)
                    journal.save(state, generator)
                    if interrupt.pending:
                        raise KeyboardInterrupt
        except WalkerExploded as error:
            raise UserError(f"dynamics: {error}") from error
        return journal, state

    def _prepared(self, generator: torch.Generator, progress: Callable[[str, int, int], None]) -> MetadynamicsState:
        """Walkers at the structure of the config, relaxed and melted."""
        setup = self.setup
        try:
            return prepare(setup.method, setup.system.positions, setup.settings, generator, progress=progress)
        except ValueError as error:
            raise UserError(f"system.pdb: {error}") from error


def _with_counts(setup: Setup, journal: Journal, state: MetadynamicsState) -> dict[str, Tensor]:
    """What was recorded, and single numbers of the whole run."""
    counts = state.bias.counts
    single = {
        "kT": state.bias.kT,
        "deposits": state.deposits,
        "hills": counts.hills - setup.bias.counts.hills,
        "invalid": counts.invalid,
        "outside": counts.outside + int(journal.watch.counts[1]),
        "retired": state.walkers.n_retired,
        "restarted": state.restarted,
        "energy_calls": journal.energy_calls,
        "seconds": journal.seconds,
    }
    return journal.arrays() | {name: torch.tensor(float(v), dtype=torch.float64) for name, v in single.items()}


def _conclude(
    folder: RunFolder, console: Console, outcome: Outcome, positions: Tensor | None, caught: list[str]
) -> None:
    """Write the results of a run just made (with the ``positions`` of its frames), or the pictures alone; print."""
    conclude(
        console,
        folder,
        numbers(outcome),
        warnings_of(outcome, caught),
        data=None if positions is None else lambda stage: _write_data(stage, outcome, positions),
        report=lambda stage, frame: write_biased_report(stage, frame, outcome=outcome),
    )


def _write_data(stage: Path, outcome: Outcome, positions: Tensor) -> None:
    """Structures, weights, surfaces and the bias."""
    write_trajectory(stage / "samples.dcd", stage / "samples.pdb", positions, outcome.setup.system.topology)
    save_arrays(stage / "weights.npz", outcome.arrays)
    write_tables(stage, outcome)
    save_state(stage / _BIAS, outcome.bias.state_dict(), {})
    axes = outcome.bias.grid_axes
    if axes is not None and n_nodes(axes) <= _MOST_WRITTEN:
        grid = bias_grid(outcome.bias, label=outcome.setup.label)
        write_grid(stage / "bias.dat", grid.axes, grid.columns)


def _headline(job: BiasedJob) -> str:
    s = job.setup.settings
    return (
        f"{s.walkers:,} walkers along {', '.join(job.setup.bias.names)}; {s.fill_ps:g} ps of filling, "
        f"{s.burn_in_ps:g} + {s.production_ps:g} ps under the frozen bias,"
    )


KIND = JobKind(
    config=MetadynamicsConfig,
    building="building system, energy and bias",
    build=lambda config, folder: BiasedJob(Setup.build(config)),
    inputs=input_files,
    headline=_headline,
    redraw=_redraw,
)
