"""The progress bar of a repelled run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ...steering.repel import Batch

__all__ = ["BatchBar", "batches_shown"]


class BatchBar:
    """A bar over the batches of all ways.

    Args:
        bar: rich's.
        task: on it.
    """

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def advance(self, count: int) -> None:
        """So many batches were there already."""
        self.bar.update(self.task, advance=count)

    def finished(self, way: str, batch: Batch) -> None:
        """A batch is kept."""
        ess = float(batch.run.ess.mean())
        self.bar.update(self.task, advance=1, unit=f"{way}, batch {batch.index + 1}", ess=f"{ess:.1f}")


@contextmanager
def batches_shown(console: Console, count: int) -> Iterator[BatchBar]:
    """Show a bar over ``count`` batches."""
    columns = (
        TextColumn("sampling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("ESS {task.fields[ess]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield BatchBar(bar, bar.add_task("sampling", total=count, unit="", ess="-"))
