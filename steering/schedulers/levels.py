"""Noise levels by scheduler class: at every step, which (alpha, sigma) make x = alpha x0 + sigma eps.

A registry, and no guessing: a scheduler that merely looks like another (a consistency-model scheduler has sigmas too)
would give clean predictions that are silently wrong. Third parties add theirs with :func:`register_scheduler`; the
rules of diffusers' own classes are in :mod:`.families`.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ..errors import SteeringError, UnsupportedScheduler

__all__ = [
    "Family",
    "Level",
    "Prediction",
    "SchedulerRule",
    "StepPosition",
    "arrival_level",
    "call_index",
    "refuse_scheduler",
    "register_scheduler",
    "registered_schedulers",
    "rule_for",
    "step_position",
]

Family = Literal["vp", "lambda", "ve", "edm", "flow"]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow", "reversed_flow"]


@dataclass(frozen=True)
class Level:
    """One noise level in the scheduler's own sample space: x = ``alpha`` x0 + ``sigma`` eps.

    Attributes:
        alpha: as above.
        sigma: as above.
        skip: preconditioning: the clean prediction is ``skip`` x + ``scale`` times what the prediction type alone
            gives. 0 but for EDM (Karras et al. 2022, table 1) and consistency models (Song et al. 2023, eq. 5).
        scale: see ``skip``; 1 but for those.
    """

    alpha: float
    sigma: float
    skip: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class StepPosition:
    """Which call of ``step`` this is: its ``move``, and the ``stage`` within that (0: weights may change)."""

    move: int
    stage: int

    @property
    def first(self) -> bool:
        """The stage at which x is a state of the sampler, not a trial point of a higher-order solver."""
        return self.stage == 0


Locate = Callable[[Any, Any], StepPosition]


@dataclass(frozen=True)
class SchedulerRule:
    """What must be known of a scheduler class.

    Attributes:
        family: how (alpha, sigma) are read off it.
        levels: scheduler after ``set_timesteps`` -> the level of each of its moves, and the level after the last.
        prediction: scheduler -> what the denoiser predicts.
        clips: scheduler -> whether its step clips or thresholds the clean prediction (which changes the law).
        stochastic: (scheduler, arguments of step) -> whether its own step adds noise.
        stages: most calls of ``step`` that make one move (2 for the Heun family): weights change in the first alone,
            and only the scheduler itself can make the move.
        locate: (scheduler, timestep) before the base steps -> :class:`StepPosition`; from its counters if None.
        arrival: (scheduler, timestep) -> level on which the scheduler's own step lands, where that is not always the
            next one of ``levels``.
        posterior_mean: the clean prediction is E[x0 | x], so that it gives a score; False for distilled (consistency)
            models and for tokens.
        own_noise: noise comes from inside (a Brownian tree), not from the generator: no seed reaches it.
        clean: (scheduler, sample, output) -> clean states (rows, ...), where they are not alpha, sigma arithmetic
            (tokens); None elsewhere.
        draws: (scheduler, sample, output, n, generators) -> (rows, n, ...) draws from the model's own law of clean
            states; None: Gaussian around x0-hat.
    """

    family: Family
    levels: Callable[[Any], tuple[Level, ...]]
    prediction: Callable[[Any], Prediction]
    clips: Callable[[Any], bool]
    stochastic: Callable[[Any, dict[str, Any]], bool]
    stages: int = 1
    locate: Locate | None = None
    arrival: Callable[[Any, Any], Level] | None = None
    posterior_mean: bool = True
    own_noise: bool = False
    clean: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    draws: Callable[[Any, Tensor, Tensor, int, list[Generator]], Tensor] | None = None


_RULES: dict[str, SchedulerRule] = {}
_REFUSED: dict[str, str] = {}


def register_scheduler(name: str, rule: SchedulerRule) -> None:
    """Teach feynkac a scheduler class by its name.

    Raises:
        ValueError: the name is taken.
    """
    if name in _RULES:
        raise ValueError(f"scheduler class {name!r} is registered already")
    _RULES[name] = rule


def refuse_scheduler(name: str, reason: str) -> None:
    """Say why a scheduler class cannot be steered; registering it later lifts the refusal."""
    _REFUSED[name] = reason


def registered_schedulers() -> tuple[str, ...]:
    """Names of all known scheduler classes, sorted."""
    return tuple(sorted(_RULES))


def rule_for(scheduler: Any) -> SchedulerRule:
    """The rule of a scheduler's class.

    Raises:
        UnsupportedScheduler: unknown class; the message says how to register it.
    """
    name = type(scheduler).__name__
    if name in _RULES:
        return _RULES[name]
    reason = f" ({_REFUSED[name]})" if name in _REFUSED else ""
    raise UnsupportedScheduler(
        f"noise levels of scheduler {name} are not known{reason}; register them with "
        f"feynkac.steering.register_scheduler({name!r}, SchedulerRule(...)). "
        f"Known: {', '.join(registered_schedulers())}"
    )


def call_index(scheduler: Any, timestep: Any) -> int:
    """Which call of ``step`` comes next, counted from the beginning of ``scheduler.timesteps``.

    The timestep alone does not say: solvers repeat timesteps, and rounding makes neighbours equal. So ``step_index``
    is asked first, then ``begin_index`` (image-to-image pipelines begin in the middle), and the timestep last.

    Args:
        scheduler: before its base class has stepped.
        timestep: as passed to ``step``: a number, or a tensor of one entry or one a row.

    Raises:
        SteeringError: the timestep is not one of the scheduler's.
    """
    for name in ("step_index", "begin_index"):
        index = getattr(scheduler, name, None)
        if index is not None:
            return int(index)
    now = _first_entry(timestep)
    timesteps = _listed_timesteps(scheduler)
    count = timesteps.count(now)
    if count == 0:
        raise SteeringError(f"timestep: got {now}, expected one of {type(scheduler).__name__}'s {timesteps}")
    lookup = getattr(scheduler, "index_for_timestep", None)
    return int(lookup(torch.tensor(now))) if lookup is not None and count > 1 else timesteps.index(now)


_LISTED: "weakref.WeakKeyDictionary[Any, tuple[Tensor, list[float]]]" = weakref.WeakKeyDictionary()


def _listed_timesteps(scheduler: Any) -> list[float]:
    """The scheduler's timesteps as numbers, read off its device once a run."""
    known = _LISTED.get(scheduler)
    if known is None or known[0] is not scheduler.timesteps:
        known = (scheduler.timesteps, scheduler.timesteps.detach().cpu().flatten().tolist())
        _LISTED[scheduler] = known
    return known[1]


def _first_entry(timestep: Any) -> float:
    if isinstance(timestep, Tensor):
        return float(timestep if timestep.ndim == 0 else timestep.flatten()[0])
    return float(timestep)


def step_position(scheduler: Any, timestep: Any) -> StepPosition:
    """Move and stage of the coming call of ``step``.

    Raises:
        UnsupportedScheduler, SteeringError: as :func:`rule_for` and :func:`call_index`.
    """
    rule = rule_for(scheduler)
    if rule.locate is not None:
        return rule.locate(scheduler, timestep)
    move, stage = divmod(call_index(scheduler, timestep), rule.stages)
    return StepPosition(move, stage)


def arrival_level(scheduler: Any, timestep: Any) -> Level:
    """Level on which the scheduler's own step from ``timestep`` lands.

    DDIM subtracts a fixed stride, which misses the next timestep by one where the number of steps does not divide the
    number of training steps; elsewhere it is the level of the next move.
    """
    rule = rule_for(scheduler)
    if rule.arrival is not None:
        return rule.arrival(scheduler, timestep)
    return rule.levels(scheduler)[step_position(scheduler, timestep).move + 1]
