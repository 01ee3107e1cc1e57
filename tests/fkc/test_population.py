"""The population record: evidence with carried weights, dead particles, immutability."""

import math
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from feynkac.fkc import (
    NonFiniteWeightWarning,
    Population,
    PopulationCollapsed,
    WeightError,
    generator_for,
    log_mean_exp,
)

INF = math.inf


def increments(p, k, seed=0):
    return torch.randn((p, k), generator=generator_for(seed, 0), dtype=torch.float64)


def test_uniform():
    population = Population.uniform(2, 5)
    assert population.log_weights.dtype == torch.float64
    assert population.log_evidence.tolist() == [0.0, 0.0]
    assert population.ess.tolist() == [5.0, 5.0]
    assert population.weights.tolist() == [[0.2] * 5] * 2
    with pytest.raises(ValueError, match="at least one"):
        Population.uniform(0, 5)


def test_evidence_is_the_product_of_the_mean_increments_between_resamplings():
    a, b, c = (increments(3, 8, s) for s in range(3))
    population = Population.uniform(3, 8).reweighted(a).reweighted(b)
    torch.testing.assert_close(population.log_evidence, log_mean_exp(a + b))
    population, ancestors = population.resampled(generator_for(1, 0), threshold=1.1)
    assert ancestors is not None
    torch.testing.assert_close(population.log_evidence, log_mean_exp(a + b))
    assert bool((population.log_weights == 0).all())
    population = population.reweighted(c)
    torch.testing.assert_close(population.log_evidence, log_mean_exp(a + b) + log_mean_exp(c))


def test_each_population_resamples_on_its_own_ess():
    log_weights = torch.zeros(3, 10, dtype=torch.float64)
    log_weights[1, :9] = -50.0
    population = Population.from_log_weights(log_weights)
    after, ancestors = population.resampled(generator_for(0, 0))
    assert ancestors.tolist()[0] == list(range(10))
    assert ancestors.tolist()[1] == [9] * 10
    assert after.n_resamplings.tolist() == [0, 1, 0]
    assert torch.equal(after.log_weights, torch.zeros(3, 10, dtype=torch.float64))
    torch.testing.assert_close(after.log_evidence, population.log_evidence, rtol=1e-14, atol=1e-14)
    assert after.roots[1].tolist() == [9] * 10


def test_untouched_populations_keep_their_weights():
    log_weights = increments(2, 10) * 0.1
    log_weights[0, 1:] = -60
    after, ancestors = Population.from_log_weights(log_weights).resampled(generator_for(0, 0))
    assert torch.equal(after.log_weights[1], log_weights[1])
    assert ancestors[1].tolist() == list(range(10))


def test_nobody_resamples_above_the_threshold():
    population = Population.uniform(2, 4)
    same, ancestors = population.resampled(generator_for(0, 0))
    assert same is population
    assert ancestors is None


def test_only_generators_of_resampling_populations_advance():
    log_weights = torch.zeros(2, 4)
    log_weights[0, 1:] = -99
    generators = [generator_for(0, p) for p in range(2)]
    before = [g.get_state() for g in generators]
    Population.from_log_weights(log_weights).resampled(generators)
    assert not torch.equal(before[0], generators[0].get_state())
    assert torch.equal(before[1], generators[1].get_state())


def test_minus_infinity_kills_and_nothing_revives():
    population = Population.uniform(1, 3).reweighted(torch.tensor([[0.0, -INF, 0.0]]))
    assert population.n_dead.tolist() == [1]
    assert float(population.log_evidence) == pytest.approx(math.log(2 / 3))
    for late in (5.0, INF, math.nan):
        assert population.reweighted(torch.tensor([[0.0, late, 0.0]])).n_dead.tolist() == [1]
    assert population.n_nan.tolist() == [0]


def test_nan_kills_is_counted_and_warned_of_once():
    increment = torch.tensor([[0.0, math.nan, math.nan, 0.0]])
    with pytest.warns(NonFiniteWeightWarning, match="step 0: 2 log-weight increments are NaN"):
        population = Population.uniform(1, 4).reweighted(increment)
    assert population.n_nan.tolist() == [2]
    assert population.n_dead.tolist() == [2]
    again = population.reweighted(torch.tensor([[math.nan, 0.0, 0.0, 0.0]]))  # silent: warnings are errors here
    assert again.n_nan.tolist() == [3]


def test_plus_infinity_is_an_error():
    with pytest.raises(WeightError, match=r"\+inf in population\(s\) \[1\]"):
        Population.uniform(2, 2).reweighted(torch.tensor([[0.0, 0.0], [INF, 0.0]]))


def test_collapse_names_population_step_and_count():
    dead = torch.zeros(3, 4)
    dead[1] = -INF
    population = Population.uniform(3, 4).reweighted(torch.zeros(3, 4))
    with pytest.raises(PopulationCollapsed, match="population 1 collapsed at step 1: all 4 of 4") as caught:
        population.reweighted(dead)
    assert (caught.value.populations, caught.value.step, caught.value.particles) == ((1,), 1, 4)
    kept = population.reweighted(dead, on_collapse="keep")
    assert kept.collapsed.tolist() == [False, True, False]
    assert kept.log_evidence.tolist() == [0.0, -INF, 0.0]
    assert kept.ess.tolist() == [4.0, 0.0, 4.0]
    assert not bool(kept.weights.isnan().any())
    resampled, ancestors = kept.resampled(generator_for(0, 0), threshold=1.1)
    assert ancestors[1].tolist() == [0, 1, 2, 3]
    assert bool(resampled.collapsed[1])


def test_immutable_and_input_never_aliased():
    raw = increments(1, 4)
    population = Population.from_log_weights(raw)
    kept = population.log_weights.clone()
    raw += 1
    assert torch.equal(population.log_weights, kept)
    with pytest.raises(FrozenInstanceError):
        population.log_weights = raw
    before = population.state_dict()
    population.reweighted(raw)
    population.resampled(generator_for(0, 0), threshold=1.1)
    assert all(torch.equal(before[name], value) for name, value in population.state_dict().items())


def test_a_float32_increment_is_accumulated_in_float64():
    population = Population.uniform(1, 2)
    for _ in range(1000):
        population = population.reweighted(torch.full((1, 2), 0.1, dtype=torch.float32))
    assert float(population.log_evidence) == pytest.approx(1000 * float(torch.tensor(0.1)), rel=1e-13)


def test_weights_of_wrong_kind_are_refused():
    good = Population.uniform(1, 2).state_dict()
    with pytest.raises(WeightError, match="float64"):
        Population(**{**good, "log_weights": torch.zeros(1, 2)})
    with pytest.raises(WeightError, match="NaN"):
        Population.from_log_weights(torch.tensor([math.nan, 0.0]))


def test_select_update_and_state_round_trip():
    population = Population.uniform(4, 6).reweighted(3 * increments(4, 6))
    population, _ = population.resampled(generator_for(0, 0), threshold=0.9)
    rows = torch.tensor([1, 3])
    changed = population.select(rows).reweighted(increments(2, 6, 5))
    merged = population.updated(rows, changed)
    assert torch.equal(merged.log_evidence[rows], changed.log_evidence)
    assert torch.equal(merged.log_evidence[[0, 2]], population.log_evidence[[0, 2]])
    restored = Population.from_state_dict(merged.state_dict())
    for f in fields(Population):
        assert torch.equal(getattr(restored, f.name), getattr(merged, f.name))
