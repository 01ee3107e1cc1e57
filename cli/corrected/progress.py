"""The progress bar of a corrected run, and the line of ``metrics.jsonl`` that each move leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ...fkc import State, StepInfo, distinct_roots
from ..run_folder import RunFolder
from .build import Unit

__all__ = ["Noise", "Watch", "moves_shown"]

Shown = Callable[[Unit, int, float], None]


class Watch:
    """Looks at every move: writes its line, moves the bar, and records how long it took.

    Args:
        folder: of the run.
        unit: what is running.
        sigmas: noise at each step.
        shown: told the unit, the step and the least ESS of a population.
    """

    name = "seconds"

    def __init__(self, folder: RunFolder, unit: Unit, sigmas: Sequence[float], shown: Shown) -> None:
        self.folder, self.unit, self.sigmas, self.shown = folder, unit, sigmas, shown
        self.clock = time.perf_counter()

    def __call__(self, state: State, info: StepInfo) -> Tensor:
        """Seconds (P,) since the move before."""
        population, now = state.population, time.perf_counter()
        self.folder.append_metrics(
            {
                "unit": self.unit.name,
                "step": state.index,
                "sigma": self.sigmas[state.index],
                "ess": population.ess.tolist(),
                "log_evidence": [v if math.isfinite(v) else None for v in population.log_evidence.tolist()],
                "distinct_roots": distinct_roots(population).tolist(),
                "resampled": info.resampled.tolist(),
            }
        )
        self.shown(self.unit, state.index, float(population.ess.min()))
        elapsed, self.clock = now - self.clock, now
        return torch.full((population.n_populations,), elapsed, dtype=torch.float64)


class Noise:
    """Records the noise of every step.

    Args:
        sigmas: noise at each step.
    """

    name = "sigma"

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.sigmas = sigmas

    def __call__(self, state: State, info: StepInfo) -> Tensor:
        """Noise (P,)."""
        return torch.full((state.population.n_populations,), self.sigmas[state.index], dtype=torch.float64)


@contextmanager
def moves_shown(console: Console, units: Sequence[Unit], steps: int) -> Iterator[Shown]:
    """Show a bar over the moves of all units; yields the callback of :class:`Watch`."""
    columns = (
        TextColumn("sampling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("ESS {task.fields[ess]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("sampling", total=len(units) * steps, unit="", ess="-")

        def shown(unit: Unit, step: int, ess: float) -> None:
            bar.update(task, completed=units.index(unit) * steps + step, unit=unit.name, ess=f"{ess:,.0f}")

        yield shown
