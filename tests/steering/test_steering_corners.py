"""Corners where a steered run could be silently wrong: impossible values on the way, several calls in one block,
streams that follow, tiles that come and go, runs that stop early, greedy choices, exact mode."""

import copy
import math

import diffusers
import numpy as np
import pytest
import torch

from feynkac.fkc import PopulationCollapsed
from feynkac.fkc.errors import CheckpointError
from feynkac.fkc.testing import ZTest
from feynkac.steering import (
    BatchLayoutError,
    FKSteering,
    Gradient,
    SoftValueGuidance,
    SteeringError,
    SteeringWarning,
    TargetESS,
    TargetKL,
    attach,
    steer,
)
from feynkac.steering.testing import QuadraticReward
from feynkac.steering.tilt import RewardTilt

from .gaussian_pipe import STEPS, ddim, gaussian_chain, gaussian_pipe, run_pipe, steered
from .zoo import generators, media, row

PIPE = gaussian_pipe()
CHAIN = gaussian_chain()
impossible = pytest.mark.filterwarnings("ignore::feynkac.fkc.NonFiniteWeightWarning")


def linear(x):
    return x.flatten(1).double().mean(dim=1)


# --- impossible values on the way ------------------------------------------------------------------------------------


def above(x):
    """r = x where x > 0.3, impossible below: a hard constraint."""
    values = linear(x)
    return torch.where(values > 0.3, values, -torch.inf)


def constrained_truth():
    """E[exp(x); x > 0.3] for the sampler's N(mean, variance)."""
    mean, variance = CHAIN.mean, CHAIN.variance
    shifted = (0.3 - mean - variance) / math.sqrt(variance)
    return math.exp(mean + variance / 2) * 0.5 * math.erfc(shifted / math.sqrt(2))


@impossible
@pytest.mark.parametrize("options", [{}, {"potential": "max"}, {"lag": 1}, {"when": ()}], ids=str)
def test_an_impossible_clean_prediction_is_no_verdict_on_the_sample(options):
    run = steered(PIPE, FKSteering(above, scale=1.0, on="latents", **options), particles=200, populations=60)
    test = ZTest.from_samples(run.log_evidence.exp(), constrained_truth())
    assert test.passed, str(test)


@impossible
def test_a_reward_that_fails_early_on_does_not_move_the_target():
    calls = [0]

    def flaky(x):
        calls[0] += 1
        values = linear(x)
        return torch.where((calls[0] <= 3) & (torch.arange(len(x)) % 2 == 0), torch.nan, values)

    run = steered(PIPE, FKSteering(flaky, scale=1.0, on="latents"), particles=200, populations=60)
    truth = CHAIN.tilted(QuadraticReward(beta=1.0), 1.0).log_evidence
    assert ZTest.from_samples((run.log_evidence - truth).exp(), 1.0).passed


@impossible
def test_killing_on_the_way_is_noticed(monkeypatch):
    """Negative control: an impossible x0-hat kills its particle."""
    monkeypatch.setattr(RewardTilt, "_possible", staticmethod(lambda value, memory, populations: value))
    run = steered(PIPE, FKSteering(above, scale=1.0, on="latents"), particles=200, populations=60)
    assert not ZTest.from_samples(run.log_evidence.exp(), constrained_truth()).passed


# --- several calls in a block ----------------------------------------------------------------------------------------


def test_every_call_in_a_block_has_noise_of_its_own():
    first = torch.Generator().manual_seed(1)
    finals = []
    with attach(
        PIPE, FKSteering(linear, scale=1.0, on="latents"), particles=500, seed=0, transition="stochastic"
    ) as run:
        for _ in range(2):
            PIPE(batch_size=500, num_inference_steps=STEPS, eta=0.0, generator=first, output_type="np")
            finals.append(run.samples().flatten().double())
        assert run.calls.denoiser == 500 * STEPS  # counts are those of the last call
    assert abs(torch.corrcoef(torch.stack(finals))[0, 1].item()) < 0.2


def test_the_noise_of_later_calls_is_not_the_pipelines_generator():
    """With the same initial noise twice the moves differ, since the block's second call has other streams."""
    finals = []
    with attach(PIPE, FKSteering(linear, scale=1.0, on="latents"), particles=8, seed=0) as run:
        for _ in range(2):
            scheduler, x = PIPE.scheduler, torch.zeros(8, 1, 1, 1)
            scheduler.set_timesteps(STEPS)
            for t in scheduler.timesteps:
                x = scheduler.step(PIPE.unet(x, t).sample, t, x, eta=1.0).prev_sample
            finals.append(run.samples())
    assert not torch.equal(*finals)


@impossible
def test_a_collapse_in_an_earlier_call_is_not_forgotten():
    fails = [True]

    def reward(x):
        return torch.full((len(x),), torch.nan) if fails[0] else linear(x)

    def two_calls():
        with attach(PIPE, FKSteering(reward, scale=1.0, on="latents"), particles=4, seed=0):
            run_pipe(PIPE, 4)
            fails[0] = False
            run_pipe(PIPE, 4)

    with pytest.raises(PopulationCollapsed):
        two_calls()


@impossible
def test_one_dead_prompt_costs_no_other_its_images():
    def reward(x):
        values = linear(x)
        return torch.where(torch.arange(len(x)) < len(x) // 2, values, torch.nan)

    control = FKSteering(reward, scale=1.0, on="latents")
    call = {"num_inference_steps": STEPS, "eta": 1.0, "output_type": "np", "populations": 2}
    with pytest.raises(PopulationCollapsed) as caught:
        steer(PIPE, control, particles=4, seed=0, **call)
    assert media(caught.value.output).shape[0] == 8
    assert caught.value.result.log_weights[0].isfinite().all()


@impossible
@pytest.mark.parametrize("final", ["weighted", "resampled", "best"])
def test_a_prompt_without_a_possible_sample_raises_whatever_is_returned(final):
    control = FKSteering(lambda x: torch.full((len(x),), torch.nan), scale=1.0, on="latents")
    with pytest.raises(PopulationCollapsed), attach(PIPE, control, particles=4, seed=0, final=final):
        run_pipe(PIPE, 4)


# --- streams that follow ---------------------------------------------------------------------------------------------


class TwoStreams:
    """A pipeline with a picture and a sound: the copy of the scheduler made inside the call steps the second stream."""

    def __init__(self, eta=1.0, copy_first=False):
        self.scheduler, self.eta, self.copy_first = ddim(), eta, copy_first
        self.unet = PIPE.unet

    def __call__(self, rows):
        sound = copy.deepcopy(self.scheduler)
        for scheduler in (sound, self.scheduler) if self.copy_first else (self.scheduler, sound):
            scheduler.set_timesteps(STEPS)
        x = torch.randn(rows, 1, 1, 1, generator=torch.Generator().manual_seed(0))
        y = x.clone()  # the same states and the same noise: the two stay equal as long as their rows move alike
        own = [generators(rows, 5), generators(rows, 5)]
        for t in self.scheduler.timesteps:
            outputs = [self.unet(state, t).sample for state in (x, y)]
            x = self.scheduler.step(outputs[0], t, x, eta=self.eta, generator=own[0]).prev_sample
            y = sound.step(outputs[1], t, y, eta=self.eta, generator=own[1]).prev_sample
        return x, y


@pytest.mark.parametrize("copy_first", [False, True])
@pytest.mark.parametrize(
    ("control", "options"),
    [
        (FKSteering(linear, scale=3.0, on="latents"), {"ess_threshold": 1.1}),
        (FKSteering(linear, scale=3.0, on="latents"), {"final": "resampled"}),
        (FKSteering(linear, scale=3.0, on="latents"), {"final": "best"}),
        (SoftValueGuidance(linear, temperature=0.5, candidates=3, on="latents"), {}),
        (FKSteering(linear, scale=3.0, on="latents"), {"transition": "stochastic", "ess_threshold": 1.1}),
    ],
    ids=["resampled", "final resampled", "final best", "candidates", "gaussian step"],
)
def test_a_second_stream_moves_with_its_particle_to_the_very_end(copy_first, control, options):
    pipe = TwoStreams(copy_first=copy_first)
    with attach(pipe, control, particles=4, seed=0, **options) as run:
        x, y = pipe(4 * control.candidates)
    assert len(x) == 4
    assert torch.equal(x, run.samples())
    torch.testing.assert_close(x, y, rtol=0, atol=1e-6)
    assert any(a is not None for a in run.ancestors) or control.candidates > 1 or "final" in options


# --- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "labels"), [(1.0, (1, 2)), (4.0, (1, 2)), (1.0, (3,))])
def test_the_rows_of_dit_are_counted_with_and_without_guidance(guidance, labels):
    case = row("dit")
    call = case.call(1, 4) | {"guidance_scale": guidance, "class_labels": [label for label in labels for _ in range(4)]}
    call |= {"generator": generators(4 * len(labels)), "output_type": "np"}
    control = FKSteering(linear, scale=300.0, on="latents")
    pipe = case.build()
    with attach(pipe, control, particles=4, seed=0, ess_threshold=1.1, transition="auto") as run:
        out = media(pipe(**call))
    assert run.log_weights.shape == (len(labels), 4)
    assert len(out) == 4 * len(labels)


# --- runs that stop early --------------------------------------------------------------------------------------------


class Stopping:
    """A pipeline whose loop ends before its scheduler does."""

    def __init__(self):
        self.scheduler, self.unet = ddim(), PIPE.unet

    def __call__(self, rows):
        self.scheduler.set_timesteps(STEPS)
        x = torch.randn(rows, 1, 1, 1, generator=torch.Generator().manual_seed(0))
        for t in self.scheduler.timesteps[: STEPS // 2]:
            x = self.scheduler.step(self.unet(x, t).sample, t, x, eta=1.0).prev_sample
        return x


def test_a_pipeline_that_stops_early_is_said_to():
    pipe = Stopping()
    control = FKSteering(linear, scale=3.0, on="latents")
    with pytest.warns(SteeringWarning, match="before its last step"), attach(pipe, control, particles=4, seed=0) as run:
        pipe(4)
    assert not run.exact
    soft = SoftValueGuidance(linear, temperature=0.5, candidates=2, on="latents")
    with pytest.raises(SteeringError, match="before its last step"), attach(pipe, soft, particles=4, seed=0):
        pipe(8)


# --- scales ----------------------------------------------------------------------------------------------------------


def test_a_plateau_of_the_reward_teaches_no_scale():
    def late(x):
        values = linear(x)
        return values if late.calls > 5 else values * 0.0

    def counted(x):
        late.calls += 1
        return late(x)

    late.calls = 0
    run = steered(PIPE, FKSteering(counted, scale=TargetESS(0.999), on="latents"), particles=500, populations=1)
    assert 0.5 < run.scales["counted"].item() < 50.0
    assert run.log_evidence.abs().item() < 100.0


def test_a_wish_that_cannot_be_fulfilled_is_no_push():
    flat = FKSteering(lambda x: torch.zeros(len(x)), scale=TargetKL(1.0), on="latents")
    run = steered(PIPE, flat, particles=10, populations=1)
    assert run.scales["<lambda>"].item() == 0.0


# --- greedy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"then": (1,)}, {"candidates": 1}], ids=str)
def test_temperature_zero_keeps_no_weights(extra):
    control = SoftValueGuidance(linear, temperature=0.0, on="latents", **({"candidates": 4} | extra))
    run = steered(PIPE, control, particles=50, populations=1)
    assert torch.equal(run.log_weights, torch.zeros(1, 50, dtype=torch.float64))
    assert not run.exact


def test_temperature_zero_with_a_gradient_takes_the_best_not_the_likeliest():
    means = []
    for gradient in (None, Gradient(data_variance=0.64)):
        control = SoftValueGuidance(linear, temperature=0.0, candidates=4, on="latents", gradient=gradient)
        run = steered(PIPE, control, particles=50, populations=1, transition="stochastic", eta=0.0)
        means.append(run.samples().mean().item())
    assert means[1] > means[0] > 1.5


def test_temperature_zero_stands_alone():
    greedy = SoftValueGuidance(linear, temperature=0.0, candidates=2, on="latents")
    with pytest.raises(SteeringError, match="cannot be composed"):
        steered(PIPE, greedy, FKSteering(linear, scale=1.0, on="latents"), particles=4, populations=1)


@impossible
def test_the_best_sample_is_one_that_can_be():
    def reward(x):
        values = linear(x)
        return torch.where(values == values.max(), torch.nan, values)

    control = FKSteering(reward, scale=1.0, on="latents", when=())
    run = steered(PIPE, control, particles=8, populations=1, final="best")
    assert run.rewards.isfinite().all()


# --- exact mode and refusals -----------------------------------------------------------------------------------------


def test_exact_mode_refuses_what_is_no_weighted_draw():
    greedy = SoftValueGuidance(linear, temperature=0.0, candidates=2, on="latents")
    with pytest.raises(SteeringError, match="temperature 0"):
        steered(PIPE, greedy, particles=4, populations=1, exact=True)
    with pytest.raises(SteeringError, match="final='best'"):
        steered(PIPE, FKSteering(linear, scale=1.0, on="latents"), particles=4, populations=1, exact=True, final="best")
    flow = row("sd3").build()
    flow.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with (
        pytest.raises(SteeringError, match=r"stochastic_sampling=True.*exact=True refuses"),
        attach(flow, FKSteering(linear, scale=1.0, on="latents"), particles=3, seed=0, exact=True),
    ):
        flow(**row("sd3").call(3, 4))


def test_a_gradient_that_would_be_dropped_is_refused():
    class Pushes(FKSteering):
        def weigh(self, context, memory):
            weighed = super().weigh(context, memory)
            return type(weighed)(weighed.log_potential, weighed.memory, weighed.reward, torch.ones_like(context.sample))

    with pytest.raises(SteeringError, match="gradient"):
        steered(PIPE, Pushes(linear, scale=1.0, on="latents"), particles=4, populations=1)


@pytest.mark.slow
def test_candidates_are_refused_where_rows_cannot_be_left_out():
    case = row("sd_inpaint4")
    control = SoftValueGuidance(linear, temperature=1.0, candidates=2, on="latents")
    with (
        pytest.raises(SteeringError, match="blends a background"),
        attach(case.build(), control, particles=2, seed=0),
    ):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resampler": "nope"}, "unknown resampling scheme 'nope'"),
        ({"ess_threshold": 4}, "ess_threshold: got 4"),
        ({"kernel_eta": 0.5}, "kernel_eta: got 0.5, which only transition"),
        ({"preview": len}, "preview: no control judges images"),
        ({"transition": "sde"}, "transition: got 'sde'"),
        ({"final": "all"}, "final: got 'all'"),
        ({"chunk_size": 0}, "chunk_size: got 0"),
    ],
    ids=str,
)
def test_settings_are_refused_before_any_work(options, message):
    control = FKSteering(linear, scale=1.0, on="latents")
    with pytest.raises(ValueError, match=message):
        attach(PIPE, control, particles=4, seed=0, **options).__enter__()


def test_what_is_no_control_or_no_scale_is_refused():
    with pytest.raises(ValueError, match="control: got function, expected FKSteering"):
        attach(PIPE, linear, particles=4, seed=0).__enter__()
    with pytest.raises(ValueError, match="scale: got '2'"):
        FKSteering(linear, scale="2", on="latents")
    assert FKSteering(linear, scale=np.float32(2.0), on="latents").name == "linear"

    class Broadcasts(FKSteering):
        def weigh(self, context, memory):
            weighed = super().weigh(context, memory)
            return type(weighed)(weighed.log_potential[None], weighed.memory)

    with pytest.raises(ValueError, match=r"log_potential has shape \(1, 4\), expected one number a row, \(4,\)"):
        steered(PIPE, Broadcasts(linear, scale=1.0, on="latents"), particles=4, populations=1)


def test_a_divergence_beyond_the_particles_is_warned_of():
    control = FKSteering(linear, scale=TargetKL(1.5), on="latents")
    with pytest.warns(SteeringWarning, match=r"8 particles: a divergence above half of log K = 2.08"):
        steered(PIPE, control, particles=8, populations=1)
    run = steered(PIPE, FKSteering(linear, scale=TargetKL(0.5), on="latents"), particles=500, populations=1)
    assert any("found from the particles" in note for note in run.notes)


def test_solvers_of_several_evaluations_say_what_to_use_instead():
    pipe = gaussian_pipe()
    pipe.scheduler = diffusers.PNDMScheduler()
    control = FKSteering(linear, scale=1.0, on="latents")
    for transition in ("native", "stochastic", "auto"):
        with attach(pipe, control, particles=4, seed=0, transition=transition):
            pipe.scheduler.set_timesteps(10)
            x, t = torch.zeros(4, 1, 1, 1), pipe.scheduler.timesteps[0]
            with pytest.raises(SteeringError, match="EulerAncestralDiscreteScheduler"):
                pipe.scheduler.step(x, t, x)


def test_a_run_is_shown_in_a_few_lines():
    run = steered(PIPE, FKSteering(linear, scale=1.0, on="latents"), particles=4, populations=6)
    assert "6 populations x 4 particles" in repr(run)
    assert len(repr(run).splitlines()) < 8


@impossible
def test_impossible_final_samples_are_counted_in_the_notes():
    control = FKSteering(above, scale=1.0, on="latents", when=())
    run = steered(PIPE, control, particles=50, populations=1)
    dead = int((run.samples() <= 0.3).sum())
    assert f"above: {dead} of 50 final samples are impossible" in run.notes


def test_a_reward_without_a_graph_cannot_guide_proposals():
    control = FKSteering(lambda x: [float(v) for v in linear(x)], scale=1.0, on="latents", gradient=Gradient())
    with pytest.raises(SteeringError, match="the reward is not differentiable"):
        steered(PIPE, control, particles=4, populations=1, transition="stochastic")


def test_small_mistakes_are_named(tmp_path):
    control = FKSteering(linear, scale=1.0, on="latents")
    with pytest.raises(ValueError, match="resume: got True without a checkpoint"):
        attach(PIPE, control, particles=4, seed=0, resume=True).__enter__()
    with pytest.raises(ValueError, match=r"got the class FKSteering, expected an object: FKSteering"):
        steer(PIPE, FKSteering, particles=4, seed=0)
    with pytest.raises(SteeringError, match="samples no tokens"):
        steered(PIPE, FKSteering(linear, scale=1.0, on="tokens"), particles=4, populations=1)


def test_a_schedule_that_names_no_move_is_remarked_on():
    run = steered(PIPE, FKSteering(linear, scale=1.0, on="latents", when=(25, 30)), particles=4, populations=1)
    assert any("was not due at any of the 20 moves" in note for note in run.notes)
    run = steered(PIPE, FKSteering(linear, scale=1.0, on="latents", when=[]), particles=4, populations=1, eta=0.0)
    assert not any("not due" in note for note in run.notes)  # an empty schedule says what it means, and copies nothing


def test_scale_zero_still_judges_the_end():
    run = steered(PIPE, FKSteering(linear, scale=0.0, on="latents"), particles=4, populations=1)
    assert torch.allclose(run.rewards.flatten(), run.samples().flatten().double())
    assert torch.equal(run.log_weights, torch.zeros(1, 4, dtype=torch.float64))
    assert run.calls.reward == 4


@pytest.mark.parametrize(
    "changed",
    [
        FKSteering(linear, scale=5.0, on="latents"),
        FKSteering(linear, scale=1.0, on="latents", potential="max"),
        FKSteering(linear, scale=1.0, on="latents", when=(1, 2)),
        FKSteering(linear, scale=1.0, on="latents", lag=1),
        FKSteering(linear, scale=TargetESS(0.9, 1.0), on="latents"),
    ],
    ids=["scale", "potential", "when", "lag", "rule"],
)
def test_a_checkpoint_of_other_controls_is_refused(changed, tmp_path):
    with attach(PIPE, FKSteering(linear, scale=1.0, on="latents"), particles=4, seed=0, checkpoint=tmp_path):
        run_pipe(PIPE, 4)
    with (
        pytest.raises(CheckpointError, match="control 0"),
        attach(PIPE, changed, particles=4, seed=0, checkpoint=tmp_path, resume=True),
    ):
        run_pipe(PIPE, 4)


def test_a_checkpoint_of_another_generator_is_refused(tmp_path):
    control = FKSteering(linear, scale=1.0, on="latents")
    with attach(PIPE, control, particles=4, seed=0, checkpoint=tmp_path):
        run_pipe(PIPE, 4, seed=1)
    with (
        pytest.raises(CheckpointError, match="generator seeds"),
        attach(PIPE, control, particles=4, seed=0, checkpoint=tmp_path, resume=True),
    ):
        run_pipe(PIPE, 4, seed=2)


def test_rows_that_do_not_fit_name_the_way_out():
    control = FKSteering(linear, scale=1.0, on="latents")
    with (
        pytest.raises(BatchLayoutError, match="ask it for 4 samples a prompt"),
        attach(PIPE, control, particles=4, seed=0),
    ):
        run_pipe(PIPE, 6)
