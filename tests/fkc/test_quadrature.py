"""Exact targets made of mixtures: two ways to the same answer, and Gaussians by hand."""

import math

import pytest
import torch

from feynkac.fkc.testing.experts import MixtureLaw, gaussian_product
from feynkac.fkc.testing.quadrature import exact_target, quadrature


def mixture(means, std, weights=None):
    return MixtureLaw(torch.tensor(means, dtype=torch.float64), weights or (1.0,) * len(means), std)


LEFT = mixture([[-0.5, 0.0], [0.4, 0.3]], 0.2)


def test_quadrature_agrees_with_the_expansion():
    expanded, log_integral = LEFT.power(3)
    grid, integral = quadrature([LEFT], [3.0])
    assert integral == pytest.approx(log_integral, abs=1e-10)
    mean, _ = expanded.moments()
    torch.testing.assert_close(grid.masses @ grid.points, mean, atol=1e-10, rtol=0)
    assert quadrature([LEFT], [2.0])[1] != pytest.approx(log_integral, abs=0.1)


@pytest.mark.parametrize("powers", [(2.0,), (1.0, 1.0), (1.5, -0.3), (0.4, 0.8)])
def test_products_of_gaussians_are_those_by_hand(powers):
    laws = [mixture([[-0.5]], 0.4), mixture([[0.7]], 0.8)][: len(powers)]
    exact = gaussian_product(*((a, float(law.means), law.std**2) for a, law in zip(powers, laws, strict=True)))
    found = exact_target(laws, powers)
    assert found.log_integral == pytest.approx(exact.log_evidence, abs=1e-9)
    assert float(found.mean) == pytest.approx(exact.mean, abs=1e-9)
    assert found.square == pytest.approx(exact.variance + exact.mean**2, abs=1e-9)
    assert (found.how == "by quadrature") == (powers != (2.0,))


def test_the_density_is_normalised_and_has_the_masses_of_its_modes():
    found = exact_target([mixture([[-1.0], [1.5]], 0.3, (1.0, 2.0))], [2.0])
    assert found.masses.tolist() == pytest.approx([0.2, 0.8], abs=1e-6)  # the modes of q^2 weigh 1 : 4
    (axis,) = found.grid.axes
    assert float(found.grid.log_density.exp().sum() * (axis[1] - axis[0])) == pytest.approx(1.0, abs=1e-9)


def test_three_dimensions_have_an_expansion_or_nothing():
    law = mixture([[0.0, 0.0, 0.0]], 0.2)
    found = exact_target([law], [2.0])
    assert found.masses is None
    assert found.square == pytest.approx(3 * 0.2**2 / 2)
    assert exact_target([law], [1.5]) is None


def test_a_law_that_is_none_has_no_answer():
    """1/q is not integrable: it grows to the edges of every grid."""
    assert exact_target([mixture([[0.0]], 1.0)], [-1.0]) is None


@pytest.mark.parametrize(
    ("laws", "powers", "message"),
    [
        ([LEFT], [1.0, 2.0], "got 2 for 1 laws"),
        ([], [], "got 0 for 0 laws"),
        ([LEFT, mixture([[0.0]], 1.0)], [1.0, 1.0], "dimensions"),
        ([mixture([[0.0], [1.0]], (0.5, 1.0))], [2.0], "several widths"),
        ([mixture([[0.0] * 3], 1.0)], [2.0], "dimension 3, expected 1 or 2"),
    ],
)
def test_what_does_not_fit_is_refused(laws, powers, message):
    with pytest.raises(ValueError, match=message):
        quadrature(laws, powers)


def test_the_integral_counts_widths():
    """Of a Gaussian to the power a in d dimensions, by hand."""
    found = exact_target([mixture([[0.3, -0.2]], 0.5)], [0.5])
    variance = 0.25
    by_hand = 0.5 * 2 * (math.log(2 * math.pi * variance / 0.5) - 0.5 * math.log(2 * math.pi * variance))
    assert found.log_integral == pytest.approx(by_hand, abs=1e-9)
