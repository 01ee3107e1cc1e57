"""`feynkac resume`: go on with a run that was stopped or killed; it ends with the bits of one that was not."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from ..config import RunConfig
from ..errors import UserError
from ..job import FreeEnergyJob, input_files
from ..run_folder import RunFolder, provenance
from ..train_config import TrainConfig
from ..training_job import TrainingJob, training_inputs
from ..validation import load_config
from ..yaml_lines import load_yaml
from .train import DIFFUSION_JOB, VALUE_JOB, resume_diffusion, resume_value

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
    kind = load_yaml(folder.config).data.get("job")
    if kind == "steer":
        _resume_steering(console, folder)
        return
    if kind == "corrected":
        from ..corrected_job import resume_corrected

        resume_corrected(console, folder)
        return
    if kind == "annealed_molecule":
        from ..molecule_job import resume_molecule

        resume_molecule(console, folder)
        return
    if kind == "metadynamics":
        from ..biased.job import resume_biased

        resume_biased(console, folder)
        return
    if kind == "repelled":
        from ..repelled.job import resume_repelled

        resume_repelled(console, folder)
        return
    if kind == VALUE_JOB:
        resume_value(console, folder)
        return
    if kind == DIFFUSION_JOB:
        resume_diffusion(console, folder)
        return
    if kind == "train":
        training = load_config(folder.config, TrainConfig)
        folder.check_inputs(training_inputs(training))
        TrainingJob.build(training).execute(folder, console)
        return
    config = load_config(folder.config, RunConfig)
    folder.check_inputs(input_files(config))
    with console.status("building system, energy and proposal"):
        job = FreeEnergyJob.build(config)
    job.execute(folder, console)


def _resume_steering(console: Console, folder: RunFolder) -> None:
    from ..steer_config import SteerConfig
    from ..steer_job import SteerJob, steer_inputs

    config = load_config(folder.config, SteerConfig)
    folder.check_inputs(steer_inputs(config))
    with console.status("loading the pipeline"):
        job = SteerJob.build(config)
    job.execute(folder, console)


def _as_at_the_start(console: Console, folder: RunFolder) -> None:
    """Use as many threads as the run had, and say which versions differ: both can change the last bits."""
    recorded = folder.recorded()
    torch.set_num_threads(int(recorded.get("torch_threads", torch.get_num_threads())))
    now, before = provenance({})["versions"], recorded.get("versions", {})
    changed = [f"{k} {before[k]} -> {now.get(k)}" for k in before if before[k] != now.get(k)]
    if changed:
        text = f"versions differ from the start of the run: {', '.join(changed)}"
        console.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)
