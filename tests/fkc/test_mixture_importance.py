"""Mixture importance sampling: exact identities, settings, bad input; control variates on their own."""

import math
from dataclasses import dataclass

import pytest
import torch

from feynkac.fkc import (
    NonFiniteWeightWarning,
    ParetoWarning,
    PopulationCollapsed,
    WeightError,
    generator_for,
    normal,
    regress_controls,
    sample_mixture,
)
from feynkac.fkc.control_variates import least_squares
from feynkac.fkc.mixture_adaptation import floored_allocation, mixture_variances, optimal_mixture
from feynkac.fkc.testing import Gaussian, check_inputs_untouched

TARGET = Gaussian(1, normalized=False)
TRIO = [Gaussian(1), Gaussian(1, 3.5), Gaussian(1, -3.0, 1.2)]
FUNCTIONS = {"tail": lambda x: (x[:, 0] > 3).double(), "square": lambda x: x[:, 0] ** 2}
quiet = pytest.mark.filterwarnings("ignore::feynkac.fkc.ParetoWarning")


def draw(components=TRIO, target=TARGET.log_prob, functions=FUNCTIONS, **options):
    return sample_mixture(components, target, functions, **({"draws": 400, "rounds": 2, "seed": 1} | options))


# regression on controls


def rows(n, *columns, seed=0):
    noise = normal([generator_for(seed, 0)], (n, 3))[0]
    return noise, torch.stack([noise[:, c] for c in columns], dim=1)


def test_a_linear_function_of_the_controls_is_known_exactly():
    _, c = rows(50, 0, 1)
    found = regress_controls(4.0 + 2.0 * c[:, 0] - c[:, 1], c)
    assert abs(float(found.means[0]) - 4.0) < 1e-14
    assert float(found.std_errors[0]) < 1e-14
    assert abs(float(found.plain_means[0]) - 4.0) > 0.01
    torch.testing.assert_close(found.coefficients[:, 0], torch.tensor([2.0, -1.0], dtype=torch.float64))


def test_dependent_controls_change_nothing():
    noise, c = rows(200, 0, 1)
    f = noise[:, 0].exp() + noise[:, 2]
    once = regress_controls(f, c)
    more = regress_controls(f, torch.cat([c, c.sum(dim=1, keepdim=True), 0 * c[:, :1]], dim=1))
    torch.testing.assert_close(once.means, more.means, rtol=1e-12, atol=0)
    torch.testing.assert_close(once.covariance, more.covariance, rtol=1e-9, atol=0)
    assert (once.rank, more.rank) == (2, 2)


def test_no_controls_give_the_mean_and_its_standard_error():
    noise, c = rows(100, 0)
    found = regress_controls(noise, c[:, :0])
    torch.testing.assert_close(found.means, noise.mean(dim=0))
    torch.testing.assert_close(found.covariance, torch.cov(noise.T) / 100)
    assert found.rank == 0


def test_equal_rows_of_a_group_count_as_one_draw():
    """Every draw repeated three times and labelled: same estimate, same error; unlabelled the error is too small."""
    noise, c = rows(150, 0)
    f, w = noise[:, 0].exp(), noise[:, 1].exp()
    alone = regress_controls(f, c, weights=w)
    label = torch.arange(150).repeat(3)
    grouped = regress_controls(f.repeat(3), c.repeat(3, 1), weights=w.repeat(3), groups=label * 7 - 4)
    torch.testing.assert_close(alone.means, grouped.means)
    torch.testing.assert_close(alone.covariance, grouped.covariance)
    ignored = regress_controls(f.repeat(3), c.repeat(3, 1), weights=w.repeat(3))
    assert float(ignored.std_errors[0]) < 0.65 * float(alone.std_errors[0])


def test_the_scale_of_weights_does_not_matter():
    noise, c = rows(80, 0)
    w = noise[:, 1].exp()
    first, second = (regress_controls(noise, c, weights=s * w) for s in (1.0, 1e250))
    torch.testing.assert_close(first.means, second.means)
    assert_symmetric(first.covariance)


def test_weighted_coefficients_minimise_the_estimated_variance():
    noise, c = rows(400, 0, 1)
    f, w = noise[:, 0] ** 3 + noise[:, 2], noise[:, 1].exp()
    w = w / w.sum()
    found = regress_controls(f, c, weights=w)

    def variance(b):
        e = f - c @ b
        return float((w * (e - w @ e)).square().sum())

    best = found.coefficients[:, 0]
    for step in (torch.tensor([0.01, 0.0]), torch.tensor([0.0, -0.01]), torch.tensor([-0.01, 0.01])):
        assert variance(best) < variance(best + step.double())
    wrong = least_squares((w.sqrt()[:, None] * c), (w.sqrt() * f)[:, None]).coefficients[:, 0]  # weights w, not w^2
    assert variance(wrong) > 1.02 * variance(best)


def test_folds_take_their_coefficients_from_each_other():
    noise, c = rows(40, 0, 1)
    f = noise[:, 2] + 3 * noise[:, 0]
    even, odd = torch.arange(0, 40, 2), torch.arange(1, 40, 2)

    def slope(part):
        x, y = c[part] - c[part].mean(dim=0), f[part] - f[part].mean()
        return torch.linalg.lstsq(x, y[:, None]).solution[:, 0]

    found = regress_controls(f, c, folds=2)
    expected = (f[even] - c[even] @ slope(odd)).sum() + (f[odd] - c[odd] @ slope(even)).sum()
    torch.testing.assert_close(found.means[0], expected / 40)
    assert abs(float(regress_controls(f, c).means[0]) - float(expected) / 40) > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": torch.zeros(30, dtype=torch.int64)}, "more independent groups"),
        ({"groups": torch.zeros(30)}, "groups must hold 30 integers"),
        ({"strata": torch.arange(30)}, "at least two independent groups"),
        ({"strata": torch.arange(30) % 2, "groups": torch.arange(30) // 3}, "two strata"),
        ({"folds": 0}, "folds"),
        ({"controls": torch.full((30, 1), math.nan)}, "finite"),
        ({"controls": torch.zeros(29, 1)}, "same n"),
        ({"weights": torch.ones(29)}, "shape"),
    ],
)
def test_bad_input_to_the_regression(change, message):
    arguments = {"values": torch.arange(30.0), "controls": torch.ones(30, 1)} | change
    with pytest.raises(ValueError, match=message):
        regress_controls(arguments.pop("values"), arguments.pop("controls"), **arguments)


def test_few_draws_for_many_controls_keep_honest_errors():
    """Fourteen draws, four controls that explain nothing: the error knows that coefficients are noise."""
    noise = normal([generator_for(3, 0)], (1500, 14, 5))[0]
    found = [regress_controls(x[:, 0], x[:, 1:]) for x in noise]
    error = float(torch.stack([f.means[0] for f in found]).square().mean())
    claimed = float(torch.stack([f.covariance[0, 0] for f in found]).mean())
    assert 0.8 < claimed / error < 1.5
    uncorrected = [(x[:, :1] - x[:, 1:] @ f.coefficients).var() / 14 for x, f in zip(noise, found, strict=True)]
    assert float(torch.stack(uncorrected).mean()) < 0.6 * error


@pytest.mark.parametrize("weights", [-torch.ones(30), torch.zeros(30), torch.full((30,), math.inf)])
def test_weights_without_meaning(weights):
    with pytest.raises(WeightError):
        regress_controls(torch.arange(30.0), torch.ones(30, 1), weights=weights)


def assert_symmetric(covariance):
    torch.testing.assert_close(covariance, covariance.T)
    assert float(torch.linalg.eigvalsh(covariance).min()) > -1e-12 * float(covariance.abs().max())


# the best mixture


def adaptation_case(n=3000):
    g = generator_for(5, 0)
    x = torch.cat([c.sample(n // 3, generator=g) for c in TRIO])
    densities = torch.stack([c.log_prob(x) for c in TRIO], dim=1).exp()
    q = densities.mean(dim=1)
    f = torch.stack([(x[:, 0] > 3) / 1.35e-3, (x[:, 0] < -2) / 2.28e-2, x[:, 0].double()], dim=1)
    return f * (Gaussian(1).log_prob(x).exp() / q)[:, None], densities / q[:, None]


@pytest.mark.parametrize("objective", ["max", "sum"])
@pytest.mark.parametrize("controls", [True, False])
def test_the_mixture_is_the_best_of_a_grid(objective, controls):
    integrands, ratios = adaptation_case()
    floors = torch.full((3,), 0.02, dtype=torch.float64)

    def value(weights):
        found = mixture_variances(weights, integrands, ratios, controls=controls)[0]
        return float(found.max() if objective == "max" else found.sum())

    start = torch.full((3,), 1 / 3, dtype=torch.float64)
    best = optimal_mixture(integrands, ratios, objective=objective, floors=floors, start=start, controls=controls)
    assert float(best.sum()) == pytest.approx(1.0)
    assert bool((best >= floors - 1e-12).all())
    steps = range(1, 40)
    grid = [torch.tensor([i, j, 40 - i - j]).double() / 40 for i in steps for j in steps if i + j < 40]
    assert value(best) < 1.002 * min(value(w) for w in grid)
    assert value(best) < 0.9 * value(start)


def test_the_variance_is_convex_in_the_weights_and_below_its_bound():
    integrands, ratios = adaptation_case()
    a, b = torch.tensor([0.8, 0.1, 0.1]).double(), torch.tensor([0.1, 0.3, 0.6]).double()
    at_a, bounds = mixture_variances(a, integrands, ratios)
    at_b = mixture_variances(b, integrands, ratios)[0]
    middle = mixture_variances((a + b) / 2, integrands, ratios)[0]
    assert bool((middle <= (at_a + at_b) / 2).all())
    torch.testing.assert_close((bounds / a).sum(dim=1), at_a)
    assert bool((at_b <= (bounds / b).sum(dim=1)).all())


def test_a_component_alone_bounds_the_variance():
    """Owen and Zhou: with controls, at most the variance of component j alone over its weight. Not so without."""
    integrands, ratios = adaptation_case()
    weights = torch.tensor([0.6, 0.2, 0.2]).double()
    found = mixture_variances(weights, integrands, ratios)[0]
    plain = mixture_variances(weights, integrands, ratios, controls=False)[0] - integrands.mean(dim=0).square()
    for j in range(3):
        seen = ratios[:, j] > 0
        second = (integrands[seen].square() / ratios[seen, j][:, None]).sum(dim=0) / len(integrands)
        alone = second - integrands.mean(dim=0).square()
        assert bool((found <= 1.001 * alone / weights[j]).all())
    assert bool((found <= plain).all())


def test_allocation_above_floors():
    floors = torch.tensor([0.1, 0.1, 0.1, 0.1]).double()
    found = floored_allocation(torch.tensor([0.0, 1.0, 2.0, 0.1]).double(), floors)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.8 / 3, 1.6 / 3, 0.1]).double())
    torch.testing.assert_close(floored_allocation(torch.zeros(4).double(), floors), torch.full((4,), 0.25).double())


# the sampler


def test_a_target_among_the_components_has_an_exact_evidence():
    found = draw()
    assert abs(found.log_evidence - TARGET.log_normalizer) < 1e-13
    assert found.log_evidence_std_error < 1e-13
    plain = draw(controls=False)
    assert plain.log_evidence_std_error > 1e-3
    unbiased = found.unbiased()
    assert math.log(unbiased.evidence) + unbiased.log_scale == pytest.approx(TARGET.log_normalizer, abs=1e-12)


@quiet
def test_one_component_that_is_the_target_is_plain_sampling():
    found = draw([Gaussian(1)], draws=500)
    x = found.sample.x[:, 0]
    torch.testing.assert_close(found.estimate.means[1], x.square().mean())
    torch.testing.assert_close(found.estimate.std_errors[1], x.square().std() / 1000**0.5)
    assert found.ess == pytest.approx(1000)


def test_same_seed_same_bits_and_another_seed_another_sample():
    first, again, other = draw(), draw(), draw(seed=2)
    assert torch.equal(first.sample.x, again.sample.x)
    assert torch.equal(first.estimate.covariance, again.estimate.covariance)
    assert not torch.equal(first.sample.x, other.sample.x)


def test_a_first_round_does_not_depend_on_the_rounds_after_it():
    one, three = draw(rounds=1), draw(rounds=3)
    assert torch.equal(one.sample.x, three.sample.x[:400])


def test_counts_floors_and_shares():
    found = draw(rounds=3, defensive=0.3, draws=402)
    assert found.sample.counts.sum() == 3 * 402
    assert bool((found.mixtures >= 0.1 - 2 / 402).all())
    torch.testing.assert_close(found.mixtures.sum(dim=1), torch.ones(3).double())
    expected = (found.sample.counts.double() / 1206 * found.sample.log_densities.exp()).sum(dim=1).log()
    torch.testing.assert_close(found.sample.log_mixture, expected)
    torch.testing.assert_close(draw(initial=[1, 2, 1]).mixtures[0], torch.tensor([0.25, 0.5, 0.25]).double())


def test_a_constant_factor_of_the_target_changes_only_the_evidence():
    first = draw()
    second = draw(target=lambda x: TARGET.log_prob(x) - 5000.0)
    torch.testing.assert_close(first.estimate.means, second.estimate.means)
    assert second.log_evidence == pytest.approx(first.log_evidence - 5000.0)
    assert second.ess == pytest.approx(first.ess)


def test_further_functions_of_the_same_sample():
    both, one = draw(), draw(functions={"tail": FUNCTIONS["tail"]}, rounds=1)
    again = both.with_functions({"square": FUNCTIONS["square"]})
    assert again.estimate["square"] == pytest.approx(both.estimate["square"])
    assert one.with_functions(FUNCTIONS).names == ("tail", "square")


def test_joint_covariance_is_that_of_linear_combinations():
    functions = dict(FUNCTIONS) | {"sum": lambda x: 2 * FUNCTIONS["tail"](x) - FUNCTIONS["square"](x)}
    found = draw(functions=functions).estimate
    assert_symmetric(found.covariance)
    a = torch.tensor([2.0, -1.0]).double()
    torch.testing.assert_close(a @ found.covariance[:2, :2] @ a, found.covariance[2, 2])
    torch.testing.assert_close(a @ found.means[:2], found.means[2])


def test_known_evidence_gives_normalised_estimates():
    found = draw(log_evidence=TARGET.log_normalizer)
    assert found.estimate["square"] == found.normalised(TARGET.log_normalizer)["square"]
    free = draw()
    assert free.normalised(free.log_evidence).means == pytest.approx(free.estimate.means.tolist())


def test_only_the_evidence():
    found = draw([Gaussian(1, 0.3, 1.3), Gaussian(1, 1.0, 2.0)], functions={})
    assert found.estimate.means.shape == (0,)
    assert abs(found.log_evidence - TARGET.log_normalizer) < 5 * found.log_evidence_std_error
    assert not torch.equal(found.mixtures[0], found.mixtures[1])


def test_targets_of_zero_and_nan_are_counted():
    def target(x):
        value = TARGET.log_prob(x)
        return torch.where(x[:, 0] < -1, -math.inf, torch.where(x[:, 0] < 0, math.nan, value))

    with pytest.warns(NonFiniteWeightWarning, match=r"of 800 log-targets are NaN"):
        found = draw(target=target, functions={"log": lambda x: x[:, 0].log()})
    x = found.sample.x[:, 0]
    assert found.n_nan == int(((x >= -1) & (x < 0)).sum())
    assert found.n_zero == int((x < 0).sum())
    assert bool(found.estimate.means.isfinite().all())
    assert abs(found.log_evidence - math.log(math.sqrt(2 * math.pi) / 2)) < 5 * found.log_evidence_std_error


def test_nothing_alive():
    with pytest.raises(PopulationCollapsed):
        draw(target=lambda x: torch.full((len(x),), -math.inf))


def test_heavy_tails_and_unseen_functions_are_warned_of():
    with pytest.warns(ParetoWarning, match="weights"):
        draw([Gaussian(1, 0.0, 0.2)], draws=2000)
    with pytest.warns(ParetoWarning, match="far inf"):
        found = draw(functions={"far": lambda x: (x[:, 0] > 30).double()})
    with pytest.warns(ParetoWarning, match="leverage of 0"):
        draw([Gaussian(1, 0.5, 1.2), Gaussian(1, 0.0, 4.0)], functions={}, draws=60, rounds=1, initial=[0.93, 0.07])
    assert found.estimate["far"] == (0.0, 0.0)
    assert float(found.function_ess[0]) == 0.0


@dataclass(frozen=True)
class Liar:
    """Draws where it says that it has no density."""

    value: float

    def sample(self, n, *, generator):
        return Gaussian(1).sample(n, generator=generator)

    def log_prob(self, x):
        return torch.full((len(x),), self.value, dtype=torch.float64)


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf])
def test_a_component_that_contradicts_its_draws(value):
    with pytest.raises(WeightError, match="components"):
        draw([Gaussian(1), Liar(value)])


def test_an_infinite_target_is_refused():
    with pytest.raises(WeightError, match="log_target"):
        draw(target=lambda x: torch.full((len(x),), math.inf))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 401}, "draws"),
        ({"draws": 8}, "draws"),
        ({"rounds": 0}, "round"),
        ({"components": []}, "component"),
        ({"defensive": 0.0}, "defensive"),
        ({"initial": [1.0, 1.0]}, "initial"),
        ({"functions": {"bad": lambda x: x}}, "'bad': got shape"),
        ({"functions": {"bad": lambda x: x[:, 0] / 0.0}}, "'bad' is not finite"),
        ({"target": lambda x: x}, "log_target: got shape"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        draw(**change)


def test_inputs_are_left_alone():
    noise, c = rows(20, 0)
    weights, label = noise[:, 1].exp(), torch.arange(20) // 2
    check_inputs_untouched(lambda *v: regress_controls(v[0], v[1], weights=v[2], groups=v[3]), noise, c, weights, label)
    check_inputs_untouched(lambda *v: regress_controls(v[0], v[1], folds=2), noise, c)


@quiet
def test_the_smallest_sample_runs():
    found = draw(draws=12)
    assert found.sample.counts.tolist() == [8, 8, 8]
    assert found.max_leverage > 2 * draw().max_leverage
