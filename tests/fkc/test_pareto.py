"""Pareto smoothing: against ArviZ, against known tails, and the raw values untouched."""

import math

import pytest
import torch

from feynkac.fkc import WeightError, generator_for, pareto_smooth, truncate
from feynkac.fkc.pareto import fit_generalized_pareto
from feynkac.fkc.testing import GaussianPair


def log_normal(n, scale, seed=0):
    return scale * torch.randn(n, generator=generator_for(seed, 0), dtype=torch.float64)


@pytest.mark.parametrize("n", [100, 1000, 20_000])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
@pytest.mark.filterwarnings("ignore")
def test_agrees_with_arviz(n, scale):
    arviz = pytest.importorskip("arviz")
    raw = log_normal(n, scale, seed=n)
    expected, khat = arviz.psislw(raw.numpy().copy())
    smoothed = pareto_smooth(raw + 345.0)
    assert smoothed.khat == pytest.approx(float(khat), abs=1e-10)
    ours = smoothed.log_weights - torch.logsumexp(smoothed.log_weights, 0)
    torch.testing.assert_close(ours, torch.as_tensor(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_fit_finds_the_shape_of_exact_pareto_tails(k):
    u = torch.rand(20_000, generator=generator_for(1, 0), dtype=torch.float64)
    excesses = (3.0 * (u.pow(-k) - 1) / k).sort().values
    shape, scale = fit_generalized_pareto(excesses)
    # The maximum-likelihood error of k is (1 + k) / sqrt(n).
    assert abs(shape - k) < 5 * (1 + k) / math.sqrt(20_000)
    assert scale == pytest.approx(3.0, rel=0.1)


def test_khat_warns_of_heavy_tails_and_only_of_those():
    """A wide target has tail index 1 - (sq / sp)^2, and no variance from 1/2 on; a narrow one is bounded."""
    good = GaussianPair(1, 1.0, 1.0, 0.5)
    assert pareto_smooth(good.log_weights(20_000, generator=generator_for(2, 0))).khat < 0.5
    heavy = GaussianPair(1, 1.0, 2.2, 0.0)
    assert heavy.ess_fraction == 0.0
    assert heavy.khat == pytest.approx(0.793, abs=1e-3)
    assert not pareto_smooth(heavy.log_weights(200_000, generator=generator_for(3, 0))).reliable


def test_smoothing_changes_the_tail_only_and_never_exceeds_the_largest_raw_weight():
    raw = log_normal(1000, 2.0)
    kept = raw.clone()
    smoothed = pareto_smooth(raw)
    assert torch.equal(raw, kept)
    assert smoothed.tail_size == math.ceil(3 * math.sqrt(1000))
    assert int((smoothed.log_weights != raw).sum()) <= smoothed.tail_size
    assert float(smoothed.log_weights.max()) <= float(raw.max())


def test_dead_draws_flat_weights_and_few_draws():
    raw = log_normal(1000, 1.0)
    raw[::3] = -math.inf
    assert bool((pareto_smooth(raw).log_weights[::3] == -math.inf).all())
    assert pareto_smooth(torch.zeros(100)).khat == -math.inf
    assert pareto_smooth(log_normal(10, 1.0)).khat == math.inf
    with pytest.raises(WeightError, match="zero"):
        pareto_smooth(torch.full((10,), -math.inf))
    with pytest.raises(WeightError, match="one-dimensional"):
        pareto_smooth(torch.zeros(2, 10))


def test_truncation_bounds_at_mean_times_root_n():
    raw = torch.zeros(100, dtype=torch.float64)
    raw[3] = 10.0
    cut = truncate(raw)
    bound = math.log((99 + math.exp(10)) / 100 * 10)
    assert cut.log_bound == pytest.approx(bound)
    assert cut.n_truncated == 1
    assert float(cut.log_weights[3]) == pytest.approx(bound)
    assert torch.equal(torch.cat([cut.log_weights[:3], cut.log_weights[4:]]), torch.zeros(99, dtype=torch.float64))
    assert float(raw[3]) == 10.0
