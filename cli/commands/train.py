"""`feynkac train`: a flow or a diffusion pipeline fitted to frames of dynamics, or a value network to rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..kinds import JobKind, asked_for, job_kind
from ..paths import config_path
from ..validation import load_config

__all__ = ["train", "train_flow", "train_value"]


def train(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Train what the config's ``job:`` says.

    Raises:
        UserError: for any problem of the config; before any folder is made.
        FileExistsError: if the output exists.
    """
    _train(asked_for(config_path(config_file), "train"), console, config_file, output, overrides)


def train_flow(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Check the config and the output, build everything, then make the folder and train a flow. Raises as `train`."""
    _train(job_kind("train"), console, config_file, output, overrides)


def train_value(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Check the config and the output, load pipeline and reward, then make the folder, roll out and fit. Raises as
    `train`."""
    _train(job_kind("train_value"), console, config_file, output, overrides)


def _train(kind: JobKind, console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    kind.start(console, load_config(config_path(config_file), kind.config, overrides), output)
