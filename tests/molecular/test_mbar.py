"""MBAR on Gaussian umbrella windows with known free energies: values, weights, errors, and controls that must fail."""

import math
import random
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from feynkac.fkc.testing import ZTest, calibration
from feynkac.molecular.free_energy import (
    Axis,
    FewEffectiveSamplesWarning,
    Mbar,
    block_groups,
    free_energy_difference,
    mbar,
    mbar_from_biases,
    mbar_surface,
)

from .free_energy_walkers import autoregressive

pymbar = pytest.importorskip("pymbar")

STIFFNESS = 3.0
CENTERS = torch.tensor([-3.0, -1.5, 0.0, 1.5, 3.0], dtype=torch.float64)
COUNTS = [150, 100, 200, 100, 150]
EXACT = 0.5 * math.log(1 + STIFFNESS) + STIFFNESS * CENTERS**2 / (2 * (1 + STIFFNESS))
"""-ln E[exp(-V_k)] under a standard normal, V_k = stiffness / 2 (x - center)^2."""
REPEATS = 200


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def windows(generator: torch.Generator, rho: float = 0.0, scale: int = 1, walkers: int = 1) -> list[torch.Tensor]:
    """Samples of each window, a chain of correlation rho a walker, (n_k, 1); time first, walkers fastest."""
    found = []
    for center, count in zip(CENTERS, COUNTS, strict=True):
        x = autoregressive(generator, rho, scale * count // walkers, walkers).reshape(-1, 1)
        found.append(STIFFNESS * center / (1 + STIFFNESS) + x / math.sqrt(1 + STIFFNESS))
    return found


def solved(values: list[torch.Tensor], **options) -> Mbar:
    biases = [lambda s, c=c: 0.5 * STIFFNESS * (s[:, 0] - c) ** 2 for c in CENTERS]
    return mbar_from_biases(biases, values, 1.0, **options)


def reduced(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * STIFFNESS * (x - CENTERS[:, None]) ** 2


@pytest.fixture(scope="module")
def runs() -> list[tuple[torch.Tensor, Mbar]]:
    generator = torch.Generator().manual_seed(1)
    samples = [windows(generator) for _ in range(REPEATS)]
    return [(torch.cat(values)[:, 0], solved(values)) for values in samples]


@pytest.mark.slow
def test_free_energies_and_their_errors(runs):
    z = torch.stack([(m.free_energies - EXACT + EXACT[0])[1:] / m.std_errors[1:] for _, m in runs])
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(REPEATS)
    unbiased = torch.tensor([(m.unbiased_free_energy + float(EXACT[0])) / m.unbiased_std_error for _, m in runs])
    for column in (*z.T, unbiased):
        assert calibration(column).passed
    pair = [m.difference_of_rounds(1, 3) for _, m in runs]
    assert calibration(torch.tensor([value / error for value, error in pair])).passed


@pytest.mark.slow
def test_pymbars_own_errors_agree_and_are_calibrated(runs):
    z = []
    for x, m in runs[:100]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the solver's options
            solver = pymbar.MBAR(reduced(x).numpy(), COUNTS, rseed=0)
        theirs = solver.compute_free_energy_differences()
        assert torch.tensor(theirs["Delta_f"][0]) == pytest.approx(m.free_energies, abs=1e-6)
        assert torch.tensor(theirs["dDelta_f"][0][1:]) == pytest.approx(m.std_errors[1:], rel=0.2)
        assert m.overlap == pytest.approx(torch.tensor(solver.compute_overlap()["matrix"]), abs=1e-6)
        assert m.overlap_scalar == pytest.approx(solver.compute_overlap()["scalar"], abs=1e-6)
        z.append((theirs["Delta_f"][0] - (EXACT - EXACT[0]).numpy())[-1] / theirs["dDelta_f"][0][-1])
    assert calibration(torch.tensor(z)).passed


@pytest.mark.slow
def test_averages_under_the_weights_are_right_and_without_weights_wrong(runs):
    """Self-normalised moments and shares of a standard normal over repeats."""
    means, plain = [], []
    for x, m in runs:
        w = torch.softmax(m.log_weights, 0)
        means.append(torch.stack([w @ x, w @ x**2, w @ (x > 1).double()]))
        plain.append((x**2).mean())
    exact = (0.0, 1.0, 1 - normal_cdf(1.0))
    for column, truth in zip(torch.stack(means).T, exact, strict=True):
        # the ratio of two sums has a bias of 1 / n, which the sqrt(200) of the z-test still hides
        assert ZTest.from_samples(column, truth).passed
    assert not ZTest.from_samples(torch.stack(plain), 1.0).passed


@pytest.mark.slow
def test_difference_carries_the_errors_of_the_rounds(runs):
    truth = math.log((1 - normal_cdf(1.5)) / normal_cdf(-1.0))
    joint, alone, share = [], [], []
    for x, m in runs:
        found = m.difference(x < -1, kT=1.0, outside=x > 1.5)
        fixed = free_energy_difference(x < -1, m.log_weights, kT=1.0, outside=x > 1.5, bootstrap=0)
        assert found.value == fixed.value
        joint.append((found.value - truth) / found.std_error)
        alone.append((found.value - truth) / fixed.std_error)
        share.append((found.probability - normal_cdf(-1.0)) / found.probability_std_error)
    assert calibration(torch.tensor(joint)).passed
    assert calibration(torch.tensor(share)).passed
    assert float(torch.tensor(alone).square().mean()) > 2  # weights taken as given


@pytest.mark.slow
def test_surface_carries_the_errors_of_the_rounds(runs):
    axis = Axis(name="x", lower=-2.5, upper=2.5, bins=10, periodic=False)
    edges = axis.edges().tolist()
    p = torch.tensor([normal_cdf(b) - normal_cdf(a) for a, b in pairwise(edges)])
    truth, z = -torch.log(p.double() / axis.width), []
    for x, m in runs:
        surface = mbar_surface(m, x, kT=1.0, axes=[axis])
        z.append((surface.free_energy + surface.offset - truth) / surface.std_error)
    scores = torch.stack(z)
    assert float(scores.mean(0).abs().max()) < 7 / math.sqrt(REPEATS)
    assert float(scores.square().mean()) == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_correlated_windows_need_groups_or_an_inefficiency():
    """Ten walkers a window of autocorrelation 0.9, g = 19."""
    generator = torch.Generator().manual_seed(2)
    grouped, scaled, naive = [], [], []
    labels = torch.cat([block_groups(4 * n // 10, 10, 4 * n // 10) + 100 * k for k, n in enumerate(COUNTS)])
    for _ in range(100):
        values = windows(generator, 0.9, scale=4, walkers=10)
        for scores, options in (
            (grouped, {"groups": labels}),
            (scaled, {"inefficiency": [19.0] * 5}),
            (naive, {}),
        ):
            m = solved(values, **options)
            scores.append(float((m.free_energies[-1] - EXACT[-1] + EXACT[0]) / m.std_errors[-1]))
    assert 0.8 < float(torch.tensor(grouped).square().mean()) < 1.5  # ten groups a window
    assert 0.6 < float(torch.tensor(scaled).square().mean()) < 1.5  # chains of 4 to 8 g
    assert float(torch.tensor(naive).square().mean()) > 6


def one_run(seed: int = 3) -> tuple[torch.Tensor, Mbar]:
    values = windows(torch.Generator().manual_seed(seed))
    return torch.cat(values)[:, 0], solved(values)


def test_one_run_against_the_exact_values_and_mixture_weights():
    x, m = one_run()
    assert float(((m.free_energies - EXACT + EXACT[0])[1:] / m.std_errors[1:]).abs().max()) < 4
    f = m.free_energies
    mixture = torch.log(torch.tensor(COUNTS).double()) + f
    expected = -torch.logsumexp(mixture[:, None] - reduced(x), 0)
    assert (m.log_weights - m.log_weights[0]) == pytest.approx(expected - expected[0], abs=1e-9)
    assert m.overlap.sum(1) == pytest.approx(torch.ones(5), abs=1e-6)
    assert 0 < m.overlap_scalar < 1
    assert m.n_dropped == 0
    assert m.counts.tolist() == COUNTS
    # a constant that is added to a bias moves its own free energy only
    shifted = mbar(reduced(x) + torch.tensor([0.0, 500.0, 0.0, -300.0, 0.0])[:, None], COUNTS)
    assert shifted.free_energies - f == pytest.approx(torch.tensor([0.0, 500.0, 0.0, -300.0, 0.0]), abs=1e-6)
    assert m.difference(x > 0, kT=2.0).kT == 2.0


def test_surface_of_two_cells_is_the_share_of_a_region():
    x, m = one_run(8)
    halves = mbar_surface(m, x, kT=2.0, axes=[Axis(name="x", lower=-20, upper=20, bins=2, periodic=False)])
    found = m.difference(x < 0, kT=2.0)
    assert float(halves.density[0]) * 20 == pytest.approx(found.probability)
    assert float(halves.std_error[0]) == pytest.approx(2.0 * found.probability_std_error / found.probability)
    p, q = found.probability, found.probability_outside
    assert found.probability_std_error == pytest.approx(found.std_error * p * q)


def test_one_round_is_plain_reweighting():
    x = windows(torch.Generator().manual_seed(4))[2]
    m = mbar(0.5 * STIFFNESS * x.T**2, [len(x)])
    assert m.log_weights - m.log_weights[0] == pytest.approx(0.5 * STIFFNESS * (x**2 - x[0] ** 2)[:, 0])
    inside = x[:, 0] > 0.3
    fixed = free_energy_difference(inside, m.log_weights, kT=1.0, bootstrap=0)
    assert m.difference(inside, kT=1.0).std_error == pytest.approx(fixed.std_error, rel=1e-6)
    assert m.overlap_scalar == 1


def test_equal_rounds_pool():
    x = torch.randn(400, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    m = mbar(torch.zeros(3, 400), [100, 200, 100])
    assert m.free_energies == pytest.approx(torch.zeros(3), abs=1e-8)
    assert m.ess == pytest.approx(400)
    assert m.difference(x > 0, kT=1.0).std_error == pytest.approx(
        free_energy_difference(x > 0, torch.zeros(400), kT=1.0, bootstrap=0).std_error, rel=0.02
    )


def test_samples_without_finite_values_are_dropped_and_rounds_may_be_empty():
    values = windows(torch.Generator().manual_seed(6))
    clean = solved(values)
    dirty = [torch.cat([part, torch.tensor([[math.nan], [math.inf]])]) for part in values]
    found = solved(dirty)
    assert found.free_energies == pytest.approx(clean.free_energies)
    assert found.n_dropped == 10
    assert (found.log_weights == -math.inf).sum() == 10
    x = torch.cat(dirty)[:, 0]
    assert found.difference(x > 0, kT=1.0).std_error == pytest.approx(
        clean.difference(torch.cat(values)[:, 0] > 0, kT=1.0).std_error
    )
    assert (
        mbar_surface(found, x, kT=1.0, axes=[Axis(name="x", lower=-2, upper=2, bins=4, periodic=False)])
        .std_error.isfinite()
        .all()
    )
    empty = solved([*values[:2], values[2][:0], *values[3:]])
    assert empty.overlap.shape == (4, 4)
    assert abs(float(empty.free_energies[2] - EXACT[2] + EXACT[0])) < 5 * float(empty.std_errors[2])
    assert float(empty.std_errors[2]) > float(clean.std_errors[2])


def test_the_global_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    one_run()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2] == random.getstate()


def test_rounds_that_do_not_overlap_have_no_overlap_scalar():
    x = torch.randn(200, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    far = torch.cat([x[:100], x[100:] + 60.0])
    u = torch.stack([0.5 * far**2, 0.5 * (far - 60) ** 2])
    assert mbar(u, [100, 100]).overlap_scalar < 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": [50, 40]}, "add up"),
        ({"counts": [50, 60, -10]}, "counts"),
        ({"counts": [50.0, 50.0]}, "integers"),
        ({"reduced_biases": torch.zeros(100)}, r"\(K, n\)"),
        ({"reduced_biases": torch.full((2, 100), math.nan)}, "fewer than two"),
        ({"groups": torch.arange(100), "inefficiency": [1.0, 1.0]}, "groups or inefficiency"),
        ({"groups": torch.zeros(100, dtype=torch.long)}, "at least two groups"),
        ({"groups": torch.tensor([0] * 50 + list(range(1, 51)))}, r"round\(s\) \[0\]"),
        ({"groups": torch.arange(50)}, "100 integers"),
        ({"inefficiency": [0.5, 1.0]}, "at least 1"),
    ],
)
def test_bad_input_is_refused(changes, message):
    arguments = {"reduced_biases": torch.zeros(2, 100), "counts": [50, 50]} | changes
    with pytest.raises(ValueError, match=message):
        mbar(arguments.pop("reduced_biases"), arguments.pop("counts"), **arguments)


def test_biases_and_rounds_must_fit():
    with pytest.raises(ValueError, match="1 biases for 2"):
        mbar_from_biases([lambda s: s[:, 0]], [torch.zeros(3, 1)] * 2, 1.0)
    with pytest.raises(ValueError, match="n_k, d"):
        mbar_from_biases([lambda s: s[:, 0]] * 2, [torch.zeros(3, 1), torch.zeros(3, 2)], 1.0)
    with pytest.warns(FewEffectiveSamplesWarning):
        one_run()[1].difference(torch.zeros(700, dtype=torch.bool), kT=1.0)
