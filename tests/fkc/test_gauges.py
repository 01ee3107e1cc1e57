"""Gauges and control fields: drift that is added and counted changes the variance of the weights, never the law."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from feynkac.fkc import (
    Annealed,
    Checkpoint,
    CheckpointError,
    Diffusion,
    Expert,
    Target,
    UnstableNoise,
    corrected_model,
    sample_corrected,
)
from feynkac.fkc.correctors import controls, noise_bound
from feynkac.fkc.correctors.model import ends_of
from feynkac.fkc.correctors.moves import Transition
from feynkac.fkc.divergence import field_and_divergence
from feynkac.fkc.testing import ZTest
from feynkac.fkc.testing.experts import MixtureLaw, gaussian_expert, gaussian_product

PATHS = {"ve": Diffusion.ve(0.01, 40.0), "vp": Diffusion.vp(), "flow": Diffusion.flow()}
VE = PATHS["ve"]
MIXTURE = MixtureLaw(torch.tensor([[-2.0], [2.0]], dtype=torch.float64), (0.3, 0.7), (0.3, 1.0))


def first(x):
    return x[..., 0]


def moments(samples):
    mean = samples.mean(first)
    return mean, samples.mean(lambda x: first(x).square()) - mean.square()


def run(target, **options):
    return sample_corrected(target, **({"particles": 1000, "populations": 10, "seed": 0, "steps": 100} | options))


# --- divergences -----------------------------------------------------------------------------------------------------


def test_divergences_agree():
    """In closed form, by differentiation, and as a mean over random signs."""
    law = MixtureLaw(torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]], dtype=torch.float64), (1.0, 2.0), (0.7, 1.1))
    generator = torch.Generator().manual_seed(0)
    y = torch.randn((40, 3), generator=generator, dtype=torch.float64)

    def signs(n):
        return (2 * torch.randint(0, 2, (n, *y.shape), generator=generator) - 1).double()

    closed = law.expert(PATHS["vp"])
    exact = Expert(closed.predict, closed.diffusion, "score", shape=(3,))
    for h in (0.05, 3.0):
        score, divergence = closed.score_and_divergence(y, h, signs)
        by_autograd = exact.score_and_divergence(y, h, signs)
        assert torch.allclose(score, by_autograd[0], atol=1e-10)
        assert torch.allclose(divergence, by_autograd[1], rtol=1e-8)
        field = partial(exact.score, h=h)
        repeats = torch.stack([field_and_divergence(field, y, 1, signs)[1] for _ in range(400)])
        gap = (repeats.mean(dim=0) - divergence) / (repeats.std(dim=0) / 20).clamp(min=1e-12)
        assert gap.abs().max() < 5.0
        assert (repeats.std(dim=0) > 0).all()  # it is an estimate


# --- the law stays ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("gauge", ["reference", "velocities", "plain"])
@pytest.mark.parametrize("control", ["none", "score"])
def test_the_evidence_is_unbiased_whatever_the_drift(path, gauge, control):
    """Kernel weights at 25 steps, wrong moments claimed: the mean of the evidence over 300 small populations."""
    expert = gaussian_expert(PATHS[path], mean=0.5, variance=2.0, reference=(0.0, 1.2))
    samples = run(
        Annealed(expert, 1.5), gauge=gauge, control=control, steps=25, particles=200, populations=300, weights="kernel"
    )
    truth = gaussian_product((1.5, 0.5, 2.0 + samples.levels[-1]))
    test = ZTest.from_samples((samples.log_evidence - truth.log_evidence).exp(), 1.0)
    assert test.passed, str(test)
    mean, variance = moments(samples)
    assert mean.mean().item() == pytest.approx(0.5, abs=0.03)
    assert variance.mean().item() == pytest.approx(truth.variance, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("gauge", ["reference", "fitted", "plain"])
@pytest.mark.parametrize("control", ["none", "score", "least_squares"])
def test_a_mixture_keeps_its_masses(gauge, control):
    """beta = 2: P(x < 0) = 0.3815, E x = 0.480 (by quadrature); without weights it would be 0.19."""
    expert = MIXTURE.expert(VE, known_density=False)
    samples = run(
        Annealed(expert, 2.0), gauge=gauge, control=control, steps=400, particles=4000, populations=6, noise=2.0
    )
    left = samples.mean(lambda x: (first(x) < 0).double()).mean().item()
    assert left == pytest.approx(0.3815, abs=0.02)
    assert samples.mean(first).mean().item() == pytest.approx(0.480, abs=0.07)


@pytest.mark.slow
def test_a_control_that_is_not_counted_is_noticed(monkeypatch):
    """Negative control: the field moves the particles, the weight does not know."""
    monkeypatch.setattr(Transition, "rate", Transition.bare_rate)
    expert = MIXTURE.expert(VE, known_density=False)
    samples = run(Annealed(expert, 2.0), control="score", steps=400, particles=4000, populations=6, noise=2.0)
    left = samples.mean(lambda x: (first(x) < 0).double()).mean().item()
    assert abs(left - 0.3815) > 0.04


# --- the variance falls ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("path", "control"), [("ve", "score"), ("vp", "least_squares"), ("flow", "score")])
def test_controls_leave_constant_weights_for_a_gaussian(path, control):
    """Whatever is claimed of it: ESS above 0.999, the variance within 3 per cent."""
    expert = gaussian_expert(PATHS[path], variance=2.0, reference=(0.0, 1.0), known_density=False)
    samples = run(Annealed(expert, 2.0), gauge="plain", control=control, steps=1000, particles=10_000, populations=2)
    assert samples.ess.min().item() > 0.999 * 10_000
    assert moments(samples)[1].mean().item() == pytest.approx(1.0, rel=0.03)
    assert run(Annealed(expert, 2.0), gauge="plain", steps=200).ess.mean().item() < 900  # without: not


def test_moments_are_found_where_the_claimed_ones_are_wrong():
    expert = gaussian_expert(VE, mean=3.0, variance=4.0, reference=(0.0, 1.0), known_density=False)
    target = Annealed(expert, 2.0)
    claimed, fitted = run(target), run(target, gauge="fitted")
    assert fitted.ess.mean() > 0.94 * 1000 > claimed.ess.mean()
    assert moments(fitted)[0].mean().item() == pytest.approx(3.0, abs=0.1)
    assert moments(fitted)[1].mean().item() == pytest.approx(2.0, rel=0.05)


def test_velocities_are_the_reference_of_standard_data_on_a_variance_preserving_path():
    """... in the limit of small steps, and Euler's move on a variance-exploding one."""
    for path, same, far in (("vp", "reference", 0.04), ("ve", "plain", 1e-9)):
        expert = gaussian_expert(PATHS[path], variance=2.0, reference=(0.0, 1.0), known_density=False)
        options = {"particles": 50, "populations": 2, "steps": 1000, "ess_threshold": 0.0, "noise": 1.0}
        one, other = (run(Annealed(expert, 1.5), gauge=g, **options) for g in ("velocities", same))
        assert (one.x - other.x).abs().max() < far
    assert (one.x - run(Annealed(expert, 1.5), **options).x).abs().max() > 0.1


def test_velocities_on_a_straight_path_sum_the_networks_outputs():
    """One small step of sum_i a_i u_i in x for an expert of velocity u = E[eps - x0 | x]; kappa = 0."""
    flow = PATHS["flow"]
    expert = gaussian_expert(flow, mean=0.4, variance=0.5, known_density=False)
    t, dt = 0.5, 1e-4
    before, after = (float(flow.noise(time)) for time in (t, t - dt))
    options = {"gauge": "velocities", "noise": 0.0, "weights": "rate", "particles": 20, "populations": 1, "force": True}
    x = run(Annealed(expert, 1.7), levels=[before, before * (1 - 1e-13)], **options).x * (1 - t)
    moved = run(Annealed(expert, 1.7), levels=[before, after], **options).x * (1 - t + dt)
    score = -(x - (1 - t) * 0.4) / ((1 - t) ** 2 * 0.5 + t * t)
    velocity = -(x + t * score) / (1 - t)
    assert torch.allclose(moved, x - dt * 1.7 * velocity, atol=20 * dt**2)
    assert not torch.allclose(moved, x - dt * velocity, atol=20 * dt**2)


def test_a_reference_without_spread_makes_the_ancestral_step():
    """Data of no variance and kappa = 1: N(x0-hat + (h'/h)(y - x0-hat), h'(1 - h'/h)), the step of DDPM and of the
    ancestral Euler sampler, so its kernel weights are those of such a step."""
    expert = replace(gaussian_expert(VE, mean=0.7, variance=2.0), mean=0.0, std=1e-6)
    model = corrected_model(Annealed(expert, 1.0), levels=[3.0, 2.0, 1.0], noise=1.0)
    cloud, _ = model.initial([torch.Generator().manual_seed(0)], 5)
    before = ends_of(cloud, model.levels[0])
    kernel = model.transition(1).forward(before)
    h, following = 9.0, 4.0
    clean = expert.denoised(cloud.x[0], h)
    assert torch.allclose(kernel.mean[0], clean + following / h * (cloud.x[0] - clean), atol=1e-9)
    assert float(kernel.variance) == pytest.approx(following * (1 - following / h), rel=1e-9)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_the_step_of_a_ddim_scheduler(eta):
    """Mean and variance as diffusers' scheduler makes them from the combined prediction."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    t, following = scheduler.timesteps[4:6].tolist()
    kept = scheduler.alphas_cumprod.double()
    h, after = ((1.0 - kept[[t, following]]) / kept[[t, following]]).tolist()
    expert = gaussian_expert(VE, mean=0.7, variance=2.0)
    model = corrected_model(
        Annealed(expert, 1.0), levels=[h**0.5, after**0.5], gauge="ddim", noise=eta**2, weights="none"
    )
    cloud, _ = model.initial([torch.Generator().manual_seed(0)], 5)
    kernel = model.transition(1).forward(ends_of(cloud, model.levels[0]))
    x = kept[t].sqrt() * cloud.x[0]
    noise = (x - kept[t].sqrt() * expert.denoised(cloud.x[0], h)) / (1.0 - kept[t]).sqrt()
    made = scheduler.step(noise, t, x, eta=eta, variance_noise=torch.zeros_like(x)).prev_sample
    drawn = scheduler.step(noise, t, x, eta=eta, variance_noise=torch.ones_like(x)).prev_sample
    assert torch.allclose(kept[following].sqrt() * kernel.mean[0], made, atol=1e-5)
    assert torch.allclose(kept[following].sqrt() * kernel.variance.sqrt(), drawn - made, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("powers", [(1.0,), (-1.0, 2.0)])
def test_the_evidence_of_ddim_steps_is_unbiased(eta, powers):
    """50 steps, a model and its guidance at scale 2, over 300 populations; without weights guidance is another law."""
    wide, narrow = gaussian_expert(VE, variance=2.0), gaussian_expert(VE, mean=0.5, variance=1.0)
    experts = (wide,) if len(powers) == 1 else (wide, narrow)
    options = {"gauge": "ddim", "noise": eta**2, "steps": 50, "particles": 300, "populations": 300, "force": True}
    samples = run(Target(experts, powers), weights="kernel", **options)
    last = samples.levels[-1]
    parts = [(1.0, 0.0, 2.0 + last)] if len(powers) == 1 else [(-1.0, 0.0, 2.0 + last), (2.0, 0.5, 1.0 + last)]
    truth = gaussian_product(*parts)
    test = ZTest.from_samples((samples.log_evidence - truth.log_evidence).exp(), 1.0)
    assert test.passed, str(test)
    assert moments(samples)[1].mean().item() == pytest.approx(truth.variance, rel=0.08)
    if len(powers) == 2:
        bare = moments(run(Target(experts, powers), weights="none", **options))[1].mean().item()
        assert abs(bare / truth.variance - 1.0) > 0.1


# --- moving exponents and rewards ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.5, 1.0, 3.0])
def test_moving_exponents_are_tracked_at_any_noise(kappa):
    """beta from 1 to 2, densities unknown: without divergences at kappa = 1, with them elsewhere."""
    expert = gaussian_expert(VE, reference=(0.0, 1.3), known_density=False)
    target = Annealed(expert, lambda u: 1.0 + u)
    samples = run(target, noise=kappa, steps=400, particles=4000, populations=6)
    truth = gaussian_product((2.0, 0.0, 1.0))
    assert moments(samples)[1].mean().item() == pytest.approx(truth.variance, rel=0.06)
    assert samples.log_evidence.mean().item() == pytest.approx(truth.log_evidence, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("control", ["none", "reward", "least_squares"])
def test_a_reward_with_its_whole_gradient(control):
    """Linear and quadratic rewards, whose Laplacian is and is not zero."""
    expert = gaussian_expert(VE, known_density=False, reference=(0.0, 1.2))
    for reward, mean, variance, log_z in (
        (lambda x: 2.0 * x[:, 0], 2.0, 1.0, 2.0),
        (lambda x: -(x[:, 0] - 1.0).square(), 2.0 / 3.0, 1.0 / 3.0, -0.5 * math.log(3.0) - 1.0 / 3.0),
    ):
        target = Target((expert,), (1.0,)).tilted(reward, lambda u: u**4)
        samples = run(target, control=control, steps=400, particles=4000, populations=6)
        found = moments(samples)
        assert samples.log_evidence.mean().item() == pytest.approx(log_z, abs=0.06)
        assert found[0].mean().item() == pytest.approx(mean, abs=0.03)
        assert found[1].mean().item() == pytest.approx(variance, rel=0.05)


@pytest.mark.slow
def test_a_laplacian_that_is_forgotten_is_noticed(monkeypatch):
    """Negative control for the quadratic reward."""
    honest = controls._unit_rate

    def forgetful(name, ends, guide):
        rate = honest(name, ends, guide)
        return rate - ends.level.reward_scale * ends.reward_laplacian if name == "reward" else rate

    monkeypatch.setattr(controls, "_unit_rate", forgetful)
    expert = gaussian_expert(VE, known_density=False)
    target = Target((expert,), (1.0,)).tilted(lambda x: -(x[:, 0] - 1.0).square(), lambda u: u**4)
    samples = run(target, control="reward", steps=400, particles=4000, populations=6)
    assert abs(samples.log_evidence.mean().item() + 0.5 * math.log(3.0) + 1.0 / 3.0) > 0.2


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_a_number_as_scale_of_a_reward_rises_with_the_signal(path):
    """... and a function that does not begin at 0 tilts the first draw, whose weight says so."""
    expert = gaussian_expert(PATHS[path], known_density=False)
    target = Target((expert,), (1.0,)).tilted(lambda x: 2.0 * x[:, 0], 1.0)
    model = corrected_model(target, steps=10)
    assert model.levels[0].reward_scale < 1e-3 < model.levels[7].reward_scale < model.levels[10].reward_scale == 1.0
    samples = run(target, particles=2000, populations=8, steps=300)
    assert moments(samples)[0].mean().item() == pytest.approx(2.0, abs=0.07)
    assert samples.log_evidence.mean().item() == pytest.approx(2.0, abs=0.07)
    tilted = Target((expert,), (1.0,)).tilted(lambda x: 1e-3 * x[:, 0], lambda u: 1.0)
    model = corrected_model(tilted, steps=10)
    cloud, log_weight = model.initial([torch.Generator().manual_seed(0)], 5)
    assert torch.allclose(log_weight - log_weight.mean(), 1e-3 * (cloud.x - cloud.x.mean())[..., 0])


def test_what_would_be_wrong_without_a_word_is_refused():
    expert = gaussian_expert(VE, known_density=False)

    def blind(x, t):
        with torch.no_grad():
            return expert.predict(x, t)

    with pytest.raises(ValueError, match="predict: its result has no gradient"):
        run(Annealed(Expert(blind, VE, shape=(1,)), 2.0), control="score")
    with pytest.raises(ValueError, match=r"predict: got shape \(1000,\) for samples of \(1000, 1\)"):
        run(Annealed(Expert(lambda x, t: x[:, 0], VE, shape=(1,)), 2.0), populations=1)
    clocked = replace(expert, clock=lambda h: 0.5 * h)
    levels = [float(x) for x in VE.levels(20)[:-4]]
    for options in ({"weights": "kernel"}, {"weights": "rate", "churn": 0.5}):
        with pytest.raises(ValueError, match="clock: got an expert on another schedule"):
            run(Target((clocked,), (1.0,)), levels=levels, **options)
    tilted = Target((expert,), (1.0,)).tilted(lambda x: x[:, 0])
    with pytest.raises(ValueError, match="tilted: the target has a reward already"):
        tilted.tilted(lambda x: x[:, 0])
    for levels in ((5.0,), (5.0, -1.0), (5.0, 0.0), (1.0, 5.0), (5.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="levels: got"):
            run(Annealed(expert, 2.0), levels=levels)
    with pytest.raises(UnstableNoise):
        run(Annealed(gaussian_expert(VE, reference=(0.0, 2.0)), 3.0), noise=0.0, weights="rate")
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        run(Annealed(expert, 2.0), chunk_size=0)


def test_the_noise_bound_of_several_experts():
    """Guidance at scale 2 of N(0, 100) and N(0, 1) in the plain gauge: 1 - sum(a/v^2)/(sum a/v)^2 at worst."""
    wide, narrow = (gaussian_expert(VE, variance=v) for v in (100.0, 1.0))
    model = corrected_model(Target((wide, narrow), (-1.0, 2.0)), gauge="plain", noise=1.0, steps=400)

    def bound(h):
        v, w = 100.0 + h, 1.0 + h
        return 1.0 - (2.0 / w**2 - 1.0 / v**2) / (2.0 / w - 1.0 / v) ** 2

    assert noise_bound(model) == pytest.approx(max(bound(s * s) for s in VE.levels(400)), rel=0.02)


def test_a_checkpoint_of_another_target_is_refused(tmp_path):
    expert = gaussian_expert(VE)
    place = Checkpoint(tmp_path / "point", 5)
    options = {"particles": 20, "populations": 2, "steps": 10, "checkpoint": place}
    run(Annealed(expert, 2.0), **options)
    with pytest.raises(CheckpointError, match="settings"):
        run(Annealed(expert, 3.0), resume=True, **options)


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match=r"noise: got 2\.0, expected 1 for kernel weights from scores alone"):
        run(Annealed(gaussian_expert(VE, known_density=False), 2.0), weights="kernel", noise=2.0)
    expert = gaussian_expert(VE)
    with pytest.raises(ValueError, match="weights: got 'kernel', expected 'rate'"):
        run(Annealed(expert, 2.0), gauge="fitted", weights="kernel")
    with pytest.raises(ValueError, match="control: got 'reward' for a target without one"):
        run(Annealed(expert, 2.0), control="reward")
    with pytest.raises(ValueError, match="gauge: got 'linear', expected reference"):
        run(Annealed(expert, 2.0), gauge="linear")
    with pytest.raises(ValueError, match="divergence: got 0 probes"):
        Expert(expert.predict, VE, divergence=0)


def test_populations_are_independent_and_reproducible():
    """Also where moves look at the population."""
    expert = MIXTURE.expert(VE, known_density=False)
    target = Annealed(Expert(expert.predict, VE, divergence=2, shape=(1,)), 2.0)
    options = {"gauge": "fitted", "control": "least_squares", "particles": 64, "steps": 20}
    three, two = (run(target, populations=p, **options) for p in (3, 2))
    assert torch.equal(three.x[:2], two.x)
    assert torch.equal(three.log_weights[:2], two.log_weights)
    assert math.isfinite(float(three.log_evidence.sum()))
    chunked = run(target, populations=2, chunk_size=7, **options)
    assert torch.allclose(chunked.x, two.x, atol=1e-9)
