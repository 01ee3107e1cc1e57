"""Tempering: schedules that end at exactly one, conditional ESS, step-size tuning, and what it costs in evaluations."""

import math

import pytest
import torch

from feynkac.fkc import (
    AdaptiveSchedule,
    FixedSchedule,
    ScheduleExhausted,
    StepSizeTuning,
    Tempering,
    conditional_ess,
    effective_sample_size,
    generator_for,
    smc,
)
from feynkac.fkc.collectors import Shared
from feynkac.fkc.kernels import MALA, RandomWalk
from feynkac.fkc.tempering import tempering_increment
from feynkac.fkc.testing import DoubleWell, Gaussian, check_batch_equals_singles, check_same_seed_same_output

WIDE = Gaussian(2, 0.0, 1.5)


def model(schedule, *, kernel=None, moves=1, tuning=None, target=None):
    return Tempering(
        proposal=WIDE,
        source=WIDE,
        target=target or DoubleWell(),
        kernel=kernel or MALA(),
        schedule=schedule,
        step_size=0.05,
        moves=moves,
        tuning=tuning,
    )


def test_the_increment_has_the_right_sign_on_an_asymmetric_pair():
    """At x = 2 the target N(2, 1) is favoured over N(0, 1): the weight must rise by (t' - t) * 2."""
    x = torch.tensor([[2.0]], dtype=torch.float64)
    log_prob = torch.stack([Gaussian(1).log_prob(x), Gaussian(1, 2.0).log_prob(x)], dim=-1)[None]
    before, after = torch.tensor([0.25]).double(), torch.tensor([0.75]).double()
    assert float(tempering_increment(log_prob, before, after)) == pytest.approx(0.5 * 2.0)
    frozen = torch.tensor([[[0.0, -math.inf]]]).double()
    assert float(tempering_increment(frozen, after, after)) == 0.0


def test_conditional_ess_is_the_ess_for_equal_weights_and_one_for_a_constant():
    increment = torch.randn((3, 50), generator=generator_for(0, 0), dtype=torch.float64)
    torch.testing.assert_close(conditional_ess(torch.zeros(3, 50), increment), effective_sample_size(increment) / 50)
    carried = torch.randn((3, 50), generator=generator_for(1, 0), dtype=torch.float64)
    torch.testing.assert_close(conditional_ess(carried, torch.ones(3, 50)), torch.ones(3).double())
    assert conditional_ess(torch.full((1, 4), -math.inf), torch.ones(1, 4)).tolist() == [1.0]


@pytest.mark.parametrize("times", [(), (0.5,), (0.0, 1.0), (0.5, 0.5, 1.0), (0.5, 1.5), (0.3, 0.6, 0.9)])
def test_a_fixed_schedule_must_rise_to_exactly_one(times):
    with pytest.raises(ValueError, match="exactly 1"):
        FixedSchedule(times)


def test_linear_ends_at_exactly_one():
    for n in (1, 3, 7, 49, 1000):
        assert FixedSchedule.linear(n).times[-1] == 1.0


def test_the_adaptive_schedule_keeps_the_conditional_ess_and_ends_at_exactly_one():
    result = smc(
        model(AdaptiveSchedule(cess=0.8, max_steps=60)),
        particles=300,
        populations=5,
        seed=1,
        collectors=[Shared("time"), Shared("acceptance")],
    )
    times = result.collected["time"]
    assert bool((times[-1] == 1.0).all())
    assert bool((times.diff(dim=0) >= 0).all())
    assert bool(((times[0] > 0) & (times[0] < 1)).all())
    x = result.x  # the first increment, by its definition
    assert tuple(x.shape) == (5, 300, 2)
    draws = torch.stack([WIDE.sample(300, generator=g) for g in (_noise(1, p) for p in range(5))])
    ratio = DoubleWell().log_prob(draws) - WIDE.log_prob(draws)
    first = conditional_ess(torch.zeros(5, 300), times[0][:, None] * ratio)
    torch.testing.assert_close(first, torch.full((5,), 0.8, dtype=torch.float64), atol=1e-9, rtol=0)


def _noise(seed, population):
    return generator_for(seed, population, 0)


def test_populations_finish_at_their_own_step_and_do_not_depend_on_each_other():
    adaptive = model(AdaptiveSchedule(cess=0.9, max_steps=60))
    batch = check_batch_equals_singles(adaptive, particles=20, populations=6, seed=2, collectors=[Shared("time")])
    steps = (batch.collected["time"] < 1).sum(dim=0)
    assert len(set(steps.tolist())) > 1  # else the test would show nothing
    assert len(set(batch.population.n_reweightings.tolist())) > 1


@pytest.mark.parametrize("kernel", [MALA(), RandomWalk()])
def test_same_seed_same_output(kernel):
    check_same_seed_same_output(model(FixedSchedule.linear(5), kernel=kernel), particles=30, populations=3, seed=4)


def test_an_exhausted_schedule_says_how_far_it_came():
    with pytest.raises(ScheduleExhausted, match="3 increments reach only t = "):
        smc(model(AdaptiveSchedule(cess=0.99, max_steps=3)), particles=50, seed=1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        AdaptiveSchedule(cess=1.0, max_steps=3)


def test_a_target_of_bounded_support_kills_and_still_reaches_one():
    class HalfPlane(Gaussian):
        def log_prob(self, x):
            return torch.where(x[..., 0] > 0, super().log_prob(x), -math.inf)

    result = smc(
        model(AdaptiveSchedule(0.8, 50), kernel=RandomWalk(), target=HalfPlane(2, 1.0)),
        particles=400,
        populations=2,
        seed=6,
        collectors=[Shared("time")],
    )
    assert bool((result.collected["time"][-1] == 1.0).all())
    alive = result.population.weights > 0
    assert bool((result.x[..., 0][alive] > 0).all())


def test_tuning_moves_the_acceptance_to_its_target():
    tuned = model(FixedSchedule.linear(40), moves=3, tuning=StepSizeTuning(target=0.6, rate=0.5))
    result = smc(tuned, particles=200, populations=3, seed=7, collectors=[Shared("acceptance")])
    late = result.collected["acceptance"][-10:].mean(dim=0)
    torch.testing.assert_close(late, torch.full((3,), 0.6).double(), atol=0.08, rtol=0)


def test_evaluations_are_counted_and_none_is_wasted():
    """One batched call at the start and one for each move: nothing is evaluated twice."""

    class Counting(DoubleWell):
        rows = 0

        def log_prob_and_score(self, x):
            Counting.rows += x.shape[0]
            return super().log_prob_and_score(x)

    smc(model(FixedSchedule.linear(4), moves=2, target=Counting()), particles=10, populations=3, seed=1)
    assert Counting.rows == 30 * (1 + 4 * 2)
