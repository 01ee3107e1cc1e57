"""What holds for every kind: gradients against finite differences, analytic against autograd, batches, symmetries."""

import math
import warnings

import pytest
import torch

from feynkac.molecular.cvs import (
    RMSD,
    AnalyticVariable,
    Angle,
    CallableVariable,
    Cell,
    CollectiveVariable,
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
    TorchScriptVariable,
    Torsion,
    Variables,
)

ATOMS = 9


def draws(seed: int = 0, batch: int = 5, scale: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, ATOMS, 3, generator=generator, dtype=torch.float64)


ORTHORHOMBIC = Cell.from_lengths(0.9, 1.0, 1.3)
TRICLINIC = Cell.from_lengths(1.0, 1.1, 1.2, alpha=1.2, beta=1.4, gamma=1.0)
MASSES = (12.0, 1.0, 14.0, 16.0, 32.0)
TORSIONS = [Torsion(0, 1, 2, 3, "t"), Torsion(2, 3, 4, 8, "u")]


class Net(torch.nn.Module):
    """A smooth function of a few numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 2, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, 12).view(2, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x.flatten(1)[:, :6]))


def traced(example: torch.Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(Net(), example)


REFERENCES = draws(7, batch=4)
OTHERS = [Distance(0, 1, "d"), *TORSIONS]
NODES = torch.tensor([[0.2, 0.1, 3.0], [0.4, 0.5, -3.0], [0.6, 1.5, -2.0]], dtype=torch.float64)

ZOO: dict[str, CollectiveVariable] = {
    "torsion": Torsion(5, 1, 0, 3),
    "distance": Distance(4, 2),
    "distance, orthorhombic": Distance(4, 2, cell=ORTHORHOMBIC),
    "distance, triclinic": Distance(4, 2, cell=TRICLINIC),
    "angle": Angle(7, 1, 3),
    "coordination": Coordination((0, 1), (1, 2, 3, 4), RationalSwitch(0.4, 0.05, 6, 10)),
    "coordination of one group": Coordination((0, 2, 4, 6), None, RationalSwitch(0.5), cell=TRICLINIC),
    "gyration": GyrationRadius((1, 2, 5, 7, 8)),
    "gyration, masses": GyrationRadius((1, 2, 5, 7, 8), masses=MASSES),
    "rmsd": RMSD(Superposition(REFERENCES[:1], (0, 1, 2, 3, 4, 5))),
    "rmsd, weights": RMSD(Superposition(REFERENCES[:1], (0, 1, 2, 3, 4), weights=MASSES)),
    "rmsd, other alignment": RMSD(
        Superposition(REFERENCES[:1], (0, 1, 2), align=(4, 5, 6, 7, 8), weights=MASSES[:3], align_weights=MASSES)
    ),
    "path progress": PathProgress(Superposition(REFERENCES, (0, 2, 4, 6, 8)), 20.0),
    "path distance": PathDistance(Superposition(REFERENCES, (0, 2, 4, 6, 8), align=(1, 3, 5, 7)), 20.0),
    "path progress along variables": PathProgress(NodeDistances(Variables(OTHERS), NODES, (0.2, 2.0, 2.0)), 1.0),
    "path distance along variables": PathDistance(NodeDistances(Variables(OTHERS), NODES), 0.5),
    "linear": Linear([Distance(0, 1, "a"), Distance(1, 2, "b")], [1.0, -0.5], means=[0.1, 0.2], offset=3.0),
    "linear, expanded": Linear(OTHERS, [0.3, 1.0, -1.0, 0.5, 0.25], expand=True),
    "linear, periodic": Linear(TORSIONS, [1.0, 1.0], period=2 * math.pi),
    "contact map": ContactMap(((0, 1), (2, 3), (4, 0)), RationalSwitch(0.4), weights=(1.0, 0.5, 2.0)),
    "contact map, distance": ContactMap(
        ((0, 1), (2, 3), (4, 0)), RationalSwitch(0.4), reference=(1.0, 0.3, 0.1), mode="distance", cell=ORTHORHOMBIC
    ),
    "height": Height((0, 1, 2), (3, 4, 5), normal=(1.0, 2.0, -1.0), masses=MASSES[:3]),
    "height in a cell": Height((0, 1), (5, 6), normal="c", cell=TRICLINIC),
    "height over a plane": Height((0, 1), 0.2, cell=ORTHORHOMBIC, lowest=0.0),
    "lateral": Lateral((0, 1), "a", ORTHORHOMBIC),
    "lateral, triclinic": Lateral((0, 1), "b", TRICLINIC, relative_to=(3,), masses=MASSES[:2]),
    "callable": CallableVariable(lambda x: (x[:, 0] - x[:, 3]).square().sum(-1), "f", unit="nm^2"),
    "torchscript": TorchScriptVariable(traced(torch.zeros(1, 2, 3).double()), atoms=(3, 1), component=1),
    "torchscript of variables": TorchScriptVariable(
        traced(torch.zeros(1, 6).double()), [*OTHERS, *[Distance(4, k, f"d{k}") for k in (5, 6, 7)]]
    ),
}
every = pytest.mark.parametrize("kind", ZOO)


def difference(variable: CollectiveVariable, ahead: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
    """Around the circle, and around the cell for a height that reappears at its other end."""
    change = ahead - behind
    period = variable.span if isinstance(variable, Height) else variable.period
    return change if period is None else change - period * torch.round(change / period)


def gradient(variable: CollectiveVariable, positions: torch.Tensor) -> torch.Tensor:
    positions = positions.detach().requires_grad_(True)
    (found,) = torch.autograd.grad(variable(positions).sum(), positions)
    return found


def slopes(variable: CollectiveVariable, positions: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """Finite differences (B, N, 3)."""
    found = torch.zeros_like(positions)
    for atom in range(positions.shape[1]):
        for axis in range(3):
            shift = torch.zeros_like(positions)
            shift[:, atom, axis] = step
            with torch.no_grad():
                change = difference(variable, variable(positions + shift), variable(positions - shift))
            found[:, atom, axis] = change / (2 * step)
    return found


@every
def test_gradients_agree_with_finite_differences(kind):
    positions = draws(2)
    found = gradient(ZOO[kind], positions)
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, slopes(ZOO[kind], positions), rtol=2e-5, atol=2e-6)


def test_a_linear_reference_has_a_gradient_although_its_rotation_is_not_unique():
    line = RMSD(Superposition(torch.arange(4.0)[None, :, None] * torch.tensor([0.1, 0.0, 0.05]), (0, 1, 2, 3)))
    positions = draws(2)
    torch.testing.assert_close(gradient(line, positions), slopes(line, positions), rtol=2e-5, atol=2e-6)


def test_the_check_of_gradients_sees_a_rotation_held_fixed():
    """Holding the rotation is harmless for the aligned atoms themselves, and wrong for others."""

    class Held(Superposition):
        def deviations(self, positions):
            frozen = Superposition.deviations(self, positions.detach())
            moved = positions[:, list(self.atoms)] - positions[:, list(self.aligned)].mean(1, keepdim=True)
            return frozen[0] + (moved - moved.detach())[:, None], frozen[1]

    positions = draws(2)
    same = RMSD(Held(REFERENCES[:1], (0, 1, 2, 3)))
    torch.testing.assert_close(gradient(same, positions), slopes(same, positions), rtol=2e-5, atol=2e-6)
    other = RMSD(Held(REFERENCES[:1], (0, 1, 2), align=(4, 5, 6, 7)))
    assert (gradient(other, positions) - slopes(other, positions)).abs().max() > 0.01


@every
def test_second_derivatives_agree_with_finite_differences(kind):
    variable = ZOO[kind]
    positions = draws(3, batch=2)
    direction = draws(11, batch=2, scale=1.0)
    leaf = positions.clone().requires_grad_(True)
    (first,) = torch.autograd.grad(variable(leaf).sum(), leaf, create_graph=True)
    if first.requires_grad:
        second = torch.autograd.grad((first * direction).sum(), leaf, allow_unused=True)[0]
    else:
        second = None
    step = 1e-5
    expected = (gradient(variable, positions + step * direction) - gradient(variable, positions - step * direction)) / (
        2 * step
    )
    found = torch.zeros_like(positions) if second is None else second
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@every
def test_analytic_gradients_equal_those_of_autograd(kind):
    variable = ZOO[kind]
    analytic = isinstance(variable, AnalyticVariable)
    assert analytic == isinstance(variable, Torsion | Distance | Angle | Height | Lateral)
    if not analytic:
        return
    positions = draws(4)
    with torch.no_grad():
        values, atoms, found = variable.value_and_gradient(positions)
    assert not found.requires_grad
    torch.testing.assert_close(values, variable(positions), rtol=1e-14, atol=1e-14)
    expected = gradient(variable, positions)
    spread = torch.zeros_like(positions).index_add_(1, atoms, found)
    torch.testing.assert_close(spread, expected, rtol=1e-11, atol=1e-11)


@every
def test_a_batch_equals_its_members_and_inputs_are_not_modified(kind):
    variable = ZOO[kind]
    positions = draws(5, batch=7)
    before = positions.clone()
    together = variable(positions)
    assert torch.equal(positions, before)
    singles = torch.cat([variable(positions[n : n + 1]) for n in range(7)])
    torch.testing.assert_close(together, singles, rtol=1e-13, atol=1e-13)
    assert together.shape == (7,)
    assert variable(positions[:0]).shape == (0,)
    assert isinstance(variable, CollectiveVariable)


@every
def test_single_precision_stays_single_and_is_close(kind):
    variable = ZOO[kind]
    positions = draws(6)
    single = variable(positions.float())
    assert single.dtype == torch.float32
    error = difference(variable, single.double(), variable(positions))
    assert error.abs().max() < 2e-5
    assert gradient(variable, positions.float()).dtype == torch.float32


@every
def test_values_stay_in_their_period(kind):
    variable = ZOO[kind]
    values = variable(draws(8, batch=200))
    if variable.period is not None:
        assert values.abs().max() <= variable.period / 2
        assert values.abs().max() > 0.4 * variable.period
    assert variable.unit in ("rad", "nm", "nm^2", "")


@every
def test_nan_positions_give_nan_and_spoil_no_other_row(kind):
    variable = ZOO[kind]
    positions = draws(9, batch=3)
    positions[1] = math.nan
    values = variable(positions)
    assert torch.isnan(values).tolist() == [False, True, False]
    clean = gradient(variable, positions)[::2]
    torch.testing.assert_close(clean, gradient(variable, draws(9, batch=3))[::2], rtol=1e-10, atol=1e-12)


MOVING = ("height", "lateral", "torchscript")


@pytest.mark.parametrize("kind", [k for k in ZOO if not k.startswith(MOVING) or k == "torchscript of variables"])
def test_molecules_in_free_space_may_be_moved_and_turned(kind):
    variable = ZOO[kind]
    positions = draws(10)
    generator = torch.Generator().manual_seed(1)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    turn = turn * torch.sign(torch.linalg.det(turn))
    moved = positions + torch.tensor([0.4, -2.0, 1.0])
    if getattr(variable, "cell", None) is None:
        moved = moved @ turn.T
    torch.testing.assert_close(variable(moved), variable(positions), rtol=1e-9, atol=1e-10)


@every
def test_a_stack_pulls_back_what_autograd_gives(kind):
    variable = ZOO[kind]
    positions = draws(12)
    leaf = positions.clone().requires_grad_(True)
    energy = torch.cos(2 * variable(leaf)).sum()
    (expected,) = torch.autograd.grad(energy, leaf)
    with torch.no_grad():
        values, forces = Variables([variable]).value_and_pullback(positions, lambda s: -2 * torch.sin(2 * s))
    torch.testing.assert_close(forces, -expected, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(values[:, 0], variable(positions), rtol=1e-13, atol=1e-13)
    assert not forces.requires_grad
    assert not values.requires_grad
