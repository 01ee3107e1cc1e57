"""What the published codes of FK steering get wrong, shown to be right here.

The sampler is one pixel of N(0, 1) data through the real DDIMPipeline, 50 steps of DDIM(eta = 1) on a cosine grid with
an exact denoiser: its law is N(0, 0.9154). Rewards are scored every fifth step from 5 to 40. :class:`AsPublished`
repeats the published weight rules, defects included, as a control; with it the biased means come out.
"""

import inspect
import math

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from feynkac.fkc import Streams  # noqa: E402
from feynkac.fkc.testing import ZTest  # noqa: E402
from feynkac.fkc.weights import effective_sample_size  # noqa: E402
from feynkac.steering import (  # noqa: E402
    BatchLayoutError,
    FKSteering,
    SoftValueGuidance,
    Target,
    Weighed,
    attach,
    steer,
)
from feynkac.steering import controller as controller_module  # noqa: E402
from feynkac.steering.testing import GaussianDenoiser, QuadraticReward, affine_law  # noqa: E402

from .gaussian_pipe import CASES, gaussian_pipe, moments, run_pipe  # noqa: E402
from .zoo import ROWS  # noqa: E402

STEPS = 50
SCORED = range(5, 41, 5)
REWARDS = {  # reward, lambda, mean of the tilted law
    "x": (QuadraticReward(beta=1.0), 1.0, 0.9154),
    "-(x-1)^2/2": (QuadraticReward(kappa=1.0, y=1.0), 2.0, 0.6467),
    "3-(x-1)^2/2": (lambda x: 3.0 + QuadraticReward(kappa=1.0, y=1.0)(x), 2.0, 0.6467),
}


def cosine_scheduler():
    """alpha_bar = cos^2(pi u / 2) at u = 0.98, ..., 0.0196, then 1."""
    kept = (0.98 * torch.linspace(1.0, 0.0, STEPS + 1, dtype=torch.float64) * math.pi / 2).cos().square()[:-1].flip(0)
    betas = 1.0 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    return diffusers.DDIMScheduler(
        num_train_timesteps=STEPS, trained_betas=betas.tolist(), clip_sample=False, steps_offset=0
    )


def cosine_pipe():
    scheduler = cosine_scheduler()
    denoiser = GaussianDenoiser(mean=0.0, std=1.0, num_train_timesteps=STEPS)
    denoiser._table = ((1.0 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().sqrt()
    made = diffusers.DDIMPipeline(denoiser, scheduler)
    made.set_progress_bar_config(disable=True)
    return made


PIPE = cosine_pipe()
CHAIN = affine_law(cosine_scheduler(), mean=0.0, std=1.0, num_inference_steps=STEPS, eta=1.0)


def steered(control, *, particles, populations=1, seed=0, pipe=PIPE, **options):
    with attach(pipe, control, particles=particles, populations=populations, seed=seed, **options) as run:
        pipe(
            batch_size=particles * populations,
            num_inference_steps=STEPS,
            eta=1.0,
            generator=torch.Generator().manual_seed(seed + 1),
            output_type="np",
        )
    return run


def pooled(run, truth):
    """Mean over all populations as one large one would have it, and the test that it is ``truth``.

    E[Z-hat (mean - truth)] = 0 holds for any number of particles, so the test has no bias to allow for.
    """
    evidence = (run.log_evidence - run.log_evidence.max()).exp()
    mean, _ = moments(run)
    share = evidence / evidence.sum()
    return float((share * mean).sum()), ZTest.from_samples(evidence / evidence.mean() * (mean - truth), 0.0)


class AsPublished:
    """The published weight rules.

    Args:
        reward, scale: of the tilt.
        potential: ``difference``, ``max`` or ``sum``.
        adaptive: a step whose own weights have an effective sample size of at least K/2 is skipped, and its weight
            forgotten.
        gate_last: so is the last step, whatever ``adaptive`` says.
    """

    name, candidates = "as published", 1

    def __init__(self, reward, scale, potential, *, adaptive=False, gate_last=False):
        self.reward, self.scale, self.potential = reward, scale, potential
        self.adaptive, self.gate_last = adaptive, gate_last

    def begin(self, rows):
        return {"previous": torch.zeros(rows, dtype=torch.float64)}  # the reference is 0, whatever the rewards are

    def _judge(self, x, previous):
        reward = self.reward(x)
        if self.potential == "max":
            return torch.maximum(reward, previous)
        return reward + previous if self.potential == "sum" else reward

    def _log_weight(self, reward, previous):
        return self.scale * (reward - previous if self.potential == "difference" else reward)

    def weigh(self, context, memory):
        if context.index not in SCORED:
            return None
        reward = self._judge(context.clean, memory["previous"])
        log_weight = self._log_weight(reward, memory["previous"])
        if self.adaptive and effective_sample_size(log_weight[None]).item() >= 0.5 * len(reward):
            log_weight = torch.zeros_like(log_weight)
        return Weighed(log_weight, {"previous": reward}, reward)

    def target(self, final, memory):
        reward = self._judge(final.sample, memory["previous"])
        if self.potential == "difference":
            correction = self._log_weight(reward, memory["previous"])
        else:
            correction = self.scale * reward - final.applied
        if self.gate_last and effective_sample_size(correction[None]).item() >= 0.5 * len(reward):
            correction = torch.zeros_like(correction)
        return Target(final.applied + correction, reward)


def published_mean(name, potential, *, particles=100_000, seeds=(0,), **options):
    """As the published code has it: every judged step is resampled, multinomially."""
    reward, scale, _ = REWARDS[name]
    means = []
    for seed in seeds:
        control = AsPublished(reward, scale, potential, **options)
        run = steered(control, particles=particles, seed=seed, ess_threshold=1.1, resampler="multinomial")
        means.append(float(moments(run)[0]))
    return sum(means) / len(means)


def test_the_law_of_the_sampler():
    assert CHAIN.mean == pytest.approx(0.0, abs=1e-6)
    assert CHAIN.variance == pytest.approx(0.9154, abs=5e-5)
    for reward, scale, mean in list(REWARDS.values())[:2]:
        assert CHAIN.tilted(reward, scale).mean == pytest.approx(mean, abs=5e-5)


OURS = {
    "difference": {},
    "difference, always resampled": {"ess_threshold": 1.1},
    "difference, never resampled": {"ess_threshold": 0.0},
    "max": {"potential": "max"},
    "sum": {"potential": "sum", "when": (20, 40)},  # of all eight steps its weights have too long tails to average
    "the reward itself": {"potential": lambda rewards, scale: scale * rewards[:, -1], "when": (20, 40)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("potential", OURS)
def test_every_potential_has_the_true_mean(potential, name):
    reward, scale, truth = REWARDS[name]
    options = dict(OURS[potential])
    threshold = options.pop("ess_threshold", 0.5)
    control = FKSteering(reward, scale=scale, on="latents", **({"when": SCORED} | options))
    run = steered(control, particles=1000, populations=100, ess_threshold=threshold)
    mean, test = pooled(run, truth)
    assert test.passed, str(test)
    assert mean == pytest.approx(truth, abs=0.06)


PUBLISHED = {  # reward, potential, options, published mean, scatter
    "last step gated": ("x", "difference", {"gate_last": True}, 0.849, 0.02),
    "last step gated, quadratic": ("-(x-1)^2/2", "difference", {"gate_last": True}, 0.630, 0.02),
    "last step gated, shifted": ("3-(x-1)^2/2", "difference", {"gate_last": True}, 0.627, 0.02),
    "skipped weights lost": ("x", "difference", {"adaptive": True, "gate_last": True}, -0.002, 0.02),
    "skipped weights lost, quadratic": ("-(x-1)^2/2", "difference", {"adaptive": True, "gate_last": True}, 0.169, 0.07),
    "running maximum": ("x", "max", {}, 0.525, 0.3),
    "running maximum, negative": ("-(x-1)^2/2", "max", {}, -0.003, 0.02),
    "running maximum, shifted": ("3-(x-1)^2/2", "max", {}, 0.260, 0.1),
    "running sum": ("x", "sum", {}, 4.48, 0.5),
    "running sum, negative": ("-(x-1)^2/2", "sum", {}, 0.941, 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PUBLISHED)
def test_published_rules_have_their_published_bias(case):
    """Negative controls of the test above. Under an overwritten reward few ancestors are left, and under a gate all
    hangs on its threshold, so that single runs of 100,000 particles scatter as widely as said."""
    name, potential, options, biased, scatter = PUBLISHED[case]
    found = published_mean(name, potential, seeds=range(4), **options)
    assert found == pytest.approx(biased, abs=scatter)
    assert abs(found - REWARDS[name][2]) > 0.006


# --- weights ---------------------------------------------------------------------------------------------------------


def test_a_skipped_resampling_keeps_its_weight():
    """Published: a step that is not resampled updates the stored reward and drops its weight. Here, with resampling
    off for good, every scored step's gain is still in the weights, and their sum is lambda r(x0)."""
    reward, scale, _ = REWARDS["x"]
    control = FKSteering(reward, scale=scale, on="latents", when=SCORED)
    run = steered(control, particles=64, populations=2, ess_threshold=0.0)
    assert all(ancestors is None for ancestors in run.ancestors)
    total = scale * reward(run.samples()).reshape(2, 64)
    assert torch.allclose(run.log_weights + run.population.log_base[:, None], total, atol=1e-6)
    lost = steered(AsPublished(reward, scale, "difference", adaptive=True), particles=64, ess_threshold=0.0)
    carried = lost.log_weights + lost.population.log_base[:, None]
    assert not torch.allclose(carried, scale * reward(lost.samples())[None], atol=1e-2)


def test_outputs_carry_the_weight_of_the_last_step():
    """Published: the last step is gated like the others, and its weights are not returned. Here outputs either carry
    weights or are drawn from them."""
    reward, scale, truth = REWARDS["x"]
    control = FKSteering(reward, scale=scale, on="latents", when=(20, 30))
    weighted = steered(control, particles=20_000)
    assert weighted.ess.item() < 20_000 * 0.99
    drawn = steered(control, particles=20_000, final="resampled")
    assert torch.equal(drawn.log_weights, torch.zeros_like(drawn.log_weights))
    for mean in (moments(weighted)[0].item(), drawn.samples().double().mean().item()):
        assert mean == pytest.approx(truth, abs=0.05)
    assert weighted.samples().double().mean().item() < truth - 0.1  # what dropping the weights would give


def test_negative_rewards_steer_from_the_first_maximum():
    """Published: the running maximum starts at 0, so that with rewards that are never positive every potential is 1.
    Here it starts at the first value."""
    reward, scale, _ = REWARDS["-(x-1)^2/2"]
    for control, moves in (
        (FKSteering(reward, scale=scale, potential="max", on="latents", when=SCORED), True),
        (AsPublished(reward, scale, "max"), False),
    ):
        run = steered(control, particles=64)
        scored = [record.log_potential for record in run.records if record.log_potential is not None]
        assert len(scored) == len(SCORED)
        assert all((potential.std() > 0.0).item() is moves for potential in scored)


def published_probabilities(log_weights):
    """float32 exponentials, clamped, not-a-number replaced, normalised by their sum."""
    weights = log_weights.float().exp().clamp(0.0, 1e10)
    return weights / weights.sum()


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_the_size_of_rewards_does_not_matter(shift):
    """Published: float32 exponentials clamped to 1e10. Ties at the clamp where rewards are large, and a sum of zero
    that cannot be drawn from where they are very negative. Here weights are logarithms."""
    reward, truth = QuadraticReward(kappa=0.04, y=1.0), CHAIN.tilted(QuadraticReward(kappa=2.0, y=1.0), 1.0)
    control = FKSteering(lambda x: shift + reward(x), scale=50.0, on="latents", when=SCORED)
    run = steered(control, particles=5000)
    assert moments(run)[0].item() == pytest.approx(truth.mean, abs=0.05)
    assert run.log_evidence.item() - 50.0 * shift == pytest.approx(truth.log_evidence, abs=0.05)
    probabilities = published_probabilities(50.0 * (shift + reward(run.samples())))
    if shift > 0:
        assert len(probabilities.unique()) == 1
    else:
        with pytest.raises(RuntimeError, match="probability"):
            torch.multinomial(probabilities, 1)


@pytest.mark.parametrize("potential", ["max", "sum"])
def test_many_large_potentials_do_not_overflow(potential):
    """Published: the applied potentials are multiplied in float32; after some resamplings at exp(80) the product is
    infinite and every last weight is zero. Here their logarithms are added."""
    reward = lambda x: 40.0 + QuadraticReward(kappa=1.0, y=1.0)(x)  # noqa: E731
    truth = CHAIN.tilted(QuadraticReward(kappa=1.0, y=1.0), 2.0)
    when = SCORED if potential == "max" else (20, 40)
    run = steered(FKSteering(reward, scale=2.0, potential=potential, on="latents", when=when), particles=20_000)
    assert moments(run)[0].item() == pytest.approx(truth.mean, abs=0.08)
    assert run.log_evidence.item() == pytest.approx(80.0 + truth.log_evidence, abs=0.1)
    scored = [record.log_potential for record in run.records if record.log_potential is not None]
    product = torch.stack(scored).float().exp().prod(dim=0)
    assert bool(product.isinf().all())
    last = (2.0 * reward(run.samples())).float().exp().clamp(max=1e10)
    assert float((last / product).sum()) == 0.0


# --- random numbers, options, devices --------------------------------------------------------------------------------


def two_runs(monkeypatch=None):
    """The same seeds twice, the global generator elsewhere in between; and whether it was touched."""
    pipe, samples = gaussian_pipe(), []
    untouched = True
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        with attach(pipe, FKSteering(CASES["L3"][0], scale=3.0, on="latents"), particles=16, seed=5) as run:
            run_pipe(pipe, 32)
        untouched &= torch.equal(before, torch.get_rng_state())
        samples.append(run.samples())
    return torch.equal(*samples), untouched


def test_the_global_generator_plays_no_part(monkeypatch):
    """Published: resampling draws from the global generator, whatever generator the caller passes."""
    assert two_runs() == (True, True)

    class FromTheGlobalGenerator(Streams):
        @classmethod
        def from_seed(cls, seed, populations, *, first=0):
            return Streams.from_seed(int(torch.randint(2**31, ())), populations)

    monkeypatch.setattr(controller_module, "Streams", FromTheGlobalGenerator)
    assert two_runs() == (False, False)


def swallows(*controls, particles, **options):
    """The published constructor's way with options."""


def takes_anything(function):
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def test_unknown_options_are_refused():
    """Published: options come in a dictionary whose unknown entries are ignored, and one of them decides whether the
    code runs without CUDA. Here all of this file runs on the CPU."""
    reward = CASES["L1"][0]
    assert not any(takes_anything(f) for f in (attach, FKSteering, SoftValueGuidance))
    assert takes_anything(swallows)
    with pytest.raises(TypeError, match="adaptive_resampling"):
        attach(PIPE, particles=4, seed=0, adaptive_resampling=True)
    with pytest.raises(TypeError, match="lmbda"):
        FKSteering(reward, lmbda=2.0)
    with pytest.raises(TypeError, match="resample_frequency"):
        steer(PIPE, FKSteering(reward, scale=1.0, on="latents"), particles=4, seed=0, resample_frequency=20)


def test_what_was_asked_for_is_not_replaced():
    """Published: the launcher overwrites the number of particles and the model that it is given. Here numbers that
    contradict the call are refused."""
    reward = CASES["L1"][0]
    for particles, populations in ((4, 3), (6, 2), (8, 2)):
        with (
            pytest.raises(BatchLayoutError, match=rf"8 rows.*{particles} particles"),
            attach(
                PIPE,
                FKSteering(reward, scale=1.0, on="latents"),
                particles=particles,
                populations=populations,
                seed=0,
            ),
        ):
            PIPE(batch_size=8, num_inference_steps=STEPS, eta=1.0, output_type="np")
    _, run = steer(
        PIPE, FKSteering(reward, scale=1.0, on="latents"), particles=5, seed=0, num_inference_steps=STEPS, eta=1.0,
        output_type="np",
    )  # fmt: skip
    assert run.log_weights.shape == (1, 5)
    assert len(run.records) == STEPS


# --- prompts ---------------------------------------------------------------------------------------------------------


class PromptedGaussian(GaussianDenoiser):
    """Pixels N(m, std^2), m the first number of the prompt's embedding."""

    def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True, **conditioning):
        alpha, _ = self.levels(timestep)
        mean = encoder_hidden_states[:, 0, 0].reshape(-1, 1, 1, 1)
        return super().forward(sample - alpha.to(sample) * mean, timestep, return_dict=return_dict)


def prompted_pipe():
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    pipe = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None,
        unet=PromptedGaussian.for_scheduler(scheduler, std=0.3, in_channels=1, sample_size=1), scheduler=scheduler,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe, scheduler


def run_prompted(each, **options):
    """Prompts "-1" and "+1", a reward that prefers +1."""
    pipe, scheduler = prompted_pipe()
    embeds = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1).expand(2, 1, 8)
    with attach(pipe, FKSteering(QuadraticReward(beta=1.0), scale=6.0, on="latents"), seed=0, **options) as run:
        latents = pipe(
            prompt_embeds=embeds, num_images_per_prompt=each, num_inference_steps=20, eta=1.0, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(1), output_type="latent",
        ).images  # fmt: skip
    assert torch.equal(latents, run.samples())
    return run, scheduler


def test_prompts_do_not_take_each_others_latents(monkeypatch):
    """Published: latents of the whole batch are exchanged and embeddings are not, so that a batch of prompts ends with
    one prompt's latents under another's name. Here each prompt has its own particles, by any way of passing it."""
    run, scheduler = run_prompted(5000, particles=5000, populations=2)
    mean, _ = moments(run)
    for p, prompt in enumerate((-1.0, 1.0)):
        truth = affine_law(scheduler, mean=prompt, std=0.3, num_inference_steps=20, eta=1.0)
        truth = truth.tilted(QuadraticReward(beta=1.0), 6.0)
        assert mean[p].item() == pytest.approx(truth.mean, abs=0.02)
        assert run.log_evidence[p].item() == pytest.approx(truth.log_evidence, abs=0.1)
    assert any(record.ancestors is not None for record in run.records)
    with pytest.raises(BatchLayoutError, match="condition"):  # one population of two prompts
        run_prompted(2500, particles=5000)
    monkeypatch.setattr("feynkac.steering.denoiser.DenoiserTap.check_layout", lambda *a: None)
    mixed, _ = run_prompted(2500, particles=5000, ess_threshold=1.1)
    assert (mixed.samples()[:2500] > 0.0).double().mean() > 0.3  # latents of "+1" in the slots of "-1"


@pytest.mark.parametrize("passed", ["prompts", "embeddings"])
def test_images_of_several_prompts_are_judged(passed):
    """Published: the reward call breaks with several images a prompt, and is given no prompt with embeddings."""
    row = next(row for row in ROWS if row.name == "sd_eta1")
    pipe = row.build()
    prompts = ["a red fox on the snow", "the blue boat"]
    call = {"prompt": prompts}
    if passed == "embeddings":
        embeds, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
        call = {"prompt_embeds": embeds}
    seen = []

    def brightness_of(image):
        return float(np.asarray(image).mean()) / 255.0

    def brightness(offset):
        def judged(images):
            seen.append((offset, len(images)))
            return [offset + brightness_of(image) for image in images]

        return judged

    control = FKSteering([brightness(0.0), brightness(100.0)], scale=50.0)  # a reward a prompt
    with attach(pipe, control, particles=3, populations=2, seed=0, ess_threshold=1.1) as run:
        images = pipe(
            **call, num_images_per_prompt=3, num_inference_steps=3, eta=1.0, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(1),
        ).images  # fmt: skip
    assert len(images) == 6
    expected = [100.0 * (i >= 3) + brightness_of(image) for i, image in enumerate(images)]
    assert run.rewards.flatten().tolist() == pytest.approx(expected, abs=0.02)
    assert set(seen) == {(0.0, 3), (100.0, 3)}


# --- what is judged in the end, and by how much ----------------------------------------------------------------------


class JudgesTheLastPrediction(FKSteering):
    """Published: the last reward is that of x0-hat at the last step."""

    def weigh(self, context, memory):
        weighed = super().weigh(context, memory)
        return Weighed(weighed.log_potential, {**weighed.memory, "last": self.reward(context.clean)}, weighed.reward)

    def target(self, final, memory):
        return Target(self.scale * memory["last"], memory["last"])


def test_the_returned_latents_are_judged():
    """The two differ where the scheduler does not end on clean data (``set_alpha_to_one=False``)."""
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.2, beta_end=0.2, num_train_timesteps=20, clip_sample=False, set_alpha_to_one=False
    )
    prior = {"mean": 0.5, "std": 0.8}
    pipe = diffusers.DDIMPipeline(GaussianDenoiser.for_scheduler(scheduler, **prior), scheduler)
    pipe.set_progress_bar_config(disable=True)
    reward, scale = CASES["Q4"][0], 1.0
    truth = affine_law(scheduler, **prior, num_inference_steps=20, eta=1.0).tilted(reward, scale)

    def evidence(make):
        with attach(pipe, make(reward, scale=scale, on="latents"), particles=200, populations=50, seed=0) as run:
            run_pipe(pipe, 10_000)
        assert (run.rewards.flatten() - reward(run.samples())).abs().max() < 1e-9 or make is JudgesTheLastPrediction
        return ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0)

    assert evidence(FKSteering).passed
    assert not evidence(JudgesTheLastPrediction).passed


def effective_scale(reward):
    """The scale at which exp(scale x) would have the mean that was found, from 40 populations; the mean of a Gaussian
    tilted by exp(s x) moves by s times its variance."""
    run = steered(FKSteering(reward, scale=2.0, on="latents", when=SCORED), particles=1000, populations=40)
    mean, _ = moments(run)
    scales = (mean - CHAIN.mean) / CHAIN.variance
    return scales.mean().item(), scales.std().item() / math.sqrt(40)


def test_the_scale_is_the_one_asked_for():
    """Published: one reward changes its logarithm's base half-way, so that it counts 0.693 times what was asked."""
    found, error = effective_scale(QuadraticReward(beta=1.0))
    assert abs(found - 2.0) < 5 * error + 0.02
    bits, error = effective_scale(QuadraticReward(beta=math.log(2.0)))
    assert abs(bits - 2.0 * math.log(2.0)) < 5 * error + 0.02
    assert abs(bits - 2.0) > 5 * error + 0.02
