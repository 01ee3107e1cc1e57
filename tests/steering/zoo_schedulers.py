"""Scheduler settings: how each is made, with which pipeline it runs, what it keeps of a particle's past."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import diffusers as d

from .zoo_images import sd_betas

__all__ = ["SETTINGS", "Setting", "setting"]


@dataclass(frozen=True, eq=False)
class Setting:
    """A scheduler with options, run through the ``sd`` or the ``sd3`` row.

    Attributes:
        make: () -> scheduler.
        pipeline: the row of the zoo it runs with.
        calls: of ``step`` for 8 inference steps.
        stochastic: its own step adds noise.
        history: attributes that hold tensors a particle owns.
        native_x0: ``step`` returns an unclipped ``pred_original_sample`` that ours must equal.
        arguments: more keywords of the pipeline's call.
        supported: its noise levels can be known; a setting without is refused.
        permutable: noise comes from generators, so that permuting particles can be checked.
        package: an optional package that the scheduler needs.
    """

    name: str
    make: Callable[[], Any]
    pipeline: Literal["sd", "sd3"] = "sd"
    calls: int = 8
    stochastic: bool = False
    history: tuple[str, ...] = ()
    native_x0: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    supported: bool = True
    permutable: bool = True
    package: str | None = None


def _sd(cls: str, **config: Any) -> Callable[[], Any]:
    return lambda: getattr(d, cls)(**sd_betas(**config))


def _flow(cls: str, **config: Any) -> Callable[[], Any]:
    return lambda: getattr(d, cls)(**config)


_V = {"prediction_type": "v_prediction"}
_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
_TWO_STAGE = ("prev_derivative", "sample")
_UNI_PC = ("model_outputs", "last_sample")
_SA = ("model_outputs", "last_sample", "last_noise")
_SINGLE = ("model_outputs", "sample")
_DDIM = {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}
_DDPM = {"clip_sample": False}

SETTINGS: tuple[Setting, ...] = (
    Setting("ddim", _sd("DDIMScheduler", **_DDIM), native_x0=True),
    Setting("ddim_thresholding", _sd("DDIMScheduler", **_DDIM, thresholding=True)),
    Setting("ddim_eta1", _sd("DDIMScheduler", **_DDIM), stochastic=True, native_x0=True, arguments={"eta": 1.0}),
    Setting(
        "ddim_parallel_eta1",
        _sd("DDIMParallelScheduler", **_DDIM),
        stochastic=True,
        native_x0=True,
        arguments={"eta": 1.0},
    ),
    Setting("ddpm", _sd("DDPMScheduler", **_DDPM), stochastic=True, native_x0=True),
    Setting("ddpm_v", _sd("DDPMScheduler", **_DDPM, **_V), stochastic=True, native_x0=True),
    Setting("ddpm_sample", _sd("DDPMScheduler", **_DDPM, prediction_type="sample"), stochastic=True, native_x0=True),
    Setting("ddpm_parallel", _sd("DDPMParallelScheduler", **_DDPM), stochastic=True, native_x0=True),
    Setting("pndm", _sd("PNDMScheduler", skip_prk_steps=True, steps_offset=1), calls=9, history=("ets", "cur_sample")),
    Setting(
        "pndm_prk",
        _sd("PNDMScheduler", skip_prk_steps=False, steps_offset=1),
        calls=17,
        history=("ets", "cur_sample", "cur_model_output"),
    ),
    Setting("euler", _sd("EulerDiscreteScheduler"), native_x0=True),
    Setting("euler_v", _sd("EulerDiscreteScheduler", **_V), native_x0=True),
    Setting("euler_karras", _sd("EulerDiscreteScheduler", use_karras_sigmas=True), native_x0=True),
    Setting("euler_ancestral", _sd("EulerAncestralDiscreteScheduler"), stochastic=True, native_x0=True),
    Setting("euler_ancestral_v", _sd("EulerAncestralDiscreteScheduler", **_V), stochastic=True, native_x0=True),
    Setting("heun", _sd("HeunDiscreteScheduler"), calls=15, history=_TWO_STAGE, native_x0=True),
    Setting("kdpm2", _sd("KDPM2DiscreteScheduler"), calls=15, history=("sample",), native_x0=True),
    Setting(
        "kdpm2_ancestral",
        _sd("KDPM2AncestralDiscreteScheduler"),
        calls=15,
        stochastic=True,
        history=("sample",),
        native_x0=True,
    ),
    Setting("lms", _sd("LMSDiscreteScheduler"), history=("derivatives",), native_x0=True, package="scipy"),
    Setting("dpmpp_2m", _sd("DPMSolverMultistepScheduler"), history=("model_outputs",)),
    Setting("dpmpp_3m", _sd("DPMSolverMultistepScheduler", solver_order=3), history=("model_outputs",)),
    Setting(
        "dpmpp_2m_sde",
        _sd("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
        stochastic=True,
        history=("model_outputs",),
    ),
    Setting("dpm_single", _sd("DPMSolverSinglestepScheduler", lower_order_final=True), history=_SINGLE),
    Setting(
        "dpm_single_sde",
        _sd("DPMSolverSinglestepScheduler", lower_order_final=True, algorithm_type="sde-dpmsolver++"),
        stochastic=True,
        history=_SINGLE,
    ),
    Setting("deis", _sd("DEISMultistepScheduler"), history=("model_outputs",)),
    Setting("unipc", _sd("UniPCMultistepScheduler"), history=_UNI_PC),
    Setting("sa_solver", _sd("SASolverScheduler"), stochastic=True, history=_SA),
    Setting("ipndm", lambda: d.IPNDMScheduler(), history=("ets",), supported=False),
    Setting("lcm", _sd("LCMScheduler", clip_sample=False), stochastic=True),
    Setting("tcd", _sd("TCDScheduler", clip_sample=False)),
    Setting("tcd_eta", _sd("TCDScheduler", clip_sample=False), stochastic=True, arguments={"eta": 0.3}),
    Setting(
        "dpm_sde",
        _sd("DPMSolverSDEScheduler"),
        calls=15,
        stochastic=True,
        history=("sample",),
        native_x0=True,
        permutable=False,
        package="torchsde",
    ),
    Setting("edm_euler", lambda: d.EDMEulerScheduler(), native_x0=True),
    Setting("edm_dpm", lambda: d.EDMDPMSolverMultistepScheduler(), history=("model_outputs",)),
    Setting("flow_euler", _flow("FlowMatchEulerDiscreteScheduler", shift=3.0), "sd3"),
    Setting(
        "flow_euler_stochastic",
        _flow("FlowMatchEulerDiscreteScheduler", shift=3.0, stochastic_sampling=True),
        "sd3",
        stochastic=True,
    ),
    Setting("flow_heun", _flow("FlowMatchHeunDiscreteScheduler"), "sd3", calls=15, history=_TWO_STAGE),
    Setting("flow_lcm", _flow("FlowMatchLCMScheduler", shift=3.0), "sd3", stochastic=True),
    Setting("ltx_ancestral", _flow("LTXEulerAncestralRFScheduler"), "sd3", stochastic=True),
    Setting("unipc_flow", _flow("UniPCMultistepScheduler", **_FLOW), "sd3", history=_UNI_PC),
    Setting("dpmpp_2m_flow", _flow("DPMSolverMultistepScheduler", **_FLOW), "sd3", history=("model_outputs",)),
    Setting(
        "dpmpp_2m_sde_flow",
        _flow("DPMSolverMultistepScheduler", **_FLOW, algorithm_type="sde-dpmsolver++"),
        "sd3",
        stochastic=True,
        history=("model_outputs",),
    ),
    Setting("sa_solver_flow", _flow("SASolverScheduler", **_FLOW), "sd3", stochastic=True, history=_SA),
)


def setting(name: str) -> Setting:
    """The setting of that name."""
    return next(setting for setting in SETTINGS if setting.name == name)
