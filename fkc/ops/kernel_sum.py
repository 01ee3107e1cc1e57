"""Sums of Gaussian kernels with their gradient: what a bias made of hills costs at every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .library import define

__all__ = ["kernel_sum"]

_ELEMENTS_AT_ONCE = 200_000
"""Of (points, kernels) arrays: 1.6 MB each of float64, which stay in the cache."""


def _reference(
    points: Tensor,
    centers: Tensor,
    widths: Tensor,
    heights: Tensor,
    periods: Tensor,
    scale: float,
    shift: float,
    cutoff: float,
) -> tuple[Tensor, Tensor]:
    value = points.new_zeros(len(points))
    gradient = torch.zeros_like(points)
    if len(heights) == 0 or len(points) == 0:
        return value, gradient
    kernels_at_once = max(1, min(len(heights), _ELEMENTS_AT_ONCE))
    points_at_once = max(1, _ELEMENTS_AT_ONCE // kernels_at_once)
    for first in range(0, len(points), points_at_once):
        rows = slice(first, first + points_at_once)
        for start in range(0, len(heights), kernels_at_once):
            some = slice(start, start + kernels_at_once)
            v, g = _block(points[rows], centers[some], widths[some], heights[some], periods, scale, shift, cutoff)
            value[rows] += v
            gradient[rows] += g
    return value, gradient


def _shapes(points: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return points.new_empty(points.shape[0]), torch.empty_like(points)


def _block(
    points: Tensor,
    centers: Tensor,
    widths: Tensor,
    heights: Tensor,
    periods: Tensor,
    scale: float,
    shift: float,
    cutoff: float,
) -> tuple[Tensor, Tensor]:
    inverse = 1.0 / widths
    scaled = []  # distance in widths, (B, M) for each variable
    power = torch.zeros((len(points), len(heights)), dtype=points.dtype, device=points.device)
    for k, period in enumerate(periods.tolist()):
        distance = points[:, k, None] - centers[:, k]
        if period > 0.0:
            distance.sub_(torch.mul(distance, 1.0 / period).round_(), alpha=period)
        distance.mul_(inverse[:, k])
        power.addcmul_(distance, distance, value=-0.5)
        scaled.append(distance)
    beyond = power <= -cutoff if math.isfinite(cutoff) else None
    exponential = power.exp_().mul_(scale)
    if beyond is not None:
        exponential.masked_fill_(beyond, 0.0)  # NaN is kept
    value = exponential @ heights
    if beyond is not None and shift != 0.0:
        value += shift * ((~beyond).to(heights) @ heights)
    slopes = heights[:, None] * inverse
    gradient = torch.stack([-(d.mul_(exponential) @ slopes[:, k]) for k, d in enumerate(scaled)], dim=1)
    return value, gradient


_operator = define(
    "kernel_sum(Tensor points, Tensor centers, Tensor widths, Tensor heights, Tensor periods, "
    "float scale, float shift, float cutoff) -> (Tensor, Tensor)",
    _reference,
    _shapes,
)


def kernel_sum(
    points: Tensor,
    centers: Tensor,
    widths: Tensor,
    heights: Tensor,
    periods: Tensor,
    scale: float,
    shift: float,
    cutoff: float,
) -> tuple[Tensor, Tensor]:
    r"""Value and gradient of :math:`\sum_m h_m G(q_m)`, :math:`q_m = \tfrac12 \sum_k ((s_k - c_{mk}) / \sigma_{mk})^2`.

    G(q) is ``scale`` e^-q + ``shift`` below q = ``cutoff`` and 0 from there on. Differences of a periodic variable go
    the short way around its circle.

    Args:
        points: (B, d) float64.
        centers: (M, d).
        widths: (M, d), positive.
        heights: (M,).
        periods: (d,), 0 for an open variable.
        scale: of the exponential.
        shift: added below the cutoff.
        cutoff: in q; inf for none.

    Returns:
        (B,) and (B, d); NaN where a coordinate is NaN and there is a kernel.
    """
    found: tuple[Tensor, Tensor] = _operator(points, centers, widths, heights, periods, scale, shift, cutoff)
    return found
