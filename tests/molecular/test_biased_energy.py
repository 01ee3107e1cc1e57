"""Energies with bias and restraints: sums, forces, counters, and what is not finite."""

import math

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, FlatBottom, GridAxis, Harmonic, LowerWall, RepulsionBias, UpperWall
from feynkac.molecular.cvs import CallableVariable, Distance, Torsion
from feynkac.molecular.dynamics import BiasedEnergy, Restrained
from feynkac.molecular.energies import Energy

from .toy_energies import KT, Along, Hole, PlanarEnergy, Springs, Wells, X, Y

PHI = Torsion(0, 1, 2, 3, name="phi")
END = Distance(0, 3, name="end")
CENTERS = torch.tensor([[-2.0, 0.3], [0.5, 0.35], [3.0, 0.2]], dtype=torch.float64)


def bias(height=5.0, kind="hills"):
    variables = [BiasVariable("phi", 0.4, 2 * math.pi, "rad"), BiasVariable("end", 0.1, None, "nm")]
    if kind == "opes":
        return RepulsionBias.opes(variables, kT=KT, barrier=30.0).deposited(CENTERS)
    axes = [GridAxis(-math.pi, math.pi, 80, True), GridAxis(0.0, 1.0, 80)]
    grid = axes if kind == "grid" else None
    empty = RepulsionBias.well_tempered(variables, kT=KT, bias_factor=8.0, height=height, grid=grid)
    return empty.deposited(CENTERS)


WALLS = (
    Restrained(END, UpperWall(0.3, 500.0), "end"),
    Restrained(Torsion(3, 2, 1, 0, name="back"), FlatBottom(0.5, 0.2, 30.0, 2 * math.pi), "torsion"),
    Restrained(END, UpperWall(0.35, 900.0, exponent=4.0, scale=0.1), "end_again"),
)
SPRINGS = Springs(300.0, 400.0, 500.0, 600.0)


def molecules(count=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    chain = torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.2, 0.1, 0.1]], dtype=torch.float64)
    return (chain + 0.05 * torch.randn((count, 4, 3), generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("kind", ["hills", "grid", "opes"])
def test_the_sum_and_its_forces(kind):
    energy = BiasedEnergy(SPRINGS, [PHI, END], bias(kind=kind), WALLS)
    positions = molecules()
    assert isinstance(energy, Energy)
    total, forces = energy.energy_and_forces(positions)
    terms = energy.terms(positions)
    assert list(terms.restraints) == ["end", "torsion", "end_again"]
    assert all(part.abs().sum() > 0 for part in terms.restraints.values())
    assert torch.allclose(terms.values, torch.stack([PHI(positions), END(positions)], dim=1))
    assert torch.allclose(terms.bias, bias(kind=kind)(terms.values))
    expected = SPRINGS(positions) + terms.bias + sum(terms.restraints.values())
    assert torch.allclose(total, expected, rtol=1e-13)
    assert torch.equal(energy(positions), total)

    def differences(function):
        step, found = 1e-6, torch.zeros_like(positions)
        for atom in range(4):
            for axis in range(3):
                up, down = positions.clone(), positions.clone()
                up[:, atom, axis] += step
                down[:, atom, axis] -= step
                found[:, atom, axis] = (function(down) - function(up)) / (2 * step)
        return found

    assert torch.allclose(forces, differences(energy), atol=1e-4)
    without = BiasedEnergy(SPRINGS, [PHI, END], bias(kind=kind))
    assert not torch.allclose(forces, differences(without), atol=1.0)  # negative control

    leaf = positions.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(leaf).sum(), leaf)
    assert torch.allclose(-gradient, forces, atol=1e-8)


def test_another_bias_costs_no_energy():
    energy = BiasedEnergy(SPRINGS, [PHI, END], bias(), WALLS)
    positions = molecules()
    now = energy.energy_and_forces(positions)
    calls = SPRINGS.n_calls
    moved = energy.rebiased(positions, now, bias(50.0))
    assert SPRINGS.n_calls == calls == energy.n_calls
    fresh = energy.with_bias(bias(50.0)).energy_and_forces(positions)
    assert torch.allclose(moved.energy, fresh.energy, rtol=1e-12)
    assert torch.allclose(moved.forces, fresh.forces, atol=1e-10)
    assert not torch.allclose(now.forces, fresh.forces, atol=1.0)
    bare = energy.with_bias(None).energy_and_forces(positions)
    assert torch.allclose(energy.rebiased(positions, now, None).forces, bare.forces, atol=1e-10)


def test_without_bias_only_restraints_are_left():
    positions = molecules()
    energy = BiasedEnergy(SPRINGS, [], None, WALLS[:1])
    terms = energy.terms(positions)
    assert terms.values.shape == (6, 0)
    assert not terms.bias.any()
    assert torch.allclose(energy(positions), SPRINGS(positions) + terms.restraints["end"])
    plain = BiasedEnergy(SPRINGS, [PHI], None)
    bare = SPRINGS.energy_and_forces(positions)
    assert all(torch.equal(a, b) for a, b in zip(plain.energy_and_forces(positions), bare, strict=True))
    assert torch.equal(plain(positions), SPRINGS(positions))


def test_single_precision_keeps_energies_in_double():
    energy = BiasedEnergy(SPRINGS, [PHI, END], bias(), WALLS)
    single = energy.energy_and_forces(molecules(dtype=torch.float32))
    double = energy.energy_and_forces(molecules())
    assert single.energy.dtype == torch.float64
    assert single.forces.dtype == torch.float32
    assert torch.allclose(single.energy, double.energy, atol=1e-2)
    assert torch.allclose(single.forces.double(), double.forces, atol=1e-1)


class Strange(Along):
    """x, but not a number beyond 0.05 nm; or with a slope that is not a number there."""

    def __call__(self, positions):
        x = positions[:, 0, 0]
        if self.angle == 0.0:
            return torch.where(x > 0.05, torch.nan, x)
        return x + 0.0 * torch.sqrt(0.05 - x)  # infinite slope times zero


@pytest.mark.parametrize("angle", [0.0, 1.0], ids=["value", "slope"])
def test_what_is_not_finite_is_infinite_counted_and_kept_apart(angle):
    inner = PlanarEnergy(Wells())
    variable = BiasVariable("x", 0.02, unit="nm")
    hills = RepulsionBias.well_tempered([variable], kT=KT, bias_factor=8.0, height=5.0)
    hills = hills.deposited(torch.zeros(1, 1, dtype=torch.float64))
    energy = BiasedEnergy(inner, [Strange("x", angle)], hills)
    healthy = BiasedEnergy(inner, [X], hills)
    positions = torch.zeros(4, 1, 3, dtype=torch.float64)
    edge = 0.05 if angle else 0.09
    positions[:, 0, 0] = torch.tensor([0.01, edge, -0.02, edge], dtype=torch.float64)
    found = energy.energy_and_forces(positions)
    bad = torch.isinf(found.energy)
    assert bad.tolist() == [False, True, False, True]
    assert energy.n_non_finite == 2
    assert not found.forces[bad].any()
    expected = healthy.energy_and_forces(positions)
    assert torch.equal(found.energy[~bad], expected.energy[~bad])
    assert torch.allclose(found.forces[~bad], expected.forces[~bad])
    again = energy.with_bias(hills)
    assert again.n_non_finite == energy.n_non_finite  # counters are shared
    moved = energy.rebiased(positions, found, hills.deposited(torch.ones(1, 1, dtype=torch.float64) * 0.01))
    assert torch.isinf(moved.energy[bad]).all()
    assert not moved.forces[bad].any()


def test_rows_that_the_energy_gave_up_are_counted_once():
    hole = Hole(PlanarEnergy(Wells()), 0.05)
    energy = BiasedEnergy(hole, [], None, [Restrained(Y, UpperWall(0.0, 10.0), "y")])
    positions = torch.full((3, 1, 3), 0.01, dtype=torch.float64)
    positions[1, 0, 0] = 0.1
    found = energy.energy_and_forces(positions)
    assert torch.isinf(found.energy).tolist() == [False, True, False]
    assert not found.forces[1].any()
    assert energy.n_non_finite == hole.n_non_finite


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"variables: got \['end', 'phi'\], but the bias acts on \['phi', 'end'\]"):
        BiasedEnergy(SPRINGS, [END, PHI], bias())
    with pytest.raises(ValueError, match="phi: its period is None"):
        BiasedEnergy(SPRINGS, [Distance(0, 1, name="phi"), END], bias())
    with pytest.raises(ValueError, match="restraints: got the names"):
        BiasedEnergy(SPRINGS, [PHI, END], bias(), [WALLS[0], WALLS[0]])


@pytest.mark.parametrize(
    ("variable", "wall", "message"),
    [
        (PHI, UpperWall(2.0, 10.0), r"w: phi is periodic, .* use FlatBottom with period=6\.28319"),
        (PHI, LowerWall(-2.0, 10.0), "w: phi is periodic, and a wall to one side of it would have a cliff"),
        (
            PHI,
            Harmonic(3.0, 10.0),
            r"w: the wall has period=None, but that of phi is 6\.28.*: use Harmonic",
        ),
        (PHI, Harmonic(3.0, 10.0, 360.0), r"w: the wall has period=360\.0"),
        (PHI, FlatBottom(3.0, 0.1, 10.0), "use FlatBottom with period=6"),
        (END, FlatBottom(0.3, 0.1, 10.0, 2 * math.pi), "but that of end is None: use FlatBottom with period=None"),
    ],
)
def test_walls_must_know_the_circle_of_their_variable(variable, wall, message):
    with pytest.raises(ValueError, match=message):
        BiasedEnergy(SPRINGS, [PHI], None, [Restrained(variable, wall, "w")])


def test_a_wall_that_knows_the_circle_has_no_cliff():
    """The same torsion a hair to both sides of its seam; without the period the energies are 0.05 and 178 kJ/mol."""
    turns = torch.tensor([3.1, -3.1], dtype=torch.float64)
    positions = torch.tensor([[0.0, 0.1, 0], [0, 0, 0], [0.1, 0, 0], [0.1, 0, 0]], dtype=torch.float64).repeat(2, 1, 1)
    positions[:, 3, 1], positions[:, 3, 2] = 0.1 * turns.cos(), 0.1 * turns.sin()
    for wall in (Harmonic(3.0, 10.0, 2 * math.pi), FlatBottom(3.0, 0.01, 10.0, 2 * math.pi)):
        energy = BiasedEnergy(SPRINGS, [PHI], None, [Restrained(PHI, wall, "w")])
        assert (energy.terms(positions).restraints["w"] < 0.2).all()
    far = Harmonic(3.0, 10.0).value_and_gradient(PHI(positions))[0]
    assert float(far[1] - far[0]) > 100


def test_a_variable_that_gives_no_force_is_refused():
    """Otherwise its bias would be in the energy and not in the forces."""
    deaf = CallableVariable(lambda x: torch.from_numpy(x.detach().numpy()[:, 0, 0]), "end")
    heard = CallableVariable(lambda x: x[:, 0, 0], "end")
    positions = molecules()
    energy = BiasedEnergy(SPRINGS, [PHI, deaf], bias())
    for call in (energy.energy_and_forces, lambda x: energy(x.clone().requires_grad_(True))):
        with pytest.raises(ValueError, match="end: the values do not follow the positions"):
            call(positions)
    assert energy(positions).shape == (6,)  # an energy alone needs no gradient
    walled = BiasedEnergy(SPRINGS, [PHI], None, [Restrained(deaf, UpperWall(-0.1, 500.0), "w")])
    with pytest.raises(ValueError, match="end: the values do not follow the positions"):
        walled.energy_and_forces(positions)
    forces = BiasedEnergy(SPRINGS, [PHI, heard], bias()).energy_and_forces(positions).forces
    assert not torch.allclose(forces, SPRINGS.energy_and_forces(positions).forces, atol=1.0)
