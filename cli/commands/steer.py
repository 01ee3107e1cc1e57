"""`feynkac steer`: a diffusers pipeline as a weighted population, from a config or from options alone."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..errors import UserError
from ..paths import default_run_folder
from ..run_folder import RunFolder
from ..steer_config import SteerConfig
from ..steer_job import SteerJob, steer_inputs
from ..steer_units import units

__all__ = ["steer"]


def steer(console: Console, config: SteerConfig, output: Path | None) -> None:
    """Check everything that can be checked, then make the folder and run.

    Raises:
        UserError: something cannot be used; before any folder is made, or with the folder taken away again.
        FileExistsError: if the output exists.
    """
    path = default_run_folder(config.name) if output is None else output
    RunFolder.refuse_existing(path)
    with console.status("loading the pipeline"):
        job = SteerJob.build(config)
        inputs = steer_inputs(config)
    folder = RunFolder.create(path, job.config, inputs)
    count, particles = len(units(config)), config.steering.particles
    many = f"{count} populations of {particles} particles" if count > 1 else f"{particles} particles"
    console.print(Text(f"{config.name}: {many} into {path}"), soft_wrap=True)
    try:
        job.execute(folder, console)
    except KeyboardInterrupt:
        console.print(Text(f"finished populations are kept; go on with: feynkac resume {path}"), soft_wrap=True)
        raise
    except UserError:
        _withdraw(folder)
        raise


def _withdraw(folder: RunFolder) -> None:
    """Take away a folder in which nothing was done, so that the mended command can use its name."""
    if [part.name for part in folder.path.iterdir()] == [folder.config.name]:
        folder.config.unlink()
        folder.path.rmdir()
