"""The end of a run: its files, its pictures and report, and the numbers on the screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from .printing import print_results
from .report.html import Frame
from .results import Number, as_json
from .run_folder import RunFolder

__all__ = ["conclude"]


def conclude(
    console: Console,
    folder: RunFolder,
    found: list[Number],
    notes: list[str],
    *,
    data: Callable[[Path], object] | None,
    report: Callable[[Path, Frame], list[str]],
) -> None:
    """Write the results of a run just made, or its pictures and report alone; then print.

    Args:
        console: to print on.
        folder: of the run.
        found: its numbers.
        notes: its warnings.
        data: writes the files of a run just made into the folder it is given; None where they are there.
        report: writes pictures and report, and names the pictures.
    """
    with (
        console.status("writing results"),
        folder.results_stage(None if data is None else as_json(found, notes)) as stage,
    ):
        if data is not None:
            data(stage)
        recorded = folder.recorded()
        pictures = report(stage, Frame(folder.config.read_text(encoding="utf-8"), recorded, found, notes))
    files = [folder.path / name for name in (*pictures, "report.html")]
    print_results(console, found, notes, files, heading="pictures and report")
