"""The repulsion bias: how it grows, what it is beside an exact sum, and what it does with bad input."""

import math
from dataclasses import replace

import pytest
import torch

from feynkac.fkc.bias import (
    SHAPES,
    BiasVariable,
    GridAxis,
    Hills,
    OpesBias,
    RepulsionBias,
    WellTemperedBias,
)
from feynkac.fkc.bias.well_tempered import tiwary_parrinello

PHI = BiasVariable("phi", 0.3, 2 * math.pi, "rad")
PSI = BiasVariable("psi", 0.35, 2 * math.pi, "rad")
DISTANCE = BiasVariable("d", 0.05, unit="nm")
KT = 2.494


def _double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def _samples(variables, count, seed=0):
    g = torch.Generator().manual_seed(seed)
    span = torch.tensor([v.period or 1.0 for v in variables], dtype=torch.float64)
    start = torch.tensor([-(v.period or 0.0) / 2 for v in variables], dtype=torch.float64)
    return torch.rand(count, len(variables), generator=g, dtype=torch.float64) * span + start


def _axes(variables):
    return [GridAxis.fine_enough(v, *(() if v.period else (0.0, 1.0))) for v in variables]


def _well_tempered(variables, **changes):
    settings = {"kT": KT, "bias_factor": 10.0, "height": 20.0} | changes
    return RepulsionBias.well_tempered(variables, **settings)


def _without_grid(bias):
    return replace(bias, grid=None)


# --- well-tempered hills ----------------------------------------------------------------------------------------------


def test_heights_follow_the_rule():
    """h W_i exp(-V(s_i) / (kT (gamma - 1))), all with the bias before the batch."""
    bias = _well_tempered([PHI]).deposited(_double([[0.0], [0.1]]))
    s = _double([[0.0], [2.0], [0.05]])
    hills = bias.hills(s, time=3.0)
    expected = 20.0 / 3 * torch.exp(-bias(s) / (KT * 9.0))
    assert torch.allclose(hills.heights, expected)
    assert hills.times.tolist() == [3.0] * 3
    weighted = bias.hills(s, torch.tensor([0.0, math.log(2.0), -math.inf]).double())
    assert len(weighted) == 2
    assert torch.allclose(weighted.heights, expected[:2] * torch.tensor([1.0, 2.0]))  # 3 h W_i: weights 1/3 and 2/3
    grown = bias.deposited(s)
    assert torch.allclose(grown(s), bias.with_hills(hills)(s), atol=1e-12)
    assert grown.counts.hills == 5
    assert bias.counts.hills == 2  # the first is as it was


def test_a_batch_adds_as_much_whatever_its_size():
    s = _samples([PHI], 50)
    few, many = _well_tempered([PHI]).deposited(s), _well_tempered([PHI]).deposited(s.repeat(7, 1))
    assert torch.allclose(few(s), many(s), atol=1e-12)


def test_untempered_heights_do_not_fall():
    bias = _well_tempered([PHI], bias_factor=math.inf)
    s = torch.zeros(1, 1, dtype=torch.float64)
    for _ in range(5):
        bias = bias.deposited(s)
    assert float(bias(s)) == pytest.approx(100.0, rel=1e-3)


@pytest.mark.parametrize(
    "variables", [[PHI], [PHI, PSI], [DISTANCE], [PHI, DISTANCE], [PHI, PSI, DISTANCE]], ids=lambda v: len(v)
)
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_the_grid_is_the_sum(variables, shape):
    gridded = _well_tempered(variables, grid=_axes(variables), shape=shape)
    hills = gridded.hills(_samples(variables, 60))
    exact = _without_grid(gridded).with_hills(hills)
    gridded = gridded.with_hills(hills)
    points = _samples(variables, 400, seed=1)
    error = (gridded(points) - exact(points)).abs()
    assert float(error.max()) <= gridded.interpolation_error * float(hills.heights.sum())
    assert float(error.max()) < 2e-3 * float(exact(points).max())
    nodes = gridded.grid.points()[:200]
    assert torch.allclose(gridded(nodes), exact(nodes), atol=1e-10)
    other = _without_grid(_well_tempered([replace(v, sigma=1.1 * v.sigma) for v in variables], shape=shape))
    wrong = other.with_hills(replace(hills, widths=1.05 * hills.widths))
    worst = float((gridded(points) - wrong(points)).abs().max())
    assert worst > gridded.interpolation_error * float(hills.heights.sum()) / len(hills) * 3


def test_a_gaussian_hill_on_the_default_grid():
    assert _well_tempered([PHI]).interpolation_error < 1.4e-5
    assert _well_tempered([PHI, PSI]).interpolation_error < 2.7e-5
    assert _well_tempered([PHI], shape="stretched-gaussian").interpolation_error < 2.3e-4
    assert _well_tempered([PHI], shape="truncated-gaussian").interpolation_error < math.exp(-6.25)  # its step


@pytest.mark.parametrize("variable", [PHI, DISTANCE], ids=lambda v: v.name)
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_the_error_of_a_hill_is_found_wherever_it_stands(variable, shape):
    empty = _well_tempered([variable], grid=_axes([variable]), shape=shape)
    middle, spacing = (empty.grid.axes[0].upper + empty.grid.axes[0].lower) / 2, empty.grid.axes[0].spacing
    points = (middle + torch.linspace(-5.0, 5.0, 20_001, dtype=torch.float64) * variable.sigma)[:, None]
    worst = 0.0
    for place in torch.linspace(0.0, 1.0, 57, dtype=torch.float64):
        hills = empty.hills((middle + spacing * place).reshape(1, 1))
        away = empty.with_hills(hills)(points) - _without_grid(empty).with_hills(hills)(points)
        worst = max(worst, float(away.abs().max() / hills.heights[0]))
    assert 0.98 * empty.interpolation_error < worst < 1.01 * empty.interpolation_error


def test_the_gradient_is_that_of_the_value():
    for variables in ([PHI, PSI], [PHI, DISTANCE]):
        bias = _well_tempered(variables, grid=_axes(variables)).deposited(_samples(variables, 100))
        for form in (bias, _without_grid(bias).with_hills(bias.hills(_samples(variables, 100)))):
            points = _samples(variables, 6, seed=3).requires_grad_()
            assert torch.autograd.gradcheck(form, (points,), atol=1e-5)


def test_beyond_the_grid_the_bias_is_flat():
    bias = _well_tempered([DISTANCE], grid=[GridAxis(0.2, 0.8, 60)])
    bias = bias.deposited(_double([[0.2], [0.78], [0.83], [2.0]]))
    assert bias.counts.outside == 2
    assert bias.counts.hills == 4
    points = _double([[0.8], [0.9], [50.0], [0.1], [-1.0], [0.2]])
    value, slope = bias.value_and_gradient(points)
    assert torch.allclose(value[:3], value[0].expand(3), atol=1e-12)
    assert torch.allclose(value[3:], value[5].expand(3), atol=1e-12)
    assert slope[1:5, 0].tolist() == [0.0] * 4
    assert torch.isfinite(value).all()
    assert float(value[0]) > 1.0  # hills beyond the end reach in


def test_nodes_and_seam():
    """Where a difference quotient would be 0/0: on the nodes, at the ends, across the circle."""
    bias = _well_tempered([PHI, PSI])
    nodes = bias.grid.points()
    bias = bias.deposited(nodes[::37])
    value, slope = bias.value_and_gradient(nodes)
    assert torch.isfinite(value).all()
    assert torch.isfinite(slope).all()
    seam = _double([[math.pi, 0.3], [-math.pi, 0.3]])
    value, slope = bias.value_and_gradient(seam)
    assert torch.allclose(value[0], value[1], atol=1e-9)
    assert torch.allclose(slope[0], slope[1], atol=1e-9)
    one = _well_tempered([PHI]).deposited(_double([[math.pi - 0.05]]))
    near, far = one(_double([[-math.pi + 0.05], [math.pi - 0.15]]))
    assert float(near) == pytest.approx(float(far), rel=1e-4)


def test_nan_values_leave_no_hill_and_are_counted():
    s = _double([[0.1], [math.nan], [0.3], [math.inf]])
    bias = _well_tempered([PHI]).deposited(s)
    assert (bias.counts.hills, bias.counts.invalid, bias.counts.batches) == (2, 2, 1)
    clean = _well_tempered([PHI]).deposited(s[[0, 2]])
    assert torch.equal(bias.grid.values, clean.grid.values)  # the others are not touched
    value, slope = bias.value_and_gradient(s)
    assert value.isnan().tolist() == [False, True, False, True]
    assert slope.isnan().flatten().tolist() == [False, True, False, True]
    assert bias.reweight(s)[[1, 3]].tolist() == [-math.inf, -math.inf]
    assert torch.isfinite(bias.reweight(s)[[0, 2]]).all()
    dead = bias.deposited(torch.full((3, 1), math.nan, dtype=torch.float64))
    assert dead.counts.invalid == 5
    assert torch.equal(dead.grid.values, bias.grid.values)
    none = bias.deposited(s[[0, 2]], torch.full((2,), -math.inf, dtype=torch.float64))
    assert none.counts.hills == 2


def test_reweighting_is_the_bias_over_kT():
    bias = _well_tempered([PHI]).deposited(_samples([PHI], 30))
    s = _samples([PHI], 10, seed=4)
    assert torch.allclose(bias.reweight(s), bias(s) / KT)
    carried = torch.randn(10, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(bias.reweight(s, carried), carried + bias(s) / KT)


def test_rct_of_a_flat_and_of_a_known_bias():
    """A constant bias V shifts c by V; for V = -(1 - 1/gamma) F the integral gives kT ln(Z_0 / Z_1)."""
    flat = torch.full((64,), 3.5, dtype=torch.float64)
    assert tiwary_parrinello(flat, KT, 10.0) == pytest.approx(3.5, abs=1e-9)
    assert tiwary_parrinello(flat, KT, math.inf) == pytest.approx(3.5, abs=1e-9)
    x = torch.arange(200, dtype=torch.float64) * 2 * math.pi / 200 - math.pi
    free = 8.0 * torch.cos(x) + 3.0 * torch.sin(2 * x)
    gamma = 6.0
    expected = KT * math.log(float(torch.exp(-free / KT).sum() / torch.exp(-free / (gamma * KT)).sum()))
    assert tiwary_parrinello(-(1 - 1 / gamma) * free, KT, gamma) == pytest.approx(expected, abs=1e-9)
    assert tiwary_parrinello(1e5 + flat, KT, 10.0) == pytest.approx(1e5 + 3.5)  # no overflow
    bias = _well_tempered([PHI]).deposited(_samples([PHI], 20))
    points = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)[:-1, None]
    assert bias.rct() == pytest.approx(bias.rct(points), abs=1e-3)
    with pytest.raises(ValueError, match="points"):
        _well_tempered([DISTANCE]).rct()


@pytest.mark.slow
def test_ideal_samples_make_the_bias_converge_to_the_free_energy():
    """V goes to -(1 - 1/gamma) F when every batch is drawn from exp(-(F + V)/kT): periodic, 9 kT of barrier."""
    g = torch.Generator().manual_seed(5)
    x = (torch.arange(2000, dtype=torch.float64) + 0.5) * 2 * math.pi / 2000 - math.pi
    free = KT * (3.0 * torch.cos(2 * x) + 1.5 * torch.sin(x))
    narrow = BiasVariable("x", 0.2, 2 * math.pi)

    def rms(gamma, scale):
        bias = _well_tempered([narrow], bias_factor=gamma, height=4.0)
        for _ in range(1500):
            law = torch.softmax(-(free + bias(x[:, None])) / KT, 0)
            index = torch.multinomial(law, 256, replacement=True, generator=g)
            bias = bias.deposited(x[index][:, None])
        found = scale * bias.free_energy(x[:, None])
        low = free < free.min() + 6 * KT
        error = (found - free)[low]
        return float((error - error.mean()).square().mean().sqrt() / KT)

    assert rms(8.0, 1.0) < 0.08
    assert rms(8.0, 7 / 8) > 0.15  # V itself, without gamma / (gamma - 1)


@pytest.mark.parametrize("period_over_sigma", [7.0, 8.0, 10.0])
def test_the_stated_error_knows_of_the_far_side_of_the_circle(period_over_sigma):
    wide = BiasVariable("x", 2 * math.pi / period_over_sigma, 2 * math.pi)
    bias = _well_tempered([wide]).deposited(_double([[0.03]]))
    points = torch.linspace(-math.pi, math.pi, 5001, dtype=torch.float64)[:, None]
    exact = _without_grid(_well_tempered([wide])).with_hills(_well_tempered([wide]).hills(_double([[0.03]])))
    worst = float((bias(points) - exact(points)).abs().max()) / 20.0
    assert 0.2 * bias.interpolation_error < worst <= 1.05 * bias.interpolation_error


def test_none_among_the_axes_is_the_whole_circle():
    """Only an open variable needs its ends said."""
    ends = GridAxis.fine_enough(DISTANCE, 0.2, 0.8)
    bias = _well_tempered([PHI, DISTANCE], grid=[None, ends])
    assert bias.grid_axes == (GridAxis.fine_enough(PHI), ends)
    opes = _opes([PHI, DISTANCE], grid=[None, ends])
    assert opes.grid_axes == (GridAxis.fine_enough(PHI, nodes_a_width=10), ends)
    with pytest.raises(ValueError, match="d is open, so its axis needs"):
        _well_tempered([PHI, DISTANCE], grid=[None, None])
    with pytest.raises(ValueError, match="nodes, expected at most 3,000,000"):
        _opes([PHI, PSI, DISTANCE], grid=[None, None, GridAxis(0.0, 1.0, 400)])


def test_too_many_nodes_fall_back_on_merged_kernels():
    fine = [BiasVariable(f"x{i}", 0.1, 2 * math.pi) for i in range(3)]
    bias = _well_tempered(fine)
    assert (bias.grid, bias.compression) == (None, 0.5)


# --- merging ----------------------------------------------------------------------------------------------------------


def test_merging_keeps_moments_and_volume():
    five = [BiasVariable(f"x{i}", 0.2, 2 * math.pi if i % 2 else None) for i in range(5)]
    bias = _well_tempered(five)
    assert bias.compression == 0.5
    assert bias.grid is None
    s = 0.01 * _samples(five, 40)
    merged, kept = bias.deposited(s), replace(bias, compression=None).deposited(s)
    assert merged.n_kernels < 10 < kept.n_kernels == 40

    def volume(b):
        return b.kernels.heights * b.kernels.widths.prod(dim=1)

    assert float(volume(merged).sum()) == pytest.approx(float(volume(kept).sum()), rel=1e-12)
    for b in (merged, kept):
        mean = (volume(b)[:, None] * b.kernels.centers).sum(0) / volume(b).sum()
        assert torch.allclose(mean, s.mean(0), atol=1e-12)
    spread = [
        (volume(b)[:, None] * (b.kernels.widths**2 + (b.kernels.centers - s.mean(0)) ** 2)).sum(0) / volume(b).sum()
        for b in (merged, kept)
    ]
    assert torch.allclose(*spread, rtol=1e-12)
    assert float((merged(s) - kept(s)).abs().max()) < 0.02 * float(kept(s).max())


def test_what_merging_costs():
    """Half a width in four dimensions: V within a per mille of its largest value."""
    many = [BiasVariable(f"x{i}", 0.35, 2 * math.pi) for i in range(4)]
    merged = _well_tempered(many)
    kept = replace(merged, compression=None)
    for seed in range(10):
        hills = merged.hills(0.15 * _samples(many, 300, seed))
        merged, kept = merged.with_hills(hills), kept.with_hills(hills)
    points = 0.15 * _samples(many, 500, 99)
    error = (merged(points) - kept(points)).abs()
    assert merged.n_kernels < 0.7 * kept.n_kernels
    assert 1e-6 < float(error.max()) < 2e-3 * float(kept(points).max())


def test_merging_around_the_circle():
    bias = RepulsionBias.well_tempered([PHI], kT=KT, bias_factor=10.0, height=2.0, compression=1.0)
    bias = bias.deposited(_double([[math.pi - 0.05], [-math.pi + 0.05]]))
    assert bias.n_kernels == 1
    assert abs(float(bias.kernels.centers)) == pytest.approx(math.pi, abs=1e-12)


def test_kernels_stay_apart_and_few():
    many = [BiasVariable(f"x{i}", 0.3, 2 * math.pi) for i in range(4)]
    bias = _well_tempered(many)
    for seed in range(6):
        bias = bias.deposited(0.12 * _samples(many, 300, seed))
    centers, widths = bias.kernels.centers, bias.kernels.widths
    scaled = ((centers[:, None] - centers[None]) / widths[None]).square().sum(-1).sqrt()
    scaled.fill_diagonal_(math.inf)
    assert bias.counts.hills == 1800
    assert bias.n_kernels < 1200
    assert float(scaled.min()) > 0.35  # joined widths grow a little, so later ones may look nearer


# --- OPES -------------------------------------------------------------------------------------------------------------


def _opes(variables=(PHI,), **changes):
    settings = {"kT": KT, "barrier": 20.0} | changes
    return RepulsionBias.opes(list(variables), **settings)


def test_opes_starts_flat_at_minus_the_barrier():
    for bias in (_opes(), _opes([DISTANCE])):
        assert torch.allclose(
            bias(_samples(bias.variables, 5)), torch.full((5,), -20.0, dtype=torch.float64), atol=1e-9
        )
        assert float(bias.value_and_gradient(_samples(bias.variables, 5))[1].abs().max()) < 1e-9
        assert bias.bias_factor == pytest.approx(20.0 / KT)


def test_one_opes_kernel_by_hand():
    """One sample: its weight is exp(-barrier/kT), beside the one that the sums start from."""
    bias = _opes([DISTANCE]).deposited(_double([[0.4]]))
    first = math.exp(-20.0 / KT)
    effective = (1 + 2 * first) ** 2 / (1 + 2 * first**2)
    shrink = (effective * 3 / 4) ** (-1 / 5)
    height = first / shrink
    kernels = bias.kernels
    assert float(kernels.heights) == pytest.approx(height, rel=1e-12)
    assert float(kernels.widths) == pytest.approx(0.05 * shrink, rel=1e-12)
    gamma = 20.0 / KT
    prefactor = 1 - 1 / gamma
    reach = math.sqrt(2 * 20.0 / (prefactor * KT))
    peak = height * (1 - math.exp(-0.5 * reach**2))
    assert bias.sums.zed == pytest.approx(peak / (2 * first), rel=1e-12)
    expected = prefactor * KT * math.log(1.0 + math.exp(-20.0 / (prefactor * KT)))
    assert float(bias(_double([[0.4]]))) == pytest.approx(expected, abs=1e-10)


def test_opes_is_bounded_below_by_the_barrier():
    bias = _opes()
    for seed in range(5):
        bias = bias.deposited(0.2 * _samples([PHI], 64, seed))
    points = _samples([PHI], 500, 9)
    value = bias(points)
    assert float(value.min()) > -20.0 - 0.01 * KT  # a spline may swing a little where V starts to rise
    assert float(value.max()) < 8.0


def test_opes_widths_shrink_with_the_effective_samples():
    bias = _opes([DISTANCE])
    fixed = _opes([DISTANCE], adaptive_width=False)
    for seed in range(4):
        s = 0.3 + 0.4 * _samples([DISTANCE], 256, seed)
        hills, bias, fixed = bias.hills(s), bias.deposited(s), fixed.deposited(s)
        expected = 0.05 * (bias.sums.effective * 3 / 4) ** (-1 / 5)
        assert float(hills.widths[0, 0]) == pytest.approx(expected, rel=1e-12)
    assert float(fixed.kernels.widths.min()) >= 0.05


@pytest.mark.parametrize("explore", [False, True])
def test_opes_grid_is_the_sum_of_its_kernels(explore):
    gridded = _opes([PHI, PSI], barrier=30.0, explore=explore)
    for seed in range(4):
        gridded = gridded.deposited(0.5 * _samples([PHI, PSI], 200, seed))
    exact = replace(gridded, grid=None)
    nodes = gridded.grid.points()
    assert float((gridded(nodes) - exact(nodes)).abs().max()) < 1e-9
    points = _samples([PHI, PSI], 2000, seed=7)
    away = (gridded(points) - exact(points)).abs()
    assert float(away.max()) < 0.1 * KT
    assert float(away.square().mean().sqrt()) < 0.01 * KT


@pytest.mark.parametrize("explore", [False, True])
def test_opes_states_the_error_of_its_grid(explore):
    bias = _opes([PHI, PSI], barrier=30.0, explore=explore)
    assert bias.interpolation_error == 0.0
    for seed in range(3):
        bias = bias.deposited(0.5 * _samples([PHI, PSI], 200, seed))
    points = _samples([PHI, PSI], 3000, seed=7)
    away = float((bias(points) - replace(bias, grid=None)(points)).abs().max())
    assert 0.3 * away < bias.interpolation_error < 0.15 * KT  # where V rises from its floor
    coarse = [GridAxis.fine_enough(v, nodes_a_width=3) for v in (PHI, PSI)]
    with pytest.raises(ValueError, match="more than 1/5 of its sigma"):
        _opes([PHI, PSI], grid=coarse)


def test_exploring_kernels_do_not_meet_themselves():
    """sigma sqrt(gamma) would be wider than the circle."""
    bias = _opes(barrier=60.0, explore=True, adaptive_width=False)
    hills = bias.hills(_double([[0.0]]))
    assert float(hills.widths) == pytest.approx(2 * math.pi / 7)
    free = _opes([DISTANCE], barrier=60.0, explore=True, adaptive_width=False).hills(_double([[0.0]]))
    assert float(free.widths) == pytest.approx(0.05 * math.sqrt(60.0 / KT))


@pytest.mark.slow
@pytest.mark.parametrize("explore", [False, True])
def test_ideal_samples_make_opes_converge(explore):
    g = torch.Generator().manual_seed(6)
    x = (torch.arange(2000, dtype=torch.float64) + 0.5) * 2 * math.pi / 2000 - math.pi
    free = KT * (3.0 * torch.cos(2 * x) + 1.5 * torch.sin(x))
    bias = _opes(barrier=25.0, explore=explore)
    for _ in range(400):
        law = torch.softmax(-(free + bias(x[:, None])) / KT, 0)
        index = torch.multinomial(law, 256, replacement=True, generator=g)
        bias = bias.deposited(x[index][:, None])
    low = free < free.min() + 6 * KT
    error = (bias.free_energy(x[:, None]) - free)[low]
    rms = float((error - error.mean()).square().mean().sqrt() / KT)
    assert rms < 0.13
    flat = (bias(x[:, None]) - bias(x[:, None]).mean())[low] + (free - free.mean())[low]
    assert float(flat.std() / KT) > 0.15  # the bias alone is not -F: it is tempered


# --- state and settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bias",
    [
        _well_tempered([PHI, PSI]),
        _well_tempered([PHI, DISTANCE], grid=_axes([PHI, DISTANCE]), shape="stretched-gaussian"),
        _well_tempered([DISTANCE], bias_factor=math.inf),
        _well_tempered([BiasVariable(f"x{i}", 0.2) for i in range(4)]),
        _opes([PHI, PSI]),
        _opes([DISTANCE], explore=True, adaptive_width=False),
    ],
    ids=["grid", "mixed", "kernels", "merged", "opes", "explore"],
)
def test_the_state_is_the_bias(bias):
    variables = bias.variables
    bias = bias.deposited(_samples(variables, 50)).deposited(_samples(variables, 50, 1))
    again = RepulsionBias.from_state_dict(bias.state_dict())
    assert type(again) is type(bias)
    assert (again.variables, again.counts) == (bias.variables, bias.counts)
    points = _samples(variables, 20, 2)
    for a, b in ((bias, again), (bias.deposited(points), again.deposited(points))):
        assert torch.equal(a(points), b(points))
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(a.state_dict()[k], b.state_dict()[k]) for k in a.state_dict())


def test_the_state_belongs_to_its_reader():
    """Neither a state that was handed out nor one that was taken in is the bias's own memory."""
    bias = _well_tempered([PHI]).deposited(_double([[0.0]]))
    before, state = bias(_double([[0.0]])), bias.state_dict()
    again = RepulsionBias.from_state_dict(state)
    state["grid"].zero_()
    for one in (bias, again):
        assert torch.equal(one(_double([[0.0]])), before)
        assert float(one.deposited(_double([[2.0]]))(_double([[0.0]]))) > 0.9 * float(before)


def test_a_damaged_state_is_refused():
    state = _well_tempered([PHI]).deposited(_double([[0.0]])).state_dict()
    with pytest.raises(ValueError, match=r"values of \[50\] nodes, the axes have"):
        RepulsionBias.from_state_dict(state | {"grid": state["grid"][:50]})
    with pytest.raises(ValueError, match="'grid' is missing"):
        RepulsionBias.from_state_dict({"settings": state["settings"]})


def test_infinite_values_are_nan_everywhere():
    s = _double([[math.inf], [math.nan], [0.4]])
    for bias in (
        _well_tempered([DISTANCE]),
        _well_tempered([DISTANCE]).deposited(_double([[0.4]])),
        _well_tempered([DISTANCE], grid=_axes([DISTANCE])).deposited(_double([[0.4]])),
        _opes([DISTANCE]),
    ):
        value, slope = bias.value_and_gradient(s)
        assert value.isnan().tolist() == [True, True, False]
        assert slope.isnan().flatten().tolist() == [True, True, False]


def test_another_state_is_refused():
    with pytest.raises(ValueError, match="not the state of a bias"):
        RepulsionBias.from_state_dict({"weights": torch.zeros(3)})


def test_hills_from_elsewhere():
    hills = Hills(_double([[0.0]]), _double([[0.4]]), _double([1.0]), _double([0.0]))
    bias = _well_tempered([PHI]).with_hills(hills)
    assert float(bias(_double([[0.0]]))) == pytest.approx(1.0, rel=1e-5)
    with pytest.raises(ValueError, match="1 variables, expected 2"):
        _well_tempered([PHI, PSI]).with_hills(hills)
    narrow, wide = (replace(hills, widths=_double([[w]])) for w in (0.03, 1.0))
    with pytest.raises(ValueError, match="nodes of the grid are"):
        _well_tempered([PHI]).with_hills(narrow)
    with pytest.raises(ValueError, match="seventh of the period"):
        _well_tempered([PHI]).with_hills(wide)
    fine = [GridAxis.fine_enough(PHI, nodes_a_width=20)]
    fitting = _well_tempered([PHI], grid=fine).with_hills(replace(hills, widths=_double([[0.05]])))
    assert fitting.interpolation_error > 10 * _well_tempered([PHI], grid=fine).interpolation_error
    with pytest.raises(ValueError, match="finite"):
        _well_tempered([PHI]).with_hills(replace(hills, heights=torch.full((1,), math.nan, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BiasVariable("x", 0.0), "sigma = 0.0"),
        (lambda: BiasVariable("x", 1.0, 2 * math.pi), "seventh"),
        (lambda: BiasVariable("x", 0.1, -1.0), "period = -1.0"),
        (lambda: _well_tempered([]), "at least one"),
        (lambda: _well_tempered([PHI, PHI]), "name of its own"),
        (lambda: _well_tempered([PHI], bias_factor=1.0), "bias_factor: got 1.0"),
        (lambda: _well_tempered([PHI], height=-1.0), "height: got -1.0"),
        (lambda: _well_tempered([PHI], kT=0.0), "kT: got 0.0"),
        (lambda: _well_tempered([PHI], shape="box"), "shape: got 'box'"),
        (lambda: _well_tempered([PHI], grid=[GridAxis(-1.0, 1.0, 50)]), "phi is periodic, its axis is not"),
        (lambda: _well_tempered([PHI], grid=[GridAxis(0.0, 6.0, 100, True)]), "its period is"),
        (lambda: _well_tempered([DISTANCE], grid=[GridAxis(0.0, 1.0, 20)]), "more than 1/2 of its sigma"),
        (lambda: _well_tempered([DISTANCE], grid=_axes([DISTANCE]), compression=1.0), "choose one of the two"),
        (lambda: _well_tempered([DISTANCE], grid=_axes([PHI, DISTANCE])), "2 axes for 1 variables"),
        (lambda: GridAxis(0.0, 0.0, 10), "finite and in order"),
        (lambda: GridAxis(0.0, 1.0, 2), "bins = 2"),
        (lambda: GridAxis.fine_enough(DISTANCE), "needs a lower and an upper end"),
        (lambda: _opes(barrier=1.0), "barrier: got 1.0"),
        (lambda: _opes(explore=True, bias_factor=math.inf), "explore needs a finite one"),
        (lambda: _opes().rct(), "no c"),
        (lambda: _opes()(torch.zeros(3, 2, dtype=torch.float64)), "expected .n, 1."),
        (lambda: _opes()(torch.zeros(3, 1, dtype=torch.int64)), "floating point"),
        (lambda: _opes().deposited(torch.zeros(3, 1), torch.zeros(2)), "log_weights: got"),
        (lambda: _opes().reweight(torch.zeros(3, 1), torch.zeros(3, 1)), "log_weights: got"),
        (lambda: _opes(barrier=20_000.0), "is it in the unit of kT"),
    ],
    ids=range(25),
)
def test_bad_settings_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_kinds():
    assert isinstance(_opes(), OpesBias)
    assert isinstance(_well_tempered([PHI]), WellTemperedBias)
    assert _well_tempered([PHI]).n_kernels == 0
    assert _opes([DISTANCE]).grid_axes is None
