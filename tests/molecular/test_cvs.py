"""Torsion and distance against mdtraj, finite differences and hand-made geometries."""

import math

import pytest
import torch

from feynkac.molecular.cvs import (
    CollectiveVariable,
    Distance,
    Torsion,
    UnknownAtomError,
    build_variable,
    find_atom,
)


def random_positions(seed: int = 0, batch: int = 40, atoms: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(batch, atoms, 3, generator=generator, dtype=torch.float64)


def mdtraj_of(positions: torch.Tensor):
    mdtraj = pytest.importorskip("mdtraj")
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for n in range(positions.shape[1]):
        topology.add_atom(f"C{n}", mdtraj.element.carbon, residue)
    return mdtraj, mdtraj.Trajectory(positions.numpy(), topology)


def test_torsion_agrees_with_mdtraj():
    positions = random_positions()
    mdtraj, trajectory = mdtraj_of(positions)
    expected = mdtraj.compute_dihedrals(trajectory, [[3, 0, 5, 7]], opt=False)[:, 0]
    value = Torsion(3, 0, 5, 7)(positions)
    torch.testing.assert_close(value, torch.from_numpy(expected).double(), rtol=0, atol=2e-6)
    assert value.min() < -2
    assert value.max() > 2


def test_distance_agrees_with_mdtraj():
    positions = random_positions(1)
    mdtraj, trajectory = mdtraj_of(positions)
    expected = mdtraj.compute_distances(trajectory, [[2, 6]], opt=False)[:, 0]
    torch.testing.assert_close(Distance(2, 6)(positions), torch.from_numpy(expected).double(), rtol=0, atol=1e-6)


def test_torsion_has_the_iupac_sign():
    """Looking along j -> k (here +z), the far bond turned clockwise by 60 degrees is +60 degrees."""
    angle = math.radians(60)
    # Seen by an eye looking along +z, clockwise is from x towards y.
    positions = torch.tensor(
        [[[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [math.cos(angle), math.sin(angle), 1]]], dtype=torch.float64
    )
    torch.testing.assert_close(Torsion(0, 1, 2, 3)(positions), torch.tensor([angle], dtype=torch.float64))


@pytest.mark.parametrize("variable", [Torsion(0, 1, 2, 3), Distance(0, 4)])
def test_gradients_agree_with_finite_differences(variable):
    positions = random_positions(2, batch=6).requires_grad_(True)
    (gradient,) = torch.autograd.grad(variable(positions).sum(), positions)
    step = 1e-6
    period = variable.period
    for atom in range(5):
        for axis in range(3):
            shift = torch.zeros_like(positions)
            shift[:, atom, axis] = step
            with torch.no_grad():
                change = variable(positions + shift) - variable(positions - shift)
            if period is not None:
                change = change - period * torch.round(change / period)
            torch.testing.assert_close(gradient[:, atom, axis], change / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_stay_finite_on_degenerate_geometry(dtype):
    line = torch.tensor([[0.0, 0, 0], [0, 0, 0.1], [0, 0, 0.2], [0, 0.1, 0.3]], dtype=dtype)
    same = torch.zeros(4, 3, dtype=dtype)
    positions = torch.stack([line, same]).requires_grad_(True)
    for variable in (Torsion(0, 1, 2, 3), Distance(0, 1)):
        value = variable(positions)
        (gradient,) = torch.autograd.grad(value.sum(), positions)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()
    assert Torsion(0, 1, 2, 3)(positions).tolist() == [0.0, 0.0]


def test_nan_positions_are_not_hidden():
    positions = random_positions(3, batch=2)
    positions[1, 0, 0] = math.nan
    assert torch.isnan(Torsion(0, 1, 2, 3)(positions)).tolist() == [False, True]
    assert torch.isnan(Distance(0, 1)(positions)).tolist() == [False, True]


@pytest.mark.parametrize("variable", [Torsion(0, 1, 2, 3, name="phi"), Distance(0, 4)])
def test_a_batch_equals_its_members_and_inputs_are_not_modified(variable):
    positions = random_positions(4, batch=7)
    before = positions.clone()
    together = variable(positions)
    assert torch.equal(positions, before)
    assert torch.equal(together, torch.cat([variable(positions[n : n + 1]) for n in range(7)]))
    assert variable(positions.float()).dtype == torch.float32
    assert isinstance(variable, CollectiveVariable)


def test_wrong_atoms_and_shapes_are_refused():
    with pytest.raises(ValueError, match="an atom appears twice"):
        Torsion(0, 1, 1, 2, name="phi")
    with pytest.raises(ValueError, match="integers from 0 on"):
        Distance(0, -1)
    with pytest.raises(ValueError, match=r"shape \(B, N, 3\)"):
        Distance(0, 1)(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="atom 9 is outside the 9 atoms"):
        Distance(0, 9)(random_positions())


@pytest.fixture
def two_chains():
    app = pytest.importorskip("openmm.app")
    topology = app.Topology()
    for chain_id in "AB":
        chain = topology.addChain(chain_id)
        ace = topology.addResidue("ACE", chain, id="1")
        topology.addAtom("C", app.element.carbon, ace)
        ala = topology.addResidue("ALA", chain, id="2")
        for name in ("N", "CA", "C"):
            topology.addAtom(name, app.element.carbon, ala)
    return topology


def test_atoms_by_name(two_chains):
    assert find_atom("B/ALA2:CA", two_chains) == 6
    phi = build_variable("phi", "torsion", ["A/ACE1:C", "A/ALA2:N", 2, "A/ALA2:C"], topology=two_chains)
    assert phi == Torsion(0, 1, 2, 3, name="phi")
    with pytest.raises(UnknownAtomError, match="2 chains"):
        find_atom("ALA2:CA", two_chains)
    with pytest.raises(UnknownAtomError, match=r"no atom 'A/ALA2:CX'.*ALA2:CA"):
        find_atom("A/ALA2:CX", two_chains)
    with pytest.raises(UnknownAtomError, match="write it as ALA2:CA"):
        find_atom("CA", two_chains)


def test_build_variable_refuses_what_it_cannot_build(two_chains):
    with pytest.raises(ValueError, match="known: torsion, distance"):
        build_variable("x", "bend", [0, 1, 2])
    with pytest.raises(ValueError, match="needs 4 atoms, got 3"):
        build_variable("x", "torsion", [0, 1, 2])
    with pytest.raises(ValueError, match="needs a topology"):
        build_variable("x", "distance", ["ALA2:CA", 1])
    with pytest.raises(UnknownAtomError, match="past the last of 8 atoms"):
        build_variable("x", "distance", [0, 8], topology=two_chains)
