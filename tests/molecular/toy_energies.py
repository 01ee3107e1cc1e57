"""Energies of one atom whose x and y feel a surface known in closed form, with exact averages by quadrature."""

import math
from dataclasses import dataclass

import torch

from feynkac.molecular.energies import EnergyForces
from feynkac.molecular.units import kT

TEMPERATURE = 300.0
KT = kT(TEMPERATURE)
Z_STIFFNESS = 100.0  # kJ/mol/nm^2


class PlanarEnergy:
    """kT times minus a log-density of (x, y) in nm, and a harmonic well along z.

    The log-density is anything with ``log_prob_and_score``, such as the targets of ``feynkac.fkc.testing``.
    """

    topology = None
    n_atoms = 1
    kT = KT

    def __init__(self, target):
        self.target = target
        self.n_calls = self.n_non_finite = 0

    def __call__(self, positions):
        return self.energy_and_forces(positions).energy

    def energy_and_forces(self, positions):
        self.n_calls += len(positions)
        flat = positions[:, 0]
        log_prob, score = self.target.log_prob_and_score(flat[:, :2])
        energy = -KT * log_prob + 0.5 * Z_STIFFNESS * flat[:, 2].square()
        forces = torch.cat([KT * score, -Z_STIFFNESS * flat[:, 2:]], dim=1)
        bad = ~torch.isfinite(energy)
        self.n_non_finite += int(bad.sum())
        energy = energy.double().masked_fill(bad, torch.inf)
        return EnergyForces(energy, forces.masked_fill(bad[:, None], 0.0)[:, None])


@dataclass(frozen=True)
class Wells:
    """Log-density of ``barrier (u^2 - 1)^2 + tilt u / 2`` kT with u = x / width, and of a harmonic well along y.

    Attributes:
        barrier: kT.
        tilt: kT between the wells.
        width: nm from the barrier to a minimum.
        stiffness: kT/nm^2 along y.
    """

    barrier: float = 8.0
    tilt: float = 2.0
    width: float = 0.1
    stiffness: float = 400.0

    def log_prob_and_score(self, x):
        u, y = x[:, 0] / self.width, x[:, 1]
        well = self.barrier * (u.square() - 1).square() + 0.5 * self.tilt * u
        slope = (4 * self.barrier * u * (u.square() - 1) + 0.5 * self.tilt) / self.width
        return -well - 0.5 * self.stiffness * y.square(), -torch.stack([slope, self.stiffness * y], dim=1)

    def probability(self, region):
        """P(region(x)) by quadrature."""
        x = self.width * torch.linspace(-3, 3, 200_001, dtype=torch.float64)
        weight = torch.exp(self.log_prob_and_score(torch.stack([x, torch.zeros_like(x)], dim=1))[0])
        return (weight[region(x)].sum() / weight.sum()).item()

    def probability_left(self):
        """P(x < 0) by quadrature."""
        return self.probability(lambda x: x < 0)


class Springs:
    """Atoms on springs to the origin, of one stiffness (kJ/mol/nm^2) each."""

    topology = None
    kT = KT

    def __init__(self, *stiffness):
        self.stiffness = torch.tensor(stiffness, dtype=torch.float64)
        self.n_atoms = len(stiffness)
        self.n_calls = self.n_non_finite = 0

    def __call__(self, positions):
        return self.energy_and_forces(positions).energy

    def energy_and_forces(self, positions):
        self.n_calls += len(positions)
        forces = -self.stiffness.to(positions)[:, None] * positions
        return EnergyForces(-0.5 * (forces * positions).double().sum(dim=(1, 2)), forces)


class Hole:
    """Another energy, not a number where the first atom's x is beyond ``limit`` nm.

    With ``keep_rules=False`` the energy stays finite and only forces are NaN, against the protocol.
    """

    def __init__(self, energy, limit, *, keep_rules=True):
        self.energy, self.limit, self.keep_rules = energy, limit, keep_rules
        self.n_atoms, self.kT, self.topology = energy.n_atoms, energy.kT, energy.topology

    @property
    def n_calls(self):
        return self.energy.n_calls

    @property
    def n_non_finite(self):
        return self.energy.n_non_finite

    def __call__(self, positions):
        return self.energy_and_forces(positions).energy

    def energy_and_forces(self, positions):
        energy, forces = self.energy.energy_and_forces(positions)
        bad = ~(positions[:, 0, 0] <= self.limit)
        if self.keep_rules:
            return EnergyForces(energy.masked_fill(bad, torch.inf), forces.masked_fill(bad[:, None, None], 0.0))
        return EnergyForces(energy, forces.masked_fill(bad[:, None, None], torch.nan))


@dataclass(frozen=True)
class Along:
    """cos(angle) x + sin(angle) y of the first atom, in nm."""

    name: str = "x"
    angle: float = 0.0
    period = None
    unit = "nm"

    def __call__(self, positions):
        return math.cos(self.angle) * positions[:, 0, 0] + math.sin(self.angle) * positions[:, 0, 1]


def at(x, y=0.0, z=0.0, *, count, dtype=torch.float64):
    """``count`` walkers of one atom at one place, (count, 1, 3)."""
    return torch.tensor([[[x, y, z]]], dtype=dtype).repeat(count, 1, 1)


X = Along("x")
Y = Along("y", math.pi / 2)


def z_score(values, truth):
    """z-score of the mean of independent entries."""
    return ((values.mean() - truth) / (values.std() / math.sqrt(values.numel()))).item()


def probability_z(inside, log_weights, truth):
    """z-score of a weighted probability, walkers being independent: a ratio of sums, by the delta method.

    Args:
        inside: (T, B) bool.
        log_weights: (T, B).
        truth: probability.
    """
    weights = (log_weights - log_weights.max()).exp()
    share, total = (weights * inside).sum(dim=0), weights.sum(dim=0)
    # the sum over walkers of (share - truth total) is zero on average, and walkers are independent
    return z_score(share - truth * total, 0.0)
