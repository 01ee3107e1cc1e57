"""Steering through the real DDIMPipeline against closed form: one law for every potential, an unbiased evidence,
bit-exact identities.

The truth is the law of the sampler at its 20 steps, N(0.499966065, 0.438248996), tilted exactly.
"""

import math

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers import DDIMPipeline, DDIMScheduler

from feynkac.fkc import NonFiniteWeightWarning, PopulationCollapsed
from feynkac.fkc.testing import ZTest
from feynkac.steering import (
    BatchLayoutError,
    DeterministicStep,
    FKSteering,
    SoftValueGuidance,
    SteeringError,
    SteeringWarning,
    Target,
    attach,
    every,
    steer,
)
from feynkac.steering.testing import GaussianDenoiser, QuadraticReward

from .gaussian_pipe import CASES, STEPS, gaussian_chain, gaussian_pipe, moments, run_pipe, steered


@pytest.fixture(scope="module")
def pipe():
    return gaussian_pipe()


@pytest.fixture(scope="module")
def chain():
    return gaussian_chain()


def fk(case, **options):
    reward, scale = CASES[case]
    return FKSteering(reward, scale=scale, on="latents", **options)


def exact_value(chain, case):
    """Intermediate values by the chain's own backward recursion: the best potentials there are."""
    reward, scale = CASES[case]

    def value(context):
        return chain.log_value(context.index, context.sample.flatten(), reward, scale) / scale

    return value


CONTROLS = {
    "difference": lambda case, chain: fk(case),
    "difference, every 3": lambda case, chain: fk(case, when=every(3)),
    "max": lambda case, chain: fk(case, potential="max", when=every(4)),
    "exact values": lambda case, chain: fk(case, value=exact_value(chain, case)),
    "tempered": lambda case, chain: fk(case, value="tempered"),
    "callable": lambda case, chain: fk(case, potential=lambda rewards, scale: 0.3 * rewards[:, -1], when=every(5)),
    "weights only": lambda case, chain: fk(case, when=()),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_every_potential_has_the_same_law(pipe, chain, name):
    """60 populations: means and evidences against the exact tilt, z-scores with their own standard error."""
    reward, scale = CASES["Q1"]
    truth = chain.tilted(reward, scale)
    run = steered(pipe, CONTROLS[name]("Q1", chain), particles=300, populations=40)
    mean, variance = moments(run)
    # self-normalised averages are biased by order 1/K: allow ten of it beside five standard errors
    for estimate, exact in ((mean, truth.mean), (variance, truth.variance)):
        error = estimate.std().item() / math.sqrt(len(estimate))
        assert abs(estimate.mean().item() - exact) < 5 * error + 10 / 300
    assert ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0).passed


def test_published_numbers_of_the_fixture(chain):
    assert chain.mean == pytest.approx(0.499966065, abs=1e-8)
    assert chain.variance == pytest.approx(0.438248996, abs=1e-8)
    reward, scale = CASES["Q1"]
    assert chain.tilted(reward, scale).mean == pytest.approx(1.200620549, abs=1e-8)
    assert chain.tilted(reward, scale).log_evidence == pytest.approx(-1.513799938, abs=1e-8)


def test_one_large_run(pipe):
    run = steered(pipe, fk("Q1"), particles=20_000, populations=1)
    mean, variance = moments(run)
    assert abs(mean.item() - 1.200620549) <= 0.026
    assert abs(variance.item() - 0.233546211) <= 0.018


@pytest.mark.parametrize("case", ["L1", "Q1"])
def test_evidence_is_unbiased_over_populations(pipe, chain, case):
    reward, scale = CASES[case]
    run = steered(pipe, fk(case), particles=400, populations=100)
    ratio = (run.log_evidence - chain.tilted(reward, scale).log_evidence).exp()
    assert ZTest.from_samples(ratio, 1.0).passed
    assert abs(ratio.mean().item() - 1.0) < 0.03


@pytest.mark.parametrize(("particles", "candidates"), [(200, 4), (25, 16), (4, 8)])
def test_nested_soft_values_are_unbiased_for_every_k_and_m(pipe, chain, particles, candidates):
    reward, scale = CASES["L1"]
    control = SoftValueGuidance(reward, temperature=1.0 / scale, candidates=candidates, on="latents")
    run = steered(pipe, control, particles=particles, populations=60)
    ratio = (run.log_evidence - chain.tilted(reward, scale).log_evidence).exp()
    assert ZTest.from_samples(ratio, 1.0).passed
    assert run.calls.denoiser == 60 * particles * candidates * STEPS  # no call wasted on a child
    assert run.samples().shape[0] == 60 * particles


def test_blockwise_choice_keeps_the_law(pipe, chain):
    reward, scale = CASES["L1"]
    control = SoftValueGuidance(reward, temperature=1.0, candidates=4, on="latents", when=every(5))
    run = steered(pipe, control, particles=150, populations=60)
    ratio = (run.log_evidence - chain.tilted(reward, scale).log_evidence).exp()
    assert ZTest.from_samples(ratio, 1.0).passed


def test_temperature_zero_is_reported_as_biased(pipe):
    control = SoftValueGuidance(CASES["L1"][0], temperature=0.0, candidates=4, on="latents")
    run = steered(pipe, control, particles=50, populations=2)
    assert not run.exact
    assert any("temperature 0" in note for note in run.notes)
    assert run.samples().mean().item() > 1.0  # it does climb


def test_controls_compose(pipe, chain):
    """Two rewards at once: the tilts multiply."""
    first, second = QuadraticReward(beta=0.5), QuadraticReward(kappa=1.0, y=2.0)
    both = chain.tilted(QuadraticReward(beta=0.5, kappa=1.0, y=2.0), 1.0)
    run = steered(
        pipe,
        FKSteering(first, scale=1.0, on="latents"),
        FKSteering(second, scale=1.0, on="latents", potential="max", when=every(4)),
        particles=400,
        populations=60,
    )
    mean, _ = moments(run)
    error = mean.std().item() / math.sqrt(60)
    assert abs(mean.mean().item() - both.mean) < 5 * error + 10 / 400
    assert ZTest.from_samples((run.log_evidence - both.log_evidence).exp(), 1.0).passed


# --- negative controls: what the published codes do, and what it would give here -------------------------------------


class ForgetsCarriedWeights(FKSteering):
    """Potentials of steps that are not resampled are lost: a skipped step reports no potential but updates its
    value."""

    def weigh(self, context, memory):
        weighed = super().weigh(context, memory)
        return type(weighed)(torch.zeros_like(weighed.log_potential), weighed.memory)

    def target(self, final, memory):
        zeros = torch.zeros(len(final.sample), dtype=torch.float64)
        return Target(zeros, zeros)


class RunningMaximumAsTarget(FKSteering):
    """The last weight uses the running maximum of the reward instead of the reward of the sample."""

    def target(self, final, memory):
        right = super().target(final, memory)
        return Target(right.log_tilt.clamp_min(self.scale * 0.5), right.reward)


@pytest.mark.parametrize("wrong", [ForgetsCarriedWeights, RunningMaximumAsTarget])
def test_wrong_targets_are_noticed(pipe, chain, wrong):
    reward, scale = CASES["L1"]
    truth = chain.tilted(reward, scale)
    run = steered(pipe, wrong(reward, scale=scale, on="latents"), particles=500, populations=40)
    mean, _ = moments(run)
    error = mean.std().item() / math.sqrt(40)
    wrong_mean = abs(mean.mean().item() - truth.mean) > 5 * error + 10 / 300
    wrong_evidence = not ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0).passed
    assert wrong_mean or wrong_evidence


def test_unsteered_law_is_not_the_tilted_one(pipe, chain):
    """The weights do the work: without them the moments are those of the base."""
    run = steered(pipe, fk("Q1", when=()), particles=4000, populations=1)
    plain = run.samples().double().mean().item()
    assert plain == pytest.approx(chain.mean, abs=0.06)
    assert moments(run)[0].item() == pytest.approx(1.2006, abs=0.1)


# --- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "controls",
    [(), (FKSteering(QuadraticReward(beta=1.0), scale=0.0, on="latents"),), (fk("Q1", when=()),)],
    ids=["no control", "scale 0", "nothing scheduled"],
)
def test_nothing_to_do_leaves_the_pipeline_bit_for_bit(pipe, controls):
    plain = run_pipe(pipe, 12)
    with attach(pipe, *controls, particles=4, seed=0) as run:
        inside = run_pipe(pipe, 12)
    assert (plain == inside).all()
    assert run.log_weights.shape == (3, 4)
    assert (run_pipe(pipe, 12) == plain).all()  # and the pipeline is as before


def test_one_particle_is_the_plain_sampler(pipe):
    plain = run_pipe(pipe, 3)
    with attach(pipe, fk("L3"), particles=1, seed=0):
        assert (run_pipe(pipe, 3) == plain).all()


def test_same_seed_same_bits(pipe):
    one, two = (steered(pipe, fk("L3"), particles=16, populations=3) for _ in range(2))
    assert torch.equal(one.samples(), two.samples())
    assert torch.equal(one.log_weights, two.log_weights)
    other = steered(pipe, fk("L3"), particles=16, populations=3, seed=4)
    assert not torch.equal(one.samples(), other.samples())


def generators(populations, particles, first=0):
    seeds = range(first * particles, (first + populations) * particles)
    return [torch.Generator().manual_seed(100 + s) for s in seeds]


def test_a_population_is_the_same_alone_and_in_a_batch(pipe):
    def run_rows(populations, first):
        with attach(pipe, fk("L3"), particles=8, seed=5) as run:
            pipe(
                batch_size=8 * populations,
                num_inference_steps=STEPS,
                eta=1.0,
                generator=generators(populations, 8, first),
                output_type="np",
            )
        return run

    together, alone = run_rows(3, 0), run_rows(1, 0)
    assert torch.equal(together.samples()[:8], alone.samples())
    assert torch.equal(together.log_weights[0], alone.log_weights[0])
    assert any(record.ancestors is not None for record in together.records)


def test_a_constant_in_the_reward_moves_the_evidence_alone(pipe):
    reward, scale = CASES["L3"]
    base = steered(pipe, FKSteering(reward, scale=scale, on="latents"), particles=32, populations=2)
    moved = steered(pipe, FKSteering(lambda x: reward(x) + 7.0, scale=scale, on="latents"), particles=32, populations=2)
    assert torch.equal(base.samples(), moved.samples())
    assert torch.allclose(moved.log_evidence - base.log_evidence, torch.full((2,), 21.0, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_rewards_stay_finite(pipe, size):
    run = steered(pipe, FKSteering(lambda x: size + x.flatten(), scale=50.0, on="latents"), particles=16, populations=2)
    assert run.log_evidence.isfinite().all()
    assert run.log_weights.isfinite().all()
    assert run.samples().isfinite().all()


def test_equal_rewards_never_resample(pipe):
    run = steered(pipe, FKSteering(lambda x: torch.ones(len(x)), scale=3.0, on="latents"), particles=16, populations=2)
    assert all(ancestors is None for ancestors in run.ancestors)
    assert torch.allclose(run.ess, torch.full((2,), 16.0, dtype=torch.float64))
    assert torch.allclose(run.log_evidence, torch.full((2,), 3.0, dtype=torch.float64))


def test_an_impossible_prompt_does_not_touch_the_other(pipe):
    """Every sample of population 1 is impossible: population 0 is as it would be beside a harmless neighbour."""

    def reward(impossible):
        def values(x):
            out = x.flatten().double()
            return torch.where(torch.arange(len(out)) >= 8, torch.nan if impossible else 0.0, out)

        return values

    def run_rows(impossible):
        with attach(pipe, FKSteering(reward(impossible), scale=2.0, on="latents"), particles=8, seed=5) as run:
            pipe(batch_size=16, num_inference_steps=STEPS, eta=1.0, generator=generators(2, 8), output_type="np")
        return run

    healthy = run_rows(False)
    with pytest.warns(NonFiniteWeightWarning, match="not finite"), pytest.raises(PopulationCollapsed) as caught:
        run_rows(True)
    assert torch.equal(caught.value.result.samples()[:8], healthy.samples()[:8])
    assert torch.equal(caught.value.result.log_weights[0], healthy.log_weights[0])


# --- refusals --------------------------------------------------------------------------------------------------------


def test_deterministic_steps_are_refused_and_the_stochastic_one_has_the_right_law(pipe, chain):
    with pytest.raises(DeterministicStep, match="stochastic"), attach(pipe, fk("L1"), particles=4, seed=0):
        run_pipe(pipe, 8, eta=0.0)
    reward, scale = CASES["L1"]
    with attach(pipe, fk("L1"), particles=400, seed=0, transition="stochastic") as run:
        run_pipe(pipe, 400 * 40, eta=0.0)
    truth = chain.tilted(reward, scale)
    assert ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0).passed


def test_wrong_batches_seeds_and_clipping_are_explained(pipe):
    with pytest.raises(BatchLayoutError, match=r"10 rows.*4 particles"), attach(pipe, fk("L1"), particles=4, seed=0):
        run_pipe(pipe, 10)
    with pytest.raises(ValueError, match="seed"), attach(pipe, fk("L1"), particles=4):
        pass
    clipped = DDIMPipeline(GaussianDenoiser(mean=0.5, std=0.8), DDIMScheduler(clip_sample=True))
    clipped.set_progress_bar_config(disable=True)
    with pytest.raises(SteeringError, match="clip"), attach(clipped, fk("L1"), particles=4, seed=0, exact=True):
        run_pipe(clipped, 8)
    with pytest.warns(SteeringWarning, match="clips"), attach(clipped, fk("L1"), particles=4, seed=0) as run:
        run_pipe(clipped, 8)
    assert "clips" in run.notes[0]


def test_an_exception_restores_the_scheduler(pipe):
    def fails(x):
        raise RuntimeError("out of luck")

    with (
        pytest.raises(RuntimeError, match="out of luck"),
        attach(pipe, FKSteering(fails, scale=1.0, on="latents"), particles=4, seed=0),
    ):
        run_pipe(pipe, 8)
    assert type(pipe.scheduler) is DDIMScheduler
    assert (run_pipe(pipe, 4) == run_pipe(pipe, 4)).all()


@pytest.mark.parametrize("final", ["resampled", "best"])
def test_other_final_choices(pipe, chain, final):
    run = steered(pipe, fk("L1"), particles=1000, populations=2, final=final)
    assert torch.allclose(run.log_weights, run.log_weights[:, :1].expand_as(run.log_weights))
    if final == "resampled":
        truth = chain.tilted(*CASES["L1"]).mean
        assert run.samples().double().mean().item() == pytest.approx(truth, abs=0.1)
        assert run.exact
    else:
        assert len(run.samples()[:1000].unique()) == 1
        assert not run.exact


def test_the_one_liner(pipe):
    output, run = steer(
        pipe, fk("L1"), particles=8, seed=1, num_inference_steps=STEPS, eta=1.0, output_type="np", final="resampled"
    )
    assert output.images.shape[0] == 8
    assert run.log_weights.shape == (1, 8)
