"""Resampling: laws of the copy numbers that hold exactly, edges, and independence of populations."""

import math

import pytest
import torch

from feynkac.fkc import SCHEMES, PopulationCollapsed, WeightError, copies, generator_for, normalize, resample

INF = math.inf
ALL = sorted(SCHEMES)


def weights(populations, particles, seed=0, spread=1.5):
    generator = generator_for(seed, 0)
    return spread * torch.randn((populations, particles), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scheme", ["systematic", "ssp"])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 33, 1000])
def test_each_copy_number_is_floor_or_ceil(scheme, k):
    log_weights = weights(50, k)
    counts = copies(resample(log_weights, scheme, generator_for(1, 0)))
    expected = k * normalize(log_weights)
    assert bool((counts >= (expected - 1e-9).floor()).all())
    assert bool((counts <= (expected + 1e-9).ceil()).all())


def test_residual_keeps_at_least_the_floor_and_stratified_stays_within_two():
    log_weights = weights(200, 33)
    expected = 33 * normalize(log_weights)
    residual = copies(resample(log_weights, "residual", generator_for(1, 0)))
    assert bool((residual >= (expected - 1e-9).floor()).all())
    stratified = copies(resample(log_weights, "stratified", generator_for(1, 0)))
    assert float((stratified - expected).abs().max()) < 2


def test_multinomial_is_not_floor_or_ceil():
    """Negative control: the criterion above does tell schemes apart."""
    log_weights = weights(50, 33)
    counts = copies(resample(log_weights, "multinomial", generator_for(1, 0)))
    assert bool((counts > (33 * normalize(log_weights)).ceil()).any())


@pytest.mark.parametrize("scheme", ALL)
@pytest.mark.parametrize("k", [1, 2, 7, 64])
def test_dead_particles_are_never_ancestors(scheme, k):
    log_weights = weights(300, k)
    log_weights[:, 1::2] = -INF
    ancestors = resample(log_weights, scheme, generator_for(2, 0))
    assert ancestors.dtype == torch.int64
    assert bool((ancestors % 2 == 0).all())
    assert bool((ancestors < k).all())


@pytest.mark.parametrize("scheme", ALL)
def test_one_particle_with_all_the_weight(scheme):
    log_weights = torch.full((4, 9), -INF)
    log_weights[:, 5] = -1234.5
    assert bool((resample(log_weights, scheme, generator_for(3, 0)) == 5).all())


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual", "ssp"])
@pytest.mark.parametrize("k", [3, 10, 997])
def test_equal_weights_keep_everybody(scheme, k):
    ancestors = resample(torch.zeros((2, k)), scheme, generator_for(4, 0))
    assert torch.equal(ancestors, torch.arange(k).expand(2, k))


@pytest.mark.parametrize("scheme", ALL)
def test_no_index_reaches_k_for_uniforms_next_to_one(scheme):
    """The last slot: the largest uniform below one, and sums that rounding may leave below one."""
    k = 100_003
    chosen = SCHEMES[scheme]
    w = normalize(weights(1, k, seed=7))
    for value in (0.0, 1 - 2.0**-53):
        uniforms = torch.full((1, chosen.n_uniforms(k)), value, dtype=torch.float64)
        ancestors = chosen.ancestors(w, uniforms)
        assert tuple(ancestors.shape) == (1, k)
        assert int(ancestors.min()) >= 0
        assert int(ancestors.max()) < k


@pytest.mark.parametrize("scheme", ALL)
def test_populations_with_their_own_generators_are_independent(scheme):
    log_weights = weights(4, 50)
    together = resample(log_weights, scheme, [generator_for(5, p) for p in range(4)])
    for p in range(4):
        assert torch.equal(resample(log_weights[p : p + 1], scheme, [generator_for(5, p)])[0], together[p])


@pytest.mark.parametrize("scheme", ALL)
def test_arguments_stay_and_a_single_row_is_accepted(scheme):
    log_weights = weights(1, 20)
    before = log_weights.clone()
    row = resample(log_weights[0], scheme, generator_for(6, 0))
    assert torch.equal(row, resample(log_weights, scheme, generator_for(6, 0))[0])
    assert torch.equal(before, log_weights)


def test_errors():
    generator = generator_for(0, 0)
    with pytest.raises(ValueError, match="known: multinomial"):
        resample(torch.zeros(1, 3), "sistematic", generator)
    with pytest.raises(ValueError, match="2 generators for 1"):
        resample(torch.zeros(1, 3), "ssp", [generator, generator])
    with pytest.raises(WeightError, match="shape"):
        resample(torch.zeros(1, 1, 3), "ssp", generator)
    with pytest.raises(WeightError, match="NaN"):
        resample(torch.tensor([[0.0, math.nan]]), "ssp", generator)
    dead = torch.zeros(3, 4)
    dead[1] = -INF
    with pytest.raises(PopulationCollapsed) as caught:
        resample(dead, "systematic", generator)
    assert caught.value.populations == (1,)


def test_a_million_particles_keep_the_law():
    log_weights = weights(1, 1_000_000)
    counts = copies(resample(log_weights, "systematic", generator_for(8, 0)))
    assert int(counts.sum()) == 1_000_000
    assert float((counts - 1e6 * normalize(log_weights)).abs().max()) < 1 + 1e-6
