"""Weights from recorded biases, c(t), and differences read off a bias, against closed form and quadrature."""

import math

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, GridAxis, RepulsionBias
from feynkac.fkc.errors import NonFiniteWeightWarning
from feynkac.fkc.testing import ZTest
from feynkac.molecular.free_energy import (
    Axis,
    difference_from_bias,
    free_energy_difference,
    log_weights_of_bias,
    tiwary_parrinello,
)

KT = 2.494
GRID = torch.linspace(-math.pi, math.pi, 361, dtype=torch.float64)[:-1]
SURFACE = KT * (2.5 * torch.cos(2 * GRID) + 1.2 * torch.sin(GRID) + 0.5 * torch.cos(3 * GRID))
"""F on the circle, kJ/mol."""
INSIDE = (GRID > 0) & (GRID < 2)


def exact_difference() -> float:
    p = torch.exp(-SURFACE / KT)
    return math.log(float(p[~INSIDE].sum() / p[INSIDE].sum()))


@pytest.mark.parametrize("gamma", [4.0, 10.0, math.inf])
def test_shift_of_a_constant_and_of_two_nodes(gamma):
    assert tiwary_parrinello(torch.zeros(5, 5), KT, gamma) == pytest.approx(0)
    assert tiwary_parrinello(torch.full((40,), 7.0), KT, gamma) == pytest.approx(7.0)
    v = KT * torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)
    inside = 2.0 if math.isinf(gamma) else (1 + 3 ** (gamma / (gamma - 1))) / (1 + 3 ** (1 / (gamma - 1)))
    assert tiwary_parrinello(v, KT, gamma) == pytest.approx(KT * math.log(inside))
    # a million kJ/mol do not overflow
    assert tiwary_parrinello(v + 1e6, KT, gamma) == pytest.approx(1e6 + KT * math.log(inside))


def filling_samples(gamma: float, levels: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nodes (T, n) drawn from the law of V_t = -(1 - 1/gamma) F + level_t, their V_t (T, n), and c(t) (T,)."""
    bias = -(1 - 1 / gamma) * SURFACE + levels[:, None]
    law = torch.softmax(-(SURFACE + bias) / KT, 1)
    nodes = torch.multinomial(law, n, replacement=True, generator=torch.Generator().manual_seed(1))
    rct = torch.tensor([tiwary_parrinello(v, KT, gamma) for v in bias], dtype=torch.float64)
    return nodes, bias.gather(1, nodes), rct


def test_weights_with_c_of_t_put_all_times_on_one_scale():
    """exp((V_t - c(t)) / kT) has mean one at every time of a converged, still growing bias; without c(t) it has not."""
    levels = torch.tensor([0.0, 3.0, 11.0, 40.0], dtype=torch.float64)
    nodes, energy, rct = filling_samples(6.0, levels, 20000)
    weights = log_weights_of_bias(energy, kT=KT, rct=rct).exp()
    for row in weights:
        assert ZTest.from_samples(row, 1.0).passed
    without = log_weights_of_bias(energy, kT=KT).exp()
    assert not ZTest.from_samples(without[0], 1.0).passed
    found = free_energy_difference(INSIDE[nodes].flatten(), weights.log().flatten(), kT=KT, bootstrap=0)
    assert abs(found.value - exact_difference()) < 5 * found.std_error
    # the last times alone carry the estimate when c(t) is left out
    lost = free_energy_difference(INSIDE[nodes].flatten(), without.log().flatten(), kT=KT, bootstrap=0)
    assert lost.ess < 0.35 * found.ess
    forgotten = free_energy_difference(INSIDE[nodes].flatten(), torch.zeros(80000), kT=KT, bootstrap=0)
    assert abs(forgotten.value - exact_difference()) > 20 * forgotten.std_error


def test_shapes_and_dead_samples():
    energy = torch.tensor([[2.0, math.nan], [4.0, 6.0]])
    with pytest.warns(NonFiniteWeightWarning, match="the bias energy of 1 of 4 samples is NaN: their weights are zero"):
        found = log_weights_of_bias(energy, kT=2.0, rct=torch.tensor([1.0, 2.0]))
    assert found.tolist() == [[0.5, -math.inf], [1.0, 2.0]]
    assert log_weights_of_bias(energy[1], kT=2.0, rct=2.0).tolist() == [1.0, 2.0]
    for changes, message in (
        ({"kT": 0.0}, "kT"),
        ({"rct": torch.zeros(3)}, "one a time"),
        ({"rct": math.nan}, "finite"),
        ({"bias_energy": torch.full((2, 2), math.inf)}, "infinite"),
    ):
        arguments = {"bias_energy": energy, "kT": 2.0} | changes
        with pytest.raises(ValueError, match=message):
            log_weights_of_bias(arguments.pop("bias_energy"), **arguments)


def filled_bias(gamma: float, rounds: int = 400) -> RepulsionBias:
    """Well-tempered hills from an ideal sampler of the biased law on the nodes."""
    variable = BiasVariable("phi", sigma=0.2, period=2 * math.pi, unit="rad")
    axis = GridAxis(-math.pi, math.pi, 180, periodic=True)
    bias = RepulsionBias.well_tempered([variable], kT=KT, bias_factor=gamma, height=0.4 * KT, grid=[axis])
    generator = torch.Generator().manual_seed(2)
    for _ in range(rounds):
        law = torch.softmax(-(SURFACE + bias(GRID[:, None])) / KT, 0)
        bias = bias.deposited(GRID[torch.multinomial(law, 400, replacement=True, generator=generator)][:, None])
    return bias


def test_a_filled_bias_gives_the_difference_by_itself_and_by_its_weights():
    bias = filled_bias(8.0)
    by_bias = difference_from_bias(bias, lambda s: (s[:, 0] > 0) & (s[:, 0] < 2))
    assert by_bias.value == pytest.approx(exact_difference(), abs=0.1)
    assert "no error bar" in by_bias.caveat
    assert by_bias.kT == KT
    law = torch.softmax(-(SURFACE + bias(GRID[:, None])) / KT, 0)
    nodes = torch.multinomial(law, 20000, replacement=True, generator=torch.Generator().manual_seed(3))
    weights = bias.reweight(GRID[nodes][:, None])
    assert weights == pytest.approx(log_weights_of_bias(bias(GRID[nodes][:, None]), kT=KT))
    found = free_energy_difference(INSIDE[nodes], weights, kT=KT, bootstrap=0)
    assert abs(found.value - exact_difference()) < 5 * found.std_error
    # while it fills, the bias itself is wrong and its weights are not
    early = filled_bias(8.0, rounds=3)
    wrong = difference_from_bias(early, lambda s: (s[:, 0] > 0) & (s[:, 0] < 2))
    assert abs(wrong.value - exact_difference()) > 0.5


class KnownBias:
    """V = -(1 - 1/gamma) F for F = kT (x^2 / 2 + y^2 / 2): closed-form regions."""

    kT, bias_factor, dimension, names, grid_axes = KT, 5.0, 2, ("x", "y"), None

    def free_energy(self, values: torch.Tensor) -> torch.Tensor:
        return KT * 0.5 * values.square().sum(1)


def test_two_variables_and_two_regions():
    axes = [Axis(name=n, lower=-6, upper=6, bins=240, periodic=False) for n in "xy"]
    known = KnownBias()
    quadrant = difference_from_bias(known, lambda s: (s > 0).all(1), axes=axes)
    assert quadrant.value == pytest.approx(math.log(3), abs=1e-6)
    assert quadrant.cells == 240**2
    named = difference_from_bias(
        known, lambda s: s[:, 0] > 1, outside=lambda s: (s[:, 0] < 0) & (s[:, 1] > 0), axes=axes
    )
    assert named.value == pytest.approx(math.log(0.25 / 0.158655), abs=1e-3)
    nothing = difference_from_bias(known, lambda s: s[:, 0] > 100, axes=axes)
    assert nothing.value == math.inf
    with pytest.raises(ValueError, match="without a grid"):
        difference_from_bias(known, lambda s: s[:, 0] > 0)
    with pytest.raises(ValueError, match="1 axes for a bias of 2"):
        difference_from_bias(known, lambda s: s[:, 0] > 0, axes=axes[:1])
    with pytest.raises(ValueError, match="overlap"):
        difference_from_bias(known, lambda s: s[:, 0] > 0, outside=lambda s: s[:, 0] > 1, axes=axes)
