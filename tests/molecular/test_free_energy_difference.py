"""Free-energy differences against quadrature, their errors over repeats, and controls that must fail."""

import math
import warnings

import pytest
import torch

from feynkac.fkc.testing import calibration
from feynkac.molecular.free_energy import FewEffectiveSamplesWarning, Region, free_energy_difference

KT = 2.494


def double_well(x: torch.Tensor) -> torch.Tensor:
    """Reduced energy of an asymmetric double well, in kT."""
    return 4.0 * (x * x - 1) ** 2 + 0.9 * x


def exact_difference() -> float:
    """ln P(x < 0) / P(x > 0) of the double well by the trapezoid rule."""
    x = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    p = torch.exp(-double_well(x))
    return math.log(float(p[x < 0].sum() / p[x > 0].sum()))


def draw(generator: torch.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of a broad Gaussian and their raw log-weights for the double well."""
    x = 0.2 + 1.2 * torch.randn(n, generator=generator, dtype=torch.float64)
    return x, -double_well(x) + 0.5 * ((x - 0.2) / 1.2) ** 2 + 7.0


def z_scores(use_weights: bool, repeats: int = 300, n: int = 1500) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    truth, scores = exact_difference(), []
    for repeat in range(repeats):
        x, log_weights = draw(generator, n)
        if not use_weights:
            log_weights = torch.zeros_like(log_weights)
        result = free_energy_difference(x > 0, log_weights, kT=KT, bootstrap=60, seed=repeat)
        scores.append((result.value - truth) / result.std_error)
    return torch.tensor(scores)


def test_value_and_error_are_right_over_repeats():
    z = z_scores(use_weights=True)
    assert abs(float(z.mean())) < 5 / math.sqrt(len(z))
    assert 0.85 < float(z.std()) < 1.15


def test_ignoring_the_weights_is_noticed():
    assert abs(float(z_scores(use_weights=False, repeats=20).mean())) > 10


def test_bootstrap_and_delta_method_agree():
    x, log_weights = draw(torch.Generator().manual_seed(2), 4000)
    result = free_energy_difference(x > 0, log_weights, kT=KT, bootstrap=2000, seed=3)
    assert result.std_error == pytest.approx(result.std_error_delta, rel=0.08)
    assert result.value_kJ_mol == pytest.approx(result.value * KT)
    assert result.std_error_kJ_mol == pytest.approx(result.std_error * KT)
    assert result.ess < 4000
    assert 0 < result.ess_inside < result.n_inside
    assert result.n_samples == 4000


def test_equal_weights_give_the_binomial_error():
    inside = torch.arange(1000) < 250
    result = free_energy_difference(inside, torch.full((1000,), -1e4), kT=KT, bootstrap=0)
    assert result.value == pytest.approx(math.log(3))
    assert result.probability == pytest.approx(0.25)
    assert result.probability_std_error == pytest.approx(math.sqrt(0.25 * 0.75 / 999), rel=1e-9)
    assert result.std_error == pytest.approx(result.probability_std_error / (0.25 * 0.75))
    assert (result.ess_inside, result.ess_outside) == (pytest.approx(250), pytest.approx(750))


def test_groups_carry_the_correlation():
    """Every sample repeated ten times: right by group, too small an error by sample."""
    x, log_weights = draw(torch.Generator().manual_seed(4), 1000)
    single = free_energy_difference(x > 0, log_weights, kT=KT, bootstrap=0)
    x10, w10 = x.repeat_interleave(10), log_weights.repeat_interleave(10)
    groups = torch.arange(1000).repeat_interleave(10) * 7 - 3
    grouped = free_energy_difference(x10 > 0, w10, kT=KT, bootstrap=1000, seed=0, groups=groups)
    naive = free_energy_difference(x10 > 0, w10, kT=KT, bootstrap=1000, seed=0)
    assert grouped.value == pytest.approx(single.value)
    assert grouped.std_error_delta == pytest.approx(single.std_error_delta, rel=1e-9)
    assert grouped.std_error == pytest.approx(single.std_error, rel=0.1)
    assert naive.std_error == pytest.approx(single.std_error / math.sqrt(10), rel=0.1)


def test_blocks_of_a_correlated_chain_calibrate_the_error():
    """Autoregressive chains (walkers): errors by walker have z of unit spread, errors by frame do not."""
    generator = torch.Generator().manual_seed(5)
    walkers, steps, rho = 40, 100, 0.9
    labels = torch.arange(walkers).repeat(steps)
    truth = math.log(0.8413447460685429 / 0.15865525393145707)  # P(x < 1) / P(x > 1) of a standard normal
    by_walker, by_frame = [], []
    for _ in range(150):
        x = torch.empty(steps, walkers, dtype=torch.float64)
        x[0] = torch.randn(walkers, generator=generator, dtype=torch.float64)
        for t in range(1, steps):
            noise = torch.randn(walkers, generator=generator, dtype=torch.float64)
            x[t] = rho * x[t - 1] + math.sqrt(1 - rho**2) * noise
        inside, log_weights = x.flatten() > 1, torch.zeros(walkers * steps)
        grouped = free_energy_difference(inside, log_weights, kT=KT, bootstrap=0, groups=labels)
        naive = free_energy_difference(inside, log_weights, kT=KT, bootstrap=0)
        by_walker.append((grouped.value - truth) / grouped.std_error)
        by_frame.append((naive.value - truth) / naive.std_error)
    assert 0.8 < float(torch.tensor(by_walker).std()) < 1.2
    assert float(torch.tensor(by_frame).std()) > 2


def test_same_seed_same_bits_and_zero_weights_count_as_nothing():
    x, log_weights = draw(torch.Generator().manual_seed(6), 500)
    first = free_energy_difference(x > 0, log_weights, kT=KT, seed=1)
    assert first == free_energy_difference(x > 0, log_weights, kT=KT, seed=1)
    assert first.std_error != free_energy_difference(x > 0, log_weights, kT=KT, seed=2).std_error
    more = torch.cat([log_weights, torch.full((50,), -math.inf, dtype=torch.float64)])
    padded = free_energy_difference(torch.cat([x > 0, torch.ones(50, dtype=torch.bool)]), more, kT=KT, seed=1)
    assert padded.value == pytest.approx(first.value, abs=1e-12)
    assert padded.n_inside == first.n_inside
    assert padded.n_samples == 550


def test_small_regions_warn_and_empty_ones_are_infinite_without_an_error():
    with pytest.warns(FewEffectiveSamplesWarning, match="only 5.0 effective samples inside"):
        free_energy_difference(torch.arange(1000) < 5, torch.zeros(1000), kT=KT, bootstrap=0)
    with pytest.warns(FewEffectiveSamplesWarning, match="outside"):
        free_energy_difference(torch.arange(1000) < 990, torch.zeros(1000), kT=KT, bootstrap=0)
    with pytest.warns(FewEffectiveSamplesWarning):
        empty = free_energy_difference(torch.zeros(100, dtype=torch.bool), torch.zeros(100), kT=KT, seed=0)
    assert empty.value == math.inf
    assert math.isnan(empty.std_error)
    with pytest.warns(FewEffectiveSamplesWarning):
        full = free_energy_difference(torch.ones(100, dtype=torch.bool), torch.zeros(100), kT=KT, seed=0)
    assert full.value == -math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free_energy_difference(torch.arange(1000) < 100, torch.zeros(1000), kT=KT, bootstrap=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inside": torch.zeros(3)}, "boolean tensor"),
        ({"log_weights": torch.tensor([0.0, math.nan] * 50)}, "50 NaN"),
        ({"log_weights": torch.full((100,), -math.inf)}, "only weights of zero"),
        ({"seed": None}, "needs a seed"),
        ({"kT": 0.0}, "kT must be positive"),
        ({"groups": torch.zeros(100, dtype=torch.long)}, "at least two groups"),
        ({"groups": torch.zeros(7, dtype=torch.long)}, "100 integers"),
    ],
)
def test_bad_input_is_refused(changes, message):
    arguments = {
        "inside": torch.arange(100) < 50,
        "log_weights": torch.zeros(100),
        "kT": KT,
        "seed": 0,
    } | changes
    with pytest.raises(ValueError, match=message):
        free_energy_difference(**arguments)


def test_regions_on_a_line_and_around_the_circle():
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0, 3.0, math.nan])
    assert Region(0.0, 2.0).contains(values).tolist() == [False, False, False, True, False, False, False]
    around = Region(2.5, -2.5, period=2 * math.pi).contains(values).tolist()
    assert around == [True, False, False, False, False, True, False]
    shifted = Region(0.0, 2.0, period=2 * math.pi).contains(values[:-1] - 2 * math.pi).tolist()
    assert shifted == [False, False, False, True, False, False]
    for wrong in ((1.0, 1.0, None), (2.0, 1.0, None), (0.0, 7.0, 6.28), (0.0, math.inf, None)):
        with pytest.raises(ValueError, match="region"):
            Region(*wrong)


def two_region_scores(groups_of: int, repeats: int = 200) -> torch.Tensor:
    """z of ln P(x > 1) / P(x < -1) of the double well from samples that each occur ``groups_of`` times."""
    generator = torch.Generator().manual_seed(8)
    grid = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    p = torch.exp(-double_well(grid))
    truth, scores = math.log(float(p[grid > 1].sum() / p[grid < -1].sum())), []
    for _ in range(repeats):
        x, log_weights = draw(generator, 1500)
        x, log_weights = x.repeat(groups_of), log_weights.repeat(groups_of)
        found = free_energy_difference(x < -1, log_weights, kT=KT, outside=x > 1, bootstrap=0)
        scores.append((found.value - truth) / found.std_error)
    return torch.tensor(scores)


def test_difference_of_two_regions_is_calibrated():
    z = two_region_scores(1)
    assert abs(float(z.mean())) < 5 / math.sqrt(len(z))
    assert calibration(z).passed
    assert not calibration(two_region_scores(4)).passed


def test_two_regions_of_two_variables():
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    a = (x > 0).all(1)
    b = (x[:, 0] < 0) & (x[:, 1].abs() < 1)
    found = free_energy_difference(a, torch.zeros(4000), kT=KT, outside=b, seed=1, bootstrap=1000)
    assert found.value == pytest.approx(math.log(0.6827 / 2 / 0.25), abs=5 * found.std_error)
    assert found.std_error == pytest.approx(math.sqrt(1 / int(a.sum()) + 1 / int(b.sum())), rel=0.1)
    assert found.std_error == pytest.approx(found.std_error_delta, rel=0.1)
    assert found.probability_outside == pytest.approx(float(b.double().mean()))
    assert found.n_outside == int(b.sum())
    swapped = free_energy_difference(b, torch.zeros(4000), kT=KT, outside=a, bootstrap=0)
    assert swapped.value == pytest.approx(-found.value)


def test_the_rest_is_the_default_second_region():
    x, log_weights = draw(torch.Generator().manual_seed(10), 1000)
    for bootstrap in (0, 50):
        implied = free_energy_difference(x > 0, log_weights, kT=KT, bootstrap=bootstrap, seed=3)
        named = free_energy_difference(x > 0, log_weights, kT=KT, outside=x <= 0, bootstrap=bootstrap, seed=3)
        assert implied == named
    assert implied.probability + implied.probability_outside == pytest.approx(1)
    with pytest.raises(ValueError, match="overlap"):
        free_energy_difference(x > 0, log_weights, kT=KT, outside=x > 1, bootstrap=0)
    with pytest.raises(ValueError, match="outside must be a boolean"):
        free_energy_difference(x > 0, log_weights, kT=KT, outside=x, bootstrap=0)
