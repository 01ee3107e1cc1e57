"""The coordinate map: identities, exact Jacobian, closed-form integrals, chirality."""

from __future__ import annotations

import json
import math

import pytest
import torch

from feynkac.flows.domains import Domain, lowest_density_cut, torsion_domain
from feynkac.flows.internal_coordinates import InternalCoordinates, random_rotations
from feynkac.flows.zmatrix import build_zmatrix

MOLECULES = ["water", "peroxide", "methanol", "alanine"]


@pytest.mark.parametrize("name", MOLECULES)
def test_inverse_of_forward_is_the_identity(name, molecules, thermal):
    coordinates = molecules[name]
    generator = torch.Generator().manual_seed(1)
    y = thermal(coordinates, 64, generator)
    x, log_dx_dy = coordinates.inverse(y)
    again, log_dy_dx = coordinates.forward(x)
    assert (again - y).abs().max() < 1e-10
    assert (log_dx_dy + log_dy_dx).abs().max() < 1e-10
    # and from arbitrary positions, turned and shifted: distances come back
    turned = torch.einsum("bij,bnj->bni", random_rotations(64, generator=generator), x) + 0.7
    back = coordinates.inverse(coordinates.forward(turned)[0])[0]
    assert (torch.cdist(back, back) - torch.cdist(x, x)).abs().max() < 1e-10


def test_float32_positions_are_good_to_a_few_ulps(molecules, thermal):
    coordinates = molecules["alanine"]
    y = thermal(coordinates, 64, torch.Generator().manual_seed(2))
    exact, _ = coordinates.inverse(y)
    rounded, _ = coordinates.inverse(y.float())
    assert rounded.dtype == torch.float32
    assert (rounded.double() - exact).abs().max() < 2e-6  # nm


@pytest.mark.parametrize("name", MOLECULES)
def test_log_determinant_is_that_of_autograd(name, molecules, thermal):
    """The Jacobian of (centre, rotation vector, y) -> x at the identity; Haar measure is d^3(rotation) / 8 pi^2."""
    coordinates = molecules[name]
    y = thermal(coordinates, 1, torch.Generator().manual_seed(3))
    n = coordinates.n_atoms

    def place(parameters: torch.Tensor) -> torch.Tensor:
        centre, turn, inner = parameters[:3], parameters[3:6], parameters[6:]
        x = coordinates.inverse(inner[None])[0][0]
        return (centre + x + torch.linalg.cross(turn.expand(n, 3), x)).reshape(-1)

    jacobian = torch.autograd.functional.jacobian(place, torch.cat([torch.zeros(6, dtype=y.dtype), y[0]]))
    expected = torch.linalg.slogdet(jacobian).logabsdet + math.log(8 * math.pi**2)
    assert coordinates.inverse(y)[1].item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("n", [3, 4, 7])
def test_gaussian_chain_has_its_cartesian_partition_function(n):
    """U/kT = k/2 sum |x_i - x_parent|^2 gives Z = (2 pi / k)^(3(N-1)/2); the internal integral factorises."""
    k = 300.0
    r = torch.linspace(0.0, 1.0, 200_001, dtype=torch.float64)
    radial = torch.trapezoid(r * r * torch.exp(-0.5 * k * r * r), r).log().item()
    internal = (n - 1) * radial + (n - 2) * math.log(2.0) + (n - 3) * math.log(2 * math.pi)
    # what log_jacobian contributes besides r^2 sin(theta): at r = 1, theta = pi/2 only the orientations are left
    chain = InternalCoordinates.from_bonds([(i, i + 1) for i in range(n - 1)], "C" * n)
    y = torch.cat([torch.ones(n - 1), torch.full((n - 2,), math.pi / 2), torch.zeros(n - 3)]).double()[None]
    internal += -chain.log_jacobian(y).item()
    assert internal == pytest.approx(1.5 * (n - 1) * math.log(2 * math.pi / k), abs=1e-9)


def test_a_batch_equals_its_members_and_inputs_stay_untouched(molecules, thermal):
    coordinates = molecules["alanine"]
    y = thermal(coordinates, 5, torch.Generator().manual_seed(4))
    before = y.clone()
    x, log_det = coordinates.inverse(y)
    kept = x.clone()
    again, _ = coordinates.forward(x)
    for row in range(5):
        assert torch.equal(coordinates.inverse(y[row : row + 1])[0][0], x[row])
        assert torch.equal(coordinates.forward(x[row : row + 1])[0][0], again[row])
    assert torch.equal(y, before)
    assert torch.equal(x, kept)
    assert log_det.shape == (5,)


def test_torsions_have_the_sign_of_the_field(alanine, alanine_positions):
    """phi and psi of the reference as mdtraj and OpenMM give them."""
    mdtraj = pytest.importorskip("mdtraj")
    topology = mdtraj.Topology()
    residue = topology.add_residue("ALA", topology.add_chain())
    for i in range(22):
        topology.add_atom(str(i), mdtraj.element.carbon, residue)
    frame = mdtraj.Trajectory(alanine_positions.numpy()[None], topology)
    rows = alanine.zmatrix.rows[3:]
    theirs = torch.tensor(mdtraj.compute_dihedrals(frame, rows, periodic=False)[0]).double()
    ours = alanine.forward(alanine_positions[None])[0][0, -19:]
    assert (torch.remainder(ours - theirs + math.pi, 2 * math.pi) - math.pi).abs().max() < 1e-5


def test_heavy_atoms_come_first_from_the_middle_of_the_backbone(alanine):
    order = [row[0] for row in alanine.zmatrix.rows]
    assert order[:3] == [6, 8, 14]  # N, CA, C
    heavy = [alanine.elements[atom] != "H" for atom in order]
    assert heavy == sorted(heavy, reverse=True)
    torsions = [
        row for row, offset in zip(alanine.zmatrix.rows[3:], alanine.zmatrix.offset[3:], strict=True) if not offset
    ]
    assert (4, 6, 8, 14) in torsions  # phi
    assert (16, 14, 8, 6) in torsions  # psi
    assert len(alanine.zmatrix.rotors(alanine.elements)) == 3


def test_the_mirror_image_and_swapped_labels_are_outside(alanine, alanine_positions):
    mirror = alanine_positions * torch.tensor([1.0, 1.0, -1.0])
    swapped = alanine_positions.clone()
    swapped[[11, 12]] = swapped[[12, 11]]
    swapped[[1, 2]] = swapped[[2, 1]]
    inside = alanine.contains(alanine.forward(torch.stack([alanine_positions, mirror, swapped]))[0])
    assert inside.tolist() == [True, False, False]
    assert alanine.restriction is not None
    assert "8 half-circle" in alanine.restriction


def test_relabelling_moves_the_hydrogens_of_a_rotor(alanine, alanine_positions):
    y = alanine.forward(alanine_positions.expand(200, 22, 3))[0]
    moved = alanine.relabelled(y, torch.Generator().manual_seed(5))
    x = alanine.inverse(moved)[0]
    reference = alanine.inverse(y)[0]
    assert bool(alanine.contains(moved).all())
    assert len({tuple(v) for v in moved.mul(1e6).round().tolist()}) == 27
    heavy = [i for i, e in enumerate(alanine.elements) if e != "H"]
    assert (
        torch.cdist(x[:, heavy], x[:, heavy]) - torch.cdist(reference[:, heavy], reference[:, heavy])
    ).abs().max() < 1e-9
    # the set of hydrogens is where it was: sorted distances agree
    sort = lambda p: torch.cdist(p, p).flatten(1).sort(-1).values  # noqa: E731
    assert (sort(x) - sort(reference)).abs().max() < 1e-9


def test_cuts_follow_the_data():
    generator = torch.Generator().manual_seed(6)
    two_basins = torch.cat(
        [torch.randn(5000, generator=generator) * 0.3 - 1.4, torch.randn(500, generator=generator) * 0.2 + 1.0]
    )
    cut = lowest_density_cut(two_basins)
    assert 2.0 < cut < 4.0 or cut < -3.0
    free = torsion_domain(two_basins, stereo=False, reference=0.0)
    assert free.kind == "circular"
    trans = torch.randn(5000, generator=generator) * 0.15 + math.pi
    planar = torsion_domain(trans, stereo=False, reference=math.pi)
    assert planar.kind == "arc"
    assert abs(math.remainder(planar.lower, 2 * math.pi)) < 0.05
    assert planar.wrap(trans).std() < 0.2
    assert torsion_domain(trans, stereo=True, reference=-2.0) == Domain("arc", -math.pi, math.pi)


def test_json_round_trip(alanine):
    record = json.loads(json.dumps(alanine.to_json(), allow_nan=False))
    assert InternalCoordinates.from_json(record) == alanine


def test_rings_are_cut_and_bad_graphs_refused():
    ring = build_zmatrix([(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)], "CCCCC")
    assert sorted(row[0] for row in ring.rows) == list(range(5))
    with pytest.raises(ValueError, match="not connected"):
        build_zmatrix([(0, 1), (1, 2), (3, 4)], "CCCCC")
    with pytest.raises(ValueError, match="does not join"):
        build_zmatrix([(0, 7)], "CCC")
    with pytest.raises(ValueError, match="at least three atoms"):
        build_zmatrix([(0, 1)], "CC")
    with pytest.raises(ValueError, match="reference positions are needed"):
        InternalCoordinates.from_bonds([(0, i) for i in range(1, 5)], "CHHHH")
    with pytest.raises(ValueError, match="must be finite"):
        InternalCoordinates.from_bonds([(0, 1), (0, 2)], "OHH", positions=torch.full((3, 3), math.nan))
