"""`feynkac train`: a flow or a diffusion pipeline fitted to frames of dynamics, or a value network to rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ..build import build_system, settle_energy
from ..paths import config_path, default_run_folder
from ..run_folder import RunFolder
from ..train_config import TrainConfig
from ..training_job import TrainingJob, training_inputs
from ..validation import load_config
from ..yaml_lines import load_yaml

__all__ = [
    "DIFFUSION_JOB",
    "VALUE_JOB",
    "resume_diffusion",
    "resume_value",
    "train",
    "train_diffusion",
    "train_flow",
    "train_value",
]

VALUE_JOB = "train_value"
"""``job:`` of a config of value networks."""

DIFFUSION_JOB = "train_diffusion"
"""``job:`` of a config of a molecule's diffusion pipeline."""


def train(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Train what the config's ``job:`` says.

    Raises:
        UserError: for any problem of the config; before any folder is made.
        FileExistsError: if the output exists.
    """
    job = load_yaml(config_path(config_file)).data.get("job")
    kinds = {VALUE_JOB: train_value, DIFFUSION_JOB: train_diffusion}
    kinds.get(str(job), train_flow)(console, config_file, output, overrides)


def train_flow(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Check the config and the output, build everything, then make the folder and train a flow.

    Raises:
        UserError: for any problem of the config; before any folder is made.
        FileExistsError: if the output exists.
    """
    _train_molecule(console, config_file, output, overrides, TrainConfig, TrainingJob)


def train_value(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Check the config and the output, load pipeline and reward, then make the folder, roll out and fit.

    Raises:
        UserError: for any problem of the config; before any folder is made.
        FileExistsError: if the output exists.
    """
    from ..value_config import ValueConfig
    from ..value_job import ValueJob, value_inputs

    config = load_config(config_path(config_file), ValueConfig, overrides)
    path = default_run_folder(config.name) if output is None else output
    RunFolder.refuse_existing(path)
    job = ValueJob.build(config)
    folder = RunFolder.create(path, config, value_inputs(config))
    console.print(Text(f"{config.name}: {config.rollouts.count:,} rollouts into {path}"), soft_wrap=True)
    job.execute(folder, console)


def resume_value(console: Console, folder: RunFolder) -> None:
    """Go on with a value fit that was stopped.

    Raises:
        UserError: its pipeline or reward has changed.
        CheckpointError: a file is damaged.
    """
    from ..value_config import ValueConfig
    from ..value_job import ValueJob, value_inputs

    config = load_config(folder.config, ValueConfig)
    folder.check_inputs(value_inputs(config))
    ValueJob.build(config).execute(folder, console)


def train_diffusion(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Check the config and the output, build everything, then make the folder and train a diffusion pipeline.

    Raises:
        UserError: for any problem of the config; before any folder is made.
        FileExistsError: if the output exists.
    """
    from ..diffusion_train_config import DiffusionTrainConfig
    from ..diffusion_train_job import DiffusionTrainJob

    _train_molecule(console, config_file, output, overrides, DiffusionTrainConfig, DiffusionTrainJob)


def _train_molecule(
    console: Console, config_file: Path, output: Path | None, overrides: Sequence[str], config_type: Any, job_type: Any
) -> None:
    """A job on frames of one molecule's dynamics: its config, its system and energy, its folder."""
    config = load_config(config_path(config_file), config_type, overrides)
    path = default_run_folder(config.name) if output is None else output
    RunFolder.refuse_existing(path)
    system = build_system(config.system)
    config = config.model_copy(update={"energy": settle_energy(config.energy, system)})
    job = job_type.build(config, system)
    folder = RunFolder.create(path, config, training_inputs(config))
    console.print(Text(f"{config.name}: training into {path}"), soft_wrap=True)
    job.execute(folder, console)


def resume_diffusion(console: Console, folder: RunFolder) -> None:
    """Go on with the training of a diffusion pipeline that was stopped.

    Raises:
        UserError: its molecule has changed.
        CheckpointError: a file is damaged.
    """
    from ..diffusion_train_config import DiffusionTrainConfig
    from ..diffusion_train_job import DiffusionTrainJob

    config = load_config(folder.config, DiffusionTrainConfig)
    folder.check_inputs(training_inputs(config))
    DiffusionTrainJob.build(config).execute(folder, console)
