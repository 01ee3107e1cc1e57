"""Other prompts and other pipelines as experts: products, ratios, exact evidence of a known law; particles whose mean
nobody knows."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler
from diffusers.utils.torch_utils import randn_tensor

from feynkac.fkc import Annealed as AnnealedLaw
from feynkac.fkc import PathCollapsed, sample_corrected
from feynkac.fkc.correctors.moves import Normal
from feynkac.fkc.testing.experts import gaussian_product
from feynkac.fkc.testing.ztest import ZTest
from feynkac.steering import (
    Annealed,
    Composition,
    FKSteering,
    MeanFree,
    Product,
    SteeringError,
    attach,
    effective_std,
    expert_of,
)
from feynkac.steering.composed_path import answer
from feynkac.steering.controls import Target as ControlTarget
from feynkac.steering.schedulers import rule_for
from feynkac.steering.testing import GaussianDenoiser

from .composed_toys import SCHEDULERS, TwoPriors, call, called, composed, last_noise, moments, sd

OWN, OTHER = (-1.0, 1.0), (1.5, 0.5)


def passes(values, truth, limit=4.5):
    test = ZTest.from_samples(values, truth, limit=limit)
    assert test.passed, str(test)


def product_truth(powers, h, laws=(OWN, OTHER), dimension=1):
    """Mean and variance of the outputs, and the log of the integral, at the last noisy level.

    The last move takes y to the average, over the exponents, of the experts' clean predictions."""
    at_last = gaussian_product(
        *((a, m, s * s + h) for a, (m, s) in zip(powers, laws, strict=True)), dimension=dimension
    )
    total = sum(powers)
    slope = sum(a * s * s / (s * s + h) for a, (_, s) in zip(powers, laws, strict=True)) / total
    offset = sum(a * m * h / (s * s + h) for a, (m, s) in zip(powers, laws, strict=True)) / total
    return slope * at_last.mean + offset, slope**2 * at_last.variance, at_last.log_evidence


def made(scheduler, law, side=1):
    return sd(scheduler, mean=law[0], std=law[1], sample_size=side)


def meets(run, truth, *, evidence=5e-3):
    mean, variance, log_z = truth
    found = moments(run)
    passes(found[0], mean)
    effective = run.ess.mean().item()
    passes(found[1], variance * (1.0 - 1.0 / effective))
    assert run.log_evidence.mean().item() == pytest.approx(log_z, abs=evidence)


# --- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler ancestral", "dpm", "flow"])
def test_a_product_of_two_pipelines(scheduler, side):
    own, other = made(scheduler, OWN, side), made(scheduler, OTHER, side)
    expert = expert_of(other, rows=500, mean=OTHER[0], std=OTHER[1], **call(side=side))
    assert expert.shape == (1, side, side)
    control = Product(expert, mean=OWN[0], std=OWN[1])
    run = composed(own, control, particles=200, populations=16, steps=25, side=side)
    truth = product_truth((1.0, 1.0), last_noise(own, 25), dimension=side * side)
    assert run.ess.min() > 180.0
    meets(run, truth, evidence=0.02 * side * side)
    assert run.calls.denoiser == 2 * 3200 * 25
    assert not ZTest.from_samples(moments(run)[0], OWN[0]).passed  # the pipeline's own law is another


@pytest.mark.parametrize("pair", [("ddim", "euler"), ("euler", "ddim, v"), ("dpm", "flow"), ("flow", "euler")])
def test_other_schedulers_of_the_same_latent_space(pair):
    """Experts whose model runs on another schedule are asked at the same noise-to-signal ratio."""
    own, other = made(pair[0], OWN), made(pair[1], OTHER)
    expert = expert_of(other, rows=1000, mean=OTHER[0], std=OTHER[1], **call())
    run = composed(own, Product(expert, mean=OWN[0], std=OWN[1]), particles=200, populations=16, steps=25)
    meets(run, product_truth((1.0, 1.0), last_noise(own, 25)), evidence=0.03)


@pytest.mark.parametrize(
    ("powers", "final"),
    [
        ((2.0, -0.2), (2.0, -0.2)),  # the second is narrower: q_1^2 / q_2^0.2 exists at every level
        ((1.0, lambda u: 0.5 * u), (1.0, 0.5 * 24 / 25)),
        ((lambda u: 1.0 + u, 1.0), (1.0 + 24 / 25, 1.0)),
    ],
)
def test_ratios_and_moving_exponents(powers, final):
    own, other = made("ddim", OWN), made("ddim", OTHER)
    expert = expert_of(other, rows=800, mean=OTHER[0], std=OTHER[1], **call())
    control = Product(expert, exponents=powers, mean=OWN[0], std=OWN[1])
    run = composed(own, control, particles=400, populations=16, steps=25)
    meets(run, product_truth(final, last_noise(own, 25)), evidence=0.03)


def test_what_cannot_be_normalised_is_refused():
    """q_1^2 / q_2 with q_2 the narrower one exists where there is noise enough, and nowhere below."""
    own, other = made("ddim", OWN), made("ddim", OTHER)
    expert = expert_of(other, rows=8, mean=OTHER[0], std=OTHER[1], **call())
    for exponents in ((2.0, -1.0), (1.0, -2.0)):
        with pytest.raises(PathCollapsed):
            composed(own, Product(expert, exponents=exponents, mean=OWN[0], std=OWN[1]), particles=8, steps=25)


def test_two_prompts_of_one_pipeline():
    """p_c from the call, p_u as an expert of the same pipeline, asked inside the block and before it."""
    pipe = sd("ddim", TwoPriors)
    laws = ((0.5, 0.25), (0.0, 0.5))
    settings = call() | {"prompt_embeds": torch.zeros(1, 4, 8)}
    truth = product_truth((1.0, 1.0), last_noise(pipe, 25), laws)
    rows = []
    outside = expert_of(pipe, rows=48, mean=0.0, std=0.5, **settings)
    handle = pipe.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    run = composed(pipe, Product(outside, mean=0.5, std=0.25), particles=100, populations=16, steps=25)
    handle.remove()
    meets(run, truth)
    assert len(rows) == 25 * (1 + math.ceil(1600 / 48))  # 48 does not divide 1600
    assert run.calls.denoiser == 2 * 1600 * 25
    with (
        pytest.raises(SteeringError, match="do not nest"),
        attach(pipe, Annealed(1.0), particles=4, seed=0, transition="stochastic"),
    ):
        expert_of(pipe, **settings)
    again = composed(pipe, Product(outside, mean=0.5, std=0.25), particles=100, populations=16, steps=25)
    assert torch.equal(again.samples(), run.samples())


def test_guidance_inside_an_expert():
    """p_c^2 / p_u as an expert on its own, sampled without the pipeline."""
    pipe = sd("ddim", TwoPriors)
    expert = expert_of(pipe, rows=100, mean=4 / 7, std=28**-0.5, **call(guidance=2.0))
    h = 0.3
    y = torch.linspace(-2.0, 2.0, 7, dtype=torch.float64).reshape(-1, 1, 1, 1)
    precision, mean = [2 / (1 / 16 + h), -1 / (1 / 4 + h)], 2 * 0.5 / (1 / 16 + h)
    expected = mean - sum(precision) * y
    assert torch.allclose(expert.score(y, h), expected, atol=2e-3)
    plain = expert_of(pipe, rows=100, **call())
    assert not torch.allclose(plain.score(y, h), expected, atol=0.1)


def test_an_expert_is_sampled_by_itself():
    expert = expert_of(made("euler", OTHER), rows=64, mean=OTHER[0], std=OTHER[1], **call())
    found = sample_corrected(AnnealedLaw(expert, 2.0), particles=200, populations=8, steps=30, seed=0)
    assert found.mean(lambda x: x).mean() == pytest.approx(OTHER[0], abs=0.05)
    assert found.x.shape[2:] == (1, 1, 1)


def test_rows_do_not_matter_and_nothing_is_left_behind():
    pipe = made("ddim", OTHER)
    bar = dict(pipe._progress_bar_config)
    forward, step = type(pipe.unet).forward, type(pipe.scheduler)
    one, many = expert_of(pipe, **call()), expert_of(pipe, rows=7, **call())
    y = torch.randn((10, 1, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for h in (1e-3, 0.4, 30.0):
        assert torch.equal(one.denoised(y, h), many.denoised(y, h))
        mean, std = OTHER
        assert torch.allclose(one.denoised(y, h), (mean * h + std**2 * y) / (std**2 + h), atol=2e-3)
    assert pipe._progress_bar_config == bar
    assert type(pipe.unet).forward is forward
    assert type(pipe.scheduler) is step
    assert "forward" not in vars(pipe.unet)


def test_times_between_those_of_training_are_told_as_fractions():
    """Between two integers a rounded timestep would be another noise level; at one it stays an integer."""
    pipe = made("ddim", OTHER)
    expert = expert_of(pipe, **call())
    told = []
    pipe.unet.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1].dtype))
    kept = pipe.scheduler.alphas_cumprod.double()
    noise = ((1.0 - kept) / kept)[[700, 701]]
    y = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for h in (noise[0].item(), noise.prod().sqrt().item()):
        mean, std = OTHER
        expected = (mean * h + std**2) / (std**2 + h)
        assert expert.denoised(y, h).item() == pytest.approx(expected, abs=1e-5)
    assert told == [torch.int64, torch.float32]


def test_below_its_last_level_an_expert_keeps_its_score():
    """A flow ends at less noise than a table of alphas; there the clean prediction is nearly the sample."""
    expert = expert_of(made("ddim", OTHER), **call())
    y = torch.linspace(-1.0, 4.0, 6, dtype=torch.float64).reshape(-1, 1, 1, 1)
    mean, std = OTHER
    for h in (1e-6, 1e-5):
        expected = (mean * h + std**2 * y) / (std**2 + h)
        assert torch.allclose(answer(expert, y, h), expected, atol=1e-6)
    high = answer(expert, 1e4 * y, 1e8)
    assert (high - mean).abs().max() < 0.02


def test_the_offset_of_published_schedulers():
    """Stable Diffusion's own steps_offset=1 with leading timesteps: a table over all of training does not overflow."""
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1, beta_schedule="scaled_linear", beta_end=0.012)
    expert = expert_of(sd(scheduler, mean=OTHER[0], std=OTHER[1]), **call())
    h = 0.7
    expected = (OTHER[0] * h + OTHER[1] ** 2) / (OTHER[1] ** 2 + h)
    assert expert.denoised(torch.ones(1, 1, 1, 1, dtype=torch.float64), h).item() == pytest.approx(expected, abs=1e-3)
    assert scheduler.config.steps_offset == 1


def test_products_with_a_reward():
    """Times exp(2 x), with candidates' rows and resampling at every step."""
    own, other = made("ddim", OWN), made("ddim", OTHER)
    expert = expert_of(other, rows=400, mean=OTHER[0], std=OTHER[1], **call())
    reward = FKSteering(lambda x: x.flatten(1).mean(dim=1), scale=2.0, on="latents")
    run = composed(
        own, Product(expert, mean=OWN[0], std=OWN[1]), reward, particles=200, populations=16, ess_threshold=1.1
    )
    mean, variance, log_z = product_truth((1.0, 1.0), last_noise(own, 25))
    passes(moments(run)[0], mean + 2.0 * variance)
    assert run.log_evidence.mean().item() == pytest.approx(log_z + 2.0 * mean + 2.0 * variance, abs=0.05)


def test_experts_that_are_not_one_law_are_refused():
    pipe = made("ddim", OTHER)
    with pytest.raises(SteeringError, match="several prompts"):
        expert_of(pipe, **call(populations=2))
    with pytest.raises(ValueError, match="rows: got 0"):
        expert_of(pipe, rows=0, **call())
    with pytest.raises(SteeringError, match="posterior mean"):
        expert_of(sd(LCMScheduler(clip_sample=False), mean=0.0, std=1.0), **call())
    with pytest.raises(ValueError, match="experts: got none"):
        Product()


# --- a law that is known ---------------------------------------------------------------------------------------------

WANTED = (0.2, 0.5)


def normal_log(mean, std):
    """Log-density of independent N(mean, std^2), std a number or a tensor that broadcasts."""
    width = torch.as_tensor(std, dtype=torch.float64)

    def log_density(x):
        z = (x.double() - mean) / width
        return -0.5 * (z.square() + (2.0 * math.pi * width.square()).log()).flatten(1).sum(dim=1)

    return log_density


KNOWN = {
    "plain": (Composition, {}),
    "annealed": (Annealed, {"exponent": 1.4}),
    "annealed, score": (Annealed, {"exponent": 1.4, "control": "score"}),
    "moving": (Annealed, {"exponent": lambda u: 1.0 + 0.5 * u}),
}


def exact_evidence(name, steps, model, claims, populations=250, particles=40, law=WANTED):
    kind, arguments = KNOWN[name]
    control = kind(mean=claims[0], std=claims[1], log_density=normal_log(*law), **arguments)
    run = composed(
        made("ddim", model), control, particles=particles, populations=populations, steps=steps, ess_threshold=0.5
    )
    passes(run.log_evidence.exp(), 1.0)
    x = run.samples().double().reshape(run.weights.shape)
    z = run.log_evidence.exp()
    passes(z * (run.weights * (x - law[0])).sum(dim=1), 0.0)  # unnormalised moments are unbiased, too
    passes(z * (run.weights * (x - law[0]).square()).sum(dim=1), law[1] ** 2)
    return run


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("steps", [8, 20])
def test_the_evidence_of_a_known_law_is_unbiased(name, steps):
    run = exact_evidence(name, steps, model=(0.3, 0.6), claims=(0.3, 0.6))
    assert run.ess.mean() > 0.4 * 40


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("steps", [8, 20])
def test_a_bad_model_costs_variance_not_bias(name, steps):
    """A model with another mean and deviation, and claims that fit neither."""
    run = exact_evidence(name, steps, (0.8, 0.9), (0.0, 1.0), populations=1000, particles=100, law=(0.1, 0.5))
    good = exact_evidence(name, steps, (0.1, 0.5), (0.1, 0.5), populations=200, particles=100, law=(0.1, 0.5))
    assert run.ess.mean() < 0.8 * good.ess.mean()


def test_a_forgotten_noising_kernel_is_noticed(monkeypatch):
    """Negative control: the last move without log N(y; x, h)."""
    honest = Composition.target

    def forgetful(self, final, memory):
        target = honest(self, final, memory)
        x, y, h = final.sample.double()[None], memory["y"][None], memory["place"][0, 1]
        noised = Normal(x, h).log_density(y)[0]
        return ControlTarget(target.log_tilt - noised, target.reward)

    monkeypatch.setattr(Composition, "target", forgetful)
    with pytest.raises(AssertionError):
        exact_evidence("plain", 8, model=(0.3, 0.6), claims=(0.3, 0.6))


def test_impossible_samples_weigh_nothing():
    """A density that is zero on one side, and not a number at all: the law is the other half."""

    def half(x):
        x = x.double().flatten()
        return torch.where(x > 0.0, normal_log(0.0, 0.5)(x[:, None]), torch.nan)

    control = Composition(mean=0.3, std=0.6, log_density=half)
    run = composed(made("ddim", (0.3, 0.6)), control, particles=40, populations=250, steps=8)
    passes(run.log_evidence.exp(), 0.5)
    assert (run.samples().flatten()[run.weights.flatten() > 0.0] > 0.0).all()


# --- spaces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [2, 3, 13])
def test_mean_free_coordinates_are_orthonormal(particles):
    space = MeanFree(particles)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((5, particles - 1, 3), generator=generator, dtype=torch.float64)
    x = space.outer(z)
    assert x.shape == (5, particles, 3)
    assert x.mean(dim=1).abs().max() < 1e-14
    assert torch.allclose(space.inner(x), z, atol=1e-13)
    assert torch.allclose(x.square().sum(), z.square().sum())
    moved = x + torch.randn((5, 1, 3), generator=generator, dtype=torch.float64)
    assert torch.allclose(space.inner(moved), z, atol=1e-13)
    assert space.inner(x.float()).dtype is torch.float32


def test_one_particle_has_no_space():
    with pytest.raises(ValueError, match="particles: got 1"):
        MeanFree(1)
    with pytest.raises(ValueError, match=r"mean: got 0\.5"):
        Composition(mean=0.5, space=MeanFree(3))


class Line(GaussianDenoiser):
    """Independent positions N(0, std^2) of particles, their mean taken away: knows nothing of the mean."""

    def posterior_mean(self, x, alpha, sigma):
        free = x - x.mean(dim=1, keepdim=True)
        s = self.config.std
        return alpha * s**2 / (alpha**2 * s**2 + sigma**2) * free


class Particles(DiffusionPipeline):
    """Configurations (rows, N, 1)."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, batch_size, num_inference_steps, generator=None):
        self.scheduler.set_timesteps(num_inference_steps)
        x = randn_tensor((batch_size, self.unet.config.in_channels, 1), generator=generator)
        for t in self.progress_bar(self.scheduler.timesteps):
            said = self.unet(x, t).sample
            x = self.scheduler.step(said, t, x, generator=generator).prev_sample
        return x


N, WIDTH = 4, 0.6


def on_a_line(control, *, populations=250, particles=20, steps=10):
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", steps_offset=1)
    pipe = Particles(Line.for_scheduler(scheduler, std=0.7, in_channels=N), scheduler)
    pipe.set_progress_bar_config(disable=True)
    with attach(pipe, control, particles=particles, seed=0, transition="stochastic") as run:
        pipe(populations * particles, steps, generator=torch.Generator().manual_seed(0))
    return run


def of_differences(x):
    """N(0, WIDTH^2) in every direction but the mean's."""
    return normal_log(0.0, WIDTH)(MeanFree(N).inner(x.double()))


def test_particles_on_a_line():
    run = on_a_line(Composition(std=0.7, log_density=of_differences, space=MeanFree(N)))
    passes(run.log_evidence.exp(), 1.0)
    x = MeanFree(N).inner(run.samples().double()).reshape(*run.weights.shape, -1)
    squares = (run.weights[..., None] * x.square()).sum(dim=1).mean(dim=1)
    passes(run.log_evidence.exp() * squares, WIDTH**2)
    assert run.ess.mean() > 12.0


def test_an_annealed_evidence_counts_the_mean_where_no_space_is_given():
    """The integral of q^2 over N - 1 directions; over all N, the mean's claimed one is counted as well."""
    v_inner = []
    for space in ({"space": MeanFree(N)}, {}):
        run = on_a_line(Annealed(2.0, std=0.7, **space), populations=16)
        v_inner.append(run.log_evidence.mean().item())
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", steps_offset=1)
    scheduler.set_timesteps(10)
    level = rule_for(scheduler).levels(scheduler)[-2]
    v = 0.7**2 + (level.sigma / level.alpha) ** 2
    one = -0.5 * math.log(2 * math.pi * v) - 0.5 * math.log(2.0)
    assert v_inner[0] == pytest.approx((N - 1) * one, abs=5e-3)
    assert abs(v_inner[1] - v_inner[0]) > 0.3


def test_a_known_law_without_its_space_is_missed():
    """Negative control: the same law in all N coordinates, which has no finite integral."""
    right = on_a_line(Composition(std=0.7, log_density=of_differences, space=MeanFree(N)))
    wrong = on_a_line(Composition(std=0.7, log_density=of_differences))
    assert abs(right.log_evidence.mean()) < 0.05
    assert wrong.log_evidence.mean() > 0.2
    assert wrong.ess.mean() < 0.8 * right.ess.mean()


# --- effective deviations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.3, 1.7])
def test_effective_deviations_of_gaussian_data(std):
    generator = torch.Generator().manual_seed(1)
    samples = std * torch.randn((20000, 2), generator=generator, dtype=torch.float64)
    found = effective_std(lambda y, r: y * std**2 / (std**2 + r * r), samples, [0.1, 0.5, 2.0, 10.0])
    for ratio in (0.01, 0.1, 0.3, 1.0, 9.0, 100.0):
        assert found(ratio) == pytest.approx(std, rel=0.05)
    wrong = effective_std(lambda y, r: 0.8 * y * std**2 / (std**2 + r * r), samples, [0.1, 0.5])
    assert abs(wrong(0.1) / std - 1.0) > 0.05


@pytest.mark.parametrize("ratios", [[1.0], [2.0, 1.0], [0.0, 1.0]])
def test_ratios_that_do_not_rise_are_refused(ratios):
    with pytest.raises(ValueError, match="ratios"):
        effective_std(lambda y, r: y, torch.zeros(3, 2), ratios)


STIFF_AND_SOFT = (0.05, 1.0)


def efficiency(std, steps=60):
    pipe = sd("ddpm", std=STIFF_AND_SOFT, in_channels=2)
    scales = torch.tensor(STIFF_AND_SOFT, dtype=torch.float64)[:, None, None]
    control = Composition(std=std, log_density=normal_log(0.0, scales))
    run = composed(pipe, control, particles=400, populations=8, steps=steps, ess_threshold=0.0)
    return run.ess.mean().item() / 400, run.log_weights.var(dim=1).mean().item()


@pytest.mark.slow
def test_effective_deviations_lower_the_variance_of_weights():
    """Two directions, one twenty times as stiff: no single deviation fits all levels."""
    generator = torch.Generator().manual_seed(2)
    scales = torch.tensor(STIFF_AND_SOFT, dtype=torch.float64)
    samples = scales * torch.randn((4000, 2), generator=generator, dtype=torch.float64)
    ratios = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    found = effective_std(lambda y, r: y * scales**2 / (scales**2 + r * r), samples, ratios)
    assert found(0.01) < 0.1 < 0.6 < found(10.0)
    share, variance = efficiency(found)
    constants = [efficiency(std) for std in (0.05, 0.1, 0.2236, (0.5 * (0.05**2 + 1.0)) ** 0.5, 1.0)]
    assert share > 1.05 * max(other for other, _ in constants)
    assert variance < 0.5 * constants[3][1]  # what the data's deviation alone would give


def test_called_directly_the_toy_is_what_it_says():
    """The pipelines of this file without controls."""
    x = called(made("ddim", OTHER), 2000, 1, 20).double()
    assert x.mean() == pytest.approx(OTHER[0], abs=0.05)
    assert set(SCHEDULERS) >= {"ddim", "flow"}
