"""Importance sampling with Gaussian proposals: ESS and evidence against closed form, k-hat where they mislead."""

import math

import pytest
import torch

from feynkac.fkc import effective_sample_size, generator_for, log_evidence_std_error, log_mean_exp, pareto_smooth
from feynkac.fkc.testing import GaussianPair, ZTest, calibration

N = 40_000
REPEATS = 10
CASES = {
    (1, 1.0, 1.0, 1.0): math.exp(-1),
    (1, 1.0, 1.0, 0.5): 0.778801,
    (1, 1.5, 1.0, 0.0): 0.831479,
    (2, 1.3, 1.0, 0.7): 0.552047,
    (10, 1.2, 1.0, 0.0): 0.612582,
    (66, 1.1, 1.0, 0.0): 0.364486,
    (5, 1.0, 1.3, 0.0): 0.198665,
    (1, 1.0, 1.5, 0.0): 0.0,
}
LIGHT = [case for case in CASES if case[1] >= case[2]]


def draws(case):
    pair = GaussianPair(*case)
    return torch.stack([pair.log_weights(N, generator=generator_for(11, i)) for i in range(REPEATS)])


@pytest.mark.parametrize("case", CASES)
def test_table_of_exact_ess(case):
    assert GaussianPair(*case).ess_fraction == pytest.approx(CASES[case], abs=5e-7)


@pytest.mark.parametrize("case", LIGHT)
def test_ess_agrees(case):
    fractions = effective_sample_size(draws(case)) / N
    test = ZTest.from_samples(fractions, CASES[case])
    # ESS is a ratio, with a bias of order 1/N: allowed for.
    assert test.passed or abs(test.estimate - test.expected) < 10 / N, str(test)


@pytest.mark.parametrize("case", LIGHT)
def test_log_evidence_agrees_within_its_own_error(case):
    log_weights = draws(case)
    exact = GaussianPair(*case).target.log_normalizer
    pooled = log_weights.reshape(-1)
    error = float(log_evidence_std_error(pooled))
    assert ZTest(float(log_mean_exp(pooled)), error, exact).passed
    stated = math.sqrt((1 / CASES[case] - 1) / pooled.numel())
    assert error == pytest.approx(stated, rel=0.1)


def test_negative_control_a_dropped_constant_is_caught():
    case = (2, 1.3, 1.0, 0.7)
    pooled = draws(case).reshape(-1) + 0.02
    exact = GaussianPair(*case).target.log_normalizer
    assert not ZTest(float(log_mean_exp(pooled)), float(log_evidence_std_error(pooled)), exact).passed


def test_standard_errors_are_calibrated():
    pair = GaussianPair(2, 1.3, 1.0, 0.7)
    rows = pair.log_weights(400 * 500, generator=generator_for(12, 0)).reshape(400, 500)
    zs = (log_mean_exp(rows) - pair.target.log_normalizer) / log_evidence_std_error(rows)
    assert calibration(zs).passed, str(calibration(zs))
    assert not calibration(1.5 * zs).passed  # negative control: errors too small by half are caught


@pytest.mark.parametrize("case", [(5, 1.0, 1.3, 0.0), (1, 1.0, 1.5, 0.0)])
def test_khat_where_the_ess_is_overestimated(case):
    """Two heavy tails, k = 1 - (sq/sp)^2 = 0.41 and 0.56: the fit must tell them from a bounded one."""
    pair = GaussianPair(*case)
    khat = torch.tensor([pareto_smooth(row).khat for row in draws(case)])
    assert pair.khat == pytest.approx(1 - 1 / case[2] ** 2)
    assert float(khat.mean()) > 0.3
    bounded = torch.tensor([pareto_smooth(row).khat for row in draws((5, 1.3, 1.0, 0.0))])
    assert float(bounded.max()) < 0.3 < float(khat.min())


@pytest.mark.parametrize(
    ("s", "true", "clipped", "bias"),
    [
        (1.0, 0.368, 0.428, -0.029),
        (1.5, 0.105, 0.196, -0.086),
        (2.0, 0.0183, 0.0920, -0.209),
        (2.5, 0.0019, 0.0479, -0.433),
    ],
)
def test_deleting_the_largest_weights_flatters(s, true, clipped, bias):
    """Log-normal weights: what dropping the top 0.2 % would report, and why the library never does it by itself.

    Quantiles of the law stand for draws: an exact answer without noise.
    """
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    u = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000
    log_weights = s * normal.icdf(u)
    keep = log_weights[: int(0.998 * log_weights.numel())]
    assert math.exp(-(s**2)) == pytest.approx(true, abs=5e-4)
    assert float(effective_sample_size(keep)) / keep.numel() == pytest.approx(clipped, rel=5e-3)
    assert float(log_mean_exp(keep)) - s**2 / 2 == pytest.approx(bias, abs=2e-3)
