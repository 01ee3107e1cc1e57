"""Frames to train on: replica exchange in temperature, as flows and diffusion models of a molecule need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ...molecular.dynamics import Ensemble, EnsembleSettings, sample_ensemble
from ...molecular.energies import Energy
from ...molecular.systems import MolecularSystem
from ..paths import resolve
from .diffusion_config import DiffusionTrainConfig
from .flow_config import TrainConfig

__all__ = ["draw_frames", "stage_bars", "training_inputs"]


def training_inputs(config: TrainConfig | DiffusionTrainConfig) -> dict[str, Path]:
    """Files whose contents a resumed training on a molecule's frames must find unchanged."""
    return {"system.pdb": resolve(config.system.pdb, Path())}


def draw_frames(
    config: TrainConfig | DiffusionTrainConfig, system: MolecularSystem, energy: Energy, console: Console
) -> Ensemble:
    """The ensemble of the config's dynamics, from the structure as it stands, in single precision."""
    d = config.dynamics
    settings = EnsembleSettings(
        temperature=config.system.temperature,
        highest_temperature=d.highest_temperature,
        replicas=d.replicas,
        ladders=d.ladders,
        melt_ps=d.melt,
        burn_in_ps=d.burn_in,
        production_ps=d.production,
        exchange_steps=d.exchange_steps,
        time_step=d.time_step,
        friction=d.friction,
        mass=d.mass,
    )
    generator = torch.Generator().manual_seed(d.seed)
    with stage_bars(console) as report:
        return sample_ensemble(energy, system.positions.float(), settings, generator, progress=report)


@contextmanager
def stage_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage that reports ``(stage, done, total)``."""
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield report
