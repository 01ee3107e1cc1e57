"""Free energies from metadynamics against quadrature, by z-scores over walkers, with negative controls.

Every test reads the same run in three ways: frozen bias with its weights (must agree), without weights, and the growing
bias with its c(t) weights (must both fail).
"""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, GridAxis, LowerWall, RepulsionBias
from feynkac.fkc.testing import MuellerBrown
from feynkac.molecular.cvs import Distance
from feynkac.molecular.dynamics import MetadynamicsSettings, Restrained, metadynamics

from .toy_energies import KT, Along, PlanarEnergy, Springs, Wells, X, Y, at, probability_z, z_score

pytestmark = pytest.mark.slow

SETTINGS = MetadynamicsSettings(
    walkers=200,
    fill_ps=12.0,
    burn_in_ps=6.0,
    production_ps=24.0,
    time_step=0.005,
    friction=5.0,
    pace=20,
    record_steps=20,
    positions_every=1,
)
WELLS = Wells(barrier=8.0, tilt=2.0)
MUELLER_BROWN = MuellerBrown(0.1)


def worst(inside, log_weights, truths):
    """Largest of |z| over regions; inside (T, B, regions)."""
    z = [abs(probability_z(inside[..., k], log_weights, truth)) for k, truth in enumerate(truths)]
    assert all(math.isfinite(number) for number in z)
    return max(z)


def wells_regions(x):
    edges = torch.tensor([-0.11, -0.08, 0.0, 0.08, 0.11], dtype=torch.float64)
    return torch.stack([x < edge for edge in edges], dim=-1)


@cache
def wells_truth():
    return [WELLS.probability(lambda x, k=k: wells_regions(x)[:, k]) for k in range(5)]


def well_tempered_x():
    variable = BiasVariable("x", 0.02, unit="nm")
    grid = [GridAxis(-0.25, 0.25, 125)]
    return RepulsionBias.well_tempered([variable], kT=KT, bias_factor=8.0, height=1.0, grid=grid)


def test_double_well_well_tempered():
    result = metadynamics(
        PlanarEnergy(WELLS), at(0.1, count=200), [X], well_tempered_x(), SETTINGS, torch.Generator().manual_seed(1)
    )
    inside, truth = wells_regions(result.values[..., 0]), wells_truth()
    assert result.n_retired == result.n_outside == 0
    assert worst(inside, result.log_weights, truth) < 5
    assert worst(inside, torch.zeros_like(result.log_weights), truth) > 5
    growing = result.filling
    assert worst(wells_regions(growing.values[..., 0]), growing.approximate_log_weights, truth) > 5


def test_double_well_opes():
    bias = RepulsionBias.opes([BiasVariable("x", 0.02, unit="nm")], kT=KT, barrier=10.0 * KT)
    result = metadynamics(
        PlanarEnergy(WELLS), at(0.1, count=200), [X], bias, SETTINGS, torch.Generator().manual_seed(2)
    )
    inside, truth = wells_regions(result.values[..., 0]), wells_truth()
    assert worst(inside, result.log_weights, truth) < 5
    assert worst(inside, torch.zeros_like(result.log_weights), truth) > 5


def mueller_brown_regions(points):
    x, y = points[..., 0], points[..., 1]
    return torch.stack([x < -0.2, x > 0.3, (x.abs() < 0.3) & (y < 0.8), y > 1.45], dim=-1)


@cache
def mueller_brown_truth():
    x = torch.linspace(-1.8, 1.4, 1201, dtype=torch.float64)
    y = torch.linspace(-0.6, 2.4, 1201, dtype=torch.float64)
    points = torch.cartesian_prod(x, y)
    weight = MUELLER_BROWN.log_prob(points).exp()
    found = (weight[:, None] * mueller_brown_regions(points)).sum(dim=0) / weight.sum()
    assert found[0].item() == pytest.approx(MUELLER_BROWN.truth.probability_left, abs=2e-4)
    return found.tolist()


MB_SETTINGS = replace(SETTINGS, time_step=0.03, friction=2.0, fill_ps=150.0, burn_in_ps=40.0, production_ps=150.0)


@pytest.mark.parametrize("kind", ["two variables", "rotated axis"])
def test_mueller_brown_well_tempered(kind):
    if kind == "two variables":
        variables, bounds = [X, Y], [(-1.8, 1.4, 64), (-0.6, 2.4, 60)]
    else:
        variables, bounds = [Along("across", -math.pi / 4)], [(-2.5, 2.0, 90)]
    grid = [GridAxis(*bound) for bound in bounds]
    of_bias = [BiasVariable(variable.name, 0.1, unit="nm") for variable in variables]
    bias = RepulsionBias.well_tempered(of_bias, kT=KT, bias_factor=8.0, height=1.0, grid=grid)
    result = metadynamics(
        PlanarEnergy(MUELLER_BROWN),
        at(-0.558, 1.44, count=200),
        variables,
        bias,
        MB_SETTINGS,
        torch.Generator().manual_seed(3),
    )
    inside, truth = mueller_brown_regions(result.positions[:, :, 0]), mueller_brown_truth()
    assert result.n_retired == 0
    assert worst(inside, result.log_weights, truth) < 5
    assert worst(inside, torch.zeros_like(result.log_weights), truth) > 5
    if kind == "two variables":
        growing = result.filling
        assert worst(mueller_brown_regions(growing.values), growing.approximate_log_weights, truth) > 5


def test_restraints_stay_in_the_target():
    """Three springs and a wall on the distance of two atoms, which is also biased; masses differ."""
    springs, masses = Springs(300.0, 300.0, 500.0), (1.0, 5.0, 12.0)
    distance, wall = Distance(0, 1, name="d"), LowerWall(0.15, 800.0)
    variable = BiasVariable("d", 0.02, unit="nm")
    bias = RepulsionBias.well_tempered([variable], kT=KT, bias_factor=5.0, height=1.0, grid=[GridAxis(0.0, 0.8, 200)])
    settings = replace(SETTINGS, mass=masses, fill_ps=4.0, burn_in_ps=3.0, production_ps=20.0, time_step=0.004)
    start = 0.1 * torch.randn((200, 3, 3), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    result = metadynamics(
        springs,
        start,
        [distance],
        bias,
        settings,
        torch.Generator().manual_seed(5),
        restraints=[Restrained(distance, wall, "wall")],
    )
    d = torch.linspace(1e-6, 1.5, 100_001, dtype=torch.float64)
    density = d.square() * torch.exp(-0.25 * 300.0 * d.square() / KT)
    walled = density * torch.exp(-wall.value_and_gradient(d)[0] / KT)

    def score(law):
        weights = (result.log_weights - result.log_weights.max()).exp()
        mean = (law * d).sum() / law.sum()
        return abs(z_score((weights * (result.values[..., 0] - mean)).mean(dim=0), 0.0))

    assert score(walled) < 5
    assert score(density) > 5  # the wall is not weighed out
    assert torch.allclose(result.restraints["wall"], wall.value_and_gradient(result.values[..., 0])[0])
