"""`feynkac train`: dynamics, then a flow fitted to their frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..build import build_system, settle_energy
from ..paths import config_path, default_run_folder
from ..run_folder import RunFolder
from ..train_config import TrainConfig
from ..training_job import TrainingJob, training_inputs
from ..validation import load_config

__all__ = ["train"]


def train(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Check the config and the output, build everything, then make the folder and train.

    Raises:
        UserError: for any problem of the config; before any folder is made.
        FileExistsError: if the output exists.
    """
    config = load_config(config_path(config_file), TrainConfig, overrides)
    path = default_run_folder(config.name) if output is None else output
    RunFolder.refuse_existing(path)
    system = build_system(config.system)
    config = config.model_copy(update={"energy": settle_energy(config.energy, system)})
    job = TrainingJob.build(config, system)
    folder = RunFolder.create(path, config, training_inputs(config))
    console.print(Text(f"{config.name}: training into {path}"), soft_wrap=True)
    job.execute(folder, console)
