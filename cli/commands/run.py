"""`feynkac run`: a config to a finished run folder; its ``job:`` says of what kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..kinds import asked_for
from ..paths import config_path
from ..validation import load_config

__all__ = ["run"]


def run(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Check the config and the output, build everything, then make the folder and run.

    Raises:
        UserError: for any problem of the config; before any folder is made.
        FileExistsError: if the output exists.
    """
    place = config_path(config_file)
    kind = asked_for(place, "run")
    kind.start(console, load_config(place, kind.config, overrides), output)
