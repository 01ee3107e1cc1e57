"""Metadynamics against profiles known by quadrature: how far off, and whether the error bars say so.

A profile must be within 0.1 kT (root mean square over the cells below 6 kT), and the deviations in units of their own
error bars must have variance one. ``tests/benchmarks/bench_known_pmfs.py`` runs every case with twenty seeds.
"""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, GridAxis, RepulsionBias
from feynkac.fkc.testing import MuellerBrown, ZTest
from feynkac.molecular.cvs import CallableVariable
from feynkac.molecular.dynamics import MetadynamicsSettings, metadynamics
from feynkac.molecular.free_energy import Axis, free_energy_surface

from ..molecular.toy_energies import KT, PlanarEnergy, Wells

WALKERS = 512


@dataclass(frozen=True)
class Case:
    """A surface, the direction s = cos(angle) x + sin(angle) y that is biased, and how to run.

    ``box`` bounds the quadrature, ``ends`` the profile and the bias; lengths are in steps. Along x Mueller-Brown
    hides a barrier that the bias does not see: its walkers need a long burn-in.
    """

    target: object
    angle: float
    sigma: float
    ends: tuple[float, float]
    box: tuple[tuple[float, float], tuple[float, float]]
    start: tuple[float, float]
    time_step: float = 0.01
    kind: str = "well_tempered"
    melt: int = 0
    fill: int = 2500
    burn_in: int = 1500
    production: int = 5000

    @property
    def direction(self):
        return torch.tensor([math.cos(self.angle), math.sin(self.angle)], dtype=torch.float64)

    @property
    def axis(self):
        return Axis(name="s", lower=self.ends[0], upper=self.ends[1], bins=30, periodic=False)

    def variable(self):
        return CallableVariable(lambda p: p[:, 0, :2] @ self.direction.to(p), name="s", unit="nm")

    def bias(self):
        variable = BiasVariable("s", self.sigma, unit="nm")
        grid = [GridAxis.fine_enough(variable, *self.ends)]
        if self.kind == "opes":
            return RepulsionBias.opes([variable], kT=KT, barrier=12 * KT, grid=grid)
        return RepulsionBias.well_tempered([variable], kT=KT, bias_factor=10.0, height=3.0, grid=grid)

    def settings(self):
        return MetadynamicsSettings(
            walkers=WALKERS, fill_ps=self.fill * self.time_step, burn_in_ps=self.burn_in * self.time_step,
            production_ps=self.production * self.time_step, melt_ps=self.melt * self.time_step,
            melt_temperature=900.0, pace=10, record_steps=25, fill_record_steps=500,
            time_step=self.time_step, friction=2.0, mass=12.0,
        )  # fmt: skip


MB = MuellerBrown(0.05)
MB_BOX = ((-3.0, 2.2), (-1.6, 3.4))
CASES = {
    "double well": Case(Wells(), 0.0, 0.015, (-0.19, 0.19), ((-0.3, 0.3), (-0.3, 0.3)), (-0.1, 0.0), burn_in=6000),
    "Mueller-Brown in x": Case(
        MB, 0.0, 0.1, (-1.6, 1.3), MB_BOX, (-0.56, 1.44), 0.06, melt=4000, fill=6000, burn_in=30000, production=9000
    ),
    "Mueller-Brown in y": Case(MB, math.pi / 2, 0.1, (-0.6, 2.2), MB_BOX, (-0.56, 1.44), 0.06),
    "Mueller-Brown, rotated": Case(MB, -math.pi / 4, 0.1, (-2.2, 1.2), MB_BOX, (-0.56, 1.44), 0.06),
    "Mueller-Brown, OPES": Case(MB, -math.pi / 4, 0.1, (-2.2, 1.2), MB_BOX, (-0.56, 1.44), 0.06, kind="opes"),
}

SHARE = dict.fromkeys(CASES, 4) | {"double well": 8, "Mueller-Brown, rotated": 8}
"""Seeds of each case in the tests."""


@cache
def exact(name):
    """-ln p of each cell of the profile, by the midpoint rule along and across the biased direction.

    Each cell has forty points along it. A grid that is not aligned with the cells would put a point more into some than
    into others: errors of 0.02 kT, the size of the error bars.
    """
    case, inside = CASES[name], 40
    normal = torch.stack([-case.direction[1], case.direction[0]])
    corners = torch.cartesian_prod(*(torch.tensor(side, dtype=torch.float64) for side in case.box))
    along, across = corners @ case.direction, corners @ normal
    width, (first, last) = case.axis.width, case.ends
    before, after = math.ceil((first - float(along.min())) / width), math.ceil((float(along.max()) - last) / width)
    cells = torch.arange(-before * inside, (case.axis.bins + after) * inside, dtype=torch.float64)
    s = first + width * (cells + 0.5) / inside
    t = torch.linspace(float(across.min()), float(across.max()), 3001, dtype=torch.float64)
    t = (t[1:] + t[:-1]) / 2
    mass = torch.cat([_mass_along(case, some, t, normal) for some in torch.split(s, 300)])
    mass = mass.reshape(-1, inside).sum(1)
    return -torch.log(mass[before : before + case.axis.bins] / mass.sum() / width)


def _mass_along(case, s, t, normal):
    """Sums of the density over t at each s, up to a factor."""
    points = s[:, None, None] * case.direction + t[:, None] * normal
    return torch.exp(case.target.log_prob_and_score(points.reshape(-1, 2))[0]).reshape(len(s), -1).sum(1)


def runs(name, seeds):
    """Deviations from the exact profile in kT, their error bars, and deviations without weights, (seeds, cells)."""
    case = CASES[name]
    found = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        start = torch.tensor([[*case.start, 0.0]], dtype=torch.float64)
        result = metadynamics(
            PlanarEnergy(case.target), start, [case.variable()], case.bias(), case.settings(), generator
        )

        def profile(log_weights, result=result, seed=seed):
            return free_energy_surface(
                result.values.flatten(), log_weights.flatten(), kT=KT, axes=[case.axis], bootstrap=100, seed=seed,
                groups=result.groups,
            )  # fmt: skip

        weighted, plain = profile(result.log_weights), profile(torch.zeros_like(result.log_weights))
        deviations = [p.free_energy_kT + p.offset / KT - exact(name) for p in (weighted, plain)]
        found.append([deviations[0], weighted.std_error_kT, deviations[1]])
    low = exact(name) - exact(name).min() < 6.0
    return tuple(torch.stack(part)[:, low] for part in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seeds"), SHARE.items(), ids=SHARE)
def test_profiles_are_those_of_quadrature(name, seeds):
    deviations, errors, unweighted = runs(name, seeds)
    rms = deviations.square().mean(dim=1).sqrt()
    assert float(rms.mean()) < 0.06
    assert float(rms.max()) < 0.1  # of the worst seed
    assert float(unweighted.square().mean(dim=1).sqrt().min()) > 0.5  # the biased law itself
    z = deviations / errors
    squares = z.square().mean(dim=1)  # of a seed; cells are correlated, seeds are not
    assert 0.6 < float(squares.mean()) < 1.6  # few seeds, each a handful of independent cells
    assert float((2 * z).square().mean()) > 2.2  # halved error bars would be noticed
    for test in (ZTest.from_samples(squares, 1.0), ZTest.from_samples(z.mean(dim=1), 0.0)):
        assert test.passed, str(test)
