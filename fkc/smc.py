"""Sequential Monte Carlo: THE loop.

A sampler is a pair :func:`init` / :func:`step`; :func:`smc` calls them until every population is finished,
records, and checkpoints. Populations never look at each other: each resamples on its own ESS, ends when its
own model says so, and draws from its own two streams, so that its result is the same alone or in a batch.

References:
    Del Moral, Doucet and Jasra (2006), JRSS B 68, 411, algorithm 3.1.1. Chopin and Papaspiliopoulos (2020),
    algorithm 10.2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .cloud import Cloud
from .collectors import Collector
from .errors import PopulationCollapsed
from .genealogy import evidence_std_error, mean_std_error
from .model import FeynmanKacModel
from .population import Population
from .resampling import Scheme, get_scheme
from .run_state import Checkpoint, Record, RunState, restore_run, save_run
from .streams import Streams
from .weights import log_evidence_std_error, log_mean_exp

__all__ = ["Checkpoint", "Evidence", "SMCResult", "State", "StepInfo", "init", "smc", "step"]


@dataclass(frozen=True, eq=False)
class State:
    """What the next step needs.

    Attributes:
        cloud: particles and their luggage.
        population: weights, evidence, family tree.
        index: steps taken; 0 after the initial draw.
    """

    cloud: Cloud
    population: Population
    index: int


@dataclass(frozen=True, eq=False)
class StepInfo:
    """What is worth looking at once.

    Attributes:
        ancestors: ``(P, K)`` int64, or None where no population resampled.
        resampled: ``(P,)`` bool.
    """

    ancestors: Tensor | None
    resampled: Tensor


@dataclass(frozen=True)
class Evidence:
    """A log-evidence with its standard error.

    Attributes:
        log_evidence: log of the mean of the populations' unbiased estimates.
        std_error: of ``log_evidence``, from their spread.
        n_populations: how many were averaged.
    """

    log_evidence: float
    std_error: float
    n_populations: int


@dataclass(frozen=True, eq=False)
class SMCResult:
    """Weighted samples with an evidence.

    Attributes:
        cloud: final particles.
        population: final weights and family tree.
        n_steps: steps taken.
        collected: records by name, ``(n_steps + 1, P, ...)``.
    """

    cloud: Cloud
    population: Population
    n_steps: int
    collected: Mapping[str, Tensor]

    @property
    def x(self) -> Tensor:
        """Final particles ``(P, K, *event)``."""
        return self.cloud.x

    @property
    def log_weights(self) -> Tensor:
        """Weights that ``x`` carries, ``(P, K)`` float64."""
        return self.population.log_weights

    @property
    def log_evidence(self) -> Tensor:
        """``(P,)`` float64."""
        return self.population.log_evidence

    @property
    def log_evidence_std_error(self) -> Tensor:
        """Standard error of each population's log-evidence from its own family tree, ``(P,)``."""
        return evidence_std_error(self.population)

    @property
    def ess(self) -> Tensor:
        """Effective sample size of the final weights, ``(P,)``; it ignores common ancestors."""
        return self.population.ess

    def evidence(self) -> Evidence:
        """One evidence from all populations, with the standard error that their spread gives.

        Raises:
            WeightError: a single population, which has no spread; use ``log_evidence_std_error``.
        """
        repeats = self.log_evidence
        error = log_evidence_std_error(repeats)
        return Evidence(float(log_mean_exp(repeats)), float(error), repeats.numel())

    def mean(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Weighted mean of ``function(x)`` ``(P, K, ...)`` in each population: ``(P, ...)`` float64."""
        values = function(self.x).to(torch.float64)
        weights = self.population.weights
        return (weights.reshape(weights.shape + (1,) * (values.ndim - 2)) * values).sum(dim=1)

    def std_error(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Standard error of :meth:`mean` from each population's family tree, ``(P, ...)``."""
        return mean_std_error(self.population, function(self.x))


def settings_digest(model: object) -> str | None:
    """Of what a model says of itself by ``identity()``, plain data; None for one that says nothing."""
    identity = getattr(model, "identity", None)
    if identity is None:
        return None
    return hashlib.sha256(json.dumps(identity(), sort_keys=True).encode()).hexdigest()


def init(model: FeynmanKacModel, streams: Streams, particles: int) -> State:
    """Draws the initial particles of ``len(streams.noise)`` populations and weights them."""
    cloud, log_weight = model.initial(streams.noise, particles)
    population = Population.uniform(len(streams.noise), particles, device=log_weight.device)
    return State(cloud, population.reweighted(log_weight, on_collapse="keep"), 0)


def step(
    model: FeynmanKacModel,
    state: State,
    streams: Streams,
    *,
    resampler: str | Scheme = "systematic",
    ess_threshold: float = 0.5,
) -> tuple[State, StepInfo]:
    """Resample where the ESS is low, move, reweight.

    The streams advance; nothing else that is passed in changes. Collapsed populations stay in the state with
    evidence zero, see ``Population.collapsed``.
    """
    index = state.index + 1
    population, ancestors = state.population.resampled(streams.resampling, scheme=resampler, threshold=ess_threshold)
    parents = state.cloud.permuted(ancestors)
    cloud = model.move(streams.noise, index, parents, population)
    log_increment = model.log_potential(index, parents, cloud)
    weighted = population.reweighted(log_increment, on_collapse="keep")
    resampled = population.n_resamplings > state.population.n_resamplings
    return State(cloud, weighted, index), StepInfo(ancestors, resampled)


def smc(
    model: FeynmanKacModel,
    *,
    particles: int,
    seed: int,
    populations: int = 1,
    resampler: str | Scheme = "systematic",
    ess_threshold: float = 0.5,
    collectors: Sequence[Collector] = (),
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    on_collapse: Literal["raise", "keep"] = "raise",
    device: torch.device | str = "cpu",
) -> SMCResult:
    """Runs a Feynman-Kac model.

    Args:
        model: initial law, Markov kernel, log potential.
        particles: K.
        seed: of all streams; population p's result depends on ``(seed, p)`` only.
        populations: P, independent.
        resampler: scheme, see :func:`feynkac.fkc.resample`.
        ess_threshold: a population resamples when its ESS is below this fraction of K.
        collectors: what to record at every step.
        checkpoint: folder and interval, or None.
        resume: go on from the checkpoint; the result has the same bits as that of a run never stopped.
            Without a checkpoint in the folder the run starts from the beginning.
        on_collapse: populations whose particles are all dead do not disturb the others, which are run to
            their end. Then ``"raise"`` raises, with the result of the others attached; ``"keep"`` returns
            them with evidence zero.
        device: of the generators.

    Raises:
        PopulationCollapsed: see ``on_collapse``.
        CheckpointError: the checkpoint is damaged or of another run, or there is one and ``resume`` is False.
        WeightError: a potential is ``+inf``.
    """
    _check_counts(particles, populations)
    identity = {
        "model": type(model).__name__,
        "model_steps": model.n_steps,
        "particles": particles,
        "populations": populations,
        "seed": seed,
        "resampler": get_scheme(resampler).name,
        "ess_threshold": ess_threshold,
        "collectors": [c.name for c in collectors],
        "settings": settings_digest(model),
    }
    run = restore_run(checkpoint, identity, device) if resume and checkpoint is not None else None
    if run is None:
        if checkpoint is not None:
            checkpoint.refuse_existing()
        run = _begin(model, Streams.from_seed(seed, populations, device=device), particles, collectors)
    while True:
        rows = _active(model, run.index, run.cloud, run.population)
        if rows.numel() == 0:
            break
        run = _advance(model, run, rows, resampler, ess_threshold, collectors)
        if checkpoint is not None and run.index % checkpoint.every == 0:
            save_run(checkpoint, run, identity)
    if checkpoint is not None:
        save_run(checkpoint, run, identity)
    result = SMCResult(run.cloud, run.population, run.index, run.record.stacked())
    if on_collapse == "raise":
        _raise_if_collapsed(result)
    return result


def _begin(model: FeynmanKacModel, streams: Streams, particles: int, collectors: Sequence[Collector]) -> RunState:
    state = init(model, streams, particles)
    nobody = torch.zeros(state.population.n_populations, dtype=torch.bool, device=state.cloud.x.device)
    record = Record.empty().extended({c.name: c(state, StepInfo(None, nobody)) for c in collectors})
    return RunState(state.cloud, state.population, streams, 0, record)


def _advance(
    model: FeynmanKacModel,
    run: RunState,
    rows: Tensor,
    resampler: str | Scheme,
    ess_threshold: float,
    collectors: Sequence[Collector],
) -> RunState:
    """One step of the populations ``rows``; the others stay as they are."""
    before = State(run.cloud, run.population, run.index)
    everyone = rows.numel() == run.population.n_populations
    part = before if everyone else State(run.cloud.select(rows), run.population.select(rows), run.index)
    streams = run.streams if everyone else run.streams.select(rows.tolist())
    after, info = step(model, part, streams, resampler=resampler, ess_threshold=ess_threshold)
    if not everyone:
        after, info = _merged(before, rows, after, info)
    record = run.record.extended({c.name: c(after, info) for c in collectors})
    return RunState(after.cloud, after.population, run.streams, after.index, record)


def _merged(before: State, rows: Tensor, after: State, info: StepInfo) -> tuple[State, StepInfo]:
    cloud = before.cloud.updated(rows, after.cloud)
    population = before.population.updated(rows, after.population)
    resampled = torch.zeros(population.n_populations, dtype=torch.bool, device=rows.device)
    ancestors = info.ancestors
    if ancestors is not None:
        identity = torch.arange(population.n_particles, device=rows.device)
        ancestors = identity.repeat(population.n_populations, 1).index_copy(0, rows, ancestors)
    info = replace(info, ancestors=ancestors, resampled=resampled.index_copy(0, rows, info.resampled))
    return State(cloud, population, after.index), info


def _active(model: FeynmanKacModel, index: int, cloud: Cloud, population: Population) -> Tensor:
    """Populations that are neither finished nor collapsed, int64."""
    return (~model.finished(index, cloud) & ~population.collapsed).nonzero().reshape(-1)


def _check_counts(particles: int, populations: int) -> None:
    if particles < 1 or populations < 1:
        raise ValueError(f"particles and populations must be positive, got {particles} and {populations}")


def _raise_if_collapsed(result: SMCResult) -> None:
    rows = result.population.collapsed.nonzero().reshape(-1)
    if rows.numel():
        steps = result.population.n_reweightings[rows] - 1
        raise PopulationCollapsed(rows.tolist(), int(steps.min()), result.population.n_particles, result)
