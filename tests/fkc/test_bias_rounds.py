"""Batch after batch under a growing bias: laws, pooled estimates and targets against exact answers."""

import dataclasses
import math

import pytest
import torch

from feynkac.fkc import (
    Annealed,
    Diffusion,
    FixedSchedule,
    NonFiniteWeightWarning,
    Tempering,
    WeightError,
    sample_corrected,
    smc,
)
from feynkac.fkc.bias import BiasVariable, GridAxis, RepulsionBias
from feynkac.fkc.bias.rounds import Drawn, Round, bias_rounds, occupied_cells, pool_rounds
from feynkac.fkc.bias.targets import BiasedDensity, biased, undone
from feynkac.fkc.kernels import MALA
from feynkac.fkc.streams import generator_for, split_seed
from feynkac.fkc.testing import Gaussian, ZTest, calibration
from feynkac.fkc.testing.experts import gaussian_expert
from feynkac.fkc.weights import log_mean_exp

NODES = torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64)
X = BiasVariable("x", sigma=0.4)
KT = 2.0


def empty(**options):
    settings = {"kT": KT, "bias_factor": 6.0, "height": 3.0, "grid": [GridAxis(-6.0, 6.0, 120)]} | options
    return RepulsionBias.well_tempered([X], **settings)


def lopsided():
    """Two modes, of 2 % and 98 %: density on the nodes, normalised."""
    log_p = torch.logaddexp(
        math.log(0.02) - 0.5 * ((NODES - 2.0) / 0.4) ** 2, math.log(0.98) - 0.5 * ((NODES + 1.5) / 0.4) ** 2
    )
    return (log_p - log_p.logsumexp(0)).exp()


def exact_draws(seed, n=400, populations=1):
    """Draws of the biased law itself, by its inverse distribution; log-weights are its true log-integral."""
    p = lopsided()

    def draw(bias, index):
        weighted = p * (-bias(NODES[:, None]) / KT).exp()
        generator = generator_for(split_seed(seed, index), 0)
        places = torch.multinomial(weighted, n * populations, replacement=True, generator=generator)
        groups = torch.arange(populations).repeat_interleave(n)
        log_weights = torch.full((n * populations,), float(weighted.sum().log()), dtype=torch.float64)
        return Drawn(NODES[places][:, None], log_weights, index, groups if populations > 1 else None)

    return draw


def weighted_draws(seed, n=400):
    """Draws of a wide Gaussian, weighted for the biased law."""
    spacing = float(NODES[1] - NODES[0])

    def draw(bias, index):
        generator = generator_for(split_seed(seed, index), 0)
        x = 2.0 * torch.randn(n, generator=generator, dtype=torch.float64)
        log_q = -0.5 * (x / 2.0) ** 2 - math.log(2.0 * math.sqrt(2 * math.pi))
        nearest = ((x + 6.0) / spacing).round().long().clamp(0, len(NODES) - 1)
        log_p = (lopsided()[nearest] / spacing).log()
        return Drawn(x[:, None], log_p - log_q - bias(x[:, None]) / KT, None)

    return draw


def rare(values):
    return (values[:, 0] > 0.3).double()


TRUTH = float(lopsided()[NODES > 0.3].sum())


def test_rounds_deposit_by_weight_and_then_stop():
    made = list(bias_rounds(weighted_draws(1), empty(), filling=3, frozen=2))
    assert [one.index for one in made] == [0, 1, 2, 3, 4]
    assert [one.following.counts.batches for one in made] == [1, 2, 3, 3, 3]
    assert made[3].following is made[3].bias is made[4].bias
    by_hand = made[1].bias.deposited(made[1].drawn.values, made[1].drawn.log_weights)
    assert torch.equal(by_hand(NODES[:, None]), made[2].bias(NODES[:, None]))
    equal = made[1].bias.deposited(made[1].drawn.values)
    assert (equal(NODES[:, None]) - made[2].bias(NODES[:, None])).abs().max() > 0.01


def test_picked_rows_deposit_equally():
    values = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    drawn = Drawn(values, torch.zeros(3, dtype=torch.float64), None, picked=torch.tensor([1, 1]))
    left = drawn.left_on(empty(), time=0.0)
    assert torch.equal(left(NODES[:, None]), empty().deposited(values[[1, 1]])(NODES[:, None]))
    assert left.counts.hills == 2


def test_a_run_that_goes_on_has_the_same_bits():
    whole = list(bias_rounds(weighted_draws(4), empty(), filling=4, frozen=1))
    part = list(bias_rounds(weighted_draws(4), empty(), filling=4, frozen=1))[:2]
    kept = RepulsionBias.from_state_dict(part[-1].following.state_dict())
    rest = list(bias_rounds(weighted_draws(4), kept, filling=4, frozen=1, first=2))
    assert [one.index for one in rest] == [2, 3, 4]
    for one, two in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.drawn.values, two.drawn.values)
        assert torch.equal(one.log_weights, two.log_weights)


@pytest.mark.parametrize(("filling", "frozen", "first"), [(0, 0, 0), (-1, 2, 0), (1, 1, 3)])
def test_counts_that_make_no_sense_are_refused(filling, frozen, first):
    with pytest.raises(ValueError, match="rounds"):
        next(bias_rounds(weighted_draws(1), empty(), filling=filling, frozen=frozen, first=first))


# --- pooled estimates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [exact_draws, weighted_draws])
def test_sequential_weights_are_unbiased(draws):
    """Mean of the undone weights is 1, and with f the mean of f, although every bias depends on the rounds before."""
    ones, means = [], []
    for repeat in range(80):
        pooled = pool_rounds(list(bias_rounds(draws(100 + repeat, 60), empty(), filling=4, frozen=1)), "sequential")
        weights = pooled.log_weights.exp()
        ones.append(float(weights.mean()))
        means.append(float((weights * rare(pooled.values)).mean()))
    assert ZTest.from_samples(torch.tensor(ones), 1.0).passed
    assert ZTest.from_samples(torch.tensor(means), TRUTH).passed


@pytest.mark.parametrize("how", ["mixture", "sequential"])
@pytest.mark.parametrize("draws", [exact_draws, weighted_draws])
def test_pooled_means_and_their_errors(draws, how):
    scores = []
    for repeat in range(60):
        pooled = pool_rounds(list(bias_rounds(draws(200 + repeat), empty(), filling=5, frozen=2)), how)
        f = rare(pooled.values)
        scores.append(float((pooled.mean(f) - TRUTH) / pooled.std_error(f)))
    scores = torch.tensor(scores)
    assert abs(float(scores.mean())) < 5 / math.sqrt(60) + 0.2  # ratios are biased by order 1/N
    assert calibration(scores).estimate < 1.9
    assert calibration(scores).estimate > 0.4


def test_groups_make_the_error_of_what_depends():
    """Copies of every draw add nothing: the error knows if they are one group."""
    rounds = list(bias_rounds(exact_draws(3), empty(), filling=3))
    doubled = [
        Round(
            one.index,
            one.bias,
            Drawn(
                one.drawn.values.repeat_interleave(4, dim=0),
                one.drawn.log_weights.repeat_interleave(4),
                None,
                torch.arange(400).repeat_interleave(4),
            ),
            one.following,
        )
        for one in rounds
    ]
    plain, copies = (pool_rounds(r, "sequential") for r in (rounds, doubled))
    error = float(plain.std_error(rare(plain.values)))
    assert float(copies.std_error(rare(copies.values))) == pytest.approx(error, rel=1e-9)
    blind = dataclasses.replace(copies, groups=torch.arange(len(copies.values)))
    assert float(blind.std_error(rare(copies.values))) == pytest.approx(error / 2, rel=1e-2)


@pytest.mark.parametrize("mistake", ["forgets", "bias after the deposit"])
def test_wrong_undoing_is_caught(mistake):
    """Negative control: the rare mode is repelled into, so weights left as they are say there is more of it."""
    scores = []
    for repeat in range(20):
        rounds = list(bias_rounds(exact_draws(300 + repeat), empty(), filling=3))
        if mistake == "forgets":
            wrong = [Round(one.index, empty(), one.drawn, one.following) for one in rounds]
        else:
            wrong = [Round(one.index, one.following, one.drawn, one.following) for one in rounds]
        pooled = pool_rounds(wrong, "sequential")
        scores.append(float(pooled.mean(rare(pooled.values))))
    assert not ZTest.from_samples(torch.tensor(scores), TRUTH).passed


@pytest.mark.filterwarnings("ignore:Unknown solver options")
@pytest.mark.slow
@pytest.mark.parametrize("own_sums", [False, True])
def test_a_mixture_of_many_small_rounds_is_right(own_sums):
    """The error falls with the number of rounds and is told. Negative control: rounds divided by their own sums."""
    scores, logs = [], []
    for repeat in range(40):
        rounds = list(bias_rounds(weighted_draws(700 + repeat, 24), empty(), filling=6, frozen=150))
        if own_sums:
            levels = pool_rounds(rounds).log_normalizers
            rounds = [
                dataclasses.replace(one, drawn=dataclasses.replace(one.drawn, log_weights=weights + level))
                for one, level in zip(rounds, levels, strict=True)
                for weights in [one.drawn.log_weights - log_mean_exp(one.drawn.log_weights)]
            ]
        pooled = pool_rounds(rounds)
        f = rare(pooled.values)
        scores.append(float((pooled.mean(f) - TRUTH) / pooled.std_error(f)))
        logs.append(pooled.log_evidence)
    found = ZTest.from_samples(torch.tensor(scores), 0.0)
    assert found.passed != own_sums, str(found)
    if not own_sums:
        assert calibration(torch.tensor(scores)).estimate < 1.9
        assert abs(sum(logs) / 40) < 5 * float(torch.tensor(logs).std()) / 40**0.5 + 0.01


def test_the_mixture_finds_the_normalizers_and_bounds_its_weights():
    rounds = list(bias_rounds(exact_draws(8, 2000), empty(height=8.0), filling=6))
    pooled = pool_rounds(rounds)
    exact = torch.stack([(lopsided() * (-one.bias(NODES[:, None]) / KT).exp()).sum().log() for one in rounds])
    assert torch.allclose(pooled.log_normalizers, exact, atol=0.05)
    assert abs(pooled.log_evidence) < 0.05
    assert pooled.ess > 1.1 * pool_rounds(rounds, "sequential").ess
    assert float(pooled.log_weights.softmax(0).max()) < 2 * 6 / len(pooled.values)


def test_samples_without_values_weigh_nothing():
    values = torch.tensor([[0.0], [math.nan], [1.0]], dtype=torch.float64)
    one = Round(0, empty(), Drawn(values, torch.zeros(3, dtype=torch.float64), None), empty())
    for how in ("mixture", "sequential"):
        pooled = pool_rounds([one, one], how)
        assert (pooled.log_weights == -math.inf).tolist() == [False, True, False] * 2
        assert float(pooled.mean(pooled.values[:, 0])) == pytest.approx(0.5)
    dead = Round(0, empty(), Drawn(values, torch.full((3,), -math.inf, dtype=torch.float64), None), empty())
    assert pool_rounds([one, dead]).log_weights[3:].tolist() == [-math.inf] * 3
    with pytest.raises(WeightError, match="no sample has a weight"):
        pool_rounds([dead])
    with pytest.raises(ValueError, match="how"):
        pool_rounds([one], "best")
    with pytest.raises(ValueError, match="one kT"):
        pool_rounds([one, dataclasses.replace(one, bias=empty(kT=1.0))])


def test_means_take_values_or_a_function_of_them():
    pooled = pool_rounds(list(bias_rounds(exact_draws(3, 50), empty(), filling=2)))
    for f in (rare, lambda v: v[:, 0] > 0.3, lambda v: torch.stack([v[:, 0], v[:, 0] ** 2], dim=1)):
        assert torch.equal(pooled.mean(f), pooled.mean(f(pooled.values)))
        assert torch.equal(pooled.std_error(f), pooled.std_error(f(pooled.values)))
    assert pooled.mean(lambda v: v[:, 0]) != pooled.mean(rare)
    for wrong in (lambda v: v[:7, 0], lambda v: v.sum(), pooled.values[1:]):
        with pytest.raises(ValueError, match="for 100 samples"):
            pooled.mean(wrong)


def test_rounds_far_apart_are_joined_by_their_evidences():
    """Two rounds that share no region say nothing of each other's normalizers: their own evidences stand."""
    center = torch.tensor([[3.0], [-3.0]], dtype=torch.float64)
    made = []
    for k, evidence in ((0, -1.0), (1, -2.5)):
        wall = empty(height=600.0).deposited(center[[1 - k]])
        drawn = Drawn(center[[k]].repeat(50, 1), torch.full((50,), evidence, dtype=torch.float64), None)
        made.append(Round(k, wall, drawn, wall))
    pooled = pool_rounds(made)
    assert pooled.log_normalizers.tolist() == pytest.approx([-1.0, -2.5], abs=1e-9)
    share = float(pooled.mean((pooled.values[:, 0] > 0).double()))
    assert share == pytest.approx(math.exp(-1.0) / (math.exp(-1.0) + math.exp(-2.5)), abs=1e-9)


def test_cells():
    values = torch.tensor([[0.1, 0.1], [0.9, 0.2], [1.1, 0.1], [-0.1, 0.0], [math.nan, 0.0]], dtype=torch.float64)
    assert occupied_cells(values, (1.0, 1.0)) == 3
    assert occupied_cells(values[4:], (1.0, 1.0)) == 0


@pytest.mark.parametrize("draws", [exact_draws, weighted_draws])
def test_repulsion_reaches_the_rare_mode(draws):
    """Share of the rare mode under the biased laws rises from 2 % to near a half."""
    rounds = list(bias_rounds(draws(11), empty(bias_factor=math.inf, height=8.0), filling=14))
    shares = [float((one.drawn.log_weights.softmax(0) * rare(one.drawn.values)).sum()) for one in rounds]
    assert shares[0] < 0.05
    assert max(shares[6:]) > 0.25


# --- targets ----------------------------------------------------------------------------------------------------------


def a_bias(variable=X):
    centers = torch.tensor([[0.4], [0.8], [-0.3]], dtype=torch.float64)
    bias = RepulsionBias.well_tempered([variable], kT=KT, bias_factor=6.0, height=6.0)
    return bias.deposited(centers).deposited(centers + 0.2)


def first(x):
    return x[..., 0]


def biased_moments(bias, density):
    """log Z, mean and the mean without the bias, by quadrature in the first coordinate."""
    log_p = density.log_prob(NODES[:, None]) + math.log(float(NODES[1] - NODES[0]))
    log_w = log_p - bias(NODES[:, None]) / KT
    return float(log_w.logsumexp(0)), float((log_w.softmax(0) * NODES).sum()), float((log_p.softmax(0) * NODES).sum())


def test_a_biased_density_has_value_and_score():
    density, bias = Gaussian(2, mean=0.5, scale=0.9), a_bias()
    made = biased(density, bias, first)
    assert isinstance(made, BiasedDensity)
    x = torch.randn(7, 2, generator=generator_for(0, 0), dtype=torch.float64)
    value, score = made.log_prob_and_score(x)
    assert torch.allclose(value, density.log_prob(x) - bias(x[:, :1]) / KT)
    assert torch.allclose(value, made.log_prob(x))
    shifts = 1e-5 * torch.eye(2, dtype=torch.float64)
    numeric = torch.stack([(made.log_prob(x + s) - made.log_prob(x - s)) / 2e-5 for s in shifts], dim=1)
    assert torch.allclose(score, numeric, atol=1e-6)


@pytest.mark.parametrize("undo", [True, False])
def test_annealed_to_a_biased_density_and_undone(undo):
    density, bias = Gaussian(1, mean=0.5, scale=0.9), a_bias()
    log_z, mean, plain = biased_moments(bias, density)
    source = Gaussian(1, mean=0.0, scale=1.5)
    model = Tempering(
        source, source, biased(density, bias, first), MALA(), FixedSchedule.linear(5), step_size=0.3, moves=2
    )
    result = smc(model, particles=400, populations=60, seed=5)
    assert ZTest.from_samples((result.log_evidence - log_z).exp(), 1.0).passed
    found = result.mean(lambda x: x[..., 0])
    assert abs(float(found.mean()) - mean) < 5 * float(found.std()) / math.sqrt(60) + 10 / 400
    log_weights = undone(result.x, result.log_weights, bias, first) if undo else result.log_weights
    back = (log_weights.softmax(1) * result.x[..., 0]).sum(dim=1)
    right = abs(float(back.mean()) - plain) < 5 * float(back.std()) / math.sqrt(60) + 10 / 400
    assert right == undo  # weights left as they are: the negative control


def test_variables_that_are_not_numbers_are_counted():
    def broken(x):
        return torch.where(x[..., 0] > 1.0, math.nan, x[..., 0])

    source, density = Gaussian(1, scale=1.5), Gaussian(1, scale=0.9)
    model = Tempering(source, source, biased(density, a_bias(), broken), MALA(), FixedSchedule.linear(2), 0.3, moves=1)
    with pytest.warns(NonFiniteWeightWarning, match="NaN"):
        result = smc(model, particles=200, seed=2)
    assert int(result.population.n_nan[0]) > 0
    assert bool((result.x[result.log_weights > -math.inf] <= 1.0).all())


@pytest.mark.slow
def test_correctors_sample_a_biased_target():
    """A Gaussian expert times the bias, by correctors with exact kernel weights, against quadrature; and undone."""
    bias = a_bias()
    target = biased(Annealed(gaussian_expert(Diffusion.ve(0.1, 8.0), variance=0.8), 1.0), bias, first)
    log_z, mean, plain = biased_moments(bias, Gaussian(1, scale=math.sqrt(0.8 + 0.1**2)))
    samples = sample_corrected(target, particles=400, populations=40, steps=60, seed=1)
    assert ZTest.from_samples((samples.log_evidence - log_z).exp(), 1.0).passed
    found = samples.mean(lambda x: x[..., 0])
    assert abs(float(found.mean()) - mean) < 5 * float(found.std()) / math.sqrt(40) + 10 / 400
    back = (undone(samples.x, samples.log_weights, bias, first).softmax(1) * samples.x[..., 0]).sum(dim=1)
    assert abs(float(back.mean()) - plain) < 5 * float(back.std()) / math.sqrt(40) + 10 / 400
    assert abs(plain - mean) > 0.2  # the two laws differ by more than that
    with pytest.raises(ValueError, match="reward already"):
        biased(target, bias, first)
