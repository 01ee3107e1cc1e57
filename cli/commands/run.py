"""`feynkac run`: a config to a finished run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..build import build_system, settle_energy
from ..config import RunConfig
from ..job import FreeEnergyJob, input_files
from ..paths import config_path, default_run_folder
from ..run_folder import RunFolder
from ..validation import load_config

__all__ = ["run"]


def run(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Check the config and the output, build everything, then make the folder and run.

    Raises:
        UserError: for any problem of the config; before any folder is made.
        FileExistsError: if the output exists.
    """
    config = load_config(config_path(config_file), RunConfig, overrides)
    path = default_run_folder(config.name) if output is None else output
    RunFolder.refuse_existing(path)
    with console.status("building system, energy and proposal"):
        system = build_system(config.system)
        config = config.model_copy(update={"energy": settle_energy(config.energy, system)})
        job = FreeEnergyJob.build(config, system)
    folder = RunFolder.create(path, config, input_files(config))
    console.print(Text(f"{config.name}: {config.sampling.samples:,} samples into {path}"), soft_wrap=True)
    job.execute(folder, console)
