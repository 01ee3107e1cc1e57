"""Batched dynamics against closed forms: harmonic wells exactly, double wells by quadrature, with negative controls."""

import math

import pytest
import torch

from feynkac.molecular.dynamics import (
    EnsembleSettings,
    Langevin,
    ReplicaExchange,
    WalkerExploded,
    geometric_temperatures,
    sample_ensemble,
)
from feynkac.molecular.energies import BatchedForceField, EnergyForces
from feynkac.molecular.systems import load_system
from feynkac.molecular.units import GAS_CONSTANT, kT

from .molecules import FORCE_FIELDS, molecule_path


class AnalyticEnergy:
    """A particle in a potential of its coordinates; forces by autograd."""

    topology = None
    n_atoms = 1
    kT = kT(300.0)

    def __init__(self, potential):
        self.potential = potential
        self.n_calls = self.n_non_finite = 0

    def __call__(self, positions):
        self.n_calls += len(positions)
        return self.potential(positions).to(torch.float64)

    def energy_and_forces(self, positions):
        leaf = positions.detach().clone().requires_grad_(True)
        energy = self(leaf)
        (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return EnergyForces(energy.detach(), -gradient)


STIFFNESS = 5000.0  # kJ/mol/nm^2
harmonic = AnalyticEnergy(lambda x: 0.5 * STIFFNESS * x.square().sum(dim=(1, 2)))


def z_of_mean(values, truth):
    """z-score of a mean over independent entries."""
    return ((values.mean() - truth) / (values.std() / math.sqrt(values.numel()))).item()


def test_harmonic_variance_is_exact_at_a_large_time_step():
    """BAOAB has no configurational error for harmonic forces: here omega dt = 0.82."""
    dynamics = Langevin(harmonic, [300.0] * 2000 + [450.0] * 2000, time_step=0.04, friction=5.0)
    generator = torch.Generator().manual_seed(1)
    state = dynamics.init(generator, torch.zeros(4000, 1, 3, dtype=torch.float64))
    state = dynamics.step(generator, state, 300)
    for rows, temperature in ((slice(0, 2000), 300.0), (slice(2000, None), 450.0)):
        squares = state.positions[rows].square().flatten()
        assert abs(z_of_mean(squares, GAS_CONSTANT * temperature / STIFFNESS)) < 5
    # negative control: the variance of the other temperature is refused
    assert abs(z_of_mean(state.positions[:2000].square().flatten(), GAS_CONSTANT * 450.0 / STIFFNESS)) > 5


def test_same_seed_same_bits_and_inputs_untouched():
    dynamics = Langevin(harmonic, 300.0, time_step=0.01, friction=1.0)
    runs = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(4)
        start = dynamics.init(generator, torch.zeros(8, 1, 3, dtype=torch.float64))
        before = {name: value.clone() for name, value in start.state_dict().items()}
        runs.append(dynamics.step(generator, start, 20).state_dict())
        assert all(torch.equal(value, start.state_dict()[name]) for name, value in before.items())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


BARRIER = 25.0  # kJ/mol: ten kT at 300 K
TILT = 4.0  # kJ/mol between the wells


def double_well(x):
    u = x[:, 0, 0] / 0.1
    return BARRIER * (u.square() - 1).square() + 0.5 * TILT * u + 200.0 * x[:, 0, 1:].square().sum(dim=1)


def probability_left(temperature):
    u = torch.linspace(-3, 3, 200_001, dtype=torch.float64)
    weight = torch.exp(-(BARRIER * (u.square() - 1).square() + 0.5 * TILT * u) / (GAS_CONSTANT * temperature))
    return (weight[u < 0].sum() / weight.sum()).item()


class WrongSign(ReplicaExchange):
    """Negative control: accepts exchanges with the inverse of the right ratio."""

    def _exchange(self, generator, energy, parity):
        return super()._exchange(generator, -energy, parity)


def left_fraction(kind):
    energy = AnalyticEnergy(double_well)
    temperatures = geometric_temperatures(300.0, 1500.0, 5)
    exchange = kind(energy, temperatures, ladders=200, steps=20, time_step=0.01, friction=4.0)
    generator = torch.Generator().manual_seed(2)
    start = torch.tensor([[0.1, 0.0, 0.0]], dtype=torch.float64)  # all in the right-hand well
    state = exchange.init(generator, start)
    left = torch.zeros(200, dtype=torch.float64)
    for count, (_, info) in enumerate(exchange.run(generator, state, 500)):
        if count >= 200:
            left += (info.positions[:, 0, 0] < 0).double()
    return left / 300


@pytest.mark.slow
def test_replica_exchange_crosses_a_barrier_of_ten_kt():
    truth = probability_left(300.0)
    assert abs(z_of_mean(left_fraction(ReplicaExchange), truth)) < 5
    assert abs(z_of_mean(left_fraction(WrongSign), truth)) > 5


def test_exchange_permutes_configurations_and_rescales_momenta():
    exchange = ReplicaExchange(harmonic, [300.0, 600.0, 1200.0], ladders=50, steps=1, time_step=1e-9, friction=1e-9)
    generator = torch.Generator().manual_seed(3)
    positions = 0.02 * torch.randn((150, 1, 3), generator=generator, dtype=torch.float64)
    before = exchange.init(generator, positions)
    after, info = exchange.sweep(generator, before)
    assert torch.equal(after.replica.sort(dim=1).values, before.replica)
    moved = after.replica.flatten()
    assert torch.allclose(after.walkers.positions, before.walkers.positions[moved], atol=1e-7)
    assert torch.allclose(after.walkers.energy, harmonic(after.walkers.positions))
    ratio = torch.tensor([300.0, 600.0, 1200.0] * 50, dtype=torch.float64)
    scale = (ratio / ratio[moved]).sqrt()[:, None, None]
    assert torch.allclose(after.walkers.velocities, scale * before.walkers.velocities[moved], rtol=1e-5)
    assert 0 < info.acceptance[0] < 1
    assert math.isnan(info.acceptance[1])


def test_bad_settings_and_explosions_are_named():
    with pytest.raises(ValueError, match="time_step"):
        Langevin(harmonic, 300.0, time_step=-1.0, friction=1.0)
    with pytest.raises(ValueError, match="rising"):
        ReplicaExchange(harmonic, [400.0, 300.0], 1, 1, 0.001, 1.0)
    with pytest.raises(ValueError, match="temperatures"):
        geometric_temperatures(300.0, 300.0, 4)
    steep = AnalyticEnergy(lambda x: 1e9 * x.square().square().sum(dim=(1, 2)))
    dynamics = Langevin(steep, 300.0, time_step=0.1, friction=1.0)
    generator = torch.Generator().manual_seed(0)
    state = dynamics.init(generator, torch.full((3, 1, 3), 0.1))
    with pytest.raises(WalkerExploded, match="walker 0"):
        dynamics.step(generator, state, 50)


@pytest.mark.slow
def test_ensemble_of_a_real_peptide():
    """A short run: the mean energy of alanine dipeptide at 300 K is -59.4 kJ/mol, its spread 13.6 (long runs)."""
    built = load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[0])
    energy = BatchedForceField.from_openmm(built.system)
    settings = EnsembleSettings(ladders=16, replicas=5, melt_ps=2.0, burn_in_ps=10.0, production_ps=20.0)
    ensemble = sample_ensemble(energy, built.positions.float(), settings, torch.Generator().manual_seed(5))
    assert ensemble.positions.shape == (400, 16, 22, 3)
    assert ensemble.energy_calls == energy.n_calls
    assert (ensemble.acceptance > 0.2).all()
    assert ensemble.energy.mean().item() == pytest.approx(-59.4, abs=1.5)
    assert ensemble.energy.std().item() == pytest.approx(13.6, abs=1.0)
    assert torch.allclose(energy(ensemble.positions[-1]), ensemble.energy[-1], atol=1e-2)
