"""The progress bar of a steering job, and the line of ``metrics.jsonl`` that each move leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from tqdm import tqdm

from ...steering import Run
from ..run_folder import RunFolder
from .units import Unit

__all__ = ["StepBar", "StepWatch", "watching"]


class StepBar(tqdm):  # type: ignore[type-arg]
    """Silent; says that a step was made."""

    def __init__(self, notify: Callable[[int | None], None], iterable: Any, total: int | None) -> None:
        super().__init__(iterable, total=total, disable=True)
        self._notify = notify
        self._steps = total if total is not None else (len(iterable) if hasattr(iterable, "__len__") else None)

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self._notify(self._steps)

    def update(self, n: float | None = 1) -> None:
        """A step was made."""
        self._notify(self._steps)


class StepWatch:
    """Looks at the run whenever the pipeline moves its own progress bar; writes a line for each new move.

    Args:
        folder: of the job.
        bar: of the whole job.
        task: on it.
    """

    def __init__(self, folder: RunFolder, bar: Progress, task: TaskID) -> None:
        self.folder, self.bar, self.task = folder, bar, task
        self.unit: Unit | None = None
        self.run: Run | None = None
        self.written = 0

    def begin(self, unit: Unit, run: Run | None) -> None:
        """A unit begins; of a run that is None no line is written before the end."""
        self.unit, self.run, self.written = unit, run, 0
        self.bar.update(self.task, unit=f"{unit.condition.title[:32]}, seed {unit.seed}", moves="-", ess="-")

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> StepBar:
        """What stands in for the pipeline's own method."""
        return StepBar(self._stepped, iterable, total)

    def _stepped(self, steps: int | None) -> None:
        if self.run is None:
            return
        self._write(self.run)
        if self.run.records:
            shown = f"{len(self.run.records)}{f'/{steps}' if steps else ''}"
            self.bar.update(self.task, moves=shown, ess=f"{float(self.run.records[-1].ess[0]):.1f}")

    def finish(self, run: Run) -> None:
        """The unit is done: what is still unwritten, and the line of the outputs."""
        self._write(run)
        rewards = {name: values[0] for name, values in run.rewards_by_control.items()}
        evidence, ess = float(run.log_evidence[0]), float(run.ess[0])
        line = self._line(len(run.records), ess, evidence, rewards, None) | {"outputs": True}
        self.folder.append_metrics(line)
        self.bar.update(self.task, advance=1)

    def _write(self, run: Run) -> None:
        for record in run.records[self.written :]:
            resampled = record.ancestors is not None
            rewards = {name: values[0] for name, values in record.rewards.items()}
            evidence, ess = float(record.log_evidence[0]), float(record.ess[0])
            self.folder.append_metrics(self._line(record.index, ess, evidence, rewards, resampled))
        self.written = len(run.records)

    def _line(
        self, step: int, ess: float, evidence: float, rewards: dict[str, torch.Tensor], resampled: bool | None
    ) -> dict[str, Any]:
        assert self.unit is not None
        line = {"unit": self.unit.name, "step": step, "ess": ess, "log_evidence": _plain(evidence)}
        found = {}
        for name, values in rewards.items():
            possible = values[values.isfinite()]
            mean, most = (float(possible.mean()), float(possible.max())) if len(possible) else (None, None)
            found[name] = {"mean": mean, "max": most}
        first = next(iter(found.values()), {"mean": None, "max": None})
        line |= {"reward_mean": first["mean"], "reward_max": first["max"]}
        if resampled is not None:
            line["resampled"] = resampled
        return line | ({"rewards": found} if len(found) > 1 else {})


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


@contextmanager
def watching(console: Console, folder: RunFolder, pipe: Any, units: int) -> Iterator[StepWatch]:
    """Show a bar over ``units`` units; inside, ``pipe`` reports its steps to the watch."""
    columns = (
        TextColumn("steering"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("move {task.fields[moves]}"),
        TextColumn("ESS {task.fields[ess]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        watch = StepWatch(folder, bar, bar.add_task("steering", total=units, unit="", moves="-", ess="-"))
        pipe.progress_bar = watch.progress_bar
        try:
            yield watch
        finally:
            del pipe.progress_bar
