"""Noise levels by scheduler class: at every step, which (alpha, sigma) make x = alpha x0 + sigma eps.

A registry, and no guessing: a scheduler that merely looks like another (a consistency-model scheduler has sigmas too) would
give clean predictions that are silently wrong. Third parties add theirs with :func:`register_scheduler`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UnsupportedScheduler

__all__ = ["Family", "Level", "SchedulerRule", "register_scheduler", "registered_schedulers", "rule_for"]

Family = Literal["vp", "lambda", "ve", "edm", "flow"]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True)
class Level:
    """One noise level in the scheduler's own sample space: x = ``alpha`` x0 + ``sigma`` eps."""

    alpha: float
    sigma: float


@dataclass(frozen=True)
class SchedulerRule:
    """What must be known of a scheduler class.

    Attributes:
        family: how (alpha, sigma) are read off it.
        levels: scheduler after ``set_timesteps`` -> the level of each of its steps, and the level after the last.
        stages: calls of ``step`` that make one move (2 for the Heun family): weights change in the first alone.
        prediction: scheduler -> what the denoiser predicts.
        clips: scheduler -> whether its step clips or thresholds the clean prediction (which changes the law).
        stochastic: (scheduler, arguments of step) -> whether its own step adds noise.
    """

    family: Family
    levels: Callable[[Any], tuple[Level, ...]]
    prediction: Callable[[Any], Prediction]
    clips: Callable[[Any], bool]
    stochastic: Callable[[Any, dict[str, Any]], bool]
    stages: int = 1


_RULES: dict[str, SchedulerRule] = {}


def register_scheduler(name: str, rule: SchedulerRule) -> None:
    """Teach feynkac a scheduler class by its name.

    Raises:
        ValueError: the name is taken.
    """
    if name in _RULES:
        raise ValueError(f"scheduler class {name!r} is registered already")
    _RULES[name] = rule


def registered_schedulers() -> tuple[str, ...]:
    """Names of all known scheduler classes, sorted."""
    return tuple(sorted(_RULES))


def rule_for(scheduler: Any) -> SchedulerRule:
    """The rule of a scheduler's class.

    Raises:
        UnsupportedScheduler: unknown class; the message says how to register it.
    """
    name = type(scheduler).__name__
    if name not in _RULES:
        raise UnsupportedScheduler(
            f"noise levels of scheduler {name} are not known; register them with "
            f"feynkac.steering.register_scheduler({name!r}, SchedulerRule(...)). Known: {', '.join(registered_schedulers())}"
        )
    return _RULES[name]


# --- levels of the families -------------------------------------------------------------------------------------------


def _floats(values: Tensor) -> list[float]:
    return [float(v) for v in torch.as_tensor(values).detach().cpu().double()]


def _vp_levels(scheduler: Any) -> tuple[Level, ...]:
    kept = scheduler.alphas_cumprod.detach().cpu().double()[scheduler.timesteps.detach().cpu().long()]
    final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    return tuple(Level(a**0.5, (1.0 - a) ** 0.5) for a in [*_floats(kept), final])


def _sigma_levels(scheduler: Any) -> tuple[Level, ...]:
    return tuple(Level(1.0, s) for s in _floats(scheduler.sigmas))


def _paired_sigma_levels(scheduler: Any) -> tuple[Level, ...]:
    """Second-order solvers call ``step`` twice a move and list every inner sigma twice: s0 s1 s1 s2 s2 ... 0."""
    return tuple(Level(1.0, s) for s in _unpaired(_floats(scheduler.sigmas)))


def _paired_flow_levels(scheduler: Any) -> tuple[Level, ...]:
    return tuple(Level(1.0 - s, s) for s in _unpaired(_floats(scheduler.sigmas)))


def _unpaired(sigmas: list[float]) -> list[float]:
    return [sigmas[0], *sigmas[1:-1:2], sigmas[-1]]


def _flow_levels(scheduler: Any) -> tuple[Level, ...]:
    return tuple(Level(1.0 - s, s) for s in _floats(scheduler.sigmas))


def _lambda_levels(scheduler: Any) -> tuple[Level, ...]:
    pairs = (scheduler._sigma_to_alpha_sigma_t(s) for s in scheduler.sigmas.detach().cpu().double())
    return tuple(Level(float(a), float(s)) for a, s in pairs)


def _config_prediction(scheduler: Any) -> Prediction:
    kind = scheduler.config.get("prediction_type", "epsilon")
    table: dict[str, Prediction] = {
        "epsilon": "epsilon",
        "v_prediction": "v_prediction",
        "sample": "sample",
        "flow_prediction": "flow",
    }
    if kind not in table:
        raise UnsupportedScheduler(
            f"{type(scheduler).__name__}: prediction_type {kind!r} is not one of {', '.join(table)}"
        )
    return table[kind]


def _flow_prediction(scheduler: Any) -> Prediction:
    return "flow"


def _clip_sample(scheduler: Any) -> bool:
    return bool(scheduler.config.get("clip_sample", False) or scheduler.config.get("thresholding", False))


def _thresholding(scheduler: Any) -> bool:
    return bool(scheduler.config.get("thresholding", False))


def _never(scheduler: Any) -> bool:
    return False


def _noisy(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return True


def _silent(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return False


def _positive_eta(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return float(arguments.get("eta") or 0.0) > 0.0


def _positive_churn(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return float(arguments.get("s_churn") or 0.0) > 0.0


def _sde_algorithm(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return str(scheduler.config.get("algorithm_type", "")).startswith("sde")


def _stochastic_sampling(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return bool(scheduler.config.get("stochastic_sampling", False))


def _add(names: str, family: Family, levels: Any, prediction: Any, clips: Any, stochastic: Any, stages: int = 1) -> None:
    for name in names.split():
        register_scheduler(name, SchedulerRule(family, levels, prediction, clips, stochastic, stages))


_add("DDPMScheduler DDPMParallelScheduler", "vp", _vp_levels, _config_prediction, _clip_sample, _noisy)
_add("DDIMScheduler DDIMParallelScheduler", "vp", _vp_levels, _config_prediction, _clip_sample, _positive_eta)
_add("PNDMScheduler", "vp", _vp_levels, _config_prediction, _never, _silent)
_add("TCDScheduler", "vp", _vp_levels, _config_prediction, _clip_sample, _positive_eta)
# Both declare clip_sample and never read it.
_add("CogVideoXDDIMScheduler", "vp", _vp_levels, _config_prediction, _never, _silent)
_add("CogVideoXDPMScheduler", "vp", _vp_levels, _config_prediction, _never, _noisy)
_add("UnCLIPScheduler", "vp", _vp_levels, _config_prediction, _clip_sample, _noisy)
_add("EulerDiscreteScheduler", "ve", _sigma_levels, _config_prediction, _never, _positive_churn)
_add("EulerAncestralDiscreteScheduler", "ve", _sigma_levels, _config_prediction, _never, _noisy)
_add("LMSDiscreteScheduler", "ve", _sigma_levels, _config_prediction, _never, _silent)
_add("HeunDiscreteScheduler", "ve", _paired_sigma_levels, _config_prediction, _clip_sample, _silent, 2)
_add("KDPM2DiscreteScheduler", "ve", _paired_sigma_levels, _config_prediction, _never, _silent, 2)
_add("KDPM2AncestralDiscreteScheduler", "ve", _paired_sigma_levels, _config_prediction, _never, _noisy, 2)
_add("DPMSolverSDEScheduler", "ve", _paired_sigma_levels, _config_prediction, _never, _noisy, 2)
_add("EDMEulerScheduler EDMDPMSolverMultistepScheduler", "edm", _sigma_levels, _config_prediction, _never, _positive_churn)
_add("CosineDPMSolverMultistepScheduler", "edm", _sigma_levels, _config_prediction, _never, _noisy)
_add("DPMSolverMultistepScheduler", "lambda", _lambda_levels, _config_prediction, _thresholding, _sde_algorithm)
_add("DPMSolverSinglestepScheduler", "lambda", _lambda_levels, _config_prediction, _thresholding, _sde_algorithm)
_add("DEISMultistepScheduler UniPCMultistepScheduler", "lambda", _lambda_levels, _config_prediction, _thresholding, _silent)
_add("SASolverScheduler", "lambda", _lambda_levels, _config_prediction, _thresholding, _noisy)
_add("FlowMatchEulerDiscreteScheduler", "flow", _flow_levels, _flow_prediction, _never, _stochastic_sampling)
_add("FlowMatchHeunDiscreteScheduler", "flow", _paired_flow_levels, _flow_prediction, _never, _silent, 2)
_add("FlowMatchLCMScheduler LTXEulerAncestralRFScheduler", "flow", _flow_levels, _flow_prediction, _never, _noisy)
