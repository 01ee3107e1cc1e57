"""Walls and restraints by their formulas."""

import math

import pytest
import torch

from feynkac.fkc.bias import FlatBottom, Harmonic, LowerWall, UpperWall


def _double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


WALLS = [
    UpperWall(1.0, 50.0),
    UpperWall(1.0, 50.0, exponent=4.0, scale=0.5, offset=0.1),
    UpperWall(1.0, 50.0, exponent=1.0),
    LowerWall(0.5, 50.0),
    LowerWall(0.5, 50.0, exponent=3.0, scale=2.0, offset=0.2),
    Harmonic(0.7, 30.0),
    Harmonic(3.0, 30.0, period=2 * math.pi),
    FlatBottom(0.7, 0.2, 30.0),
    FlatBottom(3.0, 0.2, 30.0, period=2 * math.pi),
]


@pytest.mark.parametrize("wall", WALLS, ids=range(len(WALLS)))
def test_slopes_are_those_of_the_values(wall):
    s = torch.linspace(-3.0, 3.0, 241, dtype=torch.float64) + 1e-3
    value, slope = wall.value_and_gradient(s)
    quotient = (wall.value_and_gradient(s + 1e-6)[0] - wall.value_and_gradient(s - 1e-6)[0]) / 2e-6
    assert torch.allclose(slope, quotient, atol=1e-5, rtol=1e-6)
    assert float(value.min()) >= 0.0
    assert float(value.max()) > 0.0


def test_values_by_hand():
    s = torch.tensor([0.9, 1.0, 1.2], dtype=torch.float64)
    assert UpperWall(1.0, 50.0).value_and_gradient(s)[0].tolist() == pytest.approx([0.0, 0.0, 2.0])
    assert LowerWall(1.0, 50.0).value_and_gradient(s)[0].tolist() == pytest.approx([0.5, 0.0, 0.0])
    assert UpperWall(1.0, 50.0, offset=0.2).value_and_gradient(s)[0].tolist() == pytest.approx([0.5, 2.0, 8.0])
    seam = Harmonic(3.1, 10.0, period=2 * math.pi).value_and_gradient(_double([-3.1]))[0]
    assert float(seam) == pytest.approx(5.0 * (2 * math.pi - 6.2) ** 2)
    flat = FlatBottom(0.0, 0.5, 4.0).value_and_gradient(_double([-1.0, 0.4, 0.75]))[0]
    assert flat.tolist() == pytest.approx([0.5, 0.0, 0.125])


@pytest.mark.parametrize("wall", WALLS, ids=range(len(WALLS)))
def test_nan_stays_nan(wall):
    value, slope = wall.value_and_gradient(torch.tensor([math.nan], dtype=torch.float64))
    assert value.isnan().all()
    assert slope.isnan().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: UpperWall(0.0, -1.0),
        lambda: LowerWall(0.0, 1.0, exponent=0.5),
        lambda: Harmonic(0.0, 0.0),
        lambda: FlatBottom(0.0, -0.1, 1.0),
        lambda: UpperWall(0.0, 1.0, scale=0.0),
    ],
    ids=range(5),
)
def test_bad_numbers_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
