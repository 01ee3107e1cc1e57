"""The progress bar of biased dynamics: a stage at a time, with the bias and the rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ...molecular.dynamics import MetadynamicsSettings, Staged

__all__ = ["Shown", "biasing_progress"]

_SECONDS = 1.0
"""Over which rates are taken."""


class Shown:
    """Moves the bar.

    Args:
        settings: of the run.
        update: changes the fields of the bar.
    """

    def __init__(self, settings: MetadynamicsSettings, update: Callable[..., None]) -> None:
        self.settings, self.update = settings, update
        self._steps, self._clock = 0, time.monotonic()

    @property
    def total(self) -> int:
        """Steps of a walker from the filling on."""
        s = self.settings
        return s.deposits * s.pace + (s.burn_in_records + s.records) * s.record_steps

    def melting(self, stage: str, done: int, total: int) -> None:
        """Before the filling."""
        self.update(stage=f"{stage} {done}/{total}")

    def stopping(self) -> None:
        """The run is to stop."""
        self.update(stage="stopping after this record; Ctrl-C once more to stop at once")

    def __call__(self, staged: Staged) -> None:
        """After a record."""
        now, steps, record = time.monotonic(), staged.state.steps, staged.record
        rounds = "deposits" if staged.stage == "fill" else "records"
        changes = {"completed": steps, "stage": f"{staged.stage} {staged.done:,}/{staged.total:,} {rounds}"}
        if not self._steps:
            self._steps, self._clock = steps, now
        elif now - self._clock >= _SECONDS:
            rate = (steps - self._steps) * self.settings.walkers / (now - self._clock)
            bias = record.bias[record.alive]
            changes |= {"rate": f"{rate:,.0f}", "bias": f"{float(bias.min()):.1f} .. {float(bias.max()):.1f}"}
            self._steps, self._clock = steps, now
        self.update(**changes)


@contextmanager
def biasing_progress(console: Console, settings: MetadynamicsSettings) -> Iterator[Shown]:
    """Show a bar over all steps; yields what moves it."""
    columns = (
        TextColumn("{task.fields[stage]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("V {task.fields[bias]} kJ/mol"),
        TextColumn("{task.fields[rate]} walker-steps/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("biasing", total=None, stage="relax", bias="-", rate="-")
        shown = Shown(settings, lambda **changes: bar.update(task, **changes))
        bar.update(task, total=shown.total)
        yield shown
