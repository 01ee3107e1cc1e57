"""`feynkac run`: a config to a finished run folder; its ``job:`` says of what kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ..build import build_system, settle_energy
from ..config import RunConfig
from ..errors import UserError
from ..job import FreeEnergyJob, input_files
from ..paths import config_path, default_run_folder
from ..run_folder import RunFolder
from ..validation import load_config
from ..yaml_lines import load_yaml

__all__ = ["run"]


def run(console: Console, config_file: Path, output: Path | None, overrides: Sequence[str]) -> None:
    """Check the config and the output, build everything, then make the folder and run.

    Raises:
        UserError: for any problem of the config; before any folder is made.
        FileExistsError: if the output exists.
    """
    place = config_path(config_file)
    job = _job(place)
    if job == "corrected":
        from ..corrected_config import CorrectedConfig
        from ..corrected_job import run_corrected

        run_corrected(console, load_config(place, CorrectedConfig, overrides), output)
        return
    if job == "annealed_molecule":
        from ..molecule_config import MoleculeConfig
        from ..molecule_job import run_molecule

        run_molecule(console, load_config(place, MoleculeConfig, overrides), output)
        return
    if job == "metadynamics":
        from ..biased.config import MetadynamicsConfig
        from ..biased.job import run_biased

        run_biased(console, load_config(place, MetadynamicsConfig, overrides), output)
        return
    if job == "repelled":
        from ..repelled.config import RepelledConfig
        from ..repelled.job import run_repelled

        run_repelled(console, load_config(place, RepelledConfig, overrides), output)
        return
    config = load_config(place, RunConfig, overrides)
    path = default_run_folder(config.name) if output is None else output
    RunFolder.refuse_existing(path)
    with console.status("building system, energy and proposal"):
        system = build_system(config.system)
        config = config.model_copy(update={"energy": settle_energy(config.energy, system)})
        built = FreeEnergyJob.build(config, system)
    folder = RunFolder.create(path, config, input_files(config))
    console.print(Text(f"{config.name}: {config.sampling.samples:,} samples into {path}"), soft_wrap=True)
    built.execute(folder, console)


_JOBS = ("free_energy", "corrected", "annealed_molecule", "metadynamics", "repelled")


def _job(place: Path) -> Any:
    """What the config's ``job:`` says.

    Raises:
        UserError: a job of another command, or of none.
    """
    located = load_yaml(place)
    job = located.data.get("job")
    if isinstance(job, str) and job not in _JOBS:
        command = next((name for name in ("steer", "train") if job.startswith(name)), None)
        hint = f"; to run this one: feynkac {command} {place}" if command else ""
        raise UserError(f"{located.where(('job',))}: job = {job!r}: expected {' or '.join(_JOBS)}{hint}")
    return job
