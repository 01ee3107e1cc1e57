"""The exact numbers of the testing targets, each found again by quadrature, and their scores by autograd."""

import math

import pytest
import torch

from feynkac.fkc import Autograd, generator_for
from feynkac.fkc.testing import BarrierWell, DoubleWell, Gaussian, ManyWell, MuellerBrown

F64 = torch.float64


def grid(low, high, n):
    """Trapezoid nodes; spectrally accurate where the density vanishes at both ends."""
    return torch.linspace(low, high, n, dtype=F64), (high - low) / (n - 1)


def along_x1(well):
    x, h = grid(-4.0, 4.0, 4001)
    density = well.log_prob(torch.stack([x, torch.zeros_like(x)], dim=-1)).exp()
    return x, density * h


def test_asymmetric_double_well():
    well = DoubleWell.asymmetric()
    x, mass = along_x1(well)
    z = mass.sum()
    assert float(z) == pytest.approx(11784.5092651278, rel=1e-12)
    assert well.log_normalizer == pytest.approx(10.2934797071, abs=1e-10)
    assert well.log_normalizer == pytest.approx(float(z.log()) + math.log(2 * math.pi) / 2, abs=1e-11)
    left = mass[x < 0].sum() + mass[x == 0].sum() / 2
    assert float(left / z) == pytest.approx(well.probability_left, abs=2e-6)  # a cut is not spectral
    assert float((x * mass).sum() / z) == pytest.approx(well.mean, abs=1e-11)
    assert float((x**2 * mass).sum() / z) == pytest.approx(well.second_moment, abs=1e-11)
    p = well.probability_left
    assert well.log_odds_right == pytest.approx(math.log((1 - p) / p), abs=1e-10)


def test_probability_left_of_the_double_well():
    x, h = grid(-4.0, 0.0, 200_001)
    density = DoubleWell().log_prob(torch.stack([x, torch.zeros_like(x)], dim=-1)).exp()
    left = (density.sum() - density[-1] / 2) * h + h**2 / 12 * 0.5  # end correction: f'(0) = 1/2, f'(-4) = 0
    assert float(left) / 11784.5092651278 == pytest.approx(DoubleWell.probability_left, abs=1e-12)


def test_symmetric_double_well():
    _, mass = along_x1(DoubleWell.symmetric())
    assert float(mass.sum()) == pytest.approx(73.1858236819, rel=1e-11)
    assert DoubleWell.symmetric().log_normalizer == pytest.approx(5.21194026987, abs=1e-11)
    with pytest.raises(NotImplementedError, match="tabulated"):
        _ = DoubleWell(-5.0, 0.0).log_normalizer


@pytest.mark.parametrize("height", [1.0, 4.0, 8.0])
def test_barrier_well(height):
    x, h = grid(-5.0, 5.0, 4001)
    mass = BarrierWell(height).log_prob(x[:, None]).exp() * h
    assert math.log(float(mass.sum())) == pytest.approx(BarrierWell(height).log_normalizer, abs=1e-11)


def test_many_well():
    assert ManyWell(6).log_normalizer == pytest.approx(30.8804391212, abs=1e-9)
    assert ManyWell(32).log_normalizer == pytest.approx(164.6956753132, abs=1e-9)
    x = torch.randn((3, 6), generator=generator_for(0, 0), dtype=F64)
    pairs = sum(DoubleWell().log_prob(x[:, 2 * i : 2 * i + 2]) for i in range(3))
    torch.testing.assert_close(ManyWell(6).log_prob(x), pairs)
    with pytest.raises(ValueError, match="even"):
        ManyWell(5)


def mueller_brown_grid(beta):
    x, hx = grid(-5.0, 4.0, 1801)
    y, hy = grid(-4.0, 5.5, 1901)
    points = torch.cartesian_prod(x, y)
    surface = MuellerBrown(beta)
    mass = surface.log_prob(points).exp() * hx * hy
    return points, mass, surface


@pytest.mark.parametrize("beta", [0.04, 0.05, 0.1])
def test_mueller_brown_evidence(beta):
    _, mass, surface = mueller_brown_grid(beta)
    assert math.log(float(mass.sum())) == pytest.approx(surface.log_normalizer, abs=1e-9)


@pytest.mark.parametrize("beta", [0.05, 0.1])
def test_mueller_brown_moments(beta):
    points, mass, surface = mueller_brown_grid(beta)
    mass = mass / mass.sum()
    truth = surface.truth
    assert float((points[:, 0] * mass).sum()) == pytest.approx(truth.mean_x, abs=1e-9)
    assert float((points[:, 1] * mass).sum()) == pytest.approx(truth.mean_y, abs=1e-8)
    assert float((surface.potential(points) * mass).sum()) == pytest.approx(truth.mean_potential, abs=1e-5)
    on_cut = (points[:, 0] + 0.2).abs() < 1e-9
    left = mass[(points[:, 0] < -0.2) & ~on_cut].sum() + mass[on_cut].sum() / 2
    assert float(left) == pytest.approx(truth.probability_left, abs=2e-5)
    expected = {0.05: 1.531082332, 0.1: 3.645804881}[beta]
    assert truth.log_odds_left == pytest.approx(expected, abs=1e-8)


def test_mueller_brown_stationary_points():
    points = torch.tensor([*MuellerBrown.minima, *MuellerBrown.saddles], dtype=F64)
    value, score = MuellerBrown(1.0).log_prob_and_score(points[:, :2])
    torch.testing.assert_close(-value, points[:, 2], atol=2e-6, rtol=0)
    assert float(score.abs().max()) < 2e-3  # coordinates are given to six decimals, curvatures reach 1e3
    for i, point in enumerate(points[:, :2]):
        hessian = torch.autograd.functional.hessian(lambda z: MuellerBrown(1.0).potential(z[None])[0], point)
        n_negative = int((torch.linalg.eigvalsh(hessian) < 0).sum())
        assert n_negative == (0 if i < 3 else 1)
    with pytest.raises(NotImplementedError, match="tabulated"):
        _ = MuellerBrown(0.3).truth


@pytest.mark.parametrize(
    ("target", "d"),
    [
        (Gaussian(3, 0.7, 1.3), 3),
        (Gaussian(3, 0.7, 1.3, normalized=False), 3),
        (DoubleWell(), 2),
        (BarrierWell(4.0), 1),
        (ManyWell(4), 4),
        (MuellerBrown(0.05), 2),
    ],
)
def test_scores_are_gradients(target, d):
    x = torch.randn((5, d), generator=generator_for(1, 0), dtype=F64)
    value, score = target.log_prob_and_score(x)
    expected_value, expected_score = Autograd(target.log_prob).log_prob_and_score(x)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(score, expected_score)
