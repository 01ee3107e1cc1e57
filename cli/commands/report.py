"""`feynkac report`: pictures and report of a finished run, drawn again from its weights."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..kinds import asked_for
from ..run_folder import RunFolder

__all__ = ["report"]


def report(console: Console, path: Path) -> None:
    """Replace the pictures and ``report.html`` of the run in ``path``; its data stay as they are.

    Raises:
        UserError: if there is no complete run.
        FileFormatError: if ``weights.npz`` is damaged.
    """
    folder = RunFolder.open(path)
    asked_for(folder.config).report(console, folder)
