"""Starting positions that cannot be meant: ångström, NaN, and atoms on one another."""

import math

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, RepulsionBias
from feynkac.molecular.cvs import Distance
from feynkac.molecular.dynamics import Metadynamics, MetadynamicsSettings, WalkersExploded, prepare
from feynkac.molecular.dynamics.relax import check_start, relax
from feynkac.molecular.energies import EnergyForces

from .molecules import molecule_path
from .toy_energies import KT, Springs

openmm = pytest.importorskip("openmm")
app = pytest.importorskip("openmm.app")
unit = pytest.importorskip("openmm.unit")

WALKERS = 3


class Repelling(Springs):
    """Atoms on springs that push each other away as 1/r, with no energy on one spot."""

    def energy_and_forces(self, positions):
        energy, forces = super().energy_and_forces(positions)
        i, j = torch.triu_indices(self.n_atoms, self.n_atoms, 1)
        added = (1e-3 / (positions[:, i] - positions[:, j]).norm(dim=2)).sum(1)
        bad = ~torch.isfinite(added)
        return EnergyForces((energy + added).masked_fill(bad, math.inf), forces.masked_fill(bad[:, None, None], 0.0))


def settings():
    return MetadynamicsSettings(
        walkers=WALKERS, fill_ps=0.4, burn_in_ps=0.1, production_ps=0.3, time_step=0.001, pace=10, record_steps=5
    )


def begin(start, topology, energy=None):
    energy = Repelling(*[100.0] * 22) if energy is None else energy
    energy.topology = topology
    d = Distance(4, 14, name="d")
    bias = RepulsionBias.opes([BiasVariable("d", 0.02, unit="nm")], kT=KT, barrier=20.0)
    run = settings()
    calls = energy.n_calls
    try:
        return prepare(run.method(energy, [d], bias), start, run, torch.Generator().manual_seed(1))
    finally:
        begin.calls = energy.n_calls - calls


@pytest.fixture(scope="module")
def file():
    return app.PDBFile(str(molecule_path("alanine_dipeptide")))


@pytest.fixture
def start(file):
    return torch.tensor(file.getPositions(asNumpy=True)._value, dtype=torch.float64)


def test_angstrom_are_refused_before_any_energy(file, start):
    message = r"bond between atoms \d+ \(\w+\d+:\w+\) and .* of walker 0 is .* nm long, .*; are these ångström\? .* nm"
    with pytest.raises(ValueError, match=message):
        begin(10 * start, file.topology)
    assert begin.calls == 0
    one = start.repeat(WALKERS, 1, 1)
    one[2] *= 10
    with pytest.raises(ValueError, match="of walker 2"):
        begin(one, file.topology)
    with pytest.raises(ValueError, match=r"expected 0\.03 to 0\.5 nm"):
        begin(start / 10, file.topology)
    assert len(begin(start, file.topology).walkers.positions) == WALKERS
    begin(10 * start, None)  # without a topology there is nothing to check by


def test_a_molecule_across_the_border_of_its_cell_is_taken(file, start):
    boxed = app.PDBFile(str(molecule_path("alanine_dipeptide"))).topology
    boxed.setPeriodicBoxVectors(
        [unit.Quantity(openmm.Vec3(*(3.0 * (k == i) for k in range(3))), unit.nanometer) for i in range(3)]
    )
    split = start[None].clone()
    split[:, 10:] += torch.tensor([3.0, 0.0, -3.0])
    check_start(split, boxed)
    with pytest.raises(ValueError, match="ångström"):
        check_start(split, file.topology)
    with pytest.raises(ValueError, match="ångström"):
        check_start(10 * start[None], boxed)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_place_that_is_not_finite_is_named(file, start, bad):
    walkers = start.repeat(WALKERS, 1, 1)
    walkers[1, 8, 2] = bad
    with pytest.raises(ValueError, match=r"start: atom 8 \(ALA2:CA\) of walker 1 is at \[.*\], which is not finite"):
        begin(walkers, file.topology)
    assert begin.calls == 0
    with pytest.raises(ValueError, match="start: atom 8 of walker 1"):
        begin(walkers, None)


def test_a_start_without_finite_energy_says_so(start):
    spot = start.clone()
    spot[20] = spot[3]
    with pytest.raises(WalkersExploded, match=r"the start has no finite energy \(walker 0"):
        begin(spot, None)
    assert begin.calls == WALKERS
    with pytest.raises(RuntimeError, match="the start has no finite energy: walker 1 "):
        relax(
            Repelling(*[100.0] * 22),
            torch.stack([start, spot]),
            torch.Generator().manual_seed(1),
            temperature=300.0,
            time_step=0.001,
        )


def test_a_rounded_thermal_energy_is_taken():
    def method(kT):
        bias = RepulsionBias.opes([BiasVariable("d", 0.02, unit="nm")], kT=kT, barrier=20.0)
        energy = Springs(1.0, 1.0)
        return Metadynamics(energy, [Distance(0, 1, name="d")], bias, temperature=300.0, time_step=0.001, friction=1.0)

    method(2.494)
    method(2.4943)
    for wrong in (2.48, 2.5, 0.596):
        with pytest.raises(ValueError, match=r"2\.49434 kJ/mol at 300 K.*MetadynamicsSettings\(temperature="):
            method(wrong)
