"""Operators against sums and functions written out by hand."""

import math
import sys

import pytest
import torch

from feynkac.fkc.ops import cubic_spline, kernel_sum, spline_coefficients


def _by_hand(point, centers, widths, heights, periods, scale, shift, cutoff):
    total = 0.0
    for center, width, height in zip(centers.tolist(), widths.tolist(), heights.tolist(), strict=True):
        q = 0.0
        for s, c, w, period in zip(point, center, width, periods.tolist(), strict=True):
            d = s - c
            if period:
                d = min((d + k * period for k in (-2, -1, 0, 1, 2)), key=abs)
            q += 0.5 * (d / w) ** 2
        total += height * (scale * math.exp(-q) + shift) if q < cutoff else 0.0
    return total


def _kernels(count=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    periods = torch.tensor([2 * math.pi, 0.0], dtype=torch.float64)
    centers = torch.rand(count, 2, generator=g, dtype=torch.float64) * torch.tensor([2 * math.pi, 1.0])
    centers -= torch.tensor([math.pi, 0.0])
    widths = 0.1 + 0.3 * torch.rand(count, 2, generator=g, dtype=torch.float64)
    heights = torch.rand(count, generator=g, dtype=torch.float64)
    points = torch.rand(30, 2, generator=g, dtype=torch.float64) * 8.0 - 4.0
    points[0] = centers[0] + torch.tensor([2 * math.pi, 0.0])  # the same place, once around
    return points, centers, widths, heights, periods


@pytest.mark.parametrize(("scale", "shift", "cutoff"), [(1.0, 0.0, math.inf), (1.2, -0.2, 1.8), (1.0, 0.0, 6.25)])
def test_kernel_sum_is_the_sum(scale, shift, cutoff):
    points, centers, widths, heights, periods = _kernels()
    value, gradient = kernel_sum(points, centers, widths, heights, periods, scale, shift, cutoff)
    expected = [_by_hand(p, centers, widths, heights, periods, scale, shift, cutoff) for p in points.tolist()]
    assert value.tolist() == pytest.approx(expected, abs=1e-13)
    wrong = [_by_hand(p, centers, widths, heights, 0 * periods, scale, shift, cutoff) for p in points.tolist()]
    assert value.tolist() != pytest.approx(wrong, abs=1e-6)  # without the circle
    step = 1e-6
    for k in range(2):
        shift_k = torch.zeros(2, dtype=torch.float64)
        shift_k[k] = step
        ahead = kernel_sum(points + shift_k, centers, widths, heights, periods, scale, shift, cutoff)[0]
        behind = kernel_sum(points - shift_k, centers, widths, heights, periods, scale, shift, cutoff)[0]
        assert torch.allclose(gradient[:, k], (ahead - behind) / (2 * step), atol=1e-8)


def test_kernel_sum_in_blocks_and_alone(monkeypatch):
    points, centers, widths, heights, periods = _kernels()
    arguments = (centers, widths, heights, periods, 1.0, 0.0, math.inf)
    whole = kernel_sum(points, *arguments)
    module = sys.modules["feynkac.fkc.ops.kernel_sum"]
    monkeypatch.setattr(module, "_ELEMENTS_AT_ONCE", 64)
    pieces = kernel_sum(points, *arguments)
    for a, b in zip(whole, pieces, strict=True):
        assert torch.allclose(a, b, atol=1e-13)


def test_kernel_sum_without_points_or_kernels():
    points, centers, widths, heights, periods = _kernels()
    value, gradient = kernel_sum(points, centers[:0], widths[:0], heights[:0], periods, 1.0, 0.0, math.inf)
    assert float(value.abs().max()) == 0.0
    assert float(gradient.abs().max()) == 0.0
    assert kernel_sum(points[:0], centers, widths, heights, periods, 1.0, 0.0, math.inf)[1].shape == (0, 2)


def test_operators_are_registered():
    """torch.compile and export see one opaque operator with the right shapes."""
    points, centers, widths, heights, periods = _kernels()
    arguments = (points, centers, widths, heights, periods, 1.0, 0.0, 6.25)
    operators = torch.ops.feynkac
    torch.library.opcheck(operators.kernel_sum.default, arguments, test_utils=("test_schema", "test_faketensor"))
    grid = spline_coefficients(torch.rand(9, 7, dtype=torch.float64), [True, False])
    frame = (torch.tensor([0.0, 0.0]).double(), torch.tensor([0.5, 0.2]).double(), torch.tensor([True, False]))
    arguments = (points, grid, *frame)
    torch.library.opcheck(operators.cubic_spline.default, arguments, test_utils=("test_schema", "test_faketensor"))


def _frame(lower, spacing, periodic):
    return (
        torch.tensor(lower, dtype=torch.float64),
        torch.tensor(spacing, dtype=torch.float64),
        torch.tensor(periodic),
    )


def test_spline_goes_through_its_nodes():
    values = torch.rand(6, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    periodic = [True, False, False]
    nodes = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) * 0.5 - 1.0 for n in values.shape))
    found = cubic_spline(nodes, spline_coefficients(values, periodic), *_frame([-1.0] * 3, [0.5] * 3, periodic))[0]
    assert torch.allclose(found, values.reshape(-1), atol=1e-13)


def test_spline_reproduces_cubics_up_to_the_edge():
    """Not-a-knot ends keep every cubic polynomial; a spline with natural ends would not."""
    nodes = torch.linspace(-1.0, 2.0, 9, dtype=torch.float64)
    points = torch.linspace(-1.0, 2.0, 101, dtype=torch.float64)[:, None]
    coefficients = spline_coefficients(2 * nodes**3 - nodes**2 + 3 * nodes - 1, [False])
    value, slope = cubic_spline(points, coefficients, *_frame([-1.0], [3.0 / 8], [False]))
    x = points[:, 0]
    assert torch.allclose(value, 2 * x**3 - x**2 + 3 * x - 1, atol=1e-12)
    assert torch.allclose(slope[1:-1, 0], (6 * x**2 - 2 * x + 3)[1:-1], atol=1e-11)


@pytest.mark.parametrize("periodic", [True, False])
def test_spline_error_falls_with_the_fourth_power(periodic):
    def error(nodes):
        x = torch.arange(nodes + (not periodic), dtype=torch.float64) * 2 * math.pi / nodes
        coefficients = spline_coefficients(torch.sin(x) + torch.cos(2 * x), [periodic])
        points = torch.linspace(0.0, 2 * math.pi, 1001, dtype=torch.float64)[:, None]
        found = cubic_spline(points, coefficients, *_frame([0.0], [2 * math.pi / nodes], [periodic]))[0]
        return float((found - torch.sin(points[:, 0]) - torch.cos(2 * points[:, 0])).abs().max())

    assert error(32) / error(64) == pytest.approx(16.0, rel=0.25)


def test_spline_at_the_seam_and_on_nodes():
    values = torch.rand(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    coefficients, frame = spline_coefficients(values, [True]), _frame([-3.0], [0.5], [True])

    def at(*points):
        return cubic_spline(torch.tensor(points, dtype=torch.float64)[:, None], coefficients, *frame)

    value, slope = at(-3.0, 3.0, 9.0, math.nextafter(-3.0, -4.0), math.nextafter(3.0, 2.0))
    assert torch.allclose(value, values[0].expand(5), atol=1e-12)
    assert torch.isfinite(slope).all()  # a difference quotient on a node would be 0/0
    assert torch.allclose(slope, slope[0].expand_as(slope), atol=1e-10)


def test_spline_outside_open_ends():
    values = torch.rand(8, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    coefficients, frame = spline_coefficients(values, [False, False]), _frame([0.0, 0.0], [1.0, 1.0], [False, False])
    edge = cubic_spline(torch.tensor([[7.0, 2.3]], dtype=torch.float64), coefficients, *frame)
    beyond = cubic_spline(torch.tensor([[7.5, 2.3], [1e30, 2.3]], dtype=torch.float64), coefficients, *frame)
    assert torch.equal(beyond[0], edge[0].expand(2))
    assert beyond[1][:, 0].tolist() == [0.0, 0.0]
    assert torch.allclose(beyond[1][:, 1], edge[1][:, 1].expand(2))
    assert float(edge[1][0, 0]) != 0.0  # the end itself is inside


def test_spline_keeps_nan():
    coefficients = spline_coefficients(torch.rand(8, 8, dtype=torch.float64), [True, False])
    frame = _frame([0.0, 0.0], [1.0, 1.0], [True, False])
    points = torch.tensor([[math.nan, 1.0], [1.0, math.nan], [math.inf, 1.0], [1.0, math.inf]], dtype=torch.float64)
    value, slope = cubic_spline(points, coefficients, *frame)
    assert value.isnan().tolist() == [True, True, True, False]
    assert slope[0].isnan().all()
    assert float(slope[3, 1]) == 0.0


def test_spline_needs_four_nodes():
    with pytest.raises(ValueError, match="at least 4 nodes"):
        spline_coefficients(torch.zeros(3, dtype=torch.float64), [True])
