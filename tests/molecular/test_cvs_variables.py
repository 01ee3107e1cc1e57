"""The stack of variables: values, names, and forces pulled back through analytic gradients and autograd alike."""

import math
import warnings

import pytest
import torch

from feynkac.molecular.cvs import (
    Angle,
    CallableVariable,
    Cell,
    Distance,
    GyrationRadius,
    Height,
    Linear,
    RationalSwitch,
    TorchScriptVariable,
    Torsion,
    Variables,
)

from .test_cvs_gradients import ZOO, draws

MIXED = [
    Distance(0, 1, "d"),
    Torsion(0, 1, 2, 3, "phi"),
    GyrationRadius((0, 1, 2, 3), name="rg"),
    Torsion(3, 2, 1, 5, "psi"),
    Height((0, 1), (4,), name="h"),
    Angle(0, 1, 2, "bend"),
    Distance(0, 3, "e", cell=Cell.from_lengths(0.9, 1.0, 1.1)),
    CallableVariable(lambda x: x[:, 0, 0] * x[:, 1, 1], "f"),
    Distance(5, 3, "g"),
]


def coupled(values: torch.Tensor) -> torch.Tensor:
    """Energies that no sum over the variables could be mistaken for."""
    return torch.sin(values).prod(dim=1) + (values[:, 0] * values[:, -1]) ** 2


def slope(values: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        leaf = values.detach().requires_grad_(True)
        return torch.autograd.grad(coupled(leaf).sum(), leaf)[0]


@pytest.mark.parametrize("variables", [MIXED, MIXED[1:4:2], MIXED[2:3], MIXED[:1], list(reversed(MIXED))])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forces_are_those_of_autograd(variables, dtype):
    stack = Variables(variables)
    positions = draws(1).to(dtype)
    leaf = positions.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(coupled(stack(leaf)).sum(), leaf)
    before = positions.clone()
    with torch.no_grad():
        values, forces = stack.value_and_pullback(positions, slope)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(forces, -expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(values, stack(positions), rtol=tolerance, atol=tolerance)
    assert forces.dtype == values.dtype == dtype
    assert torch.equal(positions, before)
    wrong = stack.value_and_pullback(positions, lambda s: -slope(s))[1]
    assert (wrong + expected).abs().max() > 1e-3


def test_a_linearisation_may_be_used_more_than_once():
    linear = Variables(MIXED).linearised(draws(2))
    first = linear.forces(slope(linear.values))
    second = linear.forces(torch.ones_like(linear.values))
    torch.testing.assert_close(linear.forces(slope(linear.values) + 2.0), first + 2 * second)
    assert torch.equal(linear.forces(slope(linear.values)), first)
    with pytest.raises(ValueError, match=r"gradients must be \(5, 9\), got \(5, 2\)"):
        linear.forces(torch.zeros(5, 2))


def test_forces_of_one_row_are_those_of_a_batch():
    stack = Variables(MIXED)
    positions = draws(3)
    together = stack.value_and_pullback(positions, slope)[1]
    alone = torch.cat([stack.value_and_pullback(row[None], slope)[1] for row in positions])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)


def test_positions_that_require_a_gradient_or_are_no_block_of_memory():
    stack = Variables(MIXED)
    positions = draws(4)
    expected = stack.value_and_pullback(positions, slope)
    spread = positions.transpose(0, 1).contiguous().transpose(0, 1)
    assert not spread.is_contiguous()
    for given in (spread, positions.clone().requires_grad_(True)):
        values, forces = stack.value_and_pullback(given, slope)
        assert not values.requires_grad
        torch.testing.assert_close(values, expected[0])
        torch.testing.assert_close(forces, expected[1])


def test_nan_rows_stay_apart():
    stack = Variables(MIXED)
    positions = draws(5)
    expected = stack.value_and_pullback(positions, slope)
    spoilt = positions.clone()
    spoilt[1] = math.nan
    values, forces = stack.value_and_pullback(spoilt, slope)
    keep = torch.tensor([0, 2, 3, 4])
    torch.testing.assert_close(values[keep], expected[0][keep])
    torch.testing.assert_close(forces[keep], expected[1][keep])
    assert torch.isnan(values[1]).all()


def test_forces_on_a_molecule_in_free_space_add_up_to_nothing():
    stack = Variables([v for v in MIXED if v.name != "f"])
    positions = draws(6)
    _, forces = stack.value_and_pullback(positions, slope)
    torch.testing.assert_close(forces.sum(1), torch.zeros(5, 3, dtype=torch.float64), rtol=0, atol=1e-10)
    turnless = Variables([v for v in MIXED if v.name not in ("f", "h", "e")])
    _, forces = turnless.value_and_pullback(positions, slope)
    torque = torch.linalg.cross(positions, forces).sum(1)
    torch.testing.assert_close(torque, torch.zeros(5, 3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_every_kind_together():
    stack = Variables([CallableVariable(v, f"v{k}", v.unit, v.period) for k, v in enumerate(ZOO.values())])
    assert stack(draws(7)).shape == (5, len(ZOO))


class Deaf(torch.nn.Module):
    """Gives no gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return 2 * x[:, 0, 0]


def scripted(module: torch.nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


PARAMETER = torch.ones((), dtype=torch.float64, requires_grad=True)
SILENT = {
    "detached": CallableVariable(lambda x: x[:, 0, 0].detach(), "deaf"),
    "numpy": CallableVariable(lambda x: torch.from_numpy(x.detach().numpy()[:, 0, 0]), "deaf"),
    "script": TorchScriptVariable(scripted(Deaf()), name="deaf"),
    "constant": CallableVariable(lambda x: x.new_ones(len(x)), "deaf"),
    "a graph of its own": CallableVariable(lambda x: x[:, 0, 0].detach() * PARAMETER, "deaf"),
}


@pytest.mark.parametrize("kind", SILENT)
@pytest.mark.parametrize("beside", [[], MIXED[2:3], MIXED[7:8]], ids=["alone", "rg", "f"])
def test_values_without_a_gradient_are_refused(kind, beside):
    """Also beside a variable that has one, and inside another variable: their forces would be missing silently."""
    stack = Variables([*beside, SILENT[kind]])
    message = "deaf: the values do not follow the positions"
    with pytest.raises(ValueError, match=message):
        stack.linearised(draws())
    with pytest.raises(ValueError, match=message), torch.no_grad():
        stack.value_and_pullback(draws(), torch.ones_like)
    with pytest.raises(ValueError, match=message):
        stack(draws().requires_grad_(True))
    with pytest.raises(ValueError, match=message):
        Variables([Linear([*beside, SILENT[kind]], [1.0] * (len(beside) + 1), unit="")]).linearised(draws())
    assert stack(draws()).shape == (5, len(beside) + 1)  # values alone need no gradient


def test_a_constant_may_be_made_to_follow():
    """The way out that the message names."""
    flat = CallableVariable(lambda x: 3.0 + 0 * x.sum(dim=(1, 2)), "flat")
    values, forces = Variables([flat, MIXED[2]]).value_and_pullback(draws(), torch.ones_like)
    assert (values[:, 0] == 3).all()
    torch.testing.assert_close(forces, Variables([MIXED[2]]).value_and_pullback(draws(), torch.ones_like)[1])


@pytest.mark.parametrize("other", [MIXED[2], Torsion(0, 1, 2, 3, "phi")], ids=["autograd", "analytic"])
def test_a_function_in_another_precision_joins_the_others(other):
    double = CallableVariable(lambda x: x[:, 0].double().square().sum(-1), "double")
    single = CallableVariable(lambda x: x[:, 0].square().sum(-1), "double")
    positions = draws(8).float()
    values, forces = Variables([other, double]).value_and_pullback(positions, torch.ones_like)
    assert values.dtype == forces.dtype == torch.float32
    torch.testing.assert_close(forces, Variables([other, single]).value_and_pullback(positions, torch.ones_like)[1])


def test_functions_that_fail_are_named():
    with pytest.raises(ValueError, match="f: the function failed: IndexError: index 20 is out of bounds"):
        CallableVariable(lambda x: x[:, 20, 0], "f")(draws())
    with pytest.raises(ValueError, match=r"f: expected real values, got torch\.complex128"):
        CallableVariable(lambda x: torch.complex(x[:, 0, 0], x[:, 0, 1]), "f")(draws())
    narrow = TorchScriptVariable(scripted(torch.nn.Linear(2, 1)), [Distance(0, 1, "d")], name="net")
    with pytest.raises(ValueError, match="net: the function failed: RuntimeError"):
        narrow(draws())
    with pytest.raises(ValueError, match="net: expected a TorchScript module or its file, got function"):
        TorchScriptVariable(lambda x: x, name="net")


def test_the_stack_is_a_sequence_with_labels():
    stack = Variables(MIXED[:3])
    assert len(stack) == 3
    assert stack[1] is MIXED[1]
    assert list(stack) == MIXED[:3]
    assert stack.names == ("d", "phi", "rg")
    assert stack.periods == (None, 2 * math.pi, None)
    assert stack.units == ("nm", "rad", "nm")


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Variables([])
    with pytest.raises(ValueError, match="two collective variables are called 'd'"):
        Variables([Distance(0, 1, "d"), Distance(1, 2, "d")])
    with pytest.raises(ValueError, match="psi: atom 99 is outside the 9 atoms"):
        Variables([Torsion(0, 1, 2, 3, "phi"), Torsion(0, 1, 2, 99, "psi")]).linearised(draws())
    with pytest.raises(ValueError, match=r"shape \(B, N, 3\)"):
        Variables(MIXED).linearised(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"f: expected values of shape \(5,\), got \(5, 9\)"):
        CallableVariable(lambda x: x.sum(-1), "f")(draws())
    assert RationalSwitch(0.3).m == 12
