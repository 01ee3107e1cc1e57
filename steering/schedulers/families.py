"""The rules of diffusers' own scheduler classes."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from ..errors import SteeringError, UnsupportedScheduler
from .levels import (
    Level,
    Prediction,
    SchedulerRule,
    StepPosition,
    call_index,
    refuse_scheduler,
    register_scheduler,
)

Levels = tuple[Level, ...]


def _floats(values: Any) -> list[float]:
    return [float(v) for v in torch.as_tensor(values).detach().cpu().double().flatten()]


# --- variance preserving: alpha^2 + sigma^2 = 1, read off the cumulated alphas at integer timesteps -----------------


def _vp(kept: float) -> Level:
    return Level(kept**0.5, (1.0 - kept) ** 0.5)


def _vp_at(scheduler: Any, timesteps: Iterable[int]) -> Levels:
    kept = _floats(scheduler.alphas_cumprod)
    return tuple(_vp(kept[t]) for t in timesteps)


def _integers(scheduler: Any) -> list[int]:
    return [round(t) for t in _floats(scheduler.timesteps)]


def _final(scheduler: Any) -> float:
    return float(getattr(scheduler, "final_alpha_cumprod", 1.0))


def _vp_levels(scheduler: Any) -> Levels:
    return (*_vp_at(scheduler, _integers(scheduler)), _vp(_final(scheduler)))


def _strided_arrival(scheduler: Any, timestep: Any) -> Level:
    """DDIM and its kin land on the timestep minus a fixed stride, whatever the next timestep is."""
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    previous = round(_floats(timestep)[0]) - stride
    return _vp_at(scheduler, [previous])[0] if previous >= 0 else _vp(_final(scheduler))


def _tcd_levels(scheduler: Any) -> Levels:
    """The last step goes to timestep 0, never to ``final_alpha_cumprod``."""
    return _vp_at(scheduler, [*_integers(scheduler), 0])


def _lcm_levels(scheduler: Any) -> Levels:
    """The prediction is a consistency function: skip x + scale x0-hat (Luo et al. 2023, eq. 9)."""
    levels = []
    for t, level in zip(_integers(scheduler), _vp_levels(scheduler), strict=False):
        skip, scale = scheduler.get_scalings_for_boundary_condition_discrete(t)
        levels.append(replace(level, skip=float(skip), scale=float(scale)))
    return (*levels, Level(1.0, 0.0))


def _pndm_moves(scheduler: Any) -> list[int]:
    """Calls that begin a move: a Runge-Kutta move takes four, the first multistep move two if it is the first of
    all."""
    calls = range(len(scheduler.timesteps))
    return [call for call in calls if _pndm_stage(scheduler, call) == 0]


def _pndm_stage(scheduler: Any, call: int) -> int:
    warm_up = 0 if scheduler.config.skip_prk_steps else len(scheduler.prk_timesteps)
    if call < warm_up:
        return call % 4
    return int(warm_up == 0 and call == 1)


def _pndm_levels(scheduler: Any) -> Levels:
    timesteps = _integers(scheduler)
    return (*_vp_at(scheduler, [timesteps[call] for call in _pndm_moves(scheduler)]), _vp(_final(scheduler)))


def _pndm_locate(scheduler: Any, timestep: Any) -> StepPosition:
    call = scheduler.counter
    if call == 0 and _integers(scheduler)[0] != round(_floats(timestep)[0]):
        raise SteeringError(
            "PNDMScheduler was started in the middle of its timesteps, where its first moves miss their levels"
        )
    stage = _pndm_stage(scheduler, call)
    move = sum(begun <= call for begun in _pndm_moves(scheduler)) - 1
    return StepPosition(move, stage)


def _wuerstchen_levels(scheduler: Any) -> Levels:
    """Continuous time in [0, 1]; the last entry of ``timesteps`` is where the last move ends."""
    times = scheduler.timesteps.detach().cpu().double()
    return tuple(_vp(a) for a in _floats(scheduler._alpha_cumprod(times, torch.device("cpu"))))


# --- exponential-integrator solvers: (alpha, sigma) by the class's own table ----------------------------------------


def _lambda_levels(scheduler: Any) -> Levels:
    pairs = (scheduler._sigma_to_alpha_sigma_t(s) for s in scheduler.sigmas.detach().cpu().double())
    return tuple(Level(float(a), float(s)) for a, s in pairs)


# --- variance exploding: alpha = 1 ----------------------------------------------------------------------------------


def _sigma_levels(scheduler: Any) -> Levels:
    return tuple(Level(1.0, s) for s in _floats(scheduler.sigmas))


def _first_stages(scheduler: Any) -> list[float]:
    """Second-order solvers step twice a move (once in the last) and list inner sigmas twice: s0 s1 s1 s2 s2 ... 0."""
    sigmas = _floats(scheduler.sigmas)
    return [*sigmas[: len(scheduler.timesteps) : 2], sigmas[-1]]


def _paired_sigma_levels(scheduler: Any) -> Levels:
    return tuple(Level(1.0, s) for s in _first_stages(scheduler))


def _edm_levels(scheduler: Any) -> Levels:
    """Preconditioned outputs (Karras et al. 2022, table 1): x0 = skip x + scale o."""
    data = float(scheduler.config.sigma_data)
    sign = -1.0 if scheduler.config.prediction_type == "v_prediction" else 1.0
    levels = []
    for s in _floats(scheduler.sigmas):
        total = s * s + data * data
        levels.append(Level(1.0, s, skip=data * data / total, scale=sign * s * data / total**0.5))
    return tuple(levels)


def _consistency_levels(scheduler: Any) -> Levels:
    """Consistency functions (Song et al. 2023, eq. 5); the last move adds no noise."""
    levels = []
    for s in scheduler.sigmas.detach().cpu().double()[: len(scheduler.timesteps)]:
        skip, scale = scheduler.get_scalings_for_boundary_condition(s)
        levels.append(Level(1.0, float(s), skip=float(skip), scale=float(scale)))
    return (*levels, Level(1.0, 0.0))


# --- flow matching: alpha = 1 - sigma -------------------------------------------------------------------------------


def _flow_levels(scheduler: Any) -> Levels:
    sigmas = _floats(scheduler.sigmas)
    if scheduler.config.get("invert_sigmas", False):
        return tuple(Level(s, 1.0 - s) for s in sigmas)
    return tuple(Level(1.0 - s, s) for s in sigmas)


def _paired_flow_levels(scheduler: Any) -> Levels:
    return tuple(Level(1.0 - s, s) for s in _first_stages(scheduler))


# --- what the denoiser predicts -------------------------------------------------------------------------------------

_NAMES: dict[str, Prediction] = {
    "epsilon": "epsilon",
    "v_prediction": "v_prediction",
    "sample": "sample",
    "original_sample": "sample",
    "flow_prediction": "flow",
}


def _config_prediction(scheduler: Any) -> Prediction:
    kind = scheduler.config.get("prediction_type")
    if kind not in _NAMES:
        raise UnsupportedScheduler(
            f"{type(scheduler).__name__}: prediction_type {kind!r} is not one of {', '.join(_NAMES)}"
        )
    if kind == "flow_prediction" and not scheduler.config.get("use_flow_sigmas", False):
        raise UnsupportedScheduler(
            f"{type(scheduler).__name__}: prediction_type 'flow_prediction' needs use_flow_sigmas=True, otherwise its "
            "sigmas are not those of a flow"
        )
    return _NAMES[kind]


def _flow_prediction(scheduler: Any) -> Prediction:
    return "reversed_flow" if scheduler.config.get("invert_sigmas", False) else "flow"


def _preconditioned(scheduler: Any) -> Prediction:
    return "sample"


def _epsilon(scheduler: Any) -> Prediction:
    return "epsilon"


# --- clipping (by class: some declare an option that they never read) and noise -------------------------------------


def _clip_or_threshold(scheduler: Any) -> bool:
    return bool(scheduler.config.get("clip_sample", False) or scheduler.config.get("thresholding", False))


def _clip_sample(scheduler: Any) -> bool:
    return bool(scheduler.config.get("clip_sample", False))


def _clip_denoised(scheduler: Any) -> bool:
    return bool(scheduler.config.get("clip_denoised", False))


def _thresholding(scheduler: Any) -> bool:
    return bool(scheduler.config.get("thresholding", False))


def _never(scheduler: Any) -> bool:
    return False


def _noisy(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return True


def _silent(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return False


def _positive(name: str, default: float = 0.0) -> Callable[[Any, dict[str, Any]], bool]:
    def stochastic(scheduler: Any, arguments: dict[str, Any]) -> bool:
        value = arguments.get(name)
        return float(default if value is None else value) > 0.0

    return stochastic


def _configured_eta(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return float(scheduler.config.eta) > 0.0 and float(scheduler.config.s_noise) > 0.0


def _sde_algorithm(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return str(scheduler.config.get("algorithm_type", "")).startswith("sde")


def _stochastic_adams(scheduler: Any, arguments: dict[str, Any]) -> bool:
    """SA-Solver adds noise where its tau function is positive (by default between timesteps 200 and 800)."""
    return any(float(scheduler.tau_func(t)) > 0.0 for t in scheduler.timesteps)


def _stochastic_sampling(scheduler: Any, arguments: dict[str, Any]) -> bool:
    return bool(scheduler.config.get("stochastic_sampling", False))


def _two_stage(scheduler: Any, timestep: Any) -> StepPosition:
    move, stage = divmod(call_index(scheduler, timestep), 2)
    return StepPosition(move, stage)


def _add(names: str, rule: SchedulerRule) -> None:
    for name in names.split():
        register_scheduler(name, rule)


def _vp_rule(clips: Any, stochastic: Any, levels: Any = _vp_levels, **more: Any) -> SchedulerRule:
    return SchedulerRule("vp", levels, _config_prediction, clips, stochastic, **more)


def _ve_rule(clips: Any, stochastic: Any, levels: Any = _sigma_levels, **more: Any) -> SchedulerRule:
    return SchedulerRule("ve", levels, _config_prediction, clips, stochastic, **more)


def _flow_rule(stochastic: Any, levels: Any = _flow_levels, **more: Any) -> SchedulerRule:
    return SchedulerRule("flow", levels, _flow_prediction, _never, stochastic, **more)


_TWO = {"stages": 2, "locate": _two_stage, "levels": _paired_sigma_levels}
_STRIDED = {"arrival": _strided_arrival}

_add("DDPMScheduler DDPMParallelScheduler", _vp_rule(_clip_or_threshold, _noisy))
_add("DDIMScheduler DDIMParallelScheduler", _vp_rule(_clip_or_threshold, _positive("eta"), **_STRIDED))
_add("UnCLIPScheduler", _vp_rule(_clip_sample, _noisy))
_add("CogVideoXDDIMScheduler", _vp_rule(_never, _silent, **_STRIDED))  # declares clip_sample and never reads it
_add("CogVideoXDPMScheduler", _vp_rule(_never, _noisy, **_STRIDED))
_add("PNDMScheduler", _vp_rule(_never, _silent, _pndm_levels, stages=4, locate=_pndm_locate))
_add("TCDScheduler", _vp_rule(_never, _positive("eta", 0.3), _tcd_levels))
_add("LCMScheduler", _vp_rule(_clip_or_threshold, _noisy, _lcm_levels, posterior_mean=False))
_add("DDPMWuerstchenScheduler", SchedulerRule("vp", _wuerstchen_levels, _epsilon, _never, _noisy))

_add("EulerDiscreteScheduler", _ve_rule(_never, _positive("s_churn")))
_add("EulerAncestralDiscreteScheduler", _ve_rule(_never, _noisy))
_add("LMSDiscreteScheduler", _ve_rule(_never, _silent))
_add("HeunDiscreteScheduler", _ve_rule(_clip_sample, _silent, **_TWO))
_add("KDPM2DiscreteScheduler", _ve_rule(_never, _silent, **_TWO))
_add("KDPM2AncestralDiscreteScheduler", _ve_rule(_never, _noisy, **_TWO))
_add("DPMSolverSDEScheduler", _ve_rule(_never, _noisy, **_TWO, own_noise=True))

_add("EDMEulerScheduler", SchedulerRule("edm", _edm_levels, _preconditioned, _never, _positive("s_churn")))
_add(
    "EDMDPMSolverMultistepScheduler", SchedulerRule("edm", _edm_levels, _preconditioned, _thresholding, _sde_algorithm)
)
_add(
    "CosineDPMSolverMultistepScheduler",
    SchedulerRule("edm", _edm_levels, _preconditioned, _never, _noisy, own_noise=True),
)
_add(
    "CMStochasticIterativeScheduler",
    SchedulerRule("edm", _consistency_levels, _preconditioned, _clip_denoised, _noisy, posterior_mean=False),
)

for _names, _clips, _stochastic in (
    ("DPMSolverMultistepScheduler DPMSolverSinglestepScheduler", _thresholding, _sde_algorithm),
    ("DEISMultistepScheduler UniPCMultistepScheduler", _thresholding, _silent),
    ("SASolverScheduler", _thresholding, _stochastic_adams),
):
    _add(_names, SchedulerRule("lambda", _lambda_levels, _config_prediction, _clips, _stochastic))

_add("FlowMatchEulerDiscreteScheduler", _flow_rule(_stochastic_sampling))
_add(
    "FlowMatchHeunDiscreteScheduler",
    _flow_rule(_positive("s_churn"), _paired_flow_levels, stages=2, locate=_two_stage),
)
_add("FlowMatchLCMScheduler", _flow_rule(_noisy, posterior_mean=False))
_add("LTXEulerAncestralRFScheduler", _flow_rule(_configured_eta))

refuse_scheduler("IPNDMScheduler", "it has no prediction type, so its denoiser's output cannot be read")
refuse_scheduler("RePaintScheduler", "it goes back and forth in time")
