"""Weights: identities, dead particles, and bits that do not depend on the batch."""

import math

import pytest
import torch

from feynkac.fkc import (
    WeightError,
    effective_sample_size,
    generator_for,
    log_evidence_std_error,
    log_mean_exp,
    normalize,
)

INF = math.inf


def test_log_mean_exp_agrees_with_torch_far_from_zero():
    values = torch.tensor([[-2000.0, -2001.0, -1999.5], [900.0, 901.0, 899.0]], dtype=torch.float64)
    expected = torch.logsumexp(values, -1) - math.log(3)
    torch.testing.assert_close(log_mean_exp(values), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(log_mean_exp(values.T, dim=0), expected, rtol=1e-14, atol=0)


def test_dead_particles_count_in_the_mean_and_have_no_weight():
    values = torch.tensor([0.0, -INF, 0.0, -INF])
    assert float(log_mean_exp(values)) == pytest.approx(math.log(0.5))
    assert normalize(values).tolist() == [0.5, 0.0, 0.5, 0.0]
    assert float(effective_sample_size(values)) == 2.0


def test_a_row_of_dead_particles_has_evidence_zero_and_cannot_be_normalised():
    values = torch.full((2, 3), -INF)
    values[0] = 0.0
    assert log_mean_exp(values).tolist() == [0.0, -INF]
    assert effective_sample_size(values).tolist() == [3.0, 0.0]
    with pytest.raises(WeightError, match=r"row\(s\) \[1\]"):
        normalize(values)


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("function", [normalize, log_mean_exp, effective_sample_size])
def test_nan_and_infinite_weights_are_refused(function, bad):
    with pytest.raises(WeightError, match="NaN"):
        function(torch.tensor([0.0, bad]))


def test_results_are_float64_whatever_comes_in():
    values = torch.randn(5, generator=generator_for(0, 0))
    for function in (normalize, log_mean_exp, effective_sample_size, log_evidence_std_error):
        assert function(values).dtype == torch.float64


@pytest.mark.parametrize("k", [7, 40_000, 200_001])
@pytest.mark.parametrize("function", [normalize, log_mean_exp, effective_sample_size])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(function, k):
    # Sizes above 32768 are summed by several threads when there is one row only.
    values = torch.randn((3, k), generator=generator_for(1, 0), dtype=torch.float64)
    torch.set_num_threads(2)
    together = function(values)
    for p in range(3):
        assert torch.equal(function(values[p : p + 1])[0], together[p])
    torch.set_num_threads(1)


def test_standard_error_is_that_of_a_mean():
    values = torch.randn(50, generator=generator_for(2, 0), dtype=torch.float64)
    w = values.exp()
    expected = w.std() / math.sqrt(50) / w.mean()
    assert float(log_evidence_std_error(values)) == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(WeightError, match="at least two"):
        log_evidence_std_error(values[:1])
