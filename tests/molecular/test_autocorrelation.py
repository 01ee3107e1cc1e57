"""Correlation times against closed form, their error bars, weighted samples, and controls that must fail."""

import math
import warnings

import pytest
import torch

from feynkac.fkc.testing import calibration
from feynkac.molecular.free_energy import (
    ShortSeriesWarning,
    free_energy_difference,
    influence,
    integrated_autocorrelation,
    weighted_mean,
)

from .free_energy_walkers import autoregressive, biased_walkers, double_well, exact_difference, log_weights

REPEATS = 200


def chains(rho: float, steps: int, walkers: int, seed: int) -> torch.Tensor:
    """(steps, REPEATS, walkers)."""
    generator = torch.Generator().manual_seed(seed)
    return autoregressive(generator, rho, steps, REPEATS * walkers).reshape(steps, REPEATS, walkers)


@pytest.mark.parametrize(("rho", "steps", "walkers"), [(0.0, 500, 4), (0.8, 1500, 3), (0.9, 5000, 1)])
def test_time_and_its_error_on_autoregressive_chains(rho, steps, walkers):
    x = chains(rho, steps, walkers, seed=1)
    exact = 0.5 * (1 + rho) / (1 - rho)
    found = [integrated_autocorrelation(x[:, r], warn=False) for r in range(REPEATS)]
    tau = torch.tensor([f.tau for f in found])
    assert float(tau.mean()) == pytest.approx(exact, rel=0.12)
    assert float(tau.mean()) > exact * 0.98  # rather too large than too small
    error = torch.tensor([f.tau_std_error for f in found])
    assert 0.6 < float(error.mean() / tau.std()) < 1.4
    assert found[0].inefficiency == 2 * found[0].tau
    assert found[0].independent == pytest.approx(steps * walkers / found[0].inefficiency)


@pytest.mark.parametrize(("rho", "steps", "walkers"), [(0.8, 1000, 4), (0.95, 1000, 10)])
def test_error_of_the_mean_is_calibrated_and_without_correlation_it_is_not(rho, steps, walkers):
    x = chains(rho, steps, walkers, seed=2)
    z = torch.tensor(
        [(f := integrated_autocorrelation(x[:, r], warn=False)).mean / f.std_error for r in range(REPEATS)]
    )
    assert calibration(z).passed
    naive = x.mean((0, 2)) / x.transpose(0, 1).reshape(REPEATS, -1).std(1) * math.sqrt(steps * walkers)
    assert not calibration(naive).passed
    assert float(naive.square().mean()) == pytest.approx((1 + rho) / (1 - rho), rel=0.35)


def test_a_weak_slow_component_under_a_fast_one_is_found():
    generator = torch.Generator().manual_seed(3)
    exact, found = 0.9 * 0.5 + 0.1 * 0.5 * 1.97 / 0.03, []
    for _ in range(30):
        fast, slow = (autoregressive(generator, rho, 4000, 8) for rho in (0.0, 0.97))
        found.append(integrated_autocorrelation(math.sqrt(0.9) * fast + math.sqrt(0.1) * slow, warn=False))
    assert sum(f.tau for f in found) / 30 == pytest.approx(exact, rel=0.15)
    # sum of t rho(t) over tau: the memory is close to the slow time, tau is not
    memory = 0.1 * 0.97 / 0.03**2 / exact
    assert sum(f.memory for f in found) / 30 == pytest.approx(memory, rel=0.25)


def test_matches_pymbar_on_one_long_series():
    pymbar = pytest.importorskip("pymbar")
    x = autoregressive(torch.Generator().manual_seed(4), 0.9, 20000, 1)[:, 0]
    ours = integrated_autocorrelation(x).inefficiency
    assert ours == pytest.approx(pymbar.timeseries.statistical_inefficiency(x.numpy()), rel=0.1)


def test_stuck_walkers_are_seen_only_around_the_common_mean():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(400, 10, generator=generator, dtype=torch.float64)
    x[:, 5:] += 6.0
    with pytest.warns(ShortSeriesWarning, match="correlation times"):
        stuck = integrated_autocorrelation(x)
    assert stuck.tau > 100
    assert stuck.independent < 20
    assert integrated_autocorrelation(x - x.mean(0), warn=False).tau < 1


def test_alternating_series_count_as_independent():
    x = autoregressive(torch.Generator().manual_seed(6), -0.9, 2000, 2)
    assert integrated_autocorrelation(x).tau == pytest.approx(0.5, rel=0.05)


def test_short_series_warn_and_long_ones_do_not():
    x = autoregressive(torch.Generator().manual_seed(7), 0.95, 4000, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integrated_autocorrelation(x)
    with pytest.warns(ShortSeriesWarning, match="fewer than 50"):
        integrated_autocorrelation(x[:300])


@pytest.mark.parametrize(
    "series", [torch.ones(100, 2), torch.zeros(3), torch.zeros(5, 2, 2), torch.tensor([math.nan] * 9)]
)
def test_bad_series_are_refused(series):
    with pytest.raises(ValueError, match="series"):
        integrated_autocorrelation(series)


def test_shapes_types_and_order_of_walkers_do_not_matter():
    x = autoregressive(torch.Generator().manual_seed(8), 0.7, 900, 5)
    first = integrated_autocorrelation(x)
    assert integrated_autocorrelation(x[:, [3, 1, 0, 4, 2]]).tau == pytest.approx(first.tau, rel=1e-10)
    assert integrated_autocorrelation(3.0 * x + 7.0).tau == pytest.approx(first.tau, rel=1e-10)
    assert integrated_autocorrelation(x[:, 0]) == integrated_autocorrelation(x[:, :1])


def test_weighted_mean_of_biased_walkers_is_calibrated():
    """P(x > 0) from flattened walkers: value, error and effective samples, against quadrature."""
    generator = torch.Generator().manual_seed(9)
    x = biased_walkers(generator, 1500, REPEATS * 6).reshape(1500, REPEATS, 6)
    ratio = exact_difference()
    exact = 1 / (1 + math.exp(ratio))
    found = [weighted_mean((x[:, r] > 0).double(), log_weights(x[:, r]), warn=False) for r in range(REPEATS)]
    value = torch.tensor([f.value for f in found])
    z = (value - exact) / torch.tensor([f.std_error for f in found])
    assert calibration(z).passed
    assert abs(float(z.mean())) < 5 / math.sqrt(REPEATS)
    effective = sum(f.effective for f in found) / REPEATS
    assert effective == pytest.approx(exact * (1 - exact) / float(value.var()), rel=0.35)
    # neither the weights nor the correlation alone tell how many independent samples there are
    assert found[0].effective < 0.3 * found[0].ess
    by_frame = torch.tensor(
        [
            free_energy_difference(
                (x[:, r] > 0).flatten(), log_weights(x[:, r]).flatten(), kT=1.0, bootstrap=0
            ).probability_std_error
            for r in range(REPEATS)
        ]
    )
    assert not calibration((value - exact) / by_frame).passed


def test_influence_sums_to_zero_and_ignores_values_without_weight():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    weights = double_well(x).neg()
    weights[3, 1] = -math.inf
    values = x.clone()
    values[3, 1] = math.nan
    series = influence(values, weights)
    assert abs(float(series.sum())) < 1e-9
    assert float(series[3, 1]) == 0
    values[4, 1] = math.nan
    with pytest.raises(ValueError, match="finite"):
        influence(values, weights)
    with pytest.raises(ValueError, match="differ in shape"):
        influence(values, weights[:3])
