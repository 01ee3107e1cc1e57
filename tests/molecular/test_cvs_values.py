"""Values of the kinds against mdtraj, brute force and hand-made geometries; degenerate geometries; seams."""

import math
from itertools import product

import numpy
import pytest
import torch

from feynkac.molecular.cvs import (
    RMSD,
    Angle,
    Cell,
    ContactMap,
    Coordination,
    Distance,
    GyrationRadius,
    Height,
    Lateral,
    Linear,
    NodeDistances,
    PathDistance,
    PathProgress,
    RationalSwitch,
    Superposition,
    Torsion,
    Variables,
    native_pairs,
    periodic_features,
    smoothness,
)
from feynkac.molecular.cvs.rotation import optimal_rotation

ATOMS = 9
CELLS = [
    Cell.from_lengths(0.9, 1.0, 1.3),
    Cell.from_lengths(1.0, 1.1, 1.2, alpha=1.2, beta=1.4, gamma=1.0),
    Cell.from_lengths(2.0, 1.0, 1.0, alpha=1.3, beta=1.0, gamma=0.5),
]
CELL_NAMES = ["orthorhombic", "triclinic", "very skewed"]


def draws(seed: int = 0, batch: int = 40, scale: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, ATOMS, 3, generator=generator, dtype=torch.float64)


def in_mdtraj(positions: torch.Tensor, cell: Cell | None = None):
    mdtraj = pytest.importorskip("mdtraj")
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for n in range(positions.shape[1]):
        topology.add_atom(f"C{n}", mdtraj.element.carbon, residue)
    trajectory = mdtraj.Trajectory(positions.numpy(), topology)
    if cell is not None:
        trajectory.unitcell_vectors = torch.tensor(cell.vectors).float().numpy()[None].repeat(len(positions), 0)
    return mdtraj, trajectory


def close(found: torch.Tensor, expected, atol: float = 3e-6) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64) if isinstance(expected, list) else torch.as_tensor(expected)
    torch.testing.assert_close(found, wanted.double(), rtol=0, atol=atol)


def exact(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_angle_agrees_with_mdtraj():
    positions = draws()
    mdtraj, trajectory = in_mdtraj(positions)
    close(
        Angle(3, 0, 5)(positions), mdtraj.compute_angles(trajectory, [[3, 0, 5]], periodic=False, opt=False)[:, 0], 1e-5
    )


def test_the_angle_is_at_the_middle_atom():
    corner = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 2.0, 0]]], dtype=torch.float64)
    close(Angle(0, 1, 2)(corner), [math.pi / 2], 1e-15)
    close(Angle(1, 0, 2)(corner), [math.atan(2)], 1e-15)


@pytest.mark.parametrize("cell", CELLS, ids=CELL_NAMES)
def test_periodic_distances_agree_with_brute_force(cell):
    positions = draws(1, scale=3.0)
    found = Distance(2, 6, cell=cell)(positions)
    shifts = torch.tensor(list(product(range(-22, 23), repeat=3))).double() @ torch.tensor(
        cell.vectors, dtype=torch.float64
    )
    close(found, (positions[:, 6] - positions[:, 2])[:, None].sub(shifts).norm(dim=-1).min(1).values, 1e-12)


@pytest.mark.parametrize("cell", CELLS[:2], ids=CELL_NAMES[:2])
def test_periodic_distances_agree_with_mdtraj(cell):
    positions = draws(1, scale=0.8)
    mdtraj, trajectory = in_mdtraj(positions, cell)
    expected = mdtraj.compute_distances(trajectory, [[2, 6]], periodic=True, opt=False)[:, 0]
    close(Distance(2, 6, cell=cell)(positions), expected)
    displacement = mdtraj.compute_displacements(trajectory, [[2, 6]], periodic=True, opt=False)[:, 0]
    close(cell.minimum_image(positions[:, 6] - positions[:, 2]), displacement)
    assert (Distance(2, 6)(positions) - Distance(2, 6, cell=cell)(positions)).abs().max() > 0.1


def test_rounding_alone_does_not_find_the_nearest_image_of_a_skewed_cell():
    """The neighbours are needed: fractional rounding is what a careless implementation does."""
    cell = CELLS[2]
    difference = draws(1, scale=3.0)[:, 0]
    vectors = torch.tensor(cell.vectors, dtype=torch.float64)
    rounded = difference - torch.round(difference @ cell.reciprocal().T) @ vectors
    assert (rounded.norm(dim=-1) - cell.minimum_image(difference).norm(dim=-1)).max() > 0.05


def test_gyration_agrees_with_mdtraj():
    positions = draws(2)
    mdtraj, trajectory = in_mdtraj(positions)
    masses = torch.linspace(1, 9, ATOMS).tolist()
    everything = tuple(range(ATOMS))
    close(GyrationRadius(everything)(positions), mdtraj.compute_rg(trajectory))
    # with masses, mdtraj takes distances from the unweighted mean; Steiner's theorem leads to the centre of mass
    weights = torch.tensor(masses).double()
    weights = weights / weights.sum()
    off_centre = ((weights[:, None] * positions).sum(1) - positions.mean(1)).square().sum(-1)
    theirs = torch.from_numpy(mdtraj.compute_rg(trajectory, numpy.array(masses))).double()
    close(GyrationRadius(everything, tuple(masses))(positions), (theirs.square() - off_centre).sqrt())


def test_rmsd_agrees_with_mdtraj():
    positions, references = draws(3), draws(4, batch=1)
    mdtraj, trajectory = in_mdtraj(positions)
    _, reference = in_mdtraj(references)
    atoms = (0, 2, 3, 7, 8)
    close(
        RMSD(Superposition(references, atoms))(positions), mdtraj.rmsd(trajectory, reference, atom_indices=atoms), 1e-5
    )
    align = (1, 4, 5, 6)
    moved = trajectory.superpose(reference, atom_indices=align)
    expected = ((moved.xyz[:, atoms] - reference.xyz[0, atoms]) ** 2).sum(-1).mean(-1) ** 0.5
    close(RMSD(Superposition(references, atoms, align=align))(positions), expected, 1e-5)


def chiral() -> torch.Tensor:
    return torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [0, 0.2, 0], [0, 0, 0.3]]], dtype=torch.float64)


def test_a_mirror_image_is_not_laid_onto_the_molecule():
    """A rotation without the fix of its determinant calls a molecule and its mirror image the same."""
    mirrored = chiral() * torch.tensor([-1.0, 1.0, 1.0])
    atoms = (0, 1, 2, 3)
    found = RMSD(Superposition(chiral(), atoms))(mirrored)
    assert found.item() > 0.05
    x, y = (p[0] - p[0].mean(0) for p in (mirrored, chiral()))
    u, _, vh = torch.linalg.svd(y.T @ x)
    careless = (x @ (u @ vh).T - y).square().sum(-1).mean().sqrt()
    assert careless.item() < 1e-12
    mdtraj, trajectory = in_mdtraj(mirrored)
    _, reference = in_mdtraj(chiral())
    close(found, mdtraj.rmsd(trajectory, reference), 1e-5)


def test_the_rotation_is_the_best_and_proper():
    generator = torch.Generator().manual_seed(5)
    covariance = torch.randn(50, 3, 3, generator=generator, dtype=torch.float64)
    rotation = optimal_rotation(covariance)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    others, _ = torch.linalg.qr(torch.randn(2000, 3, 3, generator=generator, dtype=torch.float64))
    others = others * torch.sign(torch.linalg.det(others))[:, None, None]
    best = torch.einsum("bij,bij->b", rotation, covariance)
    assert (torch.einsum("oij,bij->bo", others, covariance) <= best[:, None] + 1e-12).all()


def test_weights_of_the_rmsd():
    """Two atoms in one place are one atom of twice the weight."""
    positions, references = draws(6), draws(7, batch=1)
    positions[:, 8], references[:, 8] = positions[:, 0], references[:, 0]
    twice = RMSD(Superposition(references, (0, 1, 2, 3, 8)))(positions)
    torch.testing.assert_close(
        RMSD(Superposition(references, (0, 1, 2, 3), weights=(2.0, 1.0, 1.0, 1.0)))(positions), twice
    )


def test_switch():
    plain = RationalSwitch(0.3, 0.1, 6, 10)
    r = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.4, 0.9, 50.0], dtype=torch.float64)
    x = (r - 0.1) / 0.3
    naive = torch.where(x < 0, 1.0, (1 - x**6) / (1 - x**10))
    expected = torch.where((x - 1).abs() < 1e-9, 0.6, naive)
    torch.testing.assert_close(plain(r), expected, rtol=1e-12, atol=0)
    at = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    value = plain(at)
    (slope,) = torch.autograd.grad(value, at, create_graph=True)
    (bend,) = torch.autograd.grad(slope, at)
    assert value.item() == pytest.approx(6 / 10, abs=1e-15)
    # by l'Hopital: n (n - m) / (2 m) / r0
    assert slope.item() == pytest.approx(6 * (6 - 10) / 20 / 0.3, rel=1e-12)
    step = 1e-4
    around = plain(torch.tensor([0.4 - step, 0.4, 0.4 + step], dtype=torch.float64))
    assert bend.item() == pytest.approx(float((around[0] - 2 * around[1] + around[2]) / step**2), rel=1e-4)


@pytest.mark.parametrize(("n", "m"), [(6, None), (6, 12), (8, 12), (1, 2), (3, 7), (12, 24)])
def test_switches_are_finite_and_fall(n, m):
    for dtype in (torch.float32, torch.float64):
        r = torch.linspace(0, 40, 4001, dtype=dtype).requires_grad_(True)
        values = RationalSwitch(0.3, n=n, m=m)(r)
        (slope,) = torch.autograd.grad(values.sum(), r)
        assert torch.isfinite(slope).all()
        assert (slope <= 0).all()
        assert values[0] == 1
        assert values[-1] < 0.02
    default = RationalSwitch(0.3, n=n)(r)
    torch.testing.assert_close(default, 1 / (1 + (r / 0.3) ** n))


def test_whole_exponents_may_be_floats():
    found = RationalSwitch(0.3, n=6.0, m=10.0)
    assert found == RationalSwitch(0.3, n=6, m=10)
    assert (type(found.n), type(found.m)) == (int, int)
    assert RationalSwitch(0.3, n=numpy.float64(4.0)).m == 8
    r = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64)
    assert torch.equal(found(r), RationalSwitch(0.3, n=6, m=10)(r))


def test_coordination_counts_every_pair_once():
    """With a very wide switch every pair counts 1."""
    wide = RationalSwitch(1e4)
    positions = draws(8, batch=2)
    close(Coordination((0, 1), (2, 3, 4), wide)(positions), [6.0, 6.0])
    close(Coordination((0, 1, 2, 3), None, wide)(positions), [6.0, 6.0])
    close(Coordination((0, 1, 2), (0, 1, 2), wide)(positions), [3.0, 3.0])
    close(Coordination((0, 1, 2), (2, 3), wide)(positions), [5.0, 5.0])


def test_coordination_against_a_loop():
    positions = draws(9, batch=4)
    switch = RationalSwitch(0.35, 0.05, 6, 12)
    expected = sum(
        1 / (1 + (((positions[:, i] - positions[:, j]).norm(dim=-1) - 0.05).clamp(min=0) / 0.35) ** 6)
        for i in (0, 1)
        for j in (3, 4, 5)
    )
    close(Coordination((0, 1), (3, 4, 5), switch)(positions), expected, 1e-13)


def test_contact_map_is_plumeds():
    positions = draws(10, batch=3)
    pairs, switch = ((0, 1), (2, 3)), RationalSwitch(0.4)
    contacts = torch.stack([switch(Distance(*pair)(positions)) for pair in pairs], 1)
    w, c = exact(2.0, 0.5), exact(0.3, 0.9)
    close(ContactMap(pairs, switch)(positions), contacts.sum(1), 1e-14)
    close(ContactMap(pairs, switch, (0.3, 0.9), (2.0, 0.5))(positions), (w * (contacts - c)).sum(1), 1e-14)
    squares = ((w * (contacts - c)) ** 2).sum(1)
    close(ContactMap(pairs, switch, (0.3, 0.9), (2.0, 0.5), mode="distance")(positions), squares, 1e-14)


def test_native_pairs():
    line = torch.tensor([[0.1 * k, 0.0, 0.0] for k in range(6)]).double()
    pairs = native_pairs(line, (0, 1, 3, 5), (0, 0, 1, 2), within=0.25, separation=1)
    assert pairs == ((1, 3), (3, 5))
    assert native_pairs(line, (0, 1), (0, 0), within=9.0, separation=1) == ()


def test_path_at_its_nodes_and_between():
    """Along a straight path of equal steps, s is linear in between and z the squared distance, less a constant."""
    nodes = torch.linspace(0.2, 1.2, 11, dtype=torch.float64)[:, None]
    distances = NodeDistances(Variables([Distance(0, 1, "d")]), nodes)
    sharpness = smoothness(distances)
    assert sharpness == pytest.approx(2.3 / 0.01)
    positions = torch.zeros(3, 2, 3, dtype=torch.float64)
    positions[:, 1, 0] = exact(0.5, 0.6, 0.8)
    close(PathProgress(distances, sharpness)(positions), [4.0, 5.0, 7.0], 1e-9)
    closest = -math.log(sum(math.exp(-2.3 * k * k) for k in range(-5, 6))) / sharpness
    close(PathDistance(distances, sharpness)(positions[1:2]), [closest], 1e-5)


def test_path_of_structures_by_hand():
    references, positions = draws(11, batch=3), draws(12, batch=4)
    squared = torch.stack(
        [RMSD(Superposition(references[k : k + 1], (0, 1, 2, 3, 4)))(positions) ** 2 for k in range(3)], 1
    )
    factors = torch.exp(-15.0 * squared)
    distances = Superposition(references, (0, 1, 2, 3, 4))
    expected = (factors * torch.tensor([1.0, 2.0, 3.0])).sum(1) / factors.sum(1)
    close(PathProgress(distances, 15.0)(positions), expected, 1e-12)
    close(PathDistance(distances, 15.0)(positions), -torch.log(factors.sum(1)) / 15.0, 1e-12)
    # far from every node all factors underflow, and nothing becomes NaN
    far = PathProgress(distances, 1e9)(positions)
    assert torch.isfinite(far).all()


def test_differences_along_a_path_go_around_the_circle():
    torsion = Torsion(0, 1, 2, 3)
    positions = draws(13, batch=30)
    value = torsion(positions)
    distances = NodeDistances(Variables([torsion]), exact(3.1, -3.0)[:, None])
    expected = torch.stack([1 - torch.cos(value - node) for node in (3.1, -3.0)], 1)
    squared = distances(positions)
    assert squared.max() <= math.pi**2
    torch.testing.assert_close(1 - torch.cos(squared.sqrt()), expected)


def test_linear_by_hand():
    positions = draws(14)
    d, t = Distance(0, 1, "d"), Torsion(1, 2, 3, 4, "t")
    combination = Linear([d, t], [2.0, 1.0, -3.0], means=[0.1, 0.2, 0.3], offset=0.5, expand=True)
    expected = 2 * (d(positions) - 0.1) + (t(positions).cos() - 0.2) - 3 * (t(positions).sin() - 0.3) + 0.5
    close(combination(positions), expected, 1e-13)
    assert combination.unit == ""
    assert Linear([d, Distance(1, 2, "e")], [1.0, -1.0]).unit == "nm"
    features = periodic_features(Variables([d, t])(positions), (None, t.period))
    close(features @ torch.tensor([2.0, 1.0, -3.0]).double(), expected + 0.2 - 0.9 - 0.5 + 0.2, 1e-13)


def test_a_sum_of_torsions_has_no_seam():
    phi, psi = Torsion(0, 1, 2, 3, "phi"), Torsion(1, 2, 3, 4, "psi")
    positions = draws(15, batch=300)
    found = Linear([phi, psi], [1.0, 1.0], period=2 * math.pi)(positions)
    torch.testing.assert_close(torch.cos(found), torch.cos(phi(positions) + psi(positions)))
    assert found.abs().max() <= math.pi
    with pytest.raises(ValueError, match="phi is periodic, and a combination of it jumps"):
        Linear([phi, psi], [1.0, 1.0])


def test_a_period_must_fit_a_turn_of_every_variable():
    phi, psi = Torsion(0, 1, 2, 3, "phi"), Torsion(1, 2, 3, 4, "psi")
    d = Distance(0, 1, "d")
    with pytest.raises(ValueError, match=r"half: a turn of phi changes it by 3\.14159, .* choose a period"):
        Linear([phi], [0.5], period=2 * math.pi, name="half")
    with pytest.raises(ValueError, match="mixed: a turn of psi"):
        Linear([phi, psi], [1.0, 0.3], period=2 * math.pi, name="mixed")
    with pytest.raises(ValueError, match="the period must be positive"):
        Linear([phi], [1.0], period=math.inf)
    torsion = torch.tensor([math.pi - 1e-7, -math.pi + 1e-7], dtype=torch.float64)
    corners = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]], dtype=torch.float64).repeat(2, 1, 1)
    corners[:, 3, 0], corners[:, 3, 1] = torch.cos(torsion), torch.sin(torsion)
    for coefficient, period in ((0.5, math.pi), (2.0, 2 * math.pi), (-1.0, 2 * math.pi), (2.0, 4 * math.pi)):
        before, after = Linear([phi, d], [coefficient, 0.1], period=period)(corners)
        gap = float(after - before)
        assert abs(gap - period * round(gap / period)) < 1e-6  # no jump where the torsion wraps
    assert Linear([phi], [1.0, 0.3], expand=True, period=1.0).period == 1.0
    assert Linear([phi], [1.0], period=math.radians(360.000001)).period > 0


class Affine:
    """What deeptime's and scikit-learn's models look like from outside."""

    def transform(self, x):
        return (x - 0.25) @ numpy.array([[1.0, 0.0], [2.0, -1.0], [0.5, 3.0]])


class Quadratic:
    def transform(self, x):
        return x**2


def test_linear_from_any_affine_model():
    positions = draws(16)
    variables = [Distance(0, 1, "d"), Torsion(1, 2, 3, 4, "t")]
    features = periodic_features(Variables(variables)(positions), (None, 2 * math.pi))
    for component in (0, 1):
        found = Linear.from_estimator(variables, Affine(), component=component)
        close(found(positions), Affine().transform(features.numpy())[:, component], 1e-12)
    with pytest.raises(ValueError, match="component 2 is none of the model's 2"):
        Linear.from_estimator(variables, Affine(), component=2)
    with pytest.raises(ValueError, match="does not transform 2 features"):
        Linear.from_estimator(variables, Affine(), expand=False)
    with pytest.raises(ValueError, match="is not linear"):
        Linear.from_estimator(variables, Quadratic())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.slow
def test_linear_from_deeptime():
    decomposition = pytest.importorskip("deeptime.decomposition")
    positions = draws(17, batch=600).cumsum(0) * 0.1
    variables = [Distance(0, 1, "d"), Torsion(1, 2, 3, 4, "t"), Torsion(2, 3, 4, 5, "u")]
    stack = Variables(variables)
    features = periodic_features(stack(positions), stack.periods).numpy()
    for estimator in (decomposition.TICA(lagtime=2, dim=2), decomposition.VAMP(lagtime=2, dim=2)):
        model = estimator.fit(features).fetch_model()
        for fitted in (estimator, model):
            slow = Linear.from_estimator(variables, fitted, component=1, name="tica2")
            close(slow(positions), model.transform(features)[:, 1], 1e-8)


def test_height_and_lateral_by_hand():
    positions = torch.zeros(1, 4, 3, dtype=torch.float64)
    positions[0] = exact(0.1, 0.2, 0.9, 0.3, 0.2, 1.1, 5.0, 1.0, 0.1, -3.0, 2.0, 0.3).view(4, 3)
    close(Height((0, 1), (2, 3))(positions), [0.8], 1e-14)
    close(Height((0, 1), (2, 3), masses=(3.0, 1.0))(positions), [0.75], 1e-14)
    close(Height((0, 1), 0.25, normal=(0, 0, -2.0))(positions), [-1.25], 1e-14)
    cell = Cell.from_lengths(1.0, 1.0, 1.5)
    close(Height((0, 1), (2, 3), cell=cell)(positions), [-0.7], 1e-14)
    close(Height((0, 1), (2, 3), cell=cell, lowest=0.0)(positions), [0.8], 1e-14)
    close(Lateral((0, 1), "a", cell)(positions), [0.2], 1e-14)
    close(Lateral((3,), "a", Cell.from_lengths(2.0, 1.0, 1.5))(positions), [-1.0], 1e-14)
    close(Lateral((0,), "a", cell, relative_to=(3,))(positions), [0.1], 1e-14)


@pytest.mark.parametrize("cell", CELLS[:2], ids=CELL_NAMES[:2])
def test_images_of_atoms_change_neither_height_nor_place(cell):
    positions = draws(18, scale=0.1)
    generator = torch.Generator().manual_seed(3)
    turns = torch.randint(-3, 4, (len(positions), ATOMS, 3), generator=generator).double()
    images = positions + turns @ torch.tensor(cell.vectors, dtype=torch.float64)
    for variable in (
        Height((0, 1), (5, 6, 7), normal="c", cell=cell),
        Lateral((0, 1), "a", cell),
        Lateral((0, 1), "b", cell, relative_to=(2,)),
        Distance(0, 1, cell=cell),
        Coordination((0, 1), (2, 3), RationalSwitch(0.2), cell=cell),
    ):
        torch.testing.assert_close(variable(images), variable(positions), rtol=1e-9, atol=1e-9)
    assert (Height((0, 1), (5, 6, 7))(images) - Height((0, 1), (5, 6, 7))(positions)).abs().max() > 0.5


def test_the_normal_of_a_cell_is_that_of_the_plane_of_the_others():
    cell = CELLS[1]
    height = Height((0,), 0.0, normal="c", cell=cell)
    a, b, c = (torch.tensor(v) for v in cell.vectors)
    n = torch.tensor(height.direction)
    assert abs(float(n @ a)) < 1e-6
    assert abs(float(n @ b)) < 1e-6
    assert float(n @ c) == pytest.approx(height.span)
    assert height.span == pytest.approx(cell.volume / float(torch.linalg.cross(a, b).norm()), rel=1e-6)


def test_seams():
    """On both sides of a seam values differ by the period, gradients not at all."""
    cell = Cell.from_lengths(1.0, 1.0, 2.0)
    lateral = Lateral((0,), "a", cell)
    positions = torch.zeros(2, 4, 3, dtype=torch.float64)
    positions[:, 0, 0] = exact(0.5 - 1e-9, 0.5)
    close(lateral(positions), [0.5 - 1e-9, -0.5], 1e-12)
    torch.testing.assert_close(*(g for g in _gradients(lateral, positions)))
    turned = torch.tensor([math.pi - 1e-6, -math.pi + 1e-6], dtype=torch.float64)
    corners = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]], dtype=torch.float64).repeat(2, 1, 1)
    corners[:, 3, 0], corners[:, 3, 1] = torch.cos(turned), torch.sin(turned)
    close(Torsion(0, 1, 2, 3)(corners), turned, 1e-12)
    first, second = _gradients(Torsion(0, 1, 2, 3), corners)
    torch.testing.assert_close(first, second, rtol=0, atol=5e-6)


def _gradients(variable, positions):
    leaf = positions.clone().requires_grad_(True)
    return torch.autograd.grad(variable(leaf).sum(), leaf)[0]


def test_values_never_leave_their_interval_by_rounding():
    lateral = Lateral((0,), "a", Cell.from_lengths(0.7, 1.0, 1.0))
    grid = torch.arange(-2000, 2001, dtype=torch.float64) * 0.35
    fine = torch.cat([grid, torch.nextafter(grid, grid + 1), torch.nextafter(grid, grid - 1)])
    positions = torch.zeros(len(fine), 1, 3, dtype=torch.float64)
    positions[:, 0, 0] = fine
    for dtype in (torch.float64, torch.float32):
        values = lateral(positions.to(dtype))
        assert (values >= -0.35 - 1e-7).all()
        assert (values.double() < 0.35 + 1e-7).all()


DEGENERATE = {
    "torsion": (Torsion(0, 1, 2, 3), 0.0),
    "angle": (Angle(0, 1, 2), None),
    "distance": (Distance(0, 1), None),
    "coordination": (Coordination((0, 1), (2, 3), RationalSwitch(0.3)), None),
    "gyration": (GyrationRadius((0, 1, 2)), None),
    "rmsd": (RMSD(Superposition(chiral(), (0, 1, 2, 3))), None),
    "rmsd to a line": (
        RMSD(Superposition(torch.arange(12).view(4, 1, 3).mT[:1, :, :1].expand(1, 3, 3), (0, 1, 2))),
        None,
    ),
    "rmsd, other alignment": (RMSD(Superposition(chiral(), (0, 1), align=(1, 2, 3))), None),
    "path": (PathProgress(Superposition(torch.cat((chiral(), 2 * chiral())), (0, 1, 2, 3)), 10.0), None),
    "contact map": (ContactMap(((0, 1), (2, 3)), RationalSwitch(0.3), (1.0, 1.0), mode="distance"), None),
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_geometries_have_finite_gradients(kind, dtype):
    variable, expected = DEGENERATE[kind]
    line = torch.tensor([[0.0, 0, 0], [0, 0, 0.1], [0, 0, 0.2], [0, 0, 0.4]], dtype=dtype)
    slanted = torch.tensor([[0.1, 0.1, 0.1], [0.3, 0.3, 0.3], [0.7, 0.7, 0.7], [0.8, 0.8, 0.8]], dtype=dtype)
    folded = torch.tensor([[0.0, 0, 0.3], [0, 0, 0.1], [0, 0, 0.2], [0, 0.1, 0.4]], dtype=dtype)
    nowhere = torch.zeros(4, 3, dtype=dtype)
    positions = torch.stack([line, slanted, folded, nowhere, nowhere + 0.7])
    values = variable(positions)
    gradient = _gradients(variable, positions)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 1e3
    # of a rotation that is not unique one is held, which leaves a finite slope of the deviation
    assert gradient[3:].abs().max() == 0 or kind.startswith(("rmsd", "path"))
    if expected is not None:
        assert (values == expected).all()
        assert (gradient == 0).all()
    with torch.no_grad():
        stacked, forces = Variables([variable]).value_and_pullback(positions, torch.ones_like)
    assert torch.equal(stacked[:, 0], values)
    torch.testing.assert_close(forces, -gradient)


def test_the_rmsd_at_its_reference_is_0_and_flat():
    variable = RMSD(Superposition(chiral(), (0, 1, 2, 3)))
    assert variable(chiral()).item() < 1e-15
    gradient = _gradients(variable, chiral())
    assert torch.isfinite(gradient).all()
    exact = RMSD(Superposition(torch.zeros(1, 4, 3), (0, 1, 2, 3)))
    assert exact(torch.zeros(1, 4, 3)).item() == 0
    assert (_gradients(exact, torch.zeros(1, 4, 3)) == 0).all()


def test_infinite_coordinates_give_nan():
    positions = draws(19, batch=2)
    positions[1, 0, 0] = math.inf
    for variable in (RMSD(Superposition(draws(20, batch=1), (0, 1, 2))), GyrationRadius((0, 1))):
        assert torch.isfinite(variable(positions)).tolist() == [True, False]


def test_a_torsion_of_the_wrong_sign_is_seen():
    """Reading atoms backwards keeps the angle; mirroring it, or swapping the middle atoms' order alone, does not."""
    positions = draws(21)
    mdtraj, trajectory = in_mdtraj(positions)
    expected = torch.from_numpy(
        mdtraj.compute_dihedrals(trajectory, [[3, 0, 5, 7]], periodic=False, opt=False)[:, 0]
    ).double()
    close(Torsion(7, 5, 0, 3)(positions), expected, 1e-5)
    assert (Torsion(3, 0, 5, 7)(-positions) - expected).abs().max() > 1
    assert (Torsion(3, 5, 0, 7)(positions) - expected).abs().max() > 1


def test_what_is_refused():
    with pytest.raises(ValueError, match="r0 must be a positive length"):
        RationalSwitch(0.0)
    with pytest.raises(ValueError, match="0 < n < m"):
        RationalSwitch(0.3, n=6, m=6)
    for exponents, message in (
        ({"n": 6.5}, r"the exponent n must be a whole number, got 6\.5"),
        ({"n": 6, "m": 12.25}, r"the exponent m must be a whole number, got 12\.25"),
        ({"n": "6"}, "the exponent n must be a whole number, got '6'"),
        ({"n": True}, "the exponent n must be a whole number, got True"),
        ({"n": math.inf}, "the exponent n must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            RationalSwitch(0.3, **exponents)
    with pytest.raises(ValueError, match="make no pair"):
        Coordination((0,), None, RationalSwitch(0.3))
    with pytest.raises(ValueError, match="rg: needs at least 2 atoms"):
        GyrationRadius((0,), name="rg")
    with pytest.raises(ValueError, match="3 weights for 2 atoms"):
        GyrationRadius((0, 1), (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="not all zero"):
        GyrationRadius((0, 1), (0.0, 0.0))
    with pytest.raises(ValueError, match="needs one reference, got 3"):
        RMSD(Superposition(draws(0, batch=3), (0, 1, 2)))
    with pytest.raises(ValueError, match="outside the 9 atoms of the reference"):
        Superposition(draws(0, batch=1), (0, 9))
    with pytest.raises(ValueError, match="at least 2 nodes"):
        PathProgress(Superposition(draws(0, batch=1), (0, 1, 2)), 1.0)
    with pytest.raises(ValueError, match="lambda must be positive"):
        PathDistance(Superposition(draws(0, batch=2), (0, 1, 2)), -1.0)
    with pytest.raises(ValueError, match="coincide"):
        smoothness(Superposition(draws(0, batch=1).expand(3, -1, -1), (0, 1, 2)))
    with pytest.raises(ValueError, match=r"nodes must be finite, of shape \(F, 1\)"):
        NodeDistances(Variables([Distance(0, 1)]), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="2 coefficients are needed, one a feature, got 1"):
        Linear([Distance(0, 1, "a"), Distance(0, 2, "b")], [1.0])
    with pytest.raises(ValueError, match="a pair of atoms is given twice"):
        ContactMap(((0, 1), (1, 0)), RationalSwitch(0.3))
    with pytest.raises(ValueError, match="span no volume"):
        Cell(((1, 0, 0), (2, 0, 0), (0, 0, 1)))
    with pytest.raises(ValueError, match="no cell has the angles"):
        Cell.from_lengths(1, 1, 1, alpha=0.1, beta=0.1, gamma=3.0)
    with pytest.raises(ValueError, match="must lie in the surface"):
        Height((0,), 0.0, normal="x", cell=CELLS[2])
    with pytest.raises(ValueError, match="needs a cell"):
        Height((0,), 0.0, normal="c")
    with pytest.raises(ValueError, match="lowest is for a periodic cell"):
        Height((0,), 0.0, lowest=0.0)
    with pytest.raises(ValueError, match="atom 1 is in the group and in what it is measured from"):
        Height((0, 1), (1, 2))
    with pytest.raises(ValueError, match="the axis must be a, b or c"):
        Lateral((0,), "x", CELLS[0])
