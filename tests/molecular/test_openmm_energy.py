"""OpenMM behind the Energy protocol: values, failures, pools."""

import openmm as mm
import pytest
import torch

from feynkac.molecular.energies import (
    BatchedForceField,
    ConstraintsWarning,
    Energy,
    EnergyInputError,
    OpenMMEnergy,
    measure_platforms,
)
from feynkac.molecular.systems import SystemBuildError, load_system

from .molecules import FORCE_FIELDS, molecule_path


@pytest.fixture(scope="module")
def built():
    return load_system(molecule_path("alanine_dipeptide"), force_field=FORCE_FIELDS[0])


def frames(built, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return built.positions[None] + 0.005 * torch.randn((count, 22, 3), generator=generator, dtype=torch.float64)


def test_both_energies_follow_the_protocol_and_agree(built):
    positions = frames(built, 6)
    ours = BatchedForceField.from_openmm(built.system, topology=built.topology, dtype=torch.float64)
    theirs = OpenMMEnergy(built.system, topology=built.topology, platform="Reference")
    for energy in (ours, theirs):
        assert isinstance(energy, Energy)
        assert energy.kT == pytest.approx(2.494338785, abs=1e-8)
        assert energy.topology.getNumAtoms() == energy.n_atoms == 22
    one, two = ours.energy_and_forces(positions), theirs.energy_and_forces(positions)
    assert torch.allclose(one.energy, two.energy, atol=1e-6)
    assert torch.allclose(one.forces, two.forces, atol=1e-5)
    assert torch.equal(theirs(positions), two.energy)
    assert theirs.n_calls == 12


def test_a_bad_configuration_does_not_spoil_the_batch(built):
    positions = frames(built, 5)
    energy = OpenMMEnergy(built.system, platform="Reference")
    clean = energy(positions)
    broken = positions.clone()
    broken[1, 3, 0] = torch.nan
    broken[3, 2] = broken[3, 9]
    values, forces = energy.energy_and_forces(broken)
    assert torch.isposinf(values).tolist() == [False, True, False, True, False]
    assert torch.equal(values[[0, 2, 4]], clean[[0, 2, 4]])
    assert torch.equal(forces[1], torch.zeros(22, 3, dtype=torch.float64))
    assert energy.n_non_finite == 2


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_same_in_the_same_order(built):
    positions = frames(built, 23)
    positions[4, 0, 0] = torch.nan
    alone = OpenMMEnergy(built.system, platform="Reference").energy_and_forces(positions)
    with OpenMMEnergy(built.system, platform="Reference", workers=2) as pool:
        shared = pool.energy_and_forces(positions)
        assert torch.equal(shared.energy, alone.energy)
        assert torch.equal(shared.forces, alone.forces)
        assert torch.equal(pool(positions), alone.energy)


def test_the_platform_is_chosen_by_measurement(built):
    speeds = measure_platforms(built.system, built.positions, seconds=0.05, threads=(1, 2))
    assert {"Reference", "CPU"} <= {s.platform for s in speeds}
    assert [s.per_second for s in speeds] == sorted((s.per_second for s in speeds), reverse=True)
    energy = OpenMMEnergy(built.system)
    assert energy.platform == "auto"
    energy(frames(built, 1))
    assert energy.platform in {s.platform for s in speeds}


def test_from_files_and_empty_batches():
    with pytest.warns(ConstraintsWarning, match="12 constraints"):
        energy = OpenMMEnergy.from_files(
            molecule_path("alanine_dipeptide"), FORCE_FIELDS[0], platform="Reference", constraints="HBonds"
        )
    assert energy.n_constraints == 12
    assert energy(torch.zeros(0, 22, 3)).shape == (0,)


def test_bad_input_is_named(built):
    with pytest.raises(EnergyInputError, match=r"platform.*'GPU'.*Reference"):
        OpenMMEnergy(built.system, platform="GPU")
    with pytest.raises(EnergyInputError, match="workers"):
        OpenMMEnergy(built.system, workers=-1)
    with pytest.raises(EnergyInputError, match=r"\(2, 5, 3\)"):
        OpenMMEnergy(built.system, platform="Reference")(torch.zeros(2, 5, 3))
    chignolin = load_system(molecule_path("chignolin"), force_field=FORCE_FIELDS[0])
    with pytest.raises(EnergyInputError, match=r"138 atoms.*22 particles"):
        OpenMMEnergy(built.system, topology=chignolin.topology)


def edited(tmp_path, edit):
    lines = molecule_path("alanine_dipeptide").read_text().splitlines(keepends=True)
    target = tmp_path / "edited.pdb"
    target.write_text("".join(edit(lines)))
    return target


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [x for x in lines if " HA  ALA" not in x], r"residue ALA 2 does not fit.*lacks HA"),
        (lambda lines: [x.replace("ALA", "XYZ") for x in lines], r"residue XYZ 2 is unknown"),
        (lambda lines: [x.replace("   3.549  -1.311", "     nan  -1.311") for x in lines], "not a finite number"),
        (lambda lines: [], "no atoms|could not be read"),
    ],
    ids=["missing atom", "unknown residue", "NaN coordinate", "empty file"],
)
def test_broken_structures_are_explained(tmp_path, edit, message):
    original = molecule_path("alanine_dipeptide").read_text()
    path = edited(tmp_path, edit)
    assert path.read_text() != original
    with pytest.raises(SystemBuildError, match=message):
        load_system(path, force_field=FORCE_FIELDS[0])


def test_unknown_settings_are_refused(tmp_path):
    pdb = molecule_path("alanine_dipeptide")
    with pytest.raises(SystemBuildError, match="no such file"):
        load_system(tmp_path / "missing.pdb", force_field=FORCE_FIELDS[0])
    with pytest.raises(SystemBuildError, match="force_field"):
        load_system(pdb, force_field=["amber99sbildnn.xml"])
    with pytest.raises(SystemBuildError, match=r"nonbonded_method: got 'PME'.*NoCutoff"):
        load_system(pdb, force_field=FORCE_FIELDS[0], nonbonded_method="PME")
    with pytest.raises(SystemBuildError, match="cutoff"):
        load_system(pdb, force_field=FORCE_FIELDS[0], cutoff=-1.0)


def test_names_elements_and_bonds(built):
    assert built.atom_names[8] == "ALA2-CA"
    assert built.elements[:6] == ["C", "H", "H", "H", "C", "O"]
    assert len(built.bonds) == 21
    assert isinstance(built.system, mm.System)
