"""Kinds of jobs: what `run`, `steer`, `train`, `resume` and `report` need to know of each, and what they do with it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from .errors import UserError
from .paths import default_run_folder
from .run_folder import RunFolder
from .validation import load_config
from .yaml_lines import load_yaml

__all__ = ["Job", "JobKind", "asked_for", "job_kind"]


class Job(Protocol):
    """What a config stands for, built and checked before any folder is made."""

    @property
    def config(self) -> Any:
        """Settled: what the folder keeps."""
        ...

    def execute(self, folder: RunFolder, console: Console) -> None:
        """Do what is not done yet, write every result, print the numbers."""
        ...


@dataclass(frozen=True, kw_only=True)
class JobKind:
    """A kind of job. Every module of a job has one, called ``KIND``.

    Attributes:
        config: class of its configs.
        building: what is done before the folder is made, for people.
        build: from a config, and the folder of a run that goes on or None, to the job.
        inputs: files whose contents a resumed run must find unchanged, by name.
        headline: of a job: what is about to be done.
        redraw: pictures and report of a finished run once more; None for jobs without a report.
    """

    config: type[Any]
    building: str
    build: Callable[[Any, RunFolder | None], Job]
    inputs: Callable[[Any], dict[str, Path]]
    headline: Callable[[Any], str]
    redraw: Callable[[RunFolder, Any, Console], None] | None = None

    def start(self, console: Console, config: Any, output: Path | None) -> None:
        """Check the output, build everything, then make the folder and run.

        Raises:
            UserError: something cannot be used; before any folder is made, or with the folder taken away again.
            FileExistsError: if the output exists.
        """
        path = default_run_folder(config.name) if output is None else output
        RunFolder.refuse_existing(path)
        with console.status(self.building):
            job = self.build(config, None)
            inputs = self.inputs(job.config)
        folder = RunFolder.create(path, job.config, inputs)
        console.print(Text(f"{config.name}: {self.headline(job)} into {path}"), soft_wrap=True)
        try:
            with _resumable(console, path):
                job.execute(folder, console)
        except Exception:
            _withdraw(folder)
            raise

    def resume(self, console: Console, folder: RunFolder) -> None:
        """Go on with a run that was stopped.

        Raises:
            UserError: its inputs have changed.
            CheckpointError: a file is damaged.
        """
        config = load_config(folder.config, self.config)
        folder.check_inputs(self.inputs(config))
        with console.status(self.building):
            job = self.build(config, folder)
        with _resumable(console, folder.path):
            job.execute(folder, console)

    def report(self, console: Console, folder: RunFolder) -> None:
        """Replace the pictures and ``report.html``; data stay as they are.

        Raises:
            UserError: the run is not complete, or has no report.
        """
        if self.redraw is None:
            raise UserError(f"{folder.path}: a job of this kind has no report")
        folder.results()
        self.redraw(folder, load_config(folder.config, self.config), console)


_KINDS = {
    "free_energy": ("run", "free_energy.job"),
    "corrected": ("run", "corrected.job"),
    "annealed_molecule": ("run", "molecule.job"),
    "metadynamics": ("run", "biased.job"),
    "repelled": ("run", "repelled.job"),
    "steer": ("steer", "steer.job"),
    "train": ("train", "training.flow_job"),
    "train_value": ("train", "training.value_job"),
    "train_diffusion": ("train", "training.diffusion_job"),
}
"""``job:`` of a config -> the command that starts it, and its module, which is imported when it is needed."""


def job_kind(name: str) -> JobKind:
    """The kind of a ``job:``."""
    kind: JobKind = importlib.import_module(f".{_KINDS[name][1]}", __package__).KIND
    return kind


def asked_for(place: Path, command: str | None = None) -> JobKind:
    """The kind that the ``job:`` of a config says.

    Args:
        place: of the config.
        command: that is to start it; None for a run that exists.

    Raises:
        UserError: no such job, or one of another command.
    """
    located = load_yaml(place)
    job = located.data.get("job")
    own = [name for name, (starts, _) in _KINDS.items() if command in (None, starts)]
    if job in own:
        return job_kind(job)
    hint = f"; to run this one: feynkac {_KINDS[job][0]} {place}" if job in _KINDS else ""
    raise UserError(f"{located.where(('job',))}: job = {job!r}: expected {' or '.join(own)}{hint}")


def _withdraw(folder: RunFolder) -> None:
    """Take away a folder in which nothing was done, so that the mended command can use its name."""
    if [part.name for part in folder.path.iterdir()] == [folder.config.name]:
        folder.config.unlink()
        folder.path.rmdir()


@contextmanager
def _resumable(console: Console, path: Path) -> Iterator[None]:
    """Says how to go on where the work inside is interrupted from the keyboard."""
    try:
        yield
    except KeyboardInterrupt:
        text = f"go on with: feynkac resume {path} (from its last checkpoint; from the start if it has none yet)"
        console.print(Text(text), soft_wrap=True)
        raise
