"""The batched force field against OpenMM's Reference platform, term by term and as a whole."""

import itertools

import numpy as np
import openmm as mm
import pytest
import torch
from openmm import app, unit

from feynkac.molecular.energies import (
    BatchedForceField,
    ConstraintsWarning,
    EnergyInputError,
    UnsupportedForceError,
    native_status,
)
from feynkac.molecular.systems import load_system

from .molecules import FORCE_FIELDS, molecule_path

MOLECULES = ("alanine_dipeptide", "tetrapeptide_arip", "chignolin")
BACKENDS = ("torch", "native")


def needs_compiler(backend):
    if backend == "native" and not native_status().available:
        pytest.skip(f"no compiled CPU kernel: {native_status().reason}")


def distorted(system, count, seed=0, scale=0.008):
    """Frames with every atom displaced by a Gaussian of ``scale`` nm: energies hundreds of kT above the minimum."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((count, system.n_atoms, 3), generator=generator, dtype=torch.float64)
    return system.positions[None] + scale * noise


def openmm_truth(system, positions):
    context = mm.Context(system, mm.VerletIntegrator(0.001), mm.Platform.getPlatformByName("Reference"))
    energies, forces = [], []
    for frame in positions:
        context.setPositions(frame.numpy())
        state = context.getState(energy=True, forces=True)
        energies.append(state.getPotentialEnergy()._value)
        forces.append(state.getForces(asNumpy=True)._value)
    return torch.tensor(energies, dtype=torch.float64), torch.from_numpy(np.array(forces))


def assert_agrees(system, positions, backend, dtype=torch.float64, energy_tolerance=1e-3, force_tolerance=1e-2):
    energy, forces = openmm_truth(system, positions)
    batched = BatchedForceField.from_openmm(system, dtype=dtype, backend=backend)
    ours = batched.energy_and_forces(positions.to(dtype))
    assert batched.backend == backend
    assert (ours.energy - energy).abs().max() < energy_tolerance
    assert (ours.forces.double() - forces).abs().max() < force_tolerance
    assert torch.allclose(batched(positions.to(dtype)), ours.energy, rtol=0, atol=energy_tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("force_field", FORCE_FIELDS, ids=" + ".join)
@pytest.mark.parametrize("name", MOLECULES)
def test_agrees_with_openmm_without_cutoff(name, force_field, backend):
    needs_compiler(backend)
    built = load_system(molecule_path(name), force_field=force_field)
    assert_agrees(built.system, distorted(built, 3), backend, energy_tolerance=1e-8, force_tolerance=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("force_field", [*FORCE_FIELDS, ("amber14-all.xml", "implicit/gbn.xml")], ids=" + ".join)
def test_agrees_with_openmm_with_cutoff(force_field, backend):
    needs_compiler(backend)
    built = load_system(
        molecule_path("tetrapeptide_arip"), force_field=force_field, nonbonded_method="CutoffNonPeriodic", cutoff=0.7
    )
    assert_agrees(built.system, distorted(built, 3), backend, energy_tolerance=1e-8, force_tolerance=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_precision_has_its_own_tolerance(backend):
    needs_compiler(backend)
    for name, tolerance in (("alanine_dipeptide", 5e-3), ("chignolin", 5e-2)):
        built = load_system(molecule_path(name), force_field=FORCE_FIELDS[0])
        assert_agrees(built.system, distorted(built, 3), backend, torch.float32, tolerance, 0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_torsion_maps_of_ff19sb(backend):
    needs_compiler(backend)
    built = load_system(molecule_path("chignolin"), force_field=("amber19-all.xml", "implicit/obc2.xml"))
    assert any(isinstance(force, mm.CMAPTorsionForce) for force in built.system.getForces())
    assert_agrees(built.system, distorted(built, 3), backend, energy_tolerance=1e-8, force_tolerance=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["NoCutoff", "CutoffNonPeriodic"])
@pytest.mark.parametrize("sasa", ["ACE", None])
def test_salt_dielectrics_and_no_surface_term(method, sasa, backend):
    needs_compiler(backend)
    pdb = app.PDBFile(str(molecule_path("alanine_dipeptide")))
    system = app.ForceField("amber14-all.xml", "implicit/gbn2.xml").createSystem(
        pdb.topology,
        nonbondedMethod=getattr(app, method),
        nonbondedCutoff=0.8 * unit.nanometer,
        implicitSolventKappa=1.3 / unit.nanometer,
        soluteDielectric=1.7,
        solventDielectric=60.0,
        sasaMethod=sasa,
    )
    built = load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[0])
    assert_agrees(system, distorted(built, 3), backend, energy_tolerance=1e-8, force_tolerance=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reaction_field_exceptions_and_ryckaert_bellemans(backend):
    """Six particles with every parameter generic: phases that are no multiple of pi, a dielectric, odd exceptions."""
    needs_compiler(backend)
    system = mm.System()
    for _ in range(6):
        system.addParticle(12.0)
    nonbonded = mm.NonbondedForce()
    for i in range(6):
        nonbonded.addParticle(0.3 * (-1) ** i + 0.05 * i, 0.25 + 0.02 * i, 0.4 + 0.1 * i)
    nonbonded.addException(0, 1, 0.0, 0.3, 0.0)
    nonbonded.addException(0, 3, 0.11, 0.31, 0.7)
    nonbonded.addException(0, 5, -0.2, 0.28, 0.4)  # beyond the cutoff in some frames: exceptions ignore it
    nonbonded.setNonbondedMethod(nonbonded.CutoffNonPeriodic)
    nonbonded.setCutoffDistance(0.45)
    nonbonded.setReactionFieldDielectric(17.0)
    torsions, polynomial = mm.PeriodicTorsionForce(), mm.RBTorsionForce()
    torsions.addTorsion(0, 1, 2, 3, 3, 0.7, 4.0)
    torsions.addTorsion(3, 2, 1, 0, 2, -1.1, 2.5)
    torsions.addTorsion(1, 2, 3, 4, 6, 2.0, 1.5)
    polynomial.addTorsion(2, 3, 4, 5, 1.0, -2.0, 3.0, 0.5, -1.5, 2.5)
    bonds, angles = mm.HarmonicBondForce(), mm.HarmonicAngleForce()
    bonds.addBond(0, 1, 0.15, 3e4)
    angles.addAngle(0, 1, 2, 1.9, 400.0)
    for force in (nonbonded, torsions, polynomial, bonds, angles, mm.CMMotionRemover()):
        system.addForce(force)
    generator = torch.Generator().manual_seed(3)
    chain = torch.tensor([[0.12 * i, 0.05 * (-1) ** i, 0.03 * i * (i % 3)] for i in range(6)], dtype=torch.float64)
    positions = chain + 0.02 * torch.randn((40, 6, 3), generator=generator, dtype=torch.float64)
    assert_agrees(system, positions, backend, energy_tolerance=1e-8, force_tolerance=1e-6)
    assert BatchedForceField.from_openmm(system).tables.ignored == ("CMMotionRemover",)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("force_field", FORCE_FIELDS[:2], ids=" + ".join)
def test_overlapping_atoms_where_one_sphere_swallows_another(force_field, backend):
    """At 0.01 nm the descreening integral takes its inner branch, which differs between OpenMM's two forces."""
    needs_compiler(backend)
    built = load_system(molecule_path("alanine_dipeptide"), force_field=force_field)
    positions = distorted(built, 2, scale=0.002)
    positions[:, 20] = positions[:, 3] + torch.tensor([0.004, 0.006, -0.007], dtype=torch.float64)
    context_energy, context_forces = openmm_truth(built.system, positions)
    ours = BatchedForceField.from_openmm(built.system, dtype=torch.float64, backend=backend).energy_and_forces(
        positions
    )
    assert torch.allclose(ours.energy, context_energy, rtol=1e-10)
    assert torch.allclose(ours.forces, context_forces, rtol=1e-7, atol=1e-3)


def test_a_dropped_term_would_be_noticed():
    """Negative control: the comparison fails when any one force is missing."""
    built = load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[0])
    positions = distorted(built, 2)
    truth, _ = openmm_truth(built.system, positions)
    for index in range(built.system.getNumForces()):
        system = mm.XmlSerializer.deserialize(mm.XmlSerializer.serialize(built.system))
        if isinstance(system.getForce(index), mm.CMMotionRemover):
            continue
        system.removeForce(index)
        energy = BatchedForceField.from_openmm(system, dtype=torch.float64)(positions)
        assert (energy - truth).abs().max() > 1.0


def test_regression_energies_of_alanine_dipeptide():
    """Totals of a fixed geometry, OpenMM 8.6.1 Reference, kJ/mol."""
    expected = {("amber99sbildn.xml", "amber99_obc.xml", "NoCutoff"): -133.38105}
    expected["amber14-all.xml", "implicit/obc1.xml", "CutoffNonPeriodic"] = -163.12835
    for (protein, solvent, method), energy in expected.items():
        built = load_system(
            molecule_path("alanine_dipeptide"), force_field=(protein, solvent), nonbonded_method=method, cutoff=2.0
        )
        batched = BatchedForceField.from_openmm(built.system, dtype=torch.float64)
        assert batched(built.positions[None]).item() == pytest.approx(energy, abs=2e-5)
        parts = {name: value.item() for name, value in batched.terms(built.positions[None]).items()}
        assert parts["bonds"] == pytest.approx(2.16363, abs=2e-5)
        assert parts["angles"] == pytest.approx(3.23526, abs=2e-5)
        assert sum(parts.values()) == pytest.approx(energy, abs=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autograd_gives_the_forces(backend):
    needs_compiler(backend)
    built = load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[3])
    positions = distorted(built, 5)
    batched = BatchedForceField.from_openmm(built.system, dtype=torch.float64, backend=backend)
    leaf = positions.clone().requires_grad_(True)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * batched(leaf)).sum(), leaf)
    forces = batched.energy_and_forces(positions).forces
    assert torch.allclose(gradient, -weights[:, None, None] * forces, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_equals_its_singles_and_inputs_are_untouched(dtype, backend):
    needs_compiler(backend)
    built = load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[1])
    positions = distorted(built, 37).to(dtype)  # no multiple of the kernel's block
    before = positions.clone()
    batched = BatchedForceField.from_openmm(built.system, dtype=dtype, backend=backend)
    together = batched.energy_and_forces(positions)
    assert torch.equal(positions, before)
    for threads, size in itertools.product((1, 2), (1, 16, 20)):
        kept = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            parts = [batched.energy_and_forces(part) for part in positions.split(size)]
        finally:
            torch.set_num_threads(kept)
        energy, forces = torch.cat([p.energy for p in parts]), torch.cat([p.forces for p in parts])
        if backend == "native":
            assert torch.equal(energy, together.energy)
            assert torch.equal(forces, together.forces)
        else:
            assert torch.allclose(energy, together.energy, rtol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_clashes_become_infinite_and_are_counted(backend):
    needs_compiler(backend)
    built = load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[0])
    batched = BatchedForceField.from_openmm(built.system, dtype=torch.float64, backend=backend)
    positions = distorted(built, 20)
    clean = batched.energy_and_forces(positions)
    broken = positions.clone()
    broken[3, 7, 1] = torch.nan
    broken[5, 2] = broken[5, 9]  # two atoms in one place
    broken[8, 0, 0] = torch.inf
    energy, forces = batched.energy_and_forces(broken)
    bad = torch.zeros(20, dtype=torch.bool)
    bad[[3, 5, 8]] = True
    assert torch.equal(torch.isposinf(energy), bad)
    assert torch.equal(forces[bad], torch.zeros_like(forces[bad]))
    assert torch.allclose(energy[~bad], clean.energy[~bad], rtol=1e-12)
    assert batched.n_non_finite == 3
    assert batched.n_calls == 40


def test_unsupported_forces_are_refused_by_name():
    built = load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[0])

    def with_force(force):
        system = mm.XmlSerializer.deserialize(mm.XmlSerializer.serialize(built.system))
        system.addForce(force)
        return system

    with pytest.raises(UnsupportedForceError, match="CustomExternalForce"):
        BatchedForceField.from_openmm(with_force(mm.CustomExternalForce("x^2")))
    born = mm.CustomGBForce()
    born.addPerParticleParameter("q")
    born.addComputedValue("B", "q", mm.CustomGBForce.SingleParticle)
    with pytest.raises(UnsupportedForceError, match="CustomGBForce"):
        BatchedForceField.from_openmm(with_force(born))
    periodic = app.ForceField("amber99sbildn.xml").createSystem
    topology = app.PDBFile(str(molecule_path("alanine_dipeptide"))).topology
    topology.setPeriodicBoxVectors(np.eye(3) * 3.0)
    with pytest.raises(UnsupportedForceError, match=r"NonbondedForce.*periodic"):
        BatchedForceField.from_openmm(periodic(topology, nonbondedMethod=app.PME))


def test_an_altered_born_expression_is_refused():
    """A model that merely looks like OBC must not be evaluated as OBC."""
    pdb = app.PDBFile(str(molecule_path("alanine_dipeptide")))
    system = app.ForceField("amber14-all.xml", "implicit/obc2.xml").createSystem(pdb.topology)
    text = mm.XmlSerializer.serialize(system)
    for old, new in (
        ("4.85*psi^3", "4.95*psi^3"),
        ("exp(-r^2/(4*B1*B2))", "exp(-r^2/(2*B1*B2))"),
        ("L=max(or1, D)", "L=or1"),
    ):
        assert old in text
        with pytest.raises(UnsupportedForceError, match="CustomGBForce"):
            BatchedForceField.from_openmm(mm.XmlSerializer.deserialize(text.replace(old, new)))


def test_constraints_are_reported():
    built = load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[0], constraints="HBonds")
    with pytest.warns(ConstraintsWarning, match="12 constraints"):
        assert BatchedForceField.from_openmm(built.system).n_constraints == 12


def test_bad_input_is_named():
    built = load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[0])
    other = load_system(molecule_path("chignolin"), force_field=FORCE_FIELDS[0])
    with pytest.raises(EnergyInputError, match=r"138 atoms.*22 particles"):
        BatchedForceField.from_openmm(built.system, topology=other.topology)
    with pytest.raises(EnergyInputError, match="dtype"):
        BatchedForceField.from_openmm(built.system, dtype=torch.float16)
    with pytest.raises(EnergyInputError, match="backend"):
        BatchedForceField.from_openmm(built.system, backend="cuda")
    batched = BatchedForceField.from_openmm(built.system)
    with pytest.raises(EnergyInputError, match=r"\(2, 21, 3\).*\(B, 22, 3\)"):
        batched(torch.zeros(2, 21, 3))
    with pytest.raises(EnergyInputError, match="int64"):
        batched(torch.zeros(2, 22, 3, dtype=torch.int64))


def test_without_a_compiler_everything_works_in_torch(monkeypatch, tmp_path):
    from feynkac.molecular.energies import native

    native._load.cache_clear()
    monkeypatch.setattr(native, "_compiler", lambda: None)
    try:
        built = load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[0])
        assert not native_status().available
        assert "no C++ compiler" in native_status().reason
        batched = BatchedForceField.from_openmm(built.system, dtype=torch.float64)
        assert batched.backend == "torch"
        assert batched(built.positions[None]).item() == pytest.approx(-133.38105, abs=2e-5)
        with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
            BatchedForceField.from_openmm(built.system, backend="native")
    finally:
        native._load.cache_clear()


def test_the_kernel_is_compiled_once_and_cached(monkeypatch, tmp_path):
    needs_compiler("native")
    from feynkac.molecular.energies import native

    monkeypatch.setenv("FEYNKAC_CACHE", str(tmp_path))
    first = native._build()
    stamp = first.stat().st_mtime_ns
    assert native._build() == first
    assert first.stat().st_mtime_ns == stamp
    assert [p.name for p in tmp_path.iterdir()] == [first.name]  # no temporary files left
