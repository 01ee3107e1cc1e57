"""Everything that may be chosen on the way leaves the target alone: lag, scales, gradient proposals, drawn values,
candidate counts, rewards a prompt. Against closed form through the real DDIMPipeline."""

import math

import pytest
import torch

pytest.importorskip("diffusers")

from feynkac.fkc.testing import ZTest
from feynkac.steering import (
    Draws,
    FKSteering,
    Gradient,
    Scheduled,
    SoftValueGuidance,
    SteeringError,
    TargetESS,
    TargetKL,
    attach,
    every,
    near,
)
from feynkac.steering import moves as moves_module
from feynkac.steering.testing import QuadraticReward

from .gaussian_pipe import CASES, STEPS, gaussian_chain, gaussian_pipe, moments, run_pipe, steered

PIPE = gaussian_pipe()
CHAIN = gaussian_chain()


def check_law(run, case, *, particles):
    """Evidence unbiased, and the weighted mean right, over the populations of the run."""
    reward, scale = CASES[case]
    truth = CHAIN.tilted(reward, scale)
    test = ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0)
    assert test.passed, str(test)
    mean, _ = moments(run)
    error = mean.std().item() / math.sqrt(len(mean))
    assert abs(mean.mean().item() - truth.mean) < 5 * error + 10 / particles


def fk(case, **options):
    reward, scale = CASES[case]
    return FKSteering(reward, **({"scale": scale, "on": "latents"} | options))


OPTIONS = {
    "lag 1": {"lag": 1},
    "lag 1, every 3": {"lag": 1, "when": every(3)},
    "near some fractions": {"when": near(0.2, 0.5, 0.8)},
    "rising scale": {"scale": Scheduled(2.0, lambda u: u)},
    "draws": {"value": Draws(4, data_variance=0.64)},
    "sum, tempered": {"potential": "sum", "value": "tempered", "when": every(7)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_way_leave_the_law(name):
    check_law(steered(PIPE, fk("Q1", **OPTIONS[name]), particles=300, populations=40), "Q1", particles=300)


def test_judging_the_child_or_the_parent_agree_and_the_child_is_better_for_few():
    best = {}
    for lag in (0, 1):
        run = steered(PIPE, fk("L3", lag=lag), particles=4, populations=2000, ess_threshold=1.1)
        best[lag] = run.rewards.amax(dim=1).mean().item()
        truth = CHAIN.tilted(*CASES["L3"]).log_evidence
        assert ZTest.from_samples((run.log_evidence - truth).exp(), 1.0).passed
    assert best[0] > best[1] + 0.02


# --- scales ----------------------------------------------------------------------------------------------------------


def test_a_scale_found_from_the_effective_sample_size_ends_at_the_target():
    run = steered(PIPE, fk("L3", scale=TargetESS(0.9, 3.0)), particles=400, populations=40)
    check_law(run, "L3", particles=40)
    assert torch.equal(run.scales["QuadraticReward"], torch.full((40,), 3.0, dtype=torch.float64))


def test_a_scale_found_from_the_effective_sample_size_without_a_target():
    """It stops where the particles stop, and the law is that of the scale it reached."""
    run = steered(PIPE, fk("L1", scale=TargetESS(0.999)), particles=2000, populations=4)
    for p, scale in enumerate(run.scales["QuadraticReward"].tolist()):
        truth = CHAIN.tilted(CASES["L1"][0], scale)
        assert scale > 0.5
        assert moments(run)[0][p].item() == pytest.approx(truth.mean, abs=0.25)
        assert run.log_evidence[p].item() == pytest.approx(truth.log_evidence, rel=0.2)


@pytest.mark.parametrize(("case", "nats"), [("L1", 0.5), ("Q1", 0.641)])
def test_a_scale_found_from_a_divergence(case, nats):
    """KL of the tilted law at the scale found: closed form says it is what was asked for."""
    run = steered(PIPE, fk(case, scale=TargetKL(nats)), particles=2000, populations=8)
    reward = CASES[case][0]
    found = run.scales["QuadraticReward"]
    divergences = torch.tensor([CHAIN.tilted(reward, s).kl for s in found.tolist()])
    assert divergences.mean().item() == pytest.approx(nats, rel=0.1)
    truth = CHAIN.tilted(reward, found.mean().item())
    assert moments(run)[0].mean().item() == pytest.approx(truth.mean, abs=0.05)


def test_a_bounded_reward_cannot_be_pushed_for_ever():
    control = FKSteering(lambda x: torch.zeros(len(x)), scale=TargetKL(1.0, largest=50.0), on="latents")
    run = steered(PIPE, control, particles=10, populations=1)
    assert run.scales["<lambda>"].item() == 50.0
    assert bool(run.log_weights.isfinite().all())


# --- gradient proposals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["prediction", "denoiser"])
@pytest.mark.parametrize("case", ["L3", "Q1"])
def test_gradient_proposals_keep_the_law_and_help(through, case):
    gradient = Gradient(through=through, data_variance=0.64)
    control = fk(case, gradient=gradient)
    run = steered(PIPE, control, particles=200, populations=60, transition="stochastic", eta=0.0)
    check_law(run, case, particles=200)
    blind = steered(PIPE, fk(case, when=()), particles=200, populations=60, transition="stochastic", eta=0.0)
    guided = steered(PIPE, control, particles=200, populations=60, transition="stochastic", eta=0.0, ess_threshold=0.0)
    check_law(guided, case, particles=20)
    assert guided.ess.mean() > 1.5 * blind.ess.mean()  # weights alone, no resampling: the proposal does the work


def test_forgotten_ratios_are_noticed(monkeypatch):
    """Negative control: a shifted proposal taken for the plain one."""
    honest = moves_module.log_ratio
    monkeypatch.setattr(moves_module, "log_ratio", lambda *a: torch.zeros_like(honest(*a)))
    control = fk("L3", gradient=Gradient(data_variance=0.64))
    run = steered(PIPE, control, particles=200, populations=60, transition="stochastic", eta=0.0)
    truth = CHAIN.tilted(*CASES["L3"]).log_evidence
    assert not ZTest.from_samples((run.log_evidence - truth).exp(), 1.0).passed


def test_gradients_of_soft_values():
    reward, scale = CASES["L1"]
    control = SoftValueGuidance(
        reward, temperature=1 / scale, candidates=4, on="latents", gradient=Gradient(data_variance=0.64)
    )
    run = steered(PIPE, control, particles=50, populations=100, transition="stochastic", eta=0.0)
    check_law(run, "L1", particles=50)


def test_gradients_need_the_move_whose_density_is_known():
    with pytest.raises(SteeringError, match='transition="stochastic"'):
        steered(PIPE, fk("L1", gradient=Gradient()), particles=4, populations=1)


# --- candidates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(8, 4, 2, 1), (4, 1, 3), (6, 2)])
def test_shrinking_candidate_counts_keep_the_law_and_cost_less(counts):
    reward, scale = CASES["L1"]
    control = SoftValueGuidance(reward, temperature=1 / scale, candidates=counts[0], then=counts[1:], on="latents")
    run = steered(PIPE, control, particles=100, populations=60)
    check_law(run, "L1", particles=100)
    # children of move t are judged at move t + 1; the first are the initial draws
    expected = sum(100 * control.count_at(max(t - 1, 0) / STEPS) for t in range(STEPS))
    assert run.calls.denoiser == 60 * expected
    assert run.calls.denoiser < 60 * 100 * max(counts) * STEPS
    # the last move of DDIM adds no noise, so that one child of each is judged in the end
    assert run.calls.reward == run.calls.denoiser + 60 * 100


def test_a_wrong_number_of_children_in_the_average_is_noticed(monkeypatch):
    """Negative control: the average over children divides by the largest count throughout."""
    from feynkac.steering import particles as particles_module

    reward, scale = CASES["L1"]
    honest = particles_module.Particles._choose

    def wrong(self, potential):
        child, increment = honest(self, potential)
        return child, increment + math.log(self.live.candidates / self.layout.candidates)

    monkeypatch.setattr(particles_module.Particles, "_choose", wrong)
    control = SoftValueGuidance(reward, temperature=1 / scale, candidates=8, then=(4, 2, 1), on="latents")
    run = steered(PIPE, control, particles=100, populations=60)
    truth = CHAIN.tilted(reward, scale).log_evidence
    assert not ZTest.from_samples((run.log_evidence - truth).exp(), 1.0).passed


# --- a reward a prompt -----------------------------------------------------------------------------------------------


def test_each_population_has_its_own_reward():
    first, second = QuadraticReward(beta=1.0), QuadraticReward(kappa=1.0, y=2.0)
    run = steered(PIPE, FKSteering([first, second], scale=1.0, on="latents"), particles=5000, populations=2)
    for p, reward in enumerate((first, second)):
        truth = CHAIN.tilted(reward, 1.0)
        assert moments(run)[0][p].item() == pytest.approx(truth.mean, abs=0.06)
        assert run.log_evidence[p].item() == pytest.approx(truth.log_evidence, abs=0.06)


def test_as_many_rewards_as_prompts():
    control = FKSteering([QuadraticReward(beta=1.0)] * 3, scale=1.0, on="latents")
    with pytest.raises(ValueError, match=r"got 3 of them, expected one or one a prompt \(2\)"):
        steered(PIPE, control, particles=4, populations=2)


# --- records ---------------------------------------------------------------------------------------------------------


def test_records_and_counts():
    control = fk("L1", when=every(4))
    with attach(PIPE, control, particles=8, populations=2, seed=0) as run:
        run_pipe(PIPE, 16)
    scored, rewards = run.reward_trace()
    assert scored.tolist() == [0, 4, 8, 12, 16]
    assert rewards.shape == (5, 2, 8)
    assert run.rewards.flatten().tolist() == pytest.approx(run.samples().flatten().tolist(), rel=1e-6)
    assert torch.allclose(run.log_tilt, run.rewards)
    assert run.calls.reward == 16 * 6
    assert run.calls.denoiser == 16 * STEPS
    assert run.calls.decoder == 0
    assert run.ess_trace.shape == run.log_evidence_trace.shape == (STEPS, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk("L1", lag=2), "lag: got 2"),
        (lambda: fk("L1", potential="maximum"), "potential: got 'maximum'"),
        (lambda: fk("L1", value="clean"), "value: got 'clean'"),
        (lambda: fk("L1", on="pixels"), "on: got 'pixels'"),
        (lambda: fk("L1", scale=-1.0), "scale: got -1.0"),
        (lambda: fk("L1", scale=TargetESS(0.5), lag=1), "lag 0"),
        (lambda: FKSteering([], scale=1.0), "empty sequence"),
        (lambda: FKSteering("jpeg", scale=1.0), "expected a callable"),
        (lambda: TargetESS(1.5), "fraction: got 1.5"),
        (lambda: TargetKL(-1.0), "nats: got -1.0"),
        (lambda: Gradient(limit=0.0), "limit: got 0.0"),
        (lambda: Gradient(through="unet"), "through: got 'unet'"),
        (lambda: Draws(2, data_variance=0.0), "data_variance: got 0.0"),
        (lambda: near(1.5), "near: got"),
        (lambda: SoftValueGuidance(QuadraticReward(), 1.0, 0), "candidates: got 0"),
        (lambda: SoftValueGuidance(QuadraticReward(), 1.0, 2, then=(4,)), "then: got"),
    ],
)
def test_bad_options_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
