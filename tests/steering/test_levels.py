"""Noise levels and clean predictions against what the schedulers themselves say, step by step in real pipelines."""

import copy
import math
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import diffusers as d
import pytest
import torch

from feynkac.steering.errors import SteeringError, UnsupportedScheduler
from feynkac.steering.hook import listening
from feynkac.steering.kernel import gaussian_step
from feynkac.steering.predictions import clean_prediction, noise_prediction, score
from feynkac.steering.schedulers import (
    Level,
    SchedulerRule,
    StepPosition,
    arrival_level,
    register_scheduler,
    registered_schedulers,
    rule_for,
    step_position,
)

from .zoo import MODULAR_ROWS, ROWS, SETTINGS, Row, Setting, row, sd_betas, setting, with_setting

pytestmark = pytest.mark.slow  # every scheduler through its pipeline

SUPPORTED = [s for s in SETTINGS if s.supported]
NATIVE = [s for s in SUPPORTED if s.native_x0]
CONVERTING = ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpm_single", "dpm_single_sde", "unipc", "sa_solver", "edm_dpm")
CONVERTING += ("unipc_flow", "dpmpp_2m_flow", "dpmpp_2m_sde_flow", "sa_solver_flow")


def named(cases):
    return {"argvalues": cases, "ids": [case.name for case in cases]}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def clean_of(scheduler: Any, arguments: dict[str, Any], level: Level) -> torch.Tensor:
    sample, output = arguments["sample"], arguments["model_output"]
    if output.shape != sample.shape:
        output = output[:, : sample.shape[1]]
    rule = rule_for(scheduler)
    return clean_prediction(sample, output, level, rule.prediction(scheduler), exploding=rule.family in ("ve", "edm"))


@dataclass
class Recorder:
    """Reads level and position before every step, and what the step returned."""

    converted: bool = False
    runs: int = 0
    steps: list[SimpleNamespace] = field(default_factory=list)
    levels: tuple[Level, ...] = ()

    def on_run(self, scheduler):
        self.runs += 1

    def on_step(self, scheduler, base_step, bound):
        arguments = dict(bound.arguments)
        position = step_position(scheduler, arguments["timestep"])
        self.levels = rule_for(scheduler).levels(scheduler)
        clean = clean_of(scheduler, arguments, self.levels[position.move])
        stochastic = rule_for(scheduler).stochastic(scheduler, arguments)
        native = None
        if self.converted:
            if scheduler.step_index is None:
                scheduler._init_step_index(arguments["timestep"])
            native = scheduler.convert_model_output(arguments["model_output"], sample=arguments["sample"])
        result = base_step(*bound.args, **bound.kwargs)
        if native is None:
            native = result[1] if isinstance(result, tuple) and len(result) > 1 else None
            native = getattr(result, "pred_original_sample", native)
        self.steps.append(
            SimpleNamespace(position=position, clean=clean, native=native, stochastic=stochastic, result=result)
        )
        return result

    @property
    def first(self) -> list[SimpleNamespace]:
        return [step for step in self.steps if step.position.first]


def record(pipe: Any, call: dict[str, Any], *, converted: bool = False) -> Recorder:
    recorder = Recorder(converted)
    with listening(pipe.scheduler, recorder):
        pipe(**call)
    return recorder


def record_setting(case: Setting, *, converted: bool = False) -> Recorder:
    pipe, base = with_setting(case)
    return record(pipe, base.call(2, 8, output_type="latent", **case.arguments), converted=converted)


# --- clean predictions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", **named(NATIVE))
def test_clean_prediction_is_the_schedulers_own(case):
    recorder = record_setting(case)
    assert len(recorder.steps) == case.calls
    assert max(relative(step.clean, step.native) for step in recorder.first) < 2e-6


@pytest.mark.parametrize("name", CONVERTING)
def test_clean_prediction_is_what_multistep_solvers_convert_to(name):
    recorder = record_setting(setting(name), converted=True)
    assert max(relative(step.clean, step.native) for step in recorder.first) < 2e-6


@pytest.mark.parametrize("case", **named([r for r in ROWS if r.native_x0]))
def test_clean_prediction_in_every_pipeline(case):
    recorder = record(case.pipe, case.call(2, 4))
    clips = rule_for(case.pipe.scheduler).clips(case.pipe.scheduler)
    for step in recorder.steps:
        ours = step.clean.clamp(-1.0, 1.0) if clips else step.clean
        assert float((ours - step.native).abs().max()) < 2e-6 * float(step.clean.abs().max())


def test_prediction_at_the_second_stage_is_not_at_the_moves_level():
    """Negative control: why stages matter."""
    recorder = record_setting(setting("kdpm2"))
    second = [step for step in recorder.steps if not step.position.first]
    assert len(second) == 7
    assert max(relative(step.clean, step.native) for step in second) > 1e-2


def test_latent_consistency_prediction_has_its_boundary_scalings():
    case = row("lcm")
    recorder = record(case.pipe, case.call(2, 4))
    for step in recorder.steps:
        assert relative(step.clean, step.result[1]) < 2e-6


def test_consistency_model_prediction_and_its_wrong_reading():
    """The last move adds no noise and returns the prediction; without preconditioning it would be another image."""
    pipe = row("consistency").build()
    pipe.scheduler.register_to_config(clip_denoised=False)
    recorder = record(pipe, row("consistency").call(2, 3))
    last = recorder.steps[-1]
    assert relative(last.clean, last.result[0]) < 2e-6
    level = recorder.levels[0]
    o, x = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    right = clean_prediction(x, o, level, "sample", exploding=True)
    wrong = clean_prediction(x, o, Level(level.alpha, level.sigma), "epsilon", exploding=True)
    assert relative(wrong, right) > 0.5


@pytest.mark.parametrize("exploding", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow", "reversed_flow"])
def test_predictions_invert_their_definitions(prediction, exploding):
    generator = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    if prediction in ("flow", "reversed_flow"):
        level = Level(0.3, 0.7)
    elif exploding:
        level = Level(1.0, 3.0)
    else:
        level = Level(0.6, 0.8)
    x = level.alpha * clean + level.sigma * noise
    root = math.hypot(level.alpha, level.sigma)
    output = {
        "epsilon": noise,
        "v_prediction": (level.alpha * noise - level.sigma * clean) / root,
        "sample": clean,
        "flow": noise - clean,
        "reversed_flow": clean - noise,
    }[prediction]
    found = clean_prediction(x, output, level, prediction, exploding=exploding)
    torch.testing.assert_close(found, clean)
    eps = noise_prediction(x, found, level)
    torch.testing.assert_close(eps, noise)
    torch.testing.assert_close(score(eps, level), -(x - level.alpha * clean) / level.sigma**2)


def test_low_precision_is_upcast():
    x, o = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    level = Level(0.068, 0.9977)
    found = clean_prediction(x, o, level, "epsilon", exploding=False)
    assert found.dtype == torch.float32
    exact = clean_prediction(x.double(), o.double(), level, "epsilon", exploding=False)
    assert relative(found, exact) < 1e-6
    assert relative((x - level.sigma * o) / level.alpha, exact) > 1e-4


# --- the grid --------------------------------------------------------------------------------------------------------


def noised(scheduler: Any, clean: float, noise: float, timestep: torch.Tensor) -> float:
    """What the scheduler's own noising makes of a constant image: an independent reading of its level."""
    shape = (1, 1, 1, 1)
    x, eps = torch.full(shape, clean, dtype=torch.float64), torch.full(shape, noise, dtype=torch.float64)
    if hasattr(scheduler, "scale_noise"):
        return float(scheduler.scale_noise(x, timestep[None], eps))
    return float(scheduler.add_noise(x, eps, timestep[None]))


NO_NOISING_OF_ITS_OWN = ("ltx_ancestral", "sa_solver_flow")  # the first has none, the second that of its betas


@pytest.mark.parametrize("case", **named([s for s in SUPPORTED if s.name not in NO_NOISING_OF_ITS_OWN]))
@pytest.mark.parametrize("steps", [7, 8])
def test_levels_are_those_of_the_schedulers_own_noising(case, steps):
    scheduler = case.make()
    scheduler.set_timesteps(steps)
    rule = rule_for(scheduler)
    levels = rule.levels(scheduler)
    assert len(levels) == steps + 1
    seen = 0
    for call, t in enumerate(scheduler.timesteps):
        fresh = copy.deepcopy(scheduler)  # noising must not depend on where a run stands
        if hasattr(fresh, "set_begin_index"):
            fresh.set_begin_index(call)
        position = fresh_position(fresh, t, call)
        if not position.first:
            continue
        level = levels[position.move]
        assert noised(fresh, 1.0, 0.0, t) == pytest.approx(level.alpha, rel=2e-6, abs=1e-9)
        assert noised(fresh, 0.0, 1.0, t) == pytest.approx(level.sigma, rel=2e-6, abs=1e-9)
        seen += 1
    assert seen == steps


def fresh_position(scheduler: Any, t: torch.Tensor, call: int) -> StepPosition:
    if hasattr(scheduler, "counter"):
        scheduler.counter = call
    return step_position(scheduler, t)


@pytest.mark.parametrize("case", **named(SUPPORTED))
def test_moves_follow_each_other_and_levels_fall(case):
    recorder = record_setting(case)
    moves = [step.position.move for step in recorder.first]
    assert moves == list(range(len(recorder.levels) - 1)) == list(range(8))
    assert [step.position.move for step in recorder.steps] == sorted(step.position.move for step in recorder.steps)
    ratios = [math.atan2(level.sigma, level.alpha) for level in recorder.levels]
    if case.name == "sa_solver_flow":
        ratios.pop()  # diffusers repeats the last flow sigma: this solver ends at sigma 0.3
    assert all(later < earlier for earlier, later in pairwise(ratios))
    assert max(step.position.stage for step in recorder.steps) < rule_for(case.make()).stages


@pytest.mark.parametrize("case", **named((*ROWS, *MODULAR_ROWS)))
def test_positions_in_every_pipeline(case):
    recorder = record(case.pipe, case.call(2, 4))
    moves = [step.position.move for step in recorder.first]
    assert moves == list(range(moves[0], len(recorder.levels) - 1))
    assert (moves[0] > 0) == (case.name == "sd_img2img")
    assert recorder.runs == 1


@pytest.mark.parametrize("name", ["heun", "euler", "dpmpp_2m", "ddim"])
def test_image_to_image_starts_in_the_middle(name):
    pipe, base = row("sd_img2img").build(), row("sd_img2img")
    pipe.scheduler = setting(name).make()
    recorder = record(pipe, base.call(2, 8, strength=0.5))
    assert [step.position.move for step in recorder.first] == [4, 5, 6, 7]
    assert recorder.steps[0].position.first


def test_multistep_started_in_the_middle_without_warm_up_is_refused():
    pipe, base = row("sd_img2img").build(), row("sd_img2img")
    pipe.scheduler = setting("pndm").make()
    with pytest.raises(SteeringError, match="middle of its timesteps"):
        record(pipe, base.call(2, 8, strength=0.5))


def test_custom_timesteps():
    scheduler = d.DDPMScheduler(**sd_betas())
    scheduler.set_timesteps(timesteps=[900, 500, 499, 20])
    levels = rule_for(scheduler).levels(scheduler)
    kept = [float(scheduler.alphas_cumprod[t]) for t in (900, 500, 499, 20)]
    assert [level.alpha for level in levels] == pytest.approx([*(a**0.5 for a in kept), 1.0])
    assert step_position(scheduler, torch.tensor(499)) == StepPosition(2, 0)
    with pytest.raises(SteeringError, match="timestep: got 498"):
        step_position(scheduler, 498)


# --- the kernel against the schedulers' own steps -------------------------------------------------------------------


def kernel_against(scheduler: Any, steps: int, our_eta: float, **arguments: Any) -> float:
    """Largest relative difference over a whole run of our step and the scheduler's, same noise, float64 tensors."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64) * float(
        getattr(scheduler, "init_noise_sigma", 1.0)
    )
    rule, worst = rule_for(scheduler), 0.0
    levels = rule.levels(scheduler)
    for i, t in enumerate(scheduler.timesteps[: len(levels) - 1]):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        output = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        time = t.expand(2) if isinstance(scheduler, d.DDPMWuerstchenScheduler) else t
        following = arrival_level(scheduler, time)
        assert step_position(scheduler, time) == StepPosition(i, 0)
        clean = clean_of(scheduler, {"sample": x, "model_output": output}, levels[i])
        ours = gaussian_step(clean, noise_prediction(x, clean, levels[i]), levels[i], following, our_eta)
        noise = {"generator": torch.Generator().manual_seed(i)} if "generator" in arguments else {}
        theirs = scheduler.step(output, time, x, **{**arguments, **noise}).prev_sample
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        if isinstance(scheduler, d.DDPMWuerstchenScheduler) and i == steps - 1:
            z = torch.zeros_like(x)  # it ends a little above zero noise and adds none there
        worst = max(worst, relative(ours.mean + ours.std * z, theirs))
        x = theirs
    return worst


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("steps", "spacing"), [(7, "leading"), (7, "trailing"), (8, "leading"), (50, "trailing"), (8, "linspace")]
)
def test_kernel_is_ddim(steps, eta, spacing):
    scheduler = d.DDIMScheduler(**sd_betas(clip_sample=False, timestep_spacing=spacing, set_alpha_to_one=False))
    assert kernel_against(scheduler, steps, eta, eta=eta, generator=None) < 1e-6


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_kernel_is_ancestral_euler(prediction):
    scheduler = d.EulerAncestralDiscreteScheduler(**sd_betas(prediction_type=prediction))
    assert kernel_against(scheduler, 8, 1.0, generator=None) < 1e-6


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_kernel_is_ddpm_with_small_variance(prediction):
    scheduler = d.DDPMScheduler(**sd_betas(clip_sample=False, prediction_type=prediction, variance_type="fixed_small"))
    assert kernel_against(scheduler, 8, 1.0, generator=None) < 1e-6


def test_kernel_is_not_ddpm_with_large_variance():
    """Negative control."""
    scheduler = d.DDPMScheduler(**sd_betas(clip_sample=False, variance_type="fixed_large"))
    assert kernel_against(scheduler, 8, 1.0, generator=None) > 1e-3


@pytest.mark.parametrize(
    ("make", "eta"),
    [
        (lambda: d.DDPMWuerstchenScheduler(), 1.0),
        (lambda: d.EulerDiscreteScheduler(**sd_betas()), 0.0),
        (lambda: d.EulerDiscreteScheduler(**sd_betas(prediction_type="v_prediction", use_karras_sigmas=True)), 0.0),
        (lambda: d.EDMEulerScheduler(), 0.0),
        (lambda: d.EDMEulerScheduler(prediction_type="v_prediction"), 0.0),
        (lambda: d.CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing"), 0.0),
        (lambda: d.FlowMatchEulerDiscreteScheduler(shift=3.0), 0.0),
        (lambda: d.FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=True), 0.0),
        (lambda: d.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True), 0.0),
    ],
    ids=["wuerstchen", "euler", "euler_v", "edm", "edm_v", "cogvideox", "flow", "mochi_flow", "flow_karras"],
)
def test_kernel_is_the_first_order_step_of_other_families(make, eta):
    noise = {"generator": None} if eta else {}
    assert kernel_against(make(), 8, eta, **noise) < 2e-6


def test_tcd_lands_on_its_own_levels():
    scheduler = d.TCDScheduler(**sd_betas(clip_sample=False))
    assert kernel_against(scheduler, 8, 0.0, eta=0.0) < 1e-6


def test_flow_matching_with_fresh_noise_is_not_the_kernel():
    """Negative control: ``stochastic_sampling`` does not keep the marginals, at no eta."""
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    assert min(kernel_against(scheduler, 8, eta, generator=None) for eta in (0.0, 0.5, 1.0)) > 1e-3


def test_ddim_misses_the_next_timestep_where_the_stride_does_not_divide():
    scheduler = d.DDIMScheduler(**sd_betas(timestep_spacing="trailing"))
    scheduler.set_timesteps(7)
    levels = rule_for(scheduler).levels(scheduler)
    t = scheduler.timesteps[0]
    kept = float(scheduler.alphas_cumprod[int(t) - 142])
    assert arrival_level(scheduler, t).alpha == pytest.approx(kept**0.5)
    assert arrival_level(scheduler, t) != levels[1]


# --- what is known of a class ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", **named(SUPPORTED))
def test_clones_diverge_exactly_where_the_rule_says(case):
    pipe, base = with_setting(case)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).expand(2, -1, -1, -1)

    class Injecting(Recorder):
        def on_step(self, scheduler, base_step, bound):
            if "generator" in bound.signature.parameters and bound.arguments.get("generator") is None:
                bound.arguments["generator"] = own
            return super().on_step(scheduler, base_step, bound)

    own = [torch.Generator().manual_seed(i) for i in range(2)]
    recorder = Injecting()
    with listening(pipe.scheduler, recorder):
        first, second = pipe(**base.call(2, 8, output_type="latent", latents=latents, **case.arguments)).images
    assert recorder.steps[0].stochastic == case.stochastic
    assert (relative(first, second) > 1e-3) == case.stochastic


def test_stochastic_adams_says_whether_its_tau_is_positive():
    noisy, silent = d.SASolverScheduler(), d.SASolverScheduler(tau_func=lambda t: 0)
    for scheduler, expected in ((noisy, True), (silent, False)):
        scheduler.set_timesteps(8)
        assert rule_for(scheduler).stochastic(scheduler, {}) is expected


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("DDPMScheduler", {}, True),
        ("DDPMScheduler", {"clip_sample": False}, False),
        ("DDIMScheduler", {"clip_sample": False, "thresholding": True}, True),
        ("CogVideoXDDIMScheduler", {"clip_sample": True}, False),
        ("CogVideoXDPMScheduler", {"clip_sample": True}, False),
        ("TCDScheduler", {"clip_sample": True}, False),
        ("HeunDiscreteScheduler", {"clip_sample": True}, True),
        ("DPMSolverMultistepScheduler", {"thresholding": True}, True),
        ("EulerDiscreteScheduler", {}, False),
    ],
)
def test_clipping_belongs_to_the_class_not_to_its_config(name, config, expected):
    scheduler = getattr(d, name)(**config)
    assert rule_for(scheduler).clips(scheduler) is expected


def test_unknown_schedulers_are_refused_by_name():
    class HomemadeScheduler:
        sigmas = torch.linspace(1.0, 0.0, 5)

    with pytest.raises(UnsupportedScheduler, match=r"HomemadeScheduler.*register_scheduler\('HomemadeScheduler'"):
        rule_for(HomemadeScheduler())
    with pytest.raises(UnsupportedScheduler, match=r"IPNDMScheduler are not known \(it has no prediction type"):
        rule_for(d.IPNDMScheduler())


def test_third_parties_register_theirs(monkeypatch):
    from feynkac.steering.schedulers import levels

    monkeypatch.setattr(levels, "_RULES", dict(levels._RULES))
    rule = SchedulerRule(
        "flow", lambda s: (Level(0.0, 1.0), Level(1.0, 0.0)), lambda s: "flow", bool, lambda s, a: False
    )
    register_scheduler("HomemadeScheduler", rule)
    assert "HomemadeScheduler" in registered_schedulers()
    assert rule_for(type("HomemadeScheduler", (), {})()) is rule
    with pytest.raises(ValueError, match="registered already"):
        register_scheduler("HomemadeScheduler", rule)


def test_flow_prediction_on_other_sigmas_is_refused():
    scheduler = d.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=False)
    with pytest.raises(UnsupportedScheduler, match="use_flow_sigmas=True"):
        rule_for(scheduler).prediction(scheduler)


def test_every_row_of_the_zoo_is_known():
    for case in (*ROWS, *SUPPORTED):
        scheduler = case.pipe.scheduler if isinstance(case, Row) else case.make()
        assert rule_for(scheduler) is not None
