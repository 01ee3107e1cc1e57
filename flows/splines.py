"""Monotone rational-quadratic splines, on an interval with linear tails or around the circle.

Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows" (2019), equations 4-8; circular form: Rezende et
al., "Normalizing flows on tori and spheres" (2020), section 2.1.1. Both directions return the logarithm of the
derivative of the map they evaluate. Parameters lie on the axis before the last, (..., K, B) for values (..., B): the
batch stays contiguous, which is several times faster than short rows of bins.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Knots", "circular_knots", "interval_knots", "spline_forward", "spline_inverse"]

MIN_BIN = 1e-3
"""Least width and height of a bin, as a share of the interval."""
MIN_SLOPE = 1e-3
"""Least derivative at a knot."""
_UNIT_SLOPE = math.log(math.expm1(1.0 - MIN_SLOPE))  # softplus(this) + MIN_SLOPE = 1: zero parameters, identity map


class Knots(NamedTuple):
    """Normalised spline parameters: bin edges ``x`` and ``y`` (..., K+1, B) and derivatives ``slope``, alike."""

    x: Tensor
    y: Tensor
    slope: Tensor


def interval_knots(raw: Tensor, bound: float) -> Knots:
    """Knots of a spline of [-bound, bound] onto itself, with derivative 1 at both ends.

    Args:
        raw: (..., 3K - 1, B) free parameters: K widths, K heights, K - 1 inner derivatives. Zeros give the identity.
        bound: half width of the interval.
    """
    bins = (raw.shape[-2] + 1) // 3
    widths, heights, slopes = torch.split(raw, [bins, bins, bins - 1], dim=-2)
    slope = functional.softplus(slopes + _UNIT_SLOPE) + MIN_SLOPE
    slope = functional.pad(slope, (0, 0, 1, 1), value=1.0)
    x = _edges(widths) * (2.0 * bound) - bound
    y = _edges(heights) * (2.0 * bound) - bound
    return Knots(x, y, slope)


def circular_knots(raw: Tensor) -> Knots:
    """Knots of a spline of the circle [0, 1) onto itself: the derivative is the same at both ends.

    Args:
        raw: (..., 3K, B) free parameters: K widths, K heights, K derivatives. Zeros give the identity.
    """
    bins = raw.shape[-2] // 3
    widths, heights, slopes = torch.split(raw, bins, dim=-2)
    slope = functional.softplus(slopes + _UNIT_SLOPE) + MIN_SLOPE
    slope = torch.cat([slope, slope[..., :1, :]], dim=-2)
    return Knots(_edges(widths), _edges(heights), slope)


def spline_forward(x: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    """Evaluate the spline: (y, log dy/dx), each shaped like ``x``; the identity outside the knots."""
    inside = (x >= knots.x[..., 0, :]) & (x <= knots.x[..., -1, :])
    x0, width, y0, height, d0, d1 = _bin(x, knots.x, knots)
    t = torch.where(inside, (x - x0) / width, 0.5)
    ratio = height / width
    y = y0 + height * (ratio * t * t + d0 * t * (1 - t)) / _denominator(t, ratio, d0, d1)
    return torch.where(inside, y, x), torch.where(inside, _log_slope(t, ratio, d0, d1), 0.0)


def spline_inverse(y: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    """Invert the spline: (x, log dx/dy), each shaped like ``y``; the identity outside the knots."""
    inside = (y >= knots.y[..., 0, :]) & (y <= knots.y[..., -1, :])
    x0, width, y0, height, d0, d1 = _bin(y, knots.y, knots)
    ratio = height / width
    rise = torch.where(inside, y - y0, 0.5 * height)
    bend = rise * (d0 + d1 - 2 * ratio)
    a = height * (ratio - d0) + bend
    b = height * d0 - bend
    c = -ratio * rise
    t = 2 * c / (-b - (b * b - 4 * a * c).clamp(min=0.0).sqrt())
    x = x0 + t * width
    return torch.where(inside, x, y), torch.where(inside, -_log_slope(t, ratio, d0, d1), 0.0)


def _edges(raw: Tensor) -> Tensor:
    """Bin edges 0 = e_0 < ... < e_K = 1 (exactly) from unnormalised bin sizes (..., K, B)."""
    bins = raw.shape[-2]
    sizes = MIN_BIN + (1.0 - MIN_BIN * bins) * raw.softmax(-2)
    inner = sizes[..., :-1, :].cumsum(-2)
    return functional.pad(functional.pad(inner, (0, 0, 0, 1), value=1.0), (0, 0, 1, 0), value=0.0)


def _bin(at: Tensor, edges: Tensor, knots: Knots) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Left corner, size and end derivatives of the bin that holds each value."""
    index = (at.unsqueeze(-2) >= edges[..., 1:-1, :]).sum(-2, keepdim=True)
    left = [k.gather(-2, index).squeeze(-2) for k in knots]
    right = [k.gather(-2, index + 1).squeeze(-2) for k in knots]
    return left[0], right[0] - left[0], left[1], right[1] - left[1], left[2], right[2]


def _denominator(t: Tensor, ratio: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    return ratio + (d0 + d1 - 2 * ratio) * t * (1 - t)


def _log_slope(t: Tensor, ratio: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    numerator = d1 * t * t + 2 * ratio * t * (1 - t) + d0 * (1 - t) ** 2
    return 2 * ratio.log() + numerator.log() - 2 * _denominator(t, ratio, d0, d1).log()
