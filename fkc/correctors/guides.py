r"""Guides: the Gaussian that a move carries exactly from one level to the next.

The move is

.. math:: y' = m' + \rho\,(y - m) + \text{residual drift} + \sqrt{V} z, \qquad
    \rho = \sqrt{P'/P}\,e, \quad V = P'(1 - e^2), \quad e = \exp\Bigl(-\tfrac\kappa2 \int dh/P\Bigr),

for a guide N(m, P) at h and N(m', P') at h'; the drift that the guide does not contain is left to the residual and to
the weight. It is an exponential integrator and a gauge in one. Five kinds:

    reference    the target if every expert were the Gaussian of its claimed moments
    fitted       the same, with moments fitted to each population at the beginning of each move
    velocities   the drift is the sum of the experts' own velocities in the space of the first expert's path
    plain        none: the Euler move
    ddim         none: the step of DDIM with the combined clean prediction, see :class:`.moves.DDIMTransition`

On a variance-preserving path the sum of velocities is the reference of standard Gaussian data (m = 0, v = 1 + h); on a
variance-exploding one it is the plain move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..experts import Expert
from ..population import Population
from .levels import Level, spread
from .targets import Moments, Target

__all__ = ["Gauge", "Guide", "Transport", "guides_between", "moments_of", "transport"]

Gauge = Literal["reference", "fitted", "velocities", "plain", "ddim"]

_PRIOR = 10.0
"""Effective particles that the claimed moments are worth against those of the population."""


@dataclass(frozen=True, eq=False)
class Guide:
    """A Gaussian, and linear stand-ins for the experts' scores.

    Attributes:
        mean: broadcasts to (P, K, *event).
        precision: 1/P, (P, 1) or () float64; 0: no Gaussian.
        means: of each expert.
        precisions: 1/v_i of each expert, like ``precision``.
    """

    mean: Tensor
    precision: Tensor
    means: tuple[Tensor, ...]
    precisions: tuple[Tensor, ...]

    def score(self, y: Tensor) -> Tensor:
        """Of the Gaussian."""
        return -(y - self.mean) * spread(self.precision, y)

    def combined(self, factors: tuple[float, ...], y: Tensor) -> Tensor:
        """sum_i factor_i s_i of the stand-ins."""
        total = torch.zeros_like(y)
        for factor, mean, precision in zip(factors, self.means, self.precisions, strict=True):
            total = total - (y - mean) * spread(factor * precision, y)
        return total

    def trace(self, factors: tuple[float, ...]) -> Tensor:
        """Divergence of ``combined`` for one coordinate."""
        return -sum((f * p for f, p in zip(factors, self.precisions, strict=True)), torch.zeros(()).double())


@dataclass(frozen=True, eq=False)
class Transport:
    """What the linear part of a move does; all like ``Guide.precision``.

    Attributes:
        slope: rho.
        variance: V.
        back_slope: of the reversed move.
        back_variance: of the reversed move.
        stretch: sqrt(P'/P) - 1.
    """

    slope: Tensor
    variance: Tensor
    back_slope: Tensor
    back_variance: Tensor
    stretch: Tensor


def transport(before: Guide, after: Guide, noise: float) -> Transport:
    """The linear part for a plain noise variance ``noise`` = kappa times the fall of h."""
    first, last = before.precision, after.precision
    if first.ndim == last.ndim == 0 and last > 0.0:
        return _transport_of_numbers(float(first), float(last), noise)
    if not bool((last > 0.0).any()):
        one, plain = torch.ones_like(first), torch.full_like(first, noise)
        return Transport(one, plain, one, plain, torch.zeros_like(first))
    ratio = first / last
    relative = 1.0 / ratio - 1.0
    close = relative.abs() < 1e-9
    average = last * torch.where(close, 1.0, torch.log1p(relative) / torch.where(close, 1.0, relative))
    exponent = noise * average
    slope = ratio.sqrt() * torch.exp(-0.5 * exponent)
    variance = -torch.expm1(-exponent) / last
    return Transport(slope, variance, slope / ratio, variance / ratio, ratio.sqrt() - 1.0)


def _transport_of_numbers(first: float, last: float, noise: float) -> Transport:
    """The same for all populations alike, without a tensor an operation."""
    ratio = first / last
    relative = 1.0 / ratio - 1.0
    exponent = noise * last * (1.0 if abs(relative) < 1e-9 else math.log1p(relative) / relative)
    slope = math.sqrt(ratio) * math.exp(-0.5 * exponent)
    variance = -math.expm1(-exponent) / last
    numbers = (slope, variance, slope / ratio, variance / ratio, math.sqrt(ratio) - 1.0)
    return Transport(*(torch.tensor(number, dtype=torch.float64) for number in numbers))


def moments_of(y: Tensor, population: Population, level: Level) -> tuple[Tensor, Tensor]:
    """Data moments that make the target's reference at ``level`` have the mean and variance of the particles.

    Args:
        y: (P, K, *event).
        population: of the particles; a collapsed one keeps what is claimed.
        level: where.

    Returns:
        Mean (P, 1, *event) and variance (P, 1) float64 of the data.
    """
    claimed = level.reference
    w, size = torch.nan_to_num(population.weights), population.ess
    share = spread((size / (size + _PRIOR))[:, None], y)
    values = y.double()
    weighted = spread(w, values)
    mean = share * (weighted * values).sum(dim=1, keepdim=True) + (1.0 - share) * claimed.mean
    squares = (weighted * (values - mean).square()).sum(dim=1, keepdim=True).flatten(1).mean(dim=1, keepdim=True)
    flat = share.reshape(-1, 1)
    variance = flat * squares + (1.0 - flat) * claimed.variance
    total = sum(level.powers)
    data = total * variance - sum(a * v for a, v in zip(level.powers, level.variances, strict=True)) / total
    return mean, data.clamp(min=1e-3 * min(v.item() for v in claimed.data_variances))


def guides_between(
    kind: Gauge, target: Target[Expert], first: Level, last: Level, moments: Moments | None = None
) -> tuple[Guide, Guide]:
    """The guides at both ends of a move.

    Args:
        kind: see the module.
        target: what is sampled.
        first: level before.
        last: level after.
        moments: (mean, variance) of the data for ``fitted``.
    """
    if kind in ("plain", "ddim"):
        return _plain(first), _plain(last)
    if kind == "velocities":
        return _velocities(first, last)
    shape = tuple(first.reference.mean.shape)
    return tuple(  # type: ignore[return-value]
        _referenced(level if moments is None else _with_moments(target, level, shape, moments))
        for level in (first, last)
    )


def _plain(level: Level) -> Guide:
    zero = torch.zeros((), dtype=torch.float64)
    n = len(level.powers)
    return Guide(zero, zero, (zero,) * n, (zero,) * n)


def _referenced(level: Level) -> Guide:
    reference = level.reference
    return Guide(reference.mean, 1.0 / reference.variance, reference.means, tuple(1.0 / v for v in reference.variances))


def _with_moments(target: Target[Expert], level: Level, shape: tuple[int, ...], moments: Moments) -> Level:
    return replace(level, reference=target.reference(level.h, level.progress, shape, moments))


def _velocities(first: Level, last: Level) -> tuple[Guide, Guide]:
    zero = torch.zeros((), dtype=torch.float64)
    precisions = []
    for a, b, v, w in zip(first.alphas, last.alphas, first.variances, last.variances, strict=True):
        precisions.append(torch.tensor(2.0 * math.log(b / a) / (v - w) if v != w else 0.0, dtype=torch.float64))
    moving = first.alphas[0] != last.alphas[0]
    guides = []
    for level in (first, last):
        precision = sum(level.powers) * level.alphas[0] ** 2 if moving else 0.0
        means = (zero,) * len(precisions)
        guides.append(Guide(zero, torch.tensor(precision, dtype=torch.float64), means, tuple(precisions)))
    return guides[0], guides[1]
