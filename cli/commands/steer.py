"""`feynkac steer`: a diffusers pipeline as a weighted population, from a config or from options alone."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..kinds import job_kind
from ..steer.config import SteerConfig

__all__ = ["steer"]


def steer(console: Console, config: SteerConfig, output: Path | None) -> None:
    """Check everything that can be checked, then make the folder and run.

    Raises:
        UserError: something cannot be used; before any folder is made, or with the folder taken away again.
        FileExistsError: if the output exists.
    """
    job_kind("steer").start(console, config, output)
