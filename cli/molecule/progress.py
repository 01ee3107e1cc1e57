"""The progress bar of an annealed molecule, and the line of ``metrics.jsonl`` that each move leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ...steering import Run
from ..run_folder import RunFolder
from ..steer.progress import StepBar

__all__ = ["MoveWatch", "watching_moves"]


class MoveWatch:
    """Looks at the run whenever the pipeline moves its own progress bar; writes a line for each new move.

    Args:
        folder: of the run.
        show: called with what changes on the bar.
    """

    def __init__(self, folder: RunFolder, show: Any) -> None:
        self.folder, self.show = folder, show
        self.unit, self.run, self.written = "", Run(), 0

    def begin(self, unit: str) -> None:
        """Another unit begins."""
        self.unit, self.run, self.written = unit, Run(), 0
        self.show(unit=unit, ess="-")

    def began(self, run: Run) -> None:
        """The unit has particles."""
        self.run = run

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> StepBar:
        """What stands in for the pipeline's own method."""
        return StepBar(self._stepped, iterable, total)

    def _stepped(self, steps: int | None) -> None:
        for record in self.run.records[self.written :]:
            ess, evidence = float(record.ess[0]), float(record.log_evidence[0])
            self.folder.append_metrics(
                {
                    "unit": self.unit,
                    "step": record.index,
                    "ess": ess,
                    "log_evidence": evidence if math.isfinite(evidence) else None,
                    "resampled": record.ancestors is not None,
                }
            )
            self.show(ess=f"{ess:,.0f}")
        self.written = len(self.run.records)
        self.show(advance=1)


@contextmanager
def watching_moves(console: Console, folder: RunFolder, pipe: Any, steps: int, done: int) -> Iterator[MoveWatch]:
    """Show a bar over ``steps`` calls of the denoiser, ``done`` of them made before; inside, ``pipe`` reports its own
    to the watch."""
    columns = (
        TextColumn("annealing"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("ESS {task.fields[ess]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("annealing", total=steps, completed=done, unit="", ess="-")
        watch = MoveWatch(folder, lambda **changes: bar.update(task, **changes))
        pipe.progress_bar = watch.progress_bar
        try:
            yield watch
        finally:
            del pipe.progress_bar
