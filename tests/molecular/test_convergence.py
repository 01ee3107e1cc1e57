"""Convergence reports: converged walkers pass, and every flaw that is put in is named."""

import math

import pytest
import torch

from feynkac.fkc.testing import calibration
from feynkac.molecular.free_energy import Axis, ConvergenceReport, convergence, count_crossings

from .free_energy_walkers import biased_walkers, exact_difference, log_weights

AXIS = Axis(name="x", lower=-1.8, upper=1.8, bins=18, periodic=False)
REPEATS = 200


def report(x: torch.Tensor, weights: torch.Tensor | None = None) -> ConvergenceReport:
    return convergence(
        x > 0,
        log_weights(x) if weights is None else weights,
        kT=2.494,
        core_a=x > 0.7,
        core_b=x < -0.7,
        values=x,
        axis=AXIS,
    )


def walkers(seed: int, steps: int = 2000, count: int = 8, share: float = 0.75) -> torch.Tensor:
    return biased_walkers(torch.Generator().manual_seed(seed), steps, count, share)


@pytest.fixture(scope="module")
def reports() -> list[ConvergenceReport]:
    x = walkers(5, count=8 * REPEATS).reshape(2000, REPEATS, 8)
    return [report(x[:, r]) for r in range(REPEATS)]


def said(x: torch.Tensor, weights: torch.Tensor | None = None) -> str:
    found = report(x, weights)
    assert found.converged == (not found.verdicts)
    return "; ".join(found.verdicts)


@pytest.mark.slow
def test_converged_walkers_pass(reports):
    assert sum(r.converged for r in reports) >= 0.93 * REPEATS


@pytest.mark.slow
def test_value_and_errors_are_calibrated(reports):
    truth = exact_difference()
    z = torch.tensor([(r.value - truth) / r.std_error for r in reports])
    assert abs(float(z.mean())) < 5 / math.sqrt(REPEATS)
    assert calibration(z).passed
    by_blocks = torch.tensor([(r.value - truth) / r.std_error_blocks for r in reports])
    assert 0.8 < float(by_blocks.square().mean()) < 1.6  # a tenth of the variance is missing by construction
    assert calibration(torch.tensor([r.halves_z for r in reports])).passed
    assert calibration(torch.tensor([r.trend_z for r in reports])).passed
    as_if_independent = torch.tensor([(r.value - truth) / math.sqrt(2 / r.ess) for r in reports])
    assert not calibration(as_if_independent).passed


@pytest.mark.slow
def test_contents_of_a_report(reports):
    first = reports[0]
    assert first.halves.start.tolist() == [0, 1000]
    assert first.segments.stop.tolist() == [400, 800, 1200, 1600, 2000]
    assert first.running.value.shape == (25,)
    assert float(first.running.value[-1]) == pytest.approx(first.value)
    assert float(first.running.std_error[0]) > 2 * float(first.running.std_error[-1])
    assert first.profile is not None
    assert first.profile.value.shape == (2, 18)
    share = torch.exp(-first.profile.value).sum(1)
    assert share.tolist() == pytest.approx([1, 1], abs=0.01)
    assert first.independent < 0.3 * first.ess < 0.3 * 16000
    z = torch.stack([r.profile.z for r in reports if r.profile is not None])[:, 3:-3]
    assert 0.8 < float(z.square().mean()) < 1.5


def test_a_start_in_one_well_is_seen_as_drift():
    x = walkers(6)
    x[:700] = x[:700].abs()
    text = said(x)
    assert "halves differ by" in text
    assert "time segments hold no weight" in text
    x = walkers(7)
    x[:1400:2] = x[:1400:2].abs()  # twice as often right as it should be, in the first two thirds
    assert "estimates drift with time" in said(x)


def test_a_basin_that_was_never_visited():
    x = walkers(8).abs() + 0.01
    text = said(x)
    assert "region B holds no weight" in text
    assert "0 of 8 walkers visited both" in text
    assert "region A holds no weight" in said(-x)
    assert report(x).value == -math.inf
    assert math.isnan(report(x).std_error)


def test_few_crossings_and_walkers_that_stay():
    x = walkers(9).abs() * torch.tensor([1.0] * 4 + [-1.0] * 4)
    x[1000:, 0] *= -1
    text = said(x)
    assert "only 1 crossings" in text
    assert "only 1 of 8 walkers" in text
    assert "correlation times" in text
    assert "effective independent samples" in text


def test_a_short_run_and_a_heavy_tail():
    assert "a walker covers only" in said(walkers(10)[:60])
    x = walkers(11)
    tail = 1.5 * torch.empty_like(x).exponential_(generator=torch.Generator().manual_seed(1))
    assert "Pareto k-hat" in said(x, tail)


def test_frames_without_weight_do_not_count():
    x = walkers(12)
    weights = log_weights(x)
    weights[1500:, 0] = -math.inf
    dead = x.clone()
    dead[1500:, 0] = math.nan
    assert report(dead, weights).value == pytest.approx(report(x, weights).value)
    assert report(dead, weights).profile is not None


def test_regions_of_several_variables_and_the_rest():
    generator = torch.Generator().manual_seed(13)
    x, y = torch.randn(2, 1000, 4, generator=generator, dtype=torch.float64)
    found = convergence((x > 0) & (y > 0), torch.zeros(1000, 4), kT=1.0, in_b=(x < 0) & (y < 0))
    assert abs(found.value) < 5 * found.std_error
    assert found.std_error == pytest.approx(math.sqrt(2 / 1000), rel=0.25)
    assert found.converged
    alone = convergence(x[:, 0] > 1, torch.zeros(1000), kT=1.0)
    assert alone.value == pytest.approx(math.log(0.8413 / 0.1587), abs=5 * alone.std_error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_a": torch.zeros(100, 2)}, "must be"),
        ({"log_weights": torch.zeros(100, 3)}, "must be"),
        ({"in_b": torch.ones(100, 2, dtype=torch.bool)}, "overlap"),
        ({"segments": 2}, "at least 3"),
        ({"segments": 30}, "fewer than 4"),
        ({"kT": -1.0}, "kT"),
        ({"values": torch.zeros(100, 2)}, "both values and axis"),
        ({"values": torch.zeros(99, 2), "axis": AXIS}, "values must be"),
    ],
)
def test_bad_input_is_refused(changes, message):
    arguments = {
        "in_a": torch.arange(200).reshape(100, 2) % 3 == 0,
        "log_weights": torch.zeros(100, 2),
        "kT": 1.0,
    } | changes
    with pytest.raises(ValueError, match=message):
        convergence(**arguments)


def test_crossings_are_counted_with_hysteresis():
    x = torch.tensor([[0.0, 1, 0.1, -0.1, 0.1, -1, -0.1, 0.1, 1, 1], [1.0, -1, 1, -1, 1, -1, 1, -1, 1, -1]]).T
    found = count_crossings(x > 0.5, x < -0.5)
    assert found.a_to_b.tolist() == [1, 5]
    assert found.b_to_a.tolist() == [1, 4]
    assert found.total == 11
    assert found.fraction_both == 1
    # without cores every recrossing of the border counts
    assert count_crossings(x > 0, x < 0).total > found.total


def test_crossings_around_the_circle_have_no_direction():
    """A to B through 0 and through pi are the same event."""
    phi = torch.tensor([-1.5, 0.0, 1.5, 2.8, -2.8, -1.5, 1.5])
    found = count_crossings((phi + 1.5).abs() < 0.3, (phi - 1.5).abs() < 0.3)
    assert (int(found.a_to_b), int(found.b_to_a)) == (2, 1)
    shifted = torch.remainder(phi + 2 * math.pi, 2 * math.pi)
    again = count_crossings((shifted - 2 * math.pi + 1.5).abs() < 0.3, (shifted - 1.5).abs() < 0.3)
    assert again.total == found.total


def test_walkers_that_see_one_core_only():
    x = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, 0.0]])
    found = count_crossings(x > 0.5, x < -0.5)
    assert found.both == 1
    assert found.visited_a.tolist() == [True, True, False]
    assert found.total == 1
    with pytest.raises(ValueError, match="overlap"):
        count_crossings(x > -2, x > -1)
    with pytest.raises(ValueError, match="bool"):
        count_crossings(x, x > 1)


def test_retired_walkers_are_not_counted():
    """Eight living walkers, all in both regions, and 32 that lay dead in A from the start."""
    x = walkers(21)
    dead = torch.full((2000, 32), 1.0, dtype=torch.float64)
    both = torch.cat([x, dead], dim=1)
    weights = torch.cat([log_weights(x), torch.full_like(dead, -math.inf)], dim=1)
    found, alone = report(both, weights), report(x)
    assert found.crossings.walkers == 8
    assert found.crossings.left_out == 32
    assert alone.crossings.left_out == 0
    assert found.crossings.fraction_both == alone.crossings.fraction_both == 1
    assert found.crossings.total == alone.crossings.total
    assert not any("walkers visited both" in verdict for verdict in found.verdicts)
    # negative control: with a weight they count
    counted = report(both, torch.cat([log_weights(x), torch.zeros_like(dead)], dim=1))
    assert counted.crossings.fraction_both == 0.2
    assert any("only 8 of 40 walkers visited both" in verdict for verdict in counted.verdicts)


def test_a_walker_counts_until_it_dies():
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0], [1.0, 0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, -1.0, 1.0]]).T
    alive = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool).T
    found = count_crossings(x > 0.5, x < -0.5, alive=alive)
    assert found.a_to_b.tolist() == [1, 0, 0]
    assert found.b_to_a.tolist() == [1, 0, 0]
    assert found.counted.tolist() == [True, True, False]
    assert (found.walkers, found.left_out, found.both, found.fraction_both) == (2, 1, 1, 0.5)
    assert count_crossings(x > 0.5, x < -0.5).total == 8
    assert math.isnan(count_crossings(x > 0.5, x < -0.5, alive=torch.zeros_like(alive)).fraction_both)
    with pytest.raises(ValueError, match=r"alive must be \(5, 3\) bool"):
        count_crossings(x > 0.5, x < -0.5, alive=alive[:, :2])
    with pytest.raises(ValueError, match=r"core_a must be \(40, 3\) bool, got \(40, 2\)"):
        convergence(torch.arange(120).reshape(40, 3) % 3 == 0, torch.zeros(40, 3), kT=1.0, core_a=torch.ones(40, 2) > 2)


def test_net_flux_into_a_region_is_named():
    """34 walkers go in and one comes out: both halves may agree within their errors, the populations still move."""
    x = torch.full((80, 96), -1.0, dtype=torch.float64)
    for k in range(34):
        x[2 * k + 5 :, k] = 1.0
    x[:40, 95] = 1.0
    x = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = report(x, torch.zeros_like(x))
    assert (found.crossings.entered, found.crossings.left) == (34, 1)
    assert found.crossings.flux_z == pytest.approx(33 / math.sqrt(35))
    text = "; ".join(found.verdicts)
    assert "34 walkers' passages into the region and 1 out of it: the populations are still moving" in text
    assert "the error bar is a lower bound" in text
    # the other way is as bad
    assert "1 walkers' passages into the region and 34 out of it" in said(-x, torch.zeros_like(x))
    # negative control: as many out as in
    x[:, 48:] = -x[:, :48]
    balanced = report(x, torch.zeros_like(x))
    assert balanced.crossings.entered == balanced.crossings.left == 34
    assert not any("passages" in verdict for verdict in balanced.verdicts)
    assert "lower bound" not in said(walkers(14))


@pytest.mark.slow
def test_net_flux_of_converged_walkers_is_within_its_error(reports):
    z = torch.tensor([r.crossings.flux_z for r in reports])
    assert min(r.crossings.total for r in reports) > 50
    assert abs(float(z.mean())) < 5 / math.sqrt(REPEATS)
    assert float(z.square().mean()) < 1.2
    assert not any("passages" in verdict for r in reports for verdict in r.verdicts)


def test_net_flux_of_many_walkers_that_cross_once_or_never():
    """Short walkers in equilibrium, each with an event at most: the worst case for a variance of n + m."""
    generator = torch.Generator().manual_seed(6)
    flips = torch.rand(400, 20, 300, generator=generator) < 0.01
    start = torch.rand(400, 1, 300, generator=generator) < 0.5
    inside = (flips.cumsum(1) % 2 == 1) ^ start
    z = torch.tensor([count_crossings(a, ~a).flux_z for a in inside])
    assert calibration(z).passed
    # negative control: all start outside
    inside = flips.cumsum(1) % 2 == 1
    assert not calibration(torch.tensor([count_crossings(a, ~a).flux_z for a in inside])).passed
    assert count_crossings(inside[0] & False, ~inside[0]).flux_z == 0.0
