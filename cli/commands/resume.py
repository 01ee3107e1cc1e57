"""`feynkac resume`: go on with a run that was stopped or killed; it ends with the bits of one that was not."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from ..errors import UserError
from ..kinds import asked_for
from ..run_folder import RunFolder, provenance

__all__ = ["resume"]


def resume(console: Console, path: Path) -> None:
    """Go on with the run in ``path``.

    Raises:
        UserError: if there is no run, it is complete, or its inputs have changed.
        CheckpointError: if its checkpoint is damaged.
    """
    folder = RunFolder.open(path)
    if folder.complete:
        raise UserError(f"{path}: the run is complete; to draw it again: feynkac report {path}")
    _as_at_the_start(console, folder)
    asked_for(folder.config).resume(console, folder)


def _as_at_the_start(console: Console, folder: RunFolder) -> None:
    """Use as many threads as the run had, and say which versions differ: both can change the last bits."""
    recorded = folder.recorded()
    torch.set_num_threads(int(recorded.get("torch_threads", torch.get_num_threads())))
    now, before = provenance({})["versions"], recorded.get("versions", {})
    changed = [f"{k} {before[k]} -> {now.get(k)}" for k in before if before[k] != now.get(k)]
    if changed:
        text = f"versions differ from the start of the run: {', '.join(changed)}"
        console.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)
