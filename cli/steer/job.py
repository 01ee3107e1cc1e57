"""A steering job: one population a prompt and seed, one after the other, each kept when it is done."""

from __future__ import annotations

import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ...fkc.checkpoint import exists, load_state, save_state
from ...fkc.errors import PopulationCollapsed
from ...fkc.run_state import Checkpoint
from ...steering import Control, Run, SteeringError, attach
from ...steering.rewards import RewardError, WrongLength
from ..conclude import conclude
from ..errors import UserError
from ..kinds import JobKind
from ..paths import resolve
from ..run_folder import RunFolder
from ..tables import write_arrays
from .build import PipelineCalls, check_folder, check_scheduler, load_model, one_thread_for_tiny_models
from .config import SteerConfig
from .page import write_steer_report
from .progress import StepWatch, watching
from .results import Result, numbers, result_of, warnings_of, weight_arrays
from .rewards import build_controls, build_rewards, reward_options
from .samples import middle_frames, output_samples, write_samples
from .state import as_one_population, from_state, join_runs, to_state
from .units import Unit, conditions, units

__all__ = ["KIND", "SteerJob", "steer_inputs"]

_HASHED = 256 * 2**20
"""Files of a model above this many bytes are not hashed: reading them would take longer than many a run."""


def steer_inputs(config: SteerConfig) -> dict[str, Path]:
    """Files whose contents a resumed run must find unchanged: the model's, but for the largest."""
    folder = check_folder(config.model)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size <= _HASHED)
    found = {f"model/{p.relative_to(folder)}": p for p in files if p.suffix in (".json", ".safetensors", ".txt")}
    for reward in config.rewards:
        for name, value in reward.options.items():
            if isinstance(value, str) and (value.startswith("data:") or "/" in value):
                path = resolve(value, Path()) if value.startswith("data:") else Path(value)
                found |= {f"{reward.name}.{name}": path} if path.exists() else {}
    return found


@dataclass(frozen=True)
class SteerJob:
    """What a steering config stands for, built and checked before any folder is made."""

    config: SteerConfig
    pipe: Any
    calls: PipelineCalls

    @classmethod
    def build(cls, config: SteerConfig) -> SteerJob:
        """Load the pipeline, make every reward once, check that they fit.

        Raises:
            UserError: something cannot be used; the message names it.
        """
        check_folder(config.model)
        wanted = conditions(config)
        config = config.model_copy(update={"steering": config.steering.resolved()})
        build_controls(config, build_rewards(config, wanted[0]))  # before the long work of loading
        pipe = load_model(config.model)
        one_thread_for_tiny_models(pipe)
        settled = {"scheduler": type(pipe.scheduler).__name__, "device": str(pipe.device)}
        config = config.model_copy(update={"model": config.model.model_copy(update=settled)})
        job = cls(config, pipe, PipelineCalls.of(pipe))
        check_scheduler(pipe, config)
        for condition in wanted:
            reward_options(config, condition)
            job.calls.arguments(config, condition, job.rows)
        return job

    @property
    def rows(self) -> int:
        """Of the batch that the pipeline runs."""
        return self.config.steering.particles * (self.config.steering.candidates or 1)

    def execute(self, folder: RunFolder, console: Console) -> None:
        """Run the units that are not done yet, then write every result, and print the numbers."""
        waiting = units(self.config)
        done = {unit.name for unit in waiting if exists(folder.checkpoint / unit.name)}
        folder.keep_metrics(lambda line: line.get("unit") in done)
        with watching(console, folder, self.pipe, len(waiting)) as watch:
            watch.bar.update(watch.task, completed=len(done))
            for unit in waiting:
                if unit.name not in done:
                    self._run(unit, folder, watch)
        results, notes = _results(folder, self.config)
        _conclude(folder, console, self.config, results, notes, first=True)
        if all(bool(result.run.population.collapsed.all()) for result in results if result.run.population is not None):
            raise UserError(f"{folder.path}: every sample was impossible under its reward; no weight is left")

    # --- one unit ----------------------------------------------------------------------------------------------------

    def _run(self, unit: Unit, folder: RunFolder, watch: StepWatch) -> None:
        controls = build_controls(self.config, build_rewards(self.config, unit.condition))
        arguments = self.calls.arguments(self.config, unit.condition, self.rows)
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            warnings.simplefilter("always", RuntimeWarning)
            run, samples = self._steered(unit, controls, arguments, folder, watch)
        for warning in caught:
            if issubclass(warning.category, (UserWarning, RuntimeWarning)):
                run.note(str(warning.message))
        if self.config.steering.method == "best-of-n":
            run = as_one_population(run)
        frames = write_samples(folder.path / "samples" / unit.name, samples)
        tensors, meta = to_state(run)
        meta |= {"frames": frames, "seconds": time.perf_counter() - started}
        watch.finish(run)
        save_state(folder.checkpoint / unit.name, tensors, meta)
        shutil.rmtree(_trajectory(folder, unit), ignore_errors=True)

    def _steered(
        self, unit: Unit, controls: list[Control], arguments: dict[str, Any], folder: RunFolder, watch: StepWatch
    ) -> tuple[Run, list[Any]]:
        run = Run()
        samples: list[Any] = []
        try:
            with attach(self.pipe, *controls, **self._attachment(unit, folder)) as run:
                watch.begin(unit, None if self.config.steering.method == "best-of-n" else run)
                samples = output_samples(self.pipe(**arguments, generator=unit.generator()))
        except PopulationCollapsed as collapsed:
            if not samples:
                raise
            if self.config.steering.method != "best-of-n":  # there, it is one draw that is impossible
                run.note(str(collapsed))
        except (SteeringError, RewardError, WrongLength) as error:
            raise UserError(f"{unit.name}: {error}") from error
        except (ValueError, TypeError) as error:
            if run.records:
                raise
            raise UserError(f"{unit.name}: {self.calls.name} refuses its call: {error}") from error
        return run, samples

    def _attachment(self, unit: Unit, folder: RunFolder) -> dict[str, Any]:
        """Arguments of ``attach`` for a unit; its trajectory is saved beside the finished units, and taken up again."""
        s = self.config.steering
        alone = s.method == "best-of-n"  # independent draws: as many populations of one particle
        return {
            "particles": 1 if alone else s.particles,
            "populations": s.particles if alone else 1,
            "ess_threshold": s.ess_threshold,
            "resampler": s.resampler,
            "seed": unit.stream("steering"),
            "chunk_size": s.chunk_size,
            "final": s.final,
            "transition": s.transition,
            "checkpoint": Checkpoint(_trajectory(folder, unit), self.config.sampling.checkpoint_every),
            "resume": True,
        }


def _trajectory(folder: RunFolder, unit: Unit) -> Path:
    """Where a unit's state is while it runs."""
    return folder.checkpoint / "trajectories" / unit.name


# --- results --------------------------------------------------------------------------------------------------------


def _redraw(folder: RunFolder, config: SteerConfig, console: Console) -> None:
    """Draw pictures and report of a finished job again, from its units' states and samples."""
    results, notes = _results(folder, config)
    _conclude(folder, console, config, results, notes, first=False)


def _results(folder: RunFolder, config: SteerConfig) -> tuple[list[Result], list[str]]:
    results = []
    for condition in conditions(config):
        mine = [unit for unit in units(config) if unit.condition == condition]
        states = [load_state(folder.checkpoint / unit.name) for unit in mine]
        run = join_runs([from_state(tensors, meta) for tensors, meta in states])
        pictures = [
            middle_frames(folder.path / "samples" / unit.name, config.steering.particles, int(meta["frames"]))
            for unit, (_, meta) in zip(mine, states, strict=True)
        ]
        seconds = sum(float(meta["seconds"]) for _, meta in states)
        results.append(result_of(condition, [unit.seed for unit in mine], run, pictures, seconds))
    return results, warnings_of(results)


def _conclude(
    folder: RunFolder, console: Console, config: SteerConfig, results: list[Result], notes: list[str], *, first: bool
) -> None:
    """Write weights and pictures, or pictures alone; then print."""
    conclude(
        console,
        folder,
        numbers(results),
        notes,
        data=(lambda stage: write_arrays(stage / "weights.npz", weight_arrays(results))) if first else None,
        report=lambda stage, frame: write_steer_report(stage, frame, config=config, results=results),
    )


def _headline(job: SteerJob) -> str:
    count, particles = len(units(job.config)), job.config.steering.particles
    return f"{count} populations of {particles} particles" if count > 1 else f"{particles} particles"


KIND = JobKind(
    config=SteerConfig,
    building="loading the pipeline",
    build=lambda config, folder: SteerJob.build(config),
    inputs=steer_inputs,
    headline=_headline,
    redraw=_redraw,
)
