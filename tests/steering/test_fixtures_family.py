"""FK steering, soft-value guidance, best-of-N and nested SMC are one family (K, M) with one weight rule.

For each of K particles draw M children with values b_m (log-potentials of the whole path so far, lambda r(x0) at the
end); add log mean_m exp(b_m) - a to its log-weight, a the value it carries; keep child j with probability
proportional to exp(b_j) and carry a = b_j; resample the K when their ESS falls below one half. Then E[Z-hat] = Z for
every K and M, and the weighted law is the target for every potential. Checked by brute force on two samplers whose
answers are known exactly.

Every check is a function of ``run(K, M, scale, potential, seeds) -> (Z-hat (R,), weighted law (R, 27))`` (discrete)
or ``(Z-hat (R,), weighted mean and variance (R, 2))`` (continuous), so that other implementations can be judged by
the same tests: the library's controller, through the real pipelines, is the second.
"""

import math

import pytest
import torch

from feynkac.fkc import Population
from feynkac.fkc.testing import ZTest
from feynkac.fkc.weights import log_mean_exp
from feynkac.steering import Draws, FKSteering, SoftValueGuidance, attach, every
from feynkac.steering.schedulers import Level
from feynkac.steering.testing import (
    EnumeratedMaskedModel,
    QuadraticReward,
    kernel_law,
    soft_value_pair_law,
    total_variation,
    twos_and_ends,
)

pytest.importorskip("diffusers")
from feynkac.steering.discrete import MaskedDiffusionPipeline, MaskedDiffusionScheduler
from feynkac.steering.testing import EnumeratedDenoiser

from .gaussian_pipe import gaussian_pipe, moments

MODEL = EnumeratedMaskedModel()
TABLES = [m.cumsum(dim=1) for m in MODEL.transitions]
FILLED = twos_and_ends(MODEL.filled)  # r of the likeliest completion of every state


def nested_smc(start, move, value, steps, *, K, M, seeds, carry_weights=True, subtract_carried=True, threshold=0.5):
    """The brute-force loop: R = len(seeds) populations of K particles with M children each.

    start: (R, K) states. move(k, states (R, K, M), generator) -> children. value(k, states, memory) -> (log-value,
    memory) after step k, memory a tensor like the states. Returns the states and the population record.
    """
    generator = torch.Generator().manual_seed(seeds[0])
    population, state = Population.uniform(len(seeds), K), start
    carried = torch.zeros(len(seeds), K, dtype=torch.float64)
    memory = torch.full((len(seeds), K), -math.inf, dtype=torch.float64)
    for k in range(steps):
        children = move(k, state[..., None].expand(-1, -1, M), generator)
        b, memories = value(
            k, children, memory[..., None].expand(-1, -1, M), carried[..., None].expand(-1, -1, M), generator
        )
        increment = log_mean_exp(b.reshape(-1, M)).reshape(len(seeds), K) - (carried if subtract_carried else 0.0)
        population = population.reweighted(increment if carry_weights else torch.zeros_like(increment))
        shares = (b - b.amax(dim=2, keepdim=True)).exp().cumsum(dim=2)
        u = torch.rand(len(seeds), K, 1, generator=generator, dtype=torch.float64)
        child = (shares <= u * shares[..., -1:]).sum(dim=2, keepdim=True).clamp(max=M - 1)
        state, carried, memory = (t.gather(2, child)[..., 0] for t in (children, b, memories))
        if k < steps - 1 and threshold > 0:
            population, ancestors = population.resampled(generator, threshold=threshold)
            if ancestors is not None:
                state, carried, memory = (t.gather(1, ancestors) for t in (state, carried, memory))
    return state, population


def path_value(potential, scaled_reward, exact, k, steps, memory, carried):
    """Log of the product of potentials so far, each choice of which ends in lambda r(x0)."""
    if k == steps - 1:
        return scaled_reward, memory
    if potential == "max":  # a product of T of them needs far more particles: on long paths every fourth step is scored
        if steps > 6 and k % 4 != 3:
            return carried, memory
        best = torch.maximum(memory, scaled_reward)
        return carried + best, best
    values = {"difference": scaled_reward, "none": torch.zeros_like(scaled_reward), "exact": exact}
    return values[potential], memory


def run_discrete(K, M, scale, potential, seeds, **options):
    exact = MODEL.values(twos_and_ends, scale).log()

    def move(k, states, generator):
        u = torch.rand(states.shape, generator=generator, dtype=torch.float64)
        return torch.searchsorted(TABLES[k][states], u[..., None], right=True)[..., 0].clamp(max=63)

    def value(k, states, memory, carried, generator):
        if potential == "draws" and k < MODEL.num_steps - 1:  # four clean sequences, lambda inside the average
            u = torch.rand((*states.shape, 4, 3), generator=generator, dtype=torch.float64)
            tables = MODEL.marginals.cumsum(dim=2)[states][..., None, :, :]
            tokens = (tables <= u[..., None]).sum(dim=-1).clamp(max=2)
            kept = MODEL.states[states][..., None, :]
            clean = torch.where(kept == 3, tokens, kept)
            rewards = twos_and_ends(clean.reshape(-1, 3)).reshape(clean.shape[:-1])
            return (scale * rewards).logsumexp(dim=-1) - math.log(4), memory
        kind = "difference" if potential == "draws" else potential
        return path_value(kind, scale * FILLED[states], exact[k + 1][states], k, MODEL.num_steps, memory, carried)

    start = torch.full((len(seeds), K), 63)
    state, population = nested_smc(start, move, value, MODEL.num_steps, K=K, M=M, seeds=seeds, **options)
    index = MODEL.sequence_index(MODEL.states[state.flatten()]).reshape(state.shape)
    law = torch.zeros(len(seeds), 27, dtype=torch.float64).scatter_add(1, index, population.weights)
    return population.log_evidence.exp(), law


def ddim_levels(steps=20):
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0).double().tolist()
    times = range(1000 - 1000 // steps, -1, -1000 // steps)
    return (*(Level(kept[t] ** 0.5, (1 - kept[t]) ** 0.5) for t in times), Level(1.0, 0.0))


LEVELS = ddim_levels()
CHAIN = kernel_law(LEVELS, mean=0.5, std=0.8, eta=1.0)
CONTINUOUS = {"L1": (1.0, QuadraticReward(beta=1)), "Q1": (2.0, QuadraticReward(kappa=1, y=2))}


def run_continuous(K, M, case, potential, seeds, **options):
    scale, reward = CONTINUOUS[case]
    r = lambda x: reward.beta * x - 0.5 * reward.kappa * (x - reward.y).square()  # noqa: E731

    def move(k, states, generator):
        step = CHAIN.steps[k]
        return step.a * states + step.b + step.c * torch.randn(states.shape, generator=generator, dtype=torch.float64)

    def value(k, states, memory, carried, generator):
        alpha, sigma = LEVELS[k + 1].alpha, LEVELS[k + 1].sigma
        clean = 0.5 + alpha * 0.64 / (alpha**2 * 0.64 + sigma**2) * (states - alpha * 0.5)
        exact = CHAIN.log_value(k + 1, states, reward, scale)
        return path_value(potential, scale * r(clean), exact, k, len(CHAIN.steps), memory, carried)

    generator = torch.Generator().manual_seed(seeds[0] + 1)
    start = torch.randn(len(seeds), K, generator=generator, dtype=torch.float64)
    state, population = nested_smc(start, move, value, len(CHAIN.steps), K=K, M=M, seeds=seeds, **options)
    mean = (population.weights * state).sum(dim=1)
    variance = (population.weights * state.square()).sum(dim=1) - mean.square()
    return population.log_evidence.exp(), torch.stack([mean, variance], dim=1)


def controls(reward, scale, potential, M, exact, *, on, stride):
    """The same choice of (M, potential) in terms of the library's controls.

    Args:
        exact: context -> log-values (rows,).
        on: space of the reward.
        stride: of the moves at which the maximum is scored.
    """
    values = {"exact": lambda context: exact(context) / scale, "draws": Draws(4)}
    value = values.get(potential, "denoised")
    if potential in ("max", "none"):
        when = {"max": every(stride), "none": ()}[potential]
        steering = FKSteering(
            reward, scale=scale, potential="max" if potential == "max" else "difference", on=on, when=when
        )
        # children of one parent, chosen by the other control's potential alone
        children = SoftValueGuidance(lambda x: torch.zeros(len(x)), 1.0, M, on=on)
        return (steering, children) if M > 1 else (steering,)
    if M > 1:
        return (SoftValueGuidance(reward, 1.0 / scale, M, on=on, intermediate=value),)
    return (FKSteering(reward, scale=scale, on=on, value=value),)


def through_controller(pipe, steering, K, M, seeds, **call):
    with attach(pipe, *steering, particles=K, populations=len(seeds), seed=seeds[0]) as run:
        generator = torch.Generator().manual_seed(seeds[0] + 1)
        pipe(batch_size=K * M * len(seeds), generator=generator, **call)
    return run


def steer_discrete(K, M, scale, potential, seeds):
    """MaskedDiffusionPipeline under attach."""
    values = MODEL.values(twos_and_ends, scale).log()
    exact = lambda context: values[context.index][MODEL.state_index(context.sample)]  # noqa: E731
    pipe = MaskedDiffusionPipeline(EnumeratedDenoiser(), MaskedDiffusionScheduler(3))
    pipe.set_progress_bar_config(disable=True)
    steering = controls(twos_and_ends, scale, potential, M, exact, on="tokens", stride=1)
    run = through_controller(pipe, steering, K, M, seeds, num_inference_steps=MODEL.num_steps)
    index = MODEL.sequence_index(run.samples()).reshape(len(seeds), K)
    law = torch.zeros(len(seeds), 27, dtype=torch.float64).scatter_add(1, index, run.weights)
    return run.log_evidence.exp(), law


def steer_gaussian(K, M, case, potential, seeds):
    """DDIMPipeline under attach."""
    scale, reward = CONTINUOUS[case]
    exact = lambda context: CHAIN.log_value(context.index, context.sample.flatten(), reward, scale)  # noqa: E731
    steering = controls(reward, scale, potential, M, exact, on="latents", stride=4)
    run = through_controller(
        gaussian_pipe(), steering, K, M, seeds, num_inference_steps=len(CHAIN.steps), eta=1.0, output_type="np"
    )
    return run.log_evidence.exp(), torch.stack(moments(run), dim=1)


DISCRETE = {"brute force": run_discrete, "controller": steer_discrete}
GAUSSIAN = {"brute force": run_continuous, "controller": steer_gaussian}
IMPLEMENTATIONS = ["brute force", pytest.param("controller", marks=pytest.mark.slow)]


@pytest.fixture(params=IMPLEMENTATIONS)
def discrete(request):
    return DISCRETE[request.param]


@pytest.fixture(params=IMPLEMENTATIONS)
def gaussian(request):
    return GAUSSIAN[request.param]


# --- the evidence is unbiased for every K and M ---

SIZES = [(500, 1, 100), (500, 4, 40), (100, 20, 60), (4, 4, 3000), (1, 8, 5000), (1, 1, 5000), (8, 1, 3000)]


@pytest.mark.parametrize(("K", "M", "runs"), SIZES)
@pytest.mark.parametrize("potential", ["difference", "exact"])
def test_evidence_of_the_discrete_sampler(discrete, K, M, runs, potential):
    evidence, _ = discrete(K, M, 1.0, potential, range(runs))
    test = ZTest.from_samples(evidence, MODEL.tilted(twos_and_ends, 1.0).evidence)
    assert test.passed, str(test)


@pytest.mark.parametrize("potential", ["max", "none", "draws"])
def test_evidence_for_the_other_potentials(discrete, potential):
    evidence, _ = discrete(32, 2, 1.0, potential, range(1000))
    test = ZTest.from_samples(evidence, MODEL.tilted(twos_and_ends, 1.0).evidence)
    assert test.passed, str(test)


@pytest.mark.parametrize(("K", "M", "runs"), [(1000, 1, 100), (100, 5, 200), (4, 4, 3000), (1, 8, 4000)])
@pytest.mark.parametrize("case", CONTINUOUS)
def test_evidence_of_the_gaussian_sampler(gaussian, K, M, runs, case):
    evidence, _ = gaussian(K, M, case, "difference", range(runs))
    scale, reward = CONTINUOUS[case]
    test = ZTest.from_samples(evidence, math.exp(CHAIN.tilted(reward, scale).log_evidence))
    assert test.passed, str(test)
    if (K, M) == (1000, 1):
        assert abs(test.estimate / test.expected - 1) <= 0.025


@pytest.mark.parametrize("wrong", [{"carry_weights": False}, {"subtract_carried": False}])
def test_a_wrong_weight_rule_is_noticed(wrong):
    """Negative controls: no weights at all (plain soft-value guidance), and increments that forget the carried
    value."""
    evidence, _ = run_discrete(100, 4, 1.0, "difference", range(60), **wrong)
    assert not ZTest.from_samples(evidence, MODEL.tilted(twos_and_ends, 1.0).evidence).passed


# --- the weighted law is the target, whatever the potential ---


@pytest.mark.parametrize("potential", ["exact", "difference", "max", "none", "draws"])
def test_every_potential_has_the_same_law(discrete, potential):
    K, runs, target = 2000, 10, MODEL.tilted(twos_and_ends, 2.0)
    evidence, laws = discrete(K, 1, 2.0, potential, range(runs))
    spread = float((target.law * (1 - target.law)).sqrt().sum())
    limit = 2.5 * 0.4 * spread / math.sqrt(K) * (1 if potential == "exact" else 2)
    distances = torch.tensor([total_variation(law, target.law) for law in laws])
    assert float(distances.mean()) <= limit
    assert total_variation(laws.mean(dim=0), target.law) <= 0.04
    rewards = laws @ twos_and_ends(MODEL.sequences)
    assert abs(float(rewards.mean()) - target.reward) <= 5 * 1.4 / math.sqrt(runs * K) + 10 / K
    assert ZTest.from_samples(evidence, target.evidence).passed


@pytest.mark.parametrize("potential", ["difference", "max", "exact", "none"])
def test_moments_of_the_gaussian_target(gaussian, potential):
    _, moments = gaussian(20_000, 1, "Q1", potential, [7])
    assert float(moments[0, 0]) == pytest.approx(1.200620549, abs=0.026)
    assert float(moments[0, 1]) == pytest.approx(0.233546211, abs=0.018)


def test_soft_guidance_without_weights_has_its_own_exact_law():
    """K = 1, M = 2, exact values, weights ignored: not the target, and exactly as biased as enumeration says."""
    _, laws = run_discrete(1, 2, 1.0, "exact", range(20_000), carry_weights=False)
    expected = soft_value_pair_law(MODEL, twos_and_ends, 1.0)
    observed = laws.sum(dim=0)
    statistic = float(((observed - 20_000 * expected).square() / (20_000 * expected)).sum())
    assert statistic < 26 + 5 * math.sqrt(52)
    target = 20_000 * MODEL.tilted(twos_and_ends, 1.0).law
    assert float(((observed - target).square() / target).sum()) > 1000
