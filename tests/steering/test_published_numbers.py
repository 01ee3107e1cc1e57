"""Known numbers through the real pipelines under attach: moments and their spread for every potential, two modes,
masked diffusion, and the exact laws of choosing among a finite number of draws.

Nested SMC for (K, M) from (500, 1) to (1, 8) is in ``test_fixtures_family.py``, one large run in
``test_steering_exact.py``.
"""

import functools
import math

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from feynkac.fkc.testing import ZTest  # noqa: E402
from feynkac.steering import Draws, FKSteering, SoftValueGuidance, Target, attach, every  # noqa: E402
from feynkac.steering.discrete import MaskedDiffusionPipeline, MaskedDiffusionScheduler  # noqa: E402
from feynkac.steering.schedulers import rule_for  # noqa: E402
from feynkac.steering.testing import (  # noqa: E402
    EnumeratedDenoiser,
    EnumeratedMaskedModel,
    MixtureDenoiser,
    best_of_n_law,
    greedy_value_law,
    kernel_quadrature,
    mixture_posterior_mean,
    soft_value_pair_law,
    total_variation,
    twos_and_ends,
)

from .gaussian_pipe import CASES, STEPS, ddim, gaussian_chain, gaussian_pipe, moments, run_pipe, steered  # noqa: E402

# --- one Gaussian pixel ----------------------------------------------------------------------------------------------

PIPE, CHAIN = gaussian_pipe(), gaussian_chain()
TILTED = {  # mean', var', log Z, E*[r], KL
    "L1": (0.938215061, 0.438248996, 0.719090563, 0.938215061, 0.219),
    "L3": (1.814713053, 0.438248996, 3.472018678, 1.814713053, 1.972),
    "Q1": (1.200620549, 0.233546211, -1.513799938, -0.436276859, 0.641),
    "Q4": (-0.667117457, 0.097259160, -2.749954103, -0.416139896, 1.918),
}


@pytest.mark.parametrize("case", TILTED)
def test_tilted_laws_read_off_the_scheduler(case):
    """Its coefficients are float32."""
    law = CHAIN.tilted(*CASES[case])
    assert (law.mean, law.variance, law.log_evidence, law.reward) == pytest.approx(TILTED[case][:4], abs=5e-8)
    assert law.kl == pytest.approx(TILTED[case][4], abs=6e-4)


def exact_value(case):
    reward, scale = CASES[case]
    return lambda context: CHAIN.log_value(context.index, context.sample.flatten(), reward, scale) / scale


ROWS = {  # case, options, sd of mean and of variance times sqrt(K), is Z-hat light-tailed
    "L1 difference": ("L1", {}, 1.0, 1.1, True),
    "L3 difference": ("L3", {}, 1.8, 1.6, True),
    "L3 max": ("L3", {"potential": "max", "when": every(4)}, 3.5, 3.5, True),
    "L3 sum": ("L3", {"potential": "sum", "when": every(4)}, 10.1, 5.3, False),
    "L3 weights only": ("L3", {"when": ()}, 7.8, 6.7, True),
    "Q1 difference": ("Q1", {}, 0.7, 0.4, True),
    "Q1 exact values": ("Q1", {"value": exact_value("Q1")}, 0.7, 0.4, True),
    "Q1 max": ("Q1", {"potential": "max", "when": every(4)}, 0.8, 0.5, True),
    "Q4 difference": ("Q4", {}, 2.1, 0.4, False),
    "Q4 exact values": ("Q4", {"value": exact_value("Q4")}, 0.5, 0.2, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_moments_spread_as_published(row):
    """The table's c: standard deviation over runs times sqrt(K). Wasteful weights would raise it."""
    case, options, c_mean, c_variance, light = ROWS[row]
    K, R = 2000, 100
    reward, scale = CASES[case]
    truth = CHAIN.tilted(reward, scale)
    run = steered(PIPE, FKSteering(reward, scale=scale, on="latents", **options), particles=K, populations=R)
    for found, exact, c in zip(moments(run), (truth.mean, truth.variance), (c_mean, c_variance), strict=True):
        assert c / 1.5 <= found.std().item() * math.sqrt(K) <= c * 1.5
        slack = 10 if light else 100  # long tails: the ratio of averages is biased further than order 10/K
        assert abs(found.mean().item() - exact) <= 5 * c / math.sqrt(R * K) + slack / K
    test = ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0)
    assert test.passed, str(test)
    if case in ("L1", "Q1"):
        assert abs(test.estimate - 1.0) <= 0.025


def test_a_wrong_spread_is_noticed():
    """Negative control: the spread of plain importance sampling is none of difference potentials."""
    reward, scale = CASES["L3"]
    run = steered(PIPE, FKSteering(reward, scale=scale, on="latents", when=()), particles=500, populations=50)
    assert moments(run)[0].std().item() * math.sqrt(500) > 1.5 * ROWS["L3 difference"][2]


@pytest.mark.slow
def test_lag_as_published():
    """Few particles: the best of four is better when the child is judged, not the parent; the law is the same."""
    reward, scale = CASES["L3"]
    truth = CHAIN.tilted(reward, scale)
    for lag, best in ((0, 1.48), (1, 1.40)):
        control = FKSteering(reward, scale=scale, on="latents", lag=lag)
        run = steered(PIPE, control, particles=4, populations=4000)
        assert run.rewards.amax(dim=1).mean().item() == pytest.approx(best, abs=0.04)
        many = steered(PIPE, control, particles=1000, populations=50)
        mean, _ = moments(many)
        assert abs(mean.mean().item() - truth.mean) <= 5 * 3.0 / math.sqrt(50 * 1000) + 10 / 1000


# --- two modes -------------------------------------------------------------------------------------------------------

MODES = {"weights": (0.5, 0.5), "means": (-1.5, 1.5), "stds": (0.3, 0.3)}
TWO_MODES = {  # mean, P(x > 0), log Z, and the largest c of the first two
    0.5: (0.940148, 0.811703, 0.253426, 1.2, 0.4),
    1.0: (1.368621, 0.948852, 0.849339, 0.8, 0.25),
}


def identity(x):
    return x.double().flatten()


@functools.cache
def two_modes():
    """The pipeline, and the law of its samples by quadrature."""
    pipe = diffusers.DDIMPipeline(MixtureDenoiser(**MODES), ddim())
    pipe.set_progress_bar_config(disable=True)
    grid = ddim()
    grid.set_timesteps(STEPS)
    return pipe, kernel_quadrature(rule_for(grid).levels(grid), mixture_posterior_mean(**MODES), eta=1.0, n_points=2001)


def shares(run):
    """(P,) weighted P(x > 0)."""
    return (run.weights * (run.samples().reshape(run.weights.shape) > 0)).sum(dim=1)


class LosesAMode(FKSteering):
    """A potential that favours one mode and is not taken back in the end."""

    def weigh(self, context, memory):
        weighed = super().weigh(context, memory)
        if context.index != 12:
            return weighed
        favour = 5.0 * (context.clean.flatten() > 0).double()
        return type(weighed)(weighed.log_potential + favour, weighed.memory, weighed.reward)

    def target(self, final, memory):
        right = super().target(final, memory)
        forgotten = final.applied - memory["value"]
        return Target(right.log_tilt + forgotten, right.reward)


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 1.1])
@pytest.mark.parametrize("scale", TWO_MODES)
def test_both_modes_survive(scale, threshold):
    """Also where every scored step is resampled."""
    K, R = 2000, 50
    mean, share, log_z, c_mean, c_share = TWO_MODES[scale]
    pipe, law = two_modes()
    tilted, found_log_z = law.tilted(lambda x: x, scale)
    assert (tilted.mean(lambda x: x), found_log_z) == pytest.approx((mean, log_z), abs=1e-6)
    control = FKSteering(identity, scale=scale, on="latents")
    run = steered(pipe, control, particles=K, populations=R, ess_threshold=threshold)
    slack = 1.0 if threshold < 1.0 else 3.0  # needless resampling costs variance
    for found, exact, c in ((moments(run)[0], mean, c_mean), (shares(run), share, c_share)):
        assert found.std().item() * math.sqrt(K) <= 1.5 * slack * c
        assert abs(found.mean().item() - exact) <= 5 * slack * c / math.sqrt(R * K) + 10 / K
    test = ZTest.from_samples((run.log_evidence - log_z).exp(), 1.0)
    assert test.passed, str(test)


@pytest.mark.slow
def test_a_lost_mode_is_noticed():
    _, share, _, _, c_share = TWO_MODES[0.5]
    run = steered(two_modes()[0], LosesAMode(identity, scale=0.5, on="latents"), particles=2000, populations=10)
    assert abs(shares(run).mean().item() - share) > 5 * c_share / math.sqrt(10 * 2000) + 10 / 2000


# --- masked diffusion ------------------------------------------------------------------------------------------------

MODEL = EnumeratedMaskedModel()
REWARD = twos_and_ends(MODEL.sequences).double()
TOKENS = MaskedDiffusionPipeline(EnumeratedDenoiser(), MaskedDiffusionScheduler(3))
TOKENS.set_progress_bar_config(disable=True)


def steered_tokens(control, *, particles, populations, seed=0, **options):
    with attach(TOKENS, control, particles=particles, populations=populations, seed=seed, **options) as run:
        TOKENS(
            batch_size=particles * populations * control.candidates,
            num_inference_steps=MODEL.num_steps,
            generator=torch.Generator().manual_seed(seed),
        )
    return run


def sequences(run):
    """Numbers (P, K) of the final sequences."""
    return MODEL.sequence_index(run.samples()).reshape(run.weights.shape)


def exact_tokens(scale):
    values = MODEL.values(twos_and_ends, scale).log()
    return lambda context: values[context.index][MODEL.state_index(context.sample)] / scale


TABLE = {  # Z, E*r, P*(022), KL
    0.5: (2.5435801513, 2.08803422, 0.10336384, 0.110445),
    1.0: (7.8927541348, 2.41947700, 0.14928880, 0.353532),
    2.0: (108.6895460965, 2.77284283, 0.21774665, 0.857190),
}
TOKEN_ROWS = {  # options, c of E*[r] at lambda = 2, factor on the tolerance of the total variation
    "exact values": (lambda scale: {"value": exact_tokens(scale)}, 0.6, 1.0),
    "likeliest tokens": (lambda scale: {}, 1.4, 2.0),
    "max": (lambda scale: {"potential": "max"}, 1.0, 2.0),
    "weights only": (lambda scale: {"when": ()}, 1.0, 1.0),
    "four draws": (lambda scale: {"value": Draws(4)}, 1.4, 2.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", TOKEN_ROWS)
@pytest.mark.parametrize("scale", TABLE)
def test_table_of_masked_diffusion(scale, row):
    """Resampled at every step where that is worth testing: the table's own trigger would fire at lambda 2 alone."""
    make, c, factor = TOKEN_ROWS[row]
    c = c if scale == 2.0 else max(c, 1.0)
    evidence, reward, share, kl = TABLE[scale]
    K, R = (2000, 20) if row != "four draws" else (500, 20)
    threshold = 1.1 if scale < 2.0 and row == "likeliest tokens" else 0.5
    control = FKSteering(twos_and_ends, scale, on="tokens", **make(scale))
    run = steered_tokens(control, particles=K, populations=R, ess_threshold=threshold)
    target = MODEL.tilted(twos_and_ends, scale)
    laws = torch.zeros(R, 27, dtype=torch.float64).scatter_add(1, sequences(run), run.weights)
    test = ZTest.from_samples(run.log_evidence.exp(), evidence)
    assert test.passed, str(test)
    spread = float((target.law * (1 - target.law)).sqrt().sum())
    distances = torch.tensor([total_variation(law, target.law) for law in laws])
    assert float(distances.mean()) <= 2.5 * 0.4 * factor * spread / math.sqrt(K)
    found = laws @ REWARD
    tolerance = 5 * c / math.sqrt(R * K) + 10 / K
    assert abs(float(found.mean()) - reward) <= tolerance
    assert float(found.std()) * math.sqrt(K) <= 1.5 * c
    index = int(MODEL.sequence_index(torch.tensor([[0, 2, 2]])))
    assert abs(float(laws[:, index].mean()) - share) <= 5 * float(laws[:, index].std()) / math.sqrt(R) + 10 / K
    divergences = scale * found - run.log_evidence
    error = float(divergences.std()) / math.sqrt(R)
    assert abs(float(divergences.mean()) - kl) <= 5 * error + 20 / K
    wrong = next(other for other in TABLE if other != scale)  # the tolerances tell one row of the table from another
    assert abs(float(found.mean()) - TABLE[wrong][1]) > tolerance


# --- exact laws of a finite number of draws --------------------------------------------------------------------------


def chi_square(index, law):
    """Pearson's statistic over its 5-sigma limit; below one where (R,) ``index`` are draws of ``law``."""
    counts = torch.bincount(index.flatten(), minlength=len(law)).double()
    expected = law * counts.sum()
    assert bool((counts[expected == 0.0] == 0.0).all())
    pooled = expected >= 5.0  # rarer ones together
    observed = torch.cat([counts[pooled], counts[~pooled].sum()[None]])
    wanted = torch.cat([expected[pooled], expected[~pooled].sum()[None]])
    observed, wanted = observed[wanted > 0.5], wanted[wanted > 0.5]
    freedom = max(len(wanted) - 1, 1)
    return float(((observed - wanted).square() / wanted).sum()) / (freedom + 5 * math.sqrt(2 * freedom) + 5)


def check_draws(index, law, reward):
    values = REWARD[index.flatten()]
    if float(values.std()) > 0.0:
        test = ZTest.from_samples(values, reward)
        assert test.passed, str(test)
    assert chi_square(index, law) < 1.0


@pytest.mark.parametrize(("n", "reward"), [(2, 2.18407362), (4, 2.58877221), (8, 2.85244345), (20, 2.99173926)])
def test_best_of_n(n, reward):
    """P(best value <= u) = F(u)^N, ties shared by base mass."""
    control = FKSteering(twos_and_ends, 1.0, on="tokens", when=())
    run = steered_tokens(control, particles=n, populations=4000, final="best")
    best = sequences(run)[:, 0]
    check_draws(best, best_of_n_law(MODEL.sampler_law, REWARD, n), reward)
    for u in (0.0, 1.0, 2.0):
        below = float(MODEL.sampler_law[u >= REWARD].sum())
        hits = (REWARD[best] <= u).double()
        assert abs(float(hits.mean()) - below**n) <= 5 * math.sqrt(below**n * (1 - below**n) / 4000) + 1e-3
    assert chi_square(best, best_of_n_law(MODEL.sampler_law, REWARD, n // 2)) > 1.0
    assert not run.exact


@pytest.mark.parametrize(
    ("candidates", "reward", "best"),
    [(1, 1.62723821, 0.213224), (2, 2.46502251, 0.588004), (5, 2.93592970, 0.937318), (20, 2.99864656, 0.998647)],
)
def test_the_best_child_of_each_parent(candidates, reward, best):
    """Temperature 0: the child of the largest reward of its likeliest completion, the first drawn on a tie."""
    control = SoftValueGuidance(twos_and_ends, temperature=0.0, candidates=candidates, on="tokens")
    run = steered_tokens(control, particles=1, populations=5000)
    index = sequences(run)
    check_draws(index, greedy_value_law(MODEL, twos_and_ends, candidates), reward)
    share = float((REWARD[index.flatten()] == 3.0).double().mean())
    assert abs(share - best) <= 5 * math.sqrt(best * (1 - best) / 5000) + 1e-3
    other = candidates + 1 if candidates < 20 else 10
    assert chi_square(index, greedy_value_law(MODEL, twos_and_ends, other)) > 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "reward", "distance"), [(1.0, 2.04325573, 0.189002), (2.0, 2.26621511, 0.330279)])
def test_two_children_without_weights(scale, reward, distance):
    """Drawn in proportion to exact values and left unweighted: not the target, by exactly this much. With the weights
    that the run returns the evidence is unbiased."""
    control = SoftValueGuidance(twos_and_ends, 1.0 / scale, 2, on="tokens", intermediate=exact_tokens(scale))
    run = steered_tokens(control, particles=1, populations=20_000)
    law, target = soft_value_pair_law(MODEL, twos_and_ends, scale), MODEL.tilted(twos_and_ends, scale)
    assert total_variation(law, target.law) == pytest.approx(distance, abs=1e-6)
    check_draws(sequences(run), law, reward)
    assert chi_square(sequences(run), target.law) > 10.0
    test = ZTest.from_samples(run.log_evidence.exp(), target.evidence)
    assert test.passed, str(test)


def test_nothing_is_left_of_the_bias_with_many_particles():
    """The same two children, weights kept, K = 2000: the target."""
    control = SoftValueGuidance(twos_and_ends, 1.0, 2, on="tokens")
    run = steered_tokens(control, particles=2000, populations=10)
    target = MODEL.tilted(twos_and_ends, 1.0)
    law = torch.zeros(27, dtype=torch.float64).scatter_add(0, sequences(run).flatten(), run.weights.flatten()) / 10
    assert total_variation(law, target.law) < 0.05
    assert float(law @ REWARD) == pytest.approx(target.reward, abs=0.03)


def test_the_unsteered_pipeline_has_the_law_of_the_sampler():
    with attach(PIPE, particles=1, seed=0) as run:
        run_pipe(PIPE, 4000)
    assert ZTest.from_samples(run.samples().double().flatten(), CHAIN.mean).passed
    tokens = TOKENS(batch_size=60_000, num_inference_steps=6, generator=torch.Generator().manual_seed(3)).tokens
    assert chi_square(MODEL.sequence_index(tokens), MODEL.sampler_law) < 1.0
    assert chi_square(MODEL.sequence_index(tokens), MODEL.data_law) > 1.0
