"""Splines and the autoregressive density: identities, normalisation, agreement with zuko."""

from __future__ import annotations

import math

import pytest
import torch

from feynkac.flows.autoregressive import AutoregressiveSplineFlow, _limited, _unlimited
from feynkac.flows.domains import Domain
from feynkac.flows.molecule_flow import InternalCoordinateFlow
from feynkac.flows.splines import circular_knots, interval_knots, spline_forward, spline_inverse


def raw_parameters(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def roughened(flow: AutoregressiveSplineFlow, scale: float = 0.1) -> AutoregressiveSplineFlow:
    """Give the output layers random weights, so that nothing is close to the identity."""
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for parameter in flow.networks.weight_out:
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return flow


@pytest.mark.parametrize("kind", ["interval", "circular"])
def test_spline_inverse_and_slope(kind):
    x = (
        torch.linspace(-6.0, 6.0, 401, dtype=torch.float64)
        if kind == "interval"
        else torch.linspace(0, 0.999, 400).double()
    )
    raw = 2.0 * raw_parameters(23 if kind == "interval" else 24, 1).expand(-1, len(x))
    knots = interval_knots(raw, 4.0) if kind == "interval" else circular_knots(raw)
    x = x.clone().requires_grad_()
    y, log_slope = spline_forward(x, knots)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope.log() - log_slope).abs().max() < 1e-9
    back, log_inverse = spline_inverse(y.detach(), knots)
    assert (back - x).abs().max() < 1e-9
    assert (log_inverse + log_slope).abs().max() < 1e-8
    assert bool((y[1:] > y[:-1]).all())


def test_zero_parameters_give_the_identity_and_circles_close_smoothly():
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    y, log_slope = spline_forward(x, circular_knots(torch.zeros(30, 11, dtype=torch.float64)))
    assert torch.allclose(y, x)
    assert log_slope.abs().max() < 1e-12
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y, log_slope = spline_forward(ends, circular_knots(raw_parameters(30, 1).expand(-1, 2)))
    assert torch.equal(y, ends)
    assert log_slope[0].item() == pytest.approx(log_slope[1].item(), abs=1e-12)


def test_spline_agrees_with_zuko():
    zuko = pytest.importorskip("zuko")
    raw = raw_parameters(23, 200)
    knots = interval_knots(raw, 4.0)
    x = torch.linspace(-5, 5, 200, dtype=torch.float64)
    # zuko takes logarithms of sizes and slopes, which it clips softly by v -> v / (1 + |c v / log slope|)
    limit = math.log(1e-9)
    unclip = lambda v, c: v / (1 - (c * v / limit).abs())  # noqa: E731
    widths, heights = (unclip(k.diff(dim=0).T.log(), 2) for k in knots[:2])
    slopes = unclip(knots.slope[1:-1].T.log(), 1)
    theirs = zuko.transforms.MonotonicRQSTransform(widths, heights, slopes, bound=4.0, slope=1e-9)
    y, log_slope = theirs.call_and_ladj(x)
    ours, our_slope = spline_forward(x, knots)
    assert (ours - y).abs().max() < 1e-6
    assert (our_slope - log_slope).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["water", "peroxide", "methanol", "alanine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampling_and_density_agree(name, dtype, molecules, thermal):
    coordinates = molecules[name]
    flow = InternalCoordinateFlow.from_data(
        coordinates, thermal(coordinates, 500, torch.Generator().manual_seed(1)), hidden=16
    ).to(dtype)
    roughened(flow.density, 0.05)
    x, log_q = flow.sample_and_log_prob(300, generator=torch.Generator().manual_seed(2))
    assert log_q.dtype == torch.float64
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    assert (flow.log_prob(x) - log_q).abs().max() < tolerance
    again = flow.sample_and_log_prob(300, generator=torch.Generator().manual_seed(2))[0]
    assert torch.equal(x, again)
    # the sequential pass itself, not only the density evaluated afterwards
    y = flow.density.sample(300, generator=torch.Generator().manual_seed(2))
    assert bool(coordinates.contains(y).all())


def test_base_variables_come_back(molecules, thermal):
    """Mapping base variables forth with single networks and back in one parallel pass is the identity."""
    coordinates = molecules["alanine"]
    flow = roughened(AutoregressiveSplineFlow(coordinates.domains, hidden=16).double(), 0.05)
    flow.initialise(thermal(coordinates, 400, torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(20, flow.n_circular, generator=generator, dtype=torch.float64)
    normal = torch.randn(20, 60 - flow.n_circular, generator=generator, dtype=torch.float64)
    y = flow.from_base(uniform, normal)
    u, s, _, _ = flow._standardise(y)
    (circular, _), (line, linear) = flow.networks(flow._features(u, s))
    assert (spline_forward(u.T, circular_knots(circular))[0].T - uniform).abs().max() < 1e-9
    width = _limited(line[:, 1]).exp()
    z = spline_forward((s.T - line[:, 0] - linear[:, 0]) / width, interval_knots(line[:, 2:], 4.0))[0]
    assert (z.T - normal).abs().max() < 1e-8


def test_density_integrates_to_one_on_a_grid():
    domains = [Domain("circular", -1.0, 2 * math.pi), Domain("arc", 0.0, math.pi)]
    flow = roughened(AutoregressiveSplineFlow(domains, hidden=8, seed=3).double(), 0.2)
    a = -1.0 + 2 * math.pi * (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    b = math.pi * (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    grid = torch.cartesian_prod(a, b)
    total = flow.log_prob(grid).detach().exp().sum() * (2 * math.pi / 200) * (math.pi / 1000)
    assert total.item() == pytest.approx(1.0, abs=2e-4)


def test_each_factor_sees_only_the_coordinates_before_it(molecules, thermal):
    coordinates = molecules["methanol"]
    flow = roughened(AutoregressiveSplineFlow(coordinates.domains, hidden=8).double())
    y = thermal(coordinates, 1, torch.Generator().manual_seed(4)).requires_grad_()
    u, s, _, _ = flow._standardise(y)
    outputs = torch.cat([raw[..., 0].sum(-1) for raw, _ in flow.networks(flow._features(u, s))])
    position = {column: place for place, column in enumerate(flow.order)}
    for network, column in enumerate(flow.columns.tolist()):
        (gradient,) = torch.autograd.grad(outputs[network], y, retain_graph=True)
        seen = {c for c in range(12) if gradient[0, c] != 0}
        assert seen == {c for c in range(12) if position[c] < position[column]}


def test_splitting_networks_into_blocks_changes_nothing(molecules, thermal):
    coordinates = molecules["alanine"]
    flow = roughened(AutoregressiveSplineFlow(coordinates.domains, hidden=8).double())
    features = flow._features(*flow._standardise(thermal(coordinates, 7, torch.Generator().manual_seed(5)))[:2])
    for (one, shift), (four, shift4) in zip(
        flow.networks(features, blocks=1), flow.networks(features, blocks=4), strict=True
    ):
        assert torch.allclose(one, four, atol=1e-12)
        assert torch.allclose(shift, shift4, atol=1e-12)


def test_outside_the_domain_the_density_is_zero(alanine, alanine_positions):
    flow = InternalCoordinateFlow(alanine, hidden=8)
    mirror = alanine_positions * torch.tensor([1.0, 1.0, -1.0])
    values = flow.log_prob(torch.stack([alanine_positions, mirror]))
    assert values[0].isfinite()
    assert values[1] == -math.inf


def test_rotating_samples_leaves_the_density_alone(alanine, thermal):
    y = thermal(alanine, 300, torch.Generator().manual_seed(6))
    flow = InternalCoordinateFlow.from_data(alanine, y, hidden=8, orientation="random")
    x, log_q = flow.sample_and_log_prob(50, generator=torch.Generator().manual_seed(7))
    assert x[:, 6].abs().max() < 1e-12
    assert x[:, 8, 1:].abs().max() > 0.01  # not on the x axis
    assert (flow.log_prob(x + 3.0) - log_q).abs().max() < 1e-3
    with pytest.raises(ValueError, match="orientation"):
        InternalCoordinateFlow(alanine, orientation="sideways")
    with pytest.raises(ValueError, match="permutation"):
        InternalCoordinateFlow(alanine, order=[0, 0])
    with pytest.raises(ValueError, match="no context"):
        flow.sample_and_log_prob(1, generator=torch.Generator(), context=torch.zeros(1))


def test_gaussian_start_is_exact_for_gaussian_data(molecules):
    """Bonds that are jointly log-normal: the start has their density up to the error of the sample covariance."""
    coordinates = molecules["water"]
    generator = torch.Generator().manual_seed(8)
    z = torch.randn(20000, 3, generator=generator, dtype=torch.float64)
    mix = torch.tensor([[0.02, 0, 0], [0.015, 0.01, 0], [0.0, 0.05, 0.1]], dtype=torch.float64)
    line = z @ mix.T + torch.tensor([math.log(0.1), math.log(0.1), 0.3])
    y = torch.cat([line[:, :2].exp(), math.pi * line[:, 2:].sigmoid()], -1)
    flow = InternalCoordinateFlow.from_data(coordinates, y, hidden=8)
    entropy = 1.5 * math.log(2 * math.pi * math.e) + mix.diagonal().log().sum()
    p = y[:, 2] / math.pi
    exact = -entropy - y[:, :2].log().sum(-1).mean() - (math.pi * p * (1 - p)).log().mean()
    assert flow.log_prob_internal(y).mean().item() == pytest.approx(exact.item(), abs=0.02)


def test_wild_networks_still_draw_finite_coordinates(molecules, thermal):
    """A conditional is never wider than e^2 standard deviations: extrapolating networks cannot draw infinities."""
    coordinates = molecules["alanine"]
    flow = AutoregressiveSplineFlow(coordinates.domains, hidden=16)
    flow.initialise(thermal(coordinates, 400, torch.Generator().manual_seed(1)))
    with torch.no_grad():
        for bias in flow.networks.bias_out:
            bias += 40.0
    y = flow.sample(200, generator=torch.Generator().manual_seed(2))
    assert bool(y.isfinite().all())
    widths = torch.linspace(-8, 60, 200, dtype=torch.float64)
    assert bool((_limited(widths) <= 2.0).all())
    assert torch.allclose(_limited(_unlimited(widths[widths < 1.5])), widths[widths < 1.5], atol=1e-9)
