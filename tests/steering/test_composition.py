"""Annealed pipelines against closed forms: Gaussians and mixtures through real pipelines with any scheduler.

A Gaussian q = N(m, s^2) to the power b has at the last noisy level, where noise has variance h in the frame x/alpha,
the integral (2 pi v)^((1-b)/2) b^(-1/2) with v = s^2 + h; the last, noiseless move takes N(m, v/b) to N(m, s^4/(v b)).
"""

import math

import diffusers
import pytest
import torch

from feynkac.fkc import Annealed as AnnealedLaw
from feynkac.fkc import Diffusion, Expert
from feynkac.fkc.errors import CheckpointError
from feynkac.fkc.run_state import Checkpoint
from feynkac.fkc.testing.ztest import ZTest
from feynkac.steering import (
    Annealed,
    Composition,
    FKSteering,
    Gradient,
    Guidance,
    Product,
    SoftValueGuidance,
    SteeringError,
    attach,
)
from feynkac.steering import composition as module
from feynkac.steering.errors import DeterministicStep
from feynkac.steering.rewards import RewardError

from .composed_toys import SCHEDULERS, TwoPriors, call, composed, last_noise, moments, sd
from .test_every_pipeline import lineage_sums

M, S, B = 0.5, 0.8, 2.0
MATCHED = {"mean": M, "std": S}


def annealed_truth(h, beta=B, variance=S**2):
    """Variance of the outputs and log of the integral."""
    v = variance + h
    return variance**2 / v / beta, 0.5 * ((1.0 - beta) * math.log(2 * math.pi * v) - math.log(beta))


def mean_of(x):
    return x.flatten(1).mean(dim=1)


def passes(values, truth, limit=4.5):
    test = ZTest.from_samples(values, truth, limit=limit)
    assert test.passed, str(test)


# --- Gaussians -------------------------------------------------------------------------------------------------------


def meets_the_annealed_gaussian(name, steps, particles=200, populations=16):
    pipe = sd(name, mean=M, std=S)
    variance, log_z = annealed_truth(last_noise(pipe, steps))
    run = composed(pipe, Annealed(B, **MATCHED), particles=particles, populations=populations, steps=steps)
    coarse = name == "flow" and steps < 20  # its first move covers all of the noise
    assert run.ess.min() > (0.99 if coarse else 0.999) * particles
    assert run.log_evidence.tolist() == pytest.approx([log_z] * populations, abs=0.01 if coarse else 3e-3)
    mean, spread = moments(run)
    passes(mean, M)
    passes(spread, variance * (1.0 - 1.0 / particles))
    assert run.exact


@pytest.mark.parametrize("steps", [8, 25])
@pytest.mark.parametrize("name", [n for n in SCHEDULERS if n != "unipc"])
def test_matched_moments_leave_nothing_to_the_weights(name, steps):
    meets_the_annealed_gaussian(name, steps)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("unipc", 8), *((name, 100) for name in SCHEDULERS)])
def test_matched_moments_at_many_steps(name, steps):
    meets_the_annealed_gaussian(name, steps, particles=100)


def test_another_power_is_another_law():
    """Negative control: the law asked for is not that of the pipeline."""
    pipe = sd("ddim", mean=M, std=S)
    variance, _ = annealed_truth(last_noise(pipe, 25))
    run = composed(pipe, Annealed(1.0, **MATCHED), particles=200, populations=16)
    assert not ZTest.from_samples(moments(run)[1], variance).passed
    assert run.log_evidence.abs().max() < 3e-3


@pytest.mark.slow
@pytest.mark.parametrize("control", ["none", "score"])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "dpm, karras", "flow"])
def test_guessed_moments_meet_the_law_too(name, control):
    pipe = sd(name, mean=M, std=S)
    variance, log_z = annealed_truth(last_noise(pipe, 100))
    run = composed(pipe, Annealed(B, control=control), particles=400, populations=32, steps=100, seed=4)
    mean, spread = moments(run)
    ess = run.ess.mean() / 400
    assert ess < 0.97 if control == "none" else ess > 0.99  # velocities make weights of any Gaussian constant
    assert abs(mean.mean() - M) < 0.02
    assert spread.mean().item() == pytest.approx(variance * (1.0 - 1.0 / (ess.item() * 400)), rel=0.05)
    assert run.log_evidence.mean().item() == pytest.approx(log_z, abs=0.025)


def test_moving_exponents():
    """From q to q^2: the law at the end, and the integral at the last noisy level."""
    pipe, steps = sd("ddim", mean=M, std=S), 25
    last = 1.0 + (steps - 1) / steps
    variance, log_z = annealed_truth(last_noise(pipe, steps), last)
    run = composed(pipe, Annealed(lambda u: 1.0 + u, **MATCHED), particles=200, populations=16, steps=steps)
    passes(moments(run)[1], variance * (1.0 - 1.0 / (run.ess.mean().item())))
    assert run.log_evidence.mean().item() == pytest.approx(log_z, abs=5e-3)


def test_wrong_weights_are_noticed(monkeypatch):
    """Negative controls: the first move without weight; denoising kernels without the noising kernel."""
    honest, tracked = Composition._gain, module.tracked_change

    def without_first(self, memory, ends, here, branches):
        gain, after = honest(self, memory, ends, here, branches)
        return (0.0 * gain if memory["place"][0, 3] > 0.0 else gain), after

    monkeypatch.setattr(Composition, "_gain", without_first)
    with pytest.raises(AssertionError):
        meets_the_annealed_gaussian("ddim", 8)
    monkeypatch.setattr(Composition, "_gain", honest)

    def without_noising(before, after, kappa):
        fall = torch.tensor(before.level.h - after.level.h, dtype=torch.float64)
        noised = module.Normal(after.y, fall).log_density(before.y)
        return tracked(before, after, kappa) + noised[..., None]

    monkeypatch.setattr(module, "tracked_change", without_noising)
    with pytest.raises(AssertionError):
        meets_the_annealed_gaussian("ddim", 8)


# --- a mixture -------------------------------------------------------------------------------------------------------

MIXTURE = {"weights": (0.3, 0.7), "means": (-2.0, 2.0), "stds": (0.3, 1.0)}


def share_of_the_left(power=2.0):
    x = torch.linspace(-9.0, 9.0, 20001, dtype=torch.float64)
    parts = zip(MIXTURE["weights"], MIXTURE["means"], MIXTURE["stds"], strict=True)
    p = sum(w / s * torch.exp(-0.5 * ((x - m) / s) ** 2) for w, m, s in parts) ** power
    return (p[x < 0].sum() / p.sum()).item()


def left_of(run):
    w = run.weights
    return (w * (run.samples().double().reshape(w.shape) < 0.0)).sum(dim=1)


def annealed_mixture(steps, control=None, populations=32, seed=0):
    control = Annealed(2.0, mean=0.8, std=2.0) if control is None else control
    pipe, noise = sd("ddim", **MIXTURE), seed + 7
    return left_of(composed(pipe, control, particles=400, populations=populations, steps=steps, seed=seed, noise=noise))


@pytest.mark.slow
def test_an_annealed_mixture_and_its_error_in_the_number_of_steps():
    truth = share_of_the_left()
    assert truth == pytest.approx(0.3815, abs=1e-4)
    errors = []
    for steps in (6, 25, 100):
        left = annealed_mixture(steps, populations=100)
        errors.append((left.mean().item() - truth, left.std().item() / 10.0))
    (coarse, _), (middle, spread), (fine, noise) = errors
    assert abs(coarse) > abs(middle) + 5.0 * spread > abs(fine)
    assert abs(fine) < 0.005 + 3.5 * noise
    assert abs(share_of_the_left(1.0) - truth) > 0.05  # the pipeline's own law is another


@pytest.mark.slow
def test_a_mixture_without_weights_is_another_law(monkeypatch):
    honest = Composition._gain

    def weightless(self, memory, ends, here, branches):
        gain, after = honest(self, memory, ends, here, branches)
        return 0.0 * gain, after

    monkeypatch.setattr(Composition, "_gain", weightless)
    left = annealed_mixture(100)
    assert abs(left.mean() - share_of_the_left()) > 0.05


# --- guided pipelines ------------------------------------------------------------------------------------------------

G = 2.0
PRECISION = G / 0.25**2 - (G - 1.0) / 0.5**2
GUIDED = (G * 0.5 / 0.25**2 / PRECISION, PRECISION**-0.5)


def guided_evidence(beta):
    """Log of the integral of (p_c^2 / p_u)^beta, p_c = N(1/2, 1/16), p_u = N(0, 1/4)."""
    single = 0.5 * math.log(2 * math.pi / PRECISION) + 0.5 * PRECISION * GUIDED[0] ** 2
    single -= 0.5 * G * (math.log(2 * math.pi * 0.25**2) + 0.25 / 0.25**2)
    single += 0.5 * (G - 1.0) * math.log(2 * math.pi * 0.5**2)
    return beta * single + 0.5 * (1.0 - beta) * math.log(2 * math.pi / PRECISION) - 0.5 * math.log(beta)


def guided(*controls, steps=200):
    return composed(sd("ddim", TwoPriors), *controls, particles=1000, populations=8, steps=steps, guidance=G)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_annealed_guided_pipelines(beta):
    run = guided(Annealed(beta, mean=0.25, std=0.4))
    mean, variance = moments(run)
    assert abs(mean.mean() - GUIDED[0]) < 0.018  # 0.012 is the moves' own error at 100 steps
    assert variance.mean().sqrt().item() == pytest.approx(GUIDED[1] / beta**0.5, abs=0.006)
    assert run.log_evidence.mean().item() == pytest.approx(guided_evidence(beta), abs=0.06)  # of 200 steps
    if beta == 1.0:
        other = guided(Guidance())
        assert abs(moments(other)[0].mean() - mean.mean()) < 0.02
        assert guided_evidence(beta) == pytest.approx(0.985, abs=1e-3)
    else:
        assert guided_evidence(beta) == pytest.approx(1.648, abs=1e-3)


# --- with rewards ----------------------------------------------------------------------------------------------------


REWARDED = {
    "fk": (lambda: FKSteering(mean_of, scale=1.5, on="latents"), 1.5),
    "fk, gradient": (lambda: FKSteering(mean_of, scale=1.5, on="latents", gradient=Gradient()), 1.5),
    "soft value": (lambda: SoftValueGuidance(mean_of, temperature=0.5, candidates=4, on="latents"), 2.0),
    "soft value, fewer": (
        lambda: SoftValueGuidance(mean_of, temperature=0.5, candidates=4, then=(2, 1), on="latents"),
        2.0,
    ),
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", REWARDED)
def test_rewards_multiply_annealed_laws(name, order):
    """N(m, V) times exp(c x) is N(m + c V, V), and the integral gains exp(c m + c^2 V/2); resampled at every step."""
    make, c = REWARDED[name]
    pipe, particles, populations = sd("ddim", mean=M, std=S), 200, 24
    variance, log_z = annealed_truth(last_noise(pipe, 20))
    controls = (Annealed(B, **MATCHED), make())[::order]
    run = composed(pipe, *controls, particles=particles, populations=populations, steps=20, ess_threshold=1.1, seed=2)
    mean, spread = moments(run)
    passes(mean, M + c * variance)
    passes(run.log_evidence.exp(), math.exp(log_z + c * M + 0.5 * c * c * variance))
    assert spread.mean().item() == pytest.approx(variance, rel=0.05)
    assert not ZTest.from_samples(mean, M).passed  # without the reward it would be another law
    if "gradient" not in name and "soft" not in name:
        assert torch.allclose(lineage_sums(run), run.log_tilt, atol=1e-9)
        assert run.calls.denoiser == particles * populations * 20


@pytest.mark.parametrize("kwargs", [{}, {"log_density": lambda x: -0.5 * x.double().flatten(1).square().sum(dim=1)}])
def test_weights_multiply_along_lineages(kwargs):
    run = composed(
        sd("ddim", mean=M, std=S), Annealed(1.3, **kwargs), particles=16, populations=3, steps=10, ess_threshold=1.1
    )
    assert any(ancestors is not None for ancestors in run.ancestors)
    assert torch.allclose(lineage_sums(run), run.log_tilt, atol=1e-9)
    assert run.log_tilt.std() > 0.01


# --- the same bits ---------------------------------------------------------------------------------------------------


def same(a, b):
    assert torch.equal(a.samples(), b.samples())
    assert torch.equal(a.log_weights, b.log_weights)
    assert torch.equal(a.log_evidence, b.log_evidence)
    assert a.calls == b.calls


def toy(control, *, populations=3, rows=slice(None), reward=mean_of, **options):
    """A run whose rows draw from generators of their own; ``rows`` of the prompts of a longer list."""
    pipe, k = sd("ddim", mean=M, std=S), 8
    generators = [torch.Generator().manual_seed(i) for i in range(populations * k)][rows]
    controls = (control, FKSteering(reward, scale=2.0, on="latents"))
    with attach(
        pipe, *controls, particles=k, transition="stochastic", **{"seed": 3, "ess_threshold": 0.9} | options
    ) as run:
        pipe(
            **call(len(generators) // k),
            num_images_per_prompt=k,
            num_inference_steps=12,
            generator=generators,
        )
    return run


def test_seeds_reproduce_and_chunks_change_nothing():
    first = toy(Annealed(1.7, mean=0.1))
    same(first, toy(Annealed(1.7, mean=0.1)))
    same(first, toy(Annealed(1.7, mean=0.1), chunk_size=5))
    other = toy(Annealed(1.7, mean=0.1), seed=4)
    assert not torch.equal(first.log_evidence, other.log_evidence)


def test_populations_are_independent():
    whole = toy(Annealed(1.7, mean=0.1))
    second = toy(Annealed(1.7, mean=0.1), rows=slice(8, 16), first_population=1)
    assert torch.equal(whole.samples()[8:16], second.samples())
    assert torch.equal(whole.log_weights[1], second.log_weights[0])


CHECKPOINTED = {
    "annealed": lambda: Annealed(1.7, mean=0.1),
    "moving": lambda: Annealed(_rising, mean=0.1, control="score"),
    "density": lambda: Annealed(1.2, std=0.9, log_density=_density),
}


def _rising(u):
    return 1.0 + 0.5 * u


def _density(x):
    return -0.5 * x.double().flatten(1).square().sum(dim=1)


@pytest.mark.parametrize("after", [3, 11])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_a_killed_run_goes_on_with_the_same_bits(name, after, tmp_path):
    def dying(x):
        dying.asked += 1
        if dying.asked > after:
            raise RuntimeError
        return mean_of(x)

    dying.asked, dying.__name__ = 0, "mean_of"
    whole = toy(CHECKPOINTED[name]())
    point = Checkpoint(tmp_path, 1)
    with pytest.raises(RewardError):
        toy(CHECKPOINTED[name](), reward=dying, checkpoint=point)
    same(toy(CHECKPOINTED[name](), checkpoint=point, resume=True), whole)
    with pytest.raises(CheckpointError, match="another run"):
        toy(Annealed(1.6, mean=0.1), checkpoint=point, resume=True)


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["ddim", "euler", "flow"])
def test_the_pipelines_dtype_is_kept(name, dtype):
    pipe = sd(name, mean=M, std=S)
    pipe.unet.to(dtype)
    settings = call() | {"prompt_embeds": torch.ones(1, 4, 8, dtype=dtype)}
    seen = []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with attach(pipe, Annealed(1.5, **MATCHED), particles=64, seed=0, transition="stochastic") as run:
        pipe(**settings, num_images_per_prompt=64, num_inference_steps=10)
    assert set(seen) == {dtype}
    assert run.samples().dtype is dtype
    assert run.log_weights.dtype is torch.float64
    assert run.log_weights.isfinite().all()
    assert run.ess.min() > 4.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_guidance_read_off_rounded_numbers_is_constant(dtype):
    """The scale is a fit to predictions of two or three digits; it is that of the first step throughout."""
    pipe = sd("ddim", TwoPriors)
    pipe.unet.to(dtype)
    settings = call(guidance=2.0)
    settings |= {name: settings[name].to(dtype) for name in ("prompt_embeds", "negative_prompt_embeds")}
    seen = []
    control = Annealed(1.0, mean=0.25, std=0.4)
    with attach(pipe, control, particles=64, seed=0, transition="stochastic") as run:
        pipe(**settings, num_images_per_prompt=64, num_inference_steps=20, callback_on_step_end=_noting(seen))
    assert len(seen) == 20
    assert run.log_weights.isfinite().all()
    w = run.weights[0]
    assert (w * run.samples().double().flatten()).sum().item() == pytest.approx(GUIDED[0], abs=0.1)


def _noting(seen):
    def note(pipe, step, timestep, values):
        seen.append(step)
        return values

    return note


# --- refused ---------------------------------------------------------------------------------------------------------


def test_moves_that_are_not_its_own_are_refused():
    noisy, silent = sd("ddpm", mean=M, std=S), sd("ddim", mean=M, std=S)
    with pytest.raises(SteeringError, match="stochastic"):
        composed(noisy, Annealed(B), particles=4, steps=5, transition="native")
    with pytest.raises(SteeringError, match=r'needs? transition="stochastic"'):
        composed(silent, Annealed(B), particles=4, steps=5, transition="native")
    with pytest.raises(DeterministicStep):
        composed(silent, Annealed(B), particles=4, steps=5, kernel_eta=0.0)
    with pytest.raises(SteeringError, match="kernel_eta"):
        composed(silent, Annealed(B), particles=1, steps=5, kernel_eta=0.0)


def test_what_cannot_be_composed_is_refused():
    pipe = sd("ddim", mean=M, std=S)
    with pytest.raises(SteeringError, match="weigh both branches already"):
        composed(pipe, Annealed(B), Guidance(), particles=4, steps=5)
    target = AnnealedLaw(Expert(lambda x, t: x, Diffusion.vp()), 2.0)
    block = attach(pipe, target, particles=4, seed=0)
    with pytest.raises(ValueError, match=r"got the target feynkac\.fkc\.Annealed"), block:
        pass
    with pytest.raises(SteeringError, match="got 1 step, expected at least 2"):
        composed(pipe, Annealed(B), particles=4, steps=1)
    with pytest.raises(TypeError, match="experts: got StableDiffusionPipeline, expected expert_of"):
        Product(pipe)
    with pytest.raises(TypeError, match="exponents: got float, expected a tuple"):
        Composition(1.5)


def test_two_compositions_are_refused():
    with pytest.raises(SteeringError, match="two of them"):
        composed(sd("ddim", mean=M, std=S), Annealed(B), Annealed(B), particles=4, steps=5)


def test_a_start_in_the_middle_is_refused():
    """A pipeline that noises a picture to a middle level starts from another law."""
    pipe = sd("ddim", mean=M, std=S)
    honest = pipe.scheduler.set_timesteps

    def later(steps, device=None):
        honest(steps, device=device)
        pipe.scheduler.timesteps = pipe.scheduler.timesteps[6:]

    pipe.scheduler.set_timesteps = later
    with pytest.raises(SteeringError, match="begins at noise-to-signal ratio"):
        composed(pipe, Annealed(B), particles=4, steps=10)


def test_guidance_that_changes_is_refused():
    pipe = sd("ddim", TwoPriors)

    def change(pipe, step, timestep, values):
        pipe._guidance_scale = 3.0
        return values

    with (
        pytest.raises(SteeringError, match="guidance scale changes from 2 to 3"),
        attach(pipe, Annealed(B), particles=4, seed=0, transition="stochastic"),
    ):
        pipe(
            **call(guidance=2.0),
            num_images_per_prompt=4,
            num_inference_steps=5,
            callback_on_step_end=change,
        )


def test_a_known_law_needs_a_scheduler_that_ends_at_data():
    pipe = sd("ddim, not to one", mean=M, std=S)
    with pytest.raises(SteeringError, match="set_alpha_to_one"):
        composed(pipe, Composition(log_density=_density), particles=4, steps=5)


def test_models_that_are_no_posterior_means_are_refused():
    pipe = sd(diffusers.LCMScheduler(clip_sample=False), mean=M, std=S)
    with pytest.raises(SteeringError):
        composed(pipe, Annealed(B), particles=4, steps=4)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"exponents": (1.0, 2.0)}, "one for the pipeline and one for each"),
        ({"control": "reward"}, "control: got 'reward'"),
        ({"exponents": (math.nan,)}, "finite"),
        ({"std": 0.0}, "std: got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Composition(**arguments)
