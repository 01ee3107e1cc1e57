"""A corrected run: every target with weights and, to compare, without; each resumable at any move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ...fkc import Checkpoint, Expert, SMCResult
from ...fkc.checkpoint import exists, load_state, save_state
from ...fkc.collectors import DistinctRoots, EffectiveSampleSize, LogEvidence, Resampled
from ...fkc.run_state import restore_run
from ..conclude import conclude
from ..errors import UserError, named_errors
from ..kinds import JobKind
from ..paths import resolve
from ..run_folder import RunFolder
from ..tables import write_arrays
from .build import Unit, build_model, level_sigmas, sample, settle, units, uses_rates
from .config import CorrectedConfig
from .experts import Moments, build_experts, expert_inputs
from .page import write_corrected_report
from .progress import Noise, Watch, moves_shown
from .results import Outcome, numbers, warnings_of
from .samples import arrays, write_outcome
from .truth import truth_of

__all__ = ["KIND", "CorrectedJob"]


def _redraw(folder: RunFolder, config: CorrectedConfig, console: Console) -> None:
    """`feynkac report`: pictures and report again, from the checkpoints of the finished run."""
    _conclude(folder, console, config, first=False)


# --- the job --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorrectedJob:
    """What a corrected config stands for, built and checked before any folder is made.

    Attributes:
        config: settled.
        experts: by name.
        moments: of the experts that had to be asked for them.
        sigmas: noise at every step.
    """

    config: CorrectedConfig
    experts: Mapping[str, Expert]
    moments: Moments
    sigmas: tuple[float, ...]

    @classmethod
    def build(cls, config: CorrectedConfig, known: Moments) -> CorrectedJob:
        """Build experts, settle the noise, and refuse what cannot be sampled.

        Raises:
            UserError: something cannot be used; the message names it.
        """
        if config.classifier is not None:
            _classifier(config.classifier)
        experts, moments = build_experts(config, known)
        config = settle(config, experts)
        models = [build_model(config, unit.target, unit.way, experts) for unit in units(config)]
        return cls(config, experts, moments, level_sigmas(models[0]))

    def execute(self, folder: RunFolder, console: Console) -> None:
        """Run what is not done yet, then write every result, and print the numbers."""
        if self.moments and not exists(_moments_place(folder)):
            _save_moments(folder, self.moments)
        every = units(self.config)
        saved = {unit.name: step for unit in every if (step := _saved(folder, unit)) is not None}
        folder.keep_metrics(lambda line: line["step"] <= saved.get(line["unit"], -1))
        steps = len(self.sigmas) - 1
        with moves_shown(console, every, steps) as shown:
            for unit in every:
                if _saved(folder, unit) != steps:
                    self._run(unit, folder, shown)
        _conclude(folder, console, self.config, first=True)

    def _run(self, unit: Unit, folder: RunFolder, shown: Any) -> None:
        watch = Watch(folder, unit, self.sigmas, shown)
        sample(
            self.config,
            unit,
            self.experts,
            collectors=(EffectiveSampleSize(), LogEvidence(), DistinctRoots(), Resampled(), Noise(self.sigmas), watch),
            checkpoint=Checkpoint(_place(folder, unit), self.config.sampling.checkpoint_every),
            resume=True,
        )


# --- what is kept in the folder ---------------------------------------------------------------------------------------


def _place(folder: RunFolder, unit: Unit) -> Path:
    return folder.checkpoint / unit.name


def _saved(folder: RunFolder, unit: Unit) -> int | None:
    """Steps in the unit's checkpoint; None without one."""
    place = _place(folder, unit)
    return int(load_state(place)[1]["index"]) if exists(place) else None


def _moments_place(folder: RunFolder) -> Path:
    return folder.checkpoint / ".experts"


def _save_moments(folder: RunFolder, moments: Moments) -> None:
    tensors = {name: mean for name, (mean, _) in moments.items()}
    save_state(_moments_place(folder), tensors, {name: std for name, (_, std) in moments.items()})


def _read_moments(folder: RunFolder) -> Moments:
    """What the experts' draws gave at the start; empty if the run was stopped before."""
    if not exists(_moments_place(folder)):
        return {}
    tensors, meta = load_state(_moments_place(folder))
    return {name: (mean, float(meta[name])) for name, mean in tensors.items()}


def _outcomes(folder: RunFolder, config: CorrectedConfig) -> list[Outcome]:
    """The targets of a run whose units are finished."""
    classifier = None if config.classifier is None else _classifier(config.classifier)
    outcomes = []
    for name, section in config.targets.items():
        results = {unit.way: _finished(folder, unit) for unit in units(config) if unit.target == name}
        if bool(results["weighted"].population.collapsed.all()):
            raise UserError(f"{folder.path}: {name}: no weight is left in any population")
        classes: dict[str, torch.Tensor] = {}
        if classifier is not None:
            classes = {way: _classes(classifier, result.x) for way, result in results.items()}
        outcomes.append(
            Outcome(
                name=name,
                section=section,
                weighted=results["weighted"],
                unweighted=results.get("unweighted"),
                truth=truth_of(config, name),
                classes=classes,
                n_classes=0 if classifier is None else int(classifier.config.n_classes),
                seed=config.sampling.seed,
                rates=uses_rates(config, name),
            )
        )
    return outcomes


def _finished(folder: RunFolder, unit: Unit) -> SMCResult:
    run = restore_run(Checkpoint(_place(folder, unit), 1), {}, "cpu")
    if run is None:
        raise UserError(f"{folder.path}: {unit.name} has no checkpoint, although the run is complete")
    return SMCResult(run.cloud, run.population, run.index, run.record.stacked())


def _classifier(text: str) -> Any:
    with named_errors(f"classifier = {text!r}"):
        from ...steering.pixel_classifier import PixelClassifier

        return PixelClassifier.from_pretrained(str(resolve(text, Path())), local_files_only=True).eval()


def _classes(classifier: Any, x: torch.Tensor) -> torch.Tensor:
    """(P, K) most probable classes of images (P, K, C, H, W) in [-1, 1]."""
    flat = x.flatten(0, 1).to(classifier.dtype)
    found = torch.cat([classifier.predict(part) for part in torch.split(flat, 1024)])
    return found.reshape(x.shape[:2])


def _conclude(folder: RunFolder, console: Console, config: CorrectedConfig, *, first: bool) -> None:
    """Write results and pictures, or pictures alone; then print."""
    with console.status("reading what was sampled"):
        outcomes = _outcomes(folder, config)
    conclude(
        console,
        folder,
        numbers(outcomes),
        warnings_of(outcomes),
        data=(lambda stage: _write_data(stage, outcomes)) if first else None,
        report=lambda stage, frame: write_corrected_report(stage, frame, config=config, outcomes=outcomes),
    )


def _write_data(stage: Path, outcomes: list[Outcome]) -> None:
    write_arrays(stage / "weights.npz", arrays(outcomes))
    (stage / "samples").mkdir()
    for outcome in outcomes:
        write_outcome(stage / "samples", outcome)


def _headline(job: CorrectedJob) -> str:
    sampling = job.config.sampling
    many = f"{sampling.populations} x " if sampling.populations > 1 else ""
    return f"{', '.join(job.config.targets)}; {many}{sampling.particles:,} particles"


def _build(config: CorrectedConfig, folder: RunFolder | None) -> CorrectedJob:
    return CorrectedJob.build(config, {} if folder is None else _read_moments(folder))


KIND = JobKind(
    config=CorrectedConfig,
    building="building experts and targets",
    build=_build,
    inputs=expert_inputs,
    headline=_headline,
    redraw=_redraw,
)
