"""Importance sampling under a growing bias: Gaussian proposals with exact answers, and the undone weights."""

import math

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, GridAxis, RepulsionBias
from feynkac.fkc.errors import NonFiniteWeightWarning, PopulationCollapsed
from feynkac.fkc.streams import split_seed
from feynkac.fkc.testing import Gaussian, ZTest
from feynkac.flows import FunctionProposal, ProposalFacts, importance_sample
from feynkac.flows.repelled import importance_sample_repelled

KT = 2.5
NODES = torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64)
SETTINGS = {"batches": 4, "frozen_batches": 1, "seed": 3}


class Well:
    """U = kT times a Gaussian's exponent, N(0.7, 0.8^2) in each of two coordinates."""

    kT = KT

    def __call__(self, x):
        return 0.5 * KT * ((x - 0.7) / 0.8).square().sum(dim=-1)


LOG_Z = math.log(2 * math.pi * 0.8**2)
LAW = Gaussian(2, mean=0.7, scale=0.8)


def proposal(scale=1.5):
    wide = Gaussian(2, scale=scale)
    return FunctionProposal(
        lambda n, g: wide.sample(n, generator=g),
        wide.log_prob,
        event_shape=(2,),
        facts=ProposalFacts("euclidean", "1", "exact"),
    )


def empty(kT=KT):
    return RepulsionBias.well_tempered(
        [BiasVariable("x", sigma=0.4)], kT=kT, bias_factor=8.0, height=6.0, grid=[GridAxis(-6.0, 6.0, 120)]
    )


def first(x):
    return x[:, 0]


def biased(bias):
    """log of the integral of exp(-(U + V)/kT), and the mean of x_1, by quadrature."""
    log_p = -0.5 * ((NODES - 0.7) / 0.8).square() - bias(NODES[:, None]) / KT + math.log(float(NODES[1] - NODES[0]))
    other = 0.5 * math.log(2 * math.pi * 0.8**2)
    return float(log_p.logsumexp(0)) + other, float(log_p.softmax(0) @ NODES)


def test_undone_weights_are_those_without_a_bias():
    found = importance_sample_repelled(proposal(), Well(), empty(), first, 500, **SETTINGS)
    plain = [importance_sample(proposal(), Well(), 500, seed=split_seed(3, k)) for k in range(5)]
    assert torch.equal(found.x, torch.cat([one.x for one in plain]))
    assert torch.allclose(found.log_weights, torch.cat([one.log_weights for one in plain]), rtol=0, atol=1e-12)
    assert found.biased_log_weights[:500].equal(plain[0].log_weights)  # an empty bias
    assert float((found.biased_log_weights - found.log_weights).abs().max()) > 0.5
    pooled = found.pooled()
    assert ZTest(pooled.log_evidence, 1.0 / math.sqrt(pooled.ess), LOG_Z).passed
    z = (pooled.mean(found.x) - 0.7) / pooled.std_error(found.x)
    assert float(z.abs().max()) < 4


@pytest.mark.parametrize("deposit", ["weighted", "resampled"])
def test_the_biased_law_of_every_batch(deposit):
    """Evidence and mean under V_k of each batch, over 60 repeats; V_k differs from repeat to repeat."""
    ratios, errors = [], []
    for seed in range(60):
        found = importance_sample_repelled(
            proposal(), Well(), empty(), first, 300, batches=3, seed=seed, deposit=deposit
        )
        last = found.rounds[-1]
        log_z, mean = biased(last.bias)
        weights = last.drawn.log_weights.exp()
        ratios.append(float(weights.mean()) / math.exp(log_z))
        errors.append(float((weights * (last.drawn.values[:, 0] - mean)).mean()))
    assert ZTest.from_samples(torch.tensor(ratios), 1.0).passed
    assert ZTest.from_samples(torch.tensor(errors), 0.0).passed


def test_wrong_weights_are_caught():
    """Left as they are, or undone by the bias after the deposit: both miss the variance."""
    forgotten, late, right = [], [], []
    for seed in range(40):
        found = importance_sample_repelled(proposal(), Well(), empty(), first, 300, batches=3, seed=seed)
        for one in found.rounds[1:]:
            square = (one.drawn.values[:, 0] - 0.7).square()
            forgotten.append(float(one.drawn.log_weights.softmax(0) @ square))
            late.append(float(one.following.reweight(one.drawn.values, one.drawn.log_weights).softmax(0) @ square))
            right.append(float(one.log_weights.softmax(0) @ square))
    assert not ZTest.from_samples(torch.tensor(forgotten), 0.8**2).passed
    assert not ZTest.from_samples(torch.tensor(late), 0.8**2).passed
    assert ZTest.from_samples(torch.tensor(right), 0.8**2).passed


def test_resampled_draws_are_spread_out_and_come_back():
    found = importance_sample_repelled(proposal(), Well(), empty(), first, 6000, batches=6, seed=1)
    x, log_weights = found.resampled(4000, torch.Generator().manual_seed(0))
    assert x.shape == (4000, 2)
    _, mean = biased(found.rounds[-1].bias)
    assert float(x[:, 0].mean()) == pytest.approx(mean, abs=0.1)
    assert float(x[:, 0].std()) > 1.15 * 0.8  # wider than the law itself
    assert float(x[:, 1].std()) == pytest.approx(0.8, abs=0.05)  # the other coordinate is not touched
    assert float(log_weights.softmax(0) @ x[:, 0]) == pytest.approx(0.7, abs=0.08)
    with pytest.raises(ValueError, match="n: got 6001"):
        found.resampled(6001, torch.Generator())


def test_deposits_differ_and_follow_the_weights():
    weighted, resampled = (
        importance_sample_repelled(proposal(), Well(), empty(), first, 200, batches=1, seed=1, deposit=how)
        for how in ("weighted", "resampled")
    )
    draws = weighted.rounds[0].drawn
    by_hand = empty().deposited(draws.values, draws.log_weights)
    assert torch.equal(by_hand(NODES[:, None]), weighted.bias(NODES[:, None]))
    assert not torch.equal(resampled.bias(NODES[:, None]), weighted.bias(NODES[:, None]))
    peak = NODES[resampled.bias(NODES[:, None]).argmax()]
    assert float(peak) == pytest.approx(0.7, abs=0.4)  # the target's mean, not the proposal's


def test_draws_without_variables_weigh_nothing():
    def broken(x):
        return torch.where(x[:, 0] > 1.0, math.nan, x[:, 0])

    with pytest.warns(NonFiniteWeightWarning, match="no finite variables"):
        found = importance_sample_repelled(proposal(), Well(), empty(), broken, 300, batches=2, seed=1)
    high = found.x[:, 0] > 1.0
    assert bool((found.log_weights[high] == -math.inf).all())
    assert bool(found.log_weights[~high].isfinite().all())
    assert found.bias.counts.invalid == int(high.sum())
    with pytest.raises(PopulationCollapsed):
        importance_sample_repelled(proposal(), Well(), empty(), lambda x: x[:, 0] * math.nan, 200, batches=1, seed=1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="deposit"):
        importance_sample_repelled(proposal(), Well(), empty(), first, 10, batches=1, seed=1, deposit="all")
    with pytest.raises(ValueError, match="its kT is 1"):
        importance_sample_repelled(proposal(), Well(), empty(kT=1.0), first, 10, batches=1, seed=1)
