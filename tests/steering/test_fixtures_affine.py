"""Exact laws of samplers of Gaussian data: the numbers of the acceptance table, and the code that reads them off
schedulers."""

import math

import pytest
import torch

from feynkac.fkc.testing import ZTest
from feynkac.steering.schedulers import rule_for
from feynkac.steering.testing import QuadraticReward, affine_law, flow_levels, kernel_law

diffusers = pytest.importorskip("diffusers")
PRIOR = {"mean": 0.5, "std": 0.8}
CASES = {  # scale, reward, mean', var', log Z, E*[r], KL
    "L1": (1, QuadraticReward(beta=1), 0.938215061, 0.438248996, 0.719090563, 0.938215061, 0.219),
    "L3": (3, QuadraticReward(beta=1), 1.814713053, 0.438248996, 3.472018678, 1.814713053, 1.972),
    "Q1": (2, QuadraticReward(kappa=1, y=2), 1.200620549, 0.233546211, -1.513799938, -0.436276859, 0.641),
    "Q4": (2, QuadraticReward(kappa=4, y=-1), -0.667117457, 0.097259160, -2.749954103, -0.416139896, 1.918),
}


def ddim(**options):
    defaults = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
    return diffusers.DDIMScheduler(**{**defaults, **options})


@pytest.fixture(scope="module")
def chain():
    """20 DDIM(eta=1) steps, in exact arithmetic on the scheduler's levels."""
    scheduler = ddim()
    scheduler.set_timesteps(20)
    return kernel_law(rule_for(scheduler).levels(scheduler), **PRIOR, eta=1.0)


def test_base_law(chain):
    assert chain.mean == pytest.approx(0.499966065, abs=6e-10)
    assert chain.variance == pytest.approx(0.438248996, abs=6e-10)


@pytest.mark.parametrize("case", CASES)
def test_tilted_laws(chain, case):
    scale, reward, mean, variance, log_z, expected, kl = CASES[case]
    law = chain.tilted(reward, scale)
    found = (law.mean, law.variance, law.log_evidence, law.reward)
    assert found == pytest.approx((mean, variance, log_z, expected), abs=6e-10)
    assert law.kl == pytest.approx(kl, abs=6e-4)


def test_the_scheduler_itself_has_that_law(chain):
    """Its coefficients are float32."""
    read = affine_law(ddim(), **PRIOR, num_inference_steps=20, eta=1.0)
    for ours, theirs in zip(chain.steps, read.steps, strict=True):
        assert (ours.a, ours.b, ours.c) == pytest.approx((theirs.a, theirs.b, theirs.c), abs=1e-6)
    assert (read.mean, read.variance) == pytest.approx((chain.mean, chain.variance), abs=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_reads_the_same(eta, prediction):
    scheduler = ddim(prediction_type=prediction)
    read = affine_law(scheduler, **PRIOR, num_inference_steps=7, eta=eta)
    scheduler.set_timesteps(7)
    ours = kernel_law(rule_for(scheduler).levels(scheduler), **PRIOR, eta=eta)
    assert (read.mean, read.variance) == pytest.approx((ours.mean, ours.variance), abs=1e-6)


def test_ddpm_and_euler_ancestral_are_the_kernel_at_eta_one():
    for make, steps in ((diffusers.DDPMScheduler, 1000), (diffusers.EulerAncestralDiscreteScheduler, 20)):
        scheduler = make(**({"clip_sample": False} if make is diffusers.DDPMScheduler else {}))
        read = affine_law(scheduler, **PRIOR, num_inference_steps=steps)
        scheduler.set_timesteps(steps)
        ours = kernel_law(rule_for(scheduler).levels(scheduler), **PRIOR, eta=1.0)
        # exploding samplers start from init_noise_sigma, which is not the level's own sigma in every spacing
        start = read.initial_variance if make is diffusers.DDPMScheduler else ours.initial_variance
        assert ours.initial_variance == pytest.approx(start)
        found, expected = ([(s.a, s.b, s.c) for s in chain.steps] for chain in (read, ours))
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=2e-4)


def test_reading_leaves_the_scheduler_alone():
    scheduler = ddim()
    before = scheduler.timesteps.clone()
    affine_law(scheduler, **PRIOR, num_inference_steps=5, eta=1.0)
    assert torch.equal(scheduler.timesteps, before)


def test_a_step_that_clips_is_refused():
    with pytest.raises(ValueError, match="not affine"):
        affine_law(ddim(clip_sample=True), **PRIOR, num_inference_steps=20, eta=1.0)


@pytest.mark.parametrize(
    ("name", "reason"), [("HeunDiscreteScheduler", "takes 2 calls"), ("DPMSolverMultistepScheduler", "remembers")]
)
def test_a_solver_with_memory_is_refused(name, reason):
    """The state of such a sampler is more than x: one affine map a step does not describe it."""
    with pytest.raises(ValueError, match=reason):
        affine_law(getattr(diffusers, name)(), **PRIOR, num_inference_steps=20)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("index", [0, 7, 19, 20])
def test_exact_values(chain, case, index):
    """E[exp(value)] over the marginal is Z at every step, by quadrature; one Bellman step is exact too."""
    scale, reward = CASES[case][:2]
    mean, variance = chain.marginal(index)
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    weight = (-0.5 * z.square()).exp() * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    value = chain.log_value(index, mean + math.sqrt(variance) * z, reward, scale)
    evidence = math.exp(chain.tilted(reward, scale).log_evidence)
    assert float((weight * value.exp()).sum()) == pytest.approx(evidence, rel=1e-9)


def test_exact_values_satisfy_the_bellman_equation(chain):
    scale, reward = CASES["Q4"][:2]
    x, z = torch.tensor([-1.0, 0.0, 2.0]).double(), torch.linspace(-10, 10, 2001, dtype=torch.float64)
    weight = (-0.5 * z.square()).exp() * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    step = chain.steps[4]
    children = step.a * x[:, None] + step.b + step.c * z
    after = (weight * chain.log_value(5, children, reward, scale).exp()).sum(dim=1).log()
    assert chain.log_value(4, x, reward, scale).numpy() == pytest.approx(after.numpy(), abs=1e-9)


def test_draws_have_the_law(chain):
    x = chain.sample(20_000, generator=torch.Generator().manual_seed(1))
    assert ZTest.from_samples(x, chain.mean).passed
    assert ZTest.from_samples((x - chain.mean).square(), chain.variance).passed
    assert not ZTest.from_samples((x - chain.mean).square(), 0.64).passed  # the law of the data is not the sampler's


def test_the_reward_is_summed_over_a_sample():
    x = torch.arange(6.0).reshape(2, 3, 1)
    reward = QuadraticReward(beta=2, kappa=1, y=1)
    assert reward(x).tolist() == [6 - 0.5 * (1 + 0 + 1), 24 - 0.5 * (4 + 9 + 16)]


# --- flow matching (variance of the law for the uniform grid) ---

STEPS = (10, 20, 50, 200)
FLOW = {0.0: (0.492503, 0.561631, 0.607444, 0.631702), 1.0: (0.407880, 0.501601, 0.576841, 0.622832)}


@pytest.mark.parametrize("eta", FLOW)
def test_the_flow_kernel_tends_to_the_data(eta):
    chains = [kernel_law(flow_levels(steps), **PRIOR, eta=eta) for steps in STEPS]
    assert [chain.variance for chain in chains] == pytest.approx(FLOW[eta], abs=6e-7)
    assert [chain.mean for chain in chains] == pytest.approx([0.5] * 4, abs=1e-12)


def flow_scheduler(steps, *, stochastic):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    return scheduler


@pytest.mark.parametrize(("index", "steps"), list(enumerate(STEPS)))
def test_the_euler_scheduler_is_the_kernel_without_noise(index, steps):
    law = affine_law(flow_scheduler(steps, stochastic=False), **PRIOR)
    assert law.variance == pytest.approx(FLOW[0.0][index], abs=2e-6)


def test_stochastic_sampling_does_not_tend_to_the_data():
    """Full re-noising: the documented negative control."""
    found = [affine_law(flow_scheduler(steps, stochastic=True), **PRIOR).variance for steps in STEPS]
    assert found == pytest.approx((0.253539, 0.279637, 0.299290, 0.312396), abs=2e-6)
