r"""One move of a corrected sampler and what it weighs.

Noise variance falls from h to h' (or rises: churn). Two families of proposals:

    plain        y' = y + drift + sqrt(kappa delta) z                               (Euler)
    reference    y' = m' + rho (y - m) + residual drift + sqrt(P'(1 - e^2)) z

where the target's Gaussian reference is N(m, P) at h and N(m', P') at h', rho = sqrt(P'/P) e and e = exp(-kappa/2
times the integral of dh/P). The second takes the reference from law to law exactly, whatever the size of the step, so
only what is not Gaussian is left to the residual drift and to the weight: it is the exponential integrator and the
Gaussian gauge in one. Two weights:

    rate     the integrand of :mod:`.targets` times the move
    kernel   log pi'(y') - log pi(y) + log L(y | y') - log K(y' | y)

The kernel weight is exact for the move actually made, at any number of steps, where the experts know their densities;
the backward kernel L only changes its variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .targets import GaussianReference

__all__ = ["Ends", "Level", "Proposal", "kernel_weight", "noising", "plain", "rate_weight", "reference_step"]


@dataclass(frozen=True, eq=False)
class Level:
    """What is known of a noise level.

    Attributes:
        h: noise variance of the sampler.
        progress: u.
        variances: of each expert's own noise.
        powers: exponents.
        reward_scale: beta.
        reference: Gaussian.
    """

    h: float
    progress: float
    variances: tuple[float, ...]
    powers: tuple[float, ...]
    reward_scale: float
    reference: GaussianReference


@dataclass(frozen=True, eq=False)
class Ends:
    """Particles (P, K, *event) at a level, and what was evaluated there.

    Attributes:
        level: where.
        y: particles.
        scores: (P, K, E, *event) of the experts.
        log_q: (P, K, E) float64 log-densities of the experts, known or tracked; zeros where nobody needs them.
        reward: (P, K) float64.
        reward_gradient: (P, K, *event) of r.
    """

    level: Level
    y: Tensor
    scores: Tensor
    log_q: Tensor
    reward: Tensor
    reward_gradient: Tensor

    def score(self) -> Tensor:
        """S + R (P, K, *event): gradient of the log target."""
        return self.combined(self.level.powers) + self.level.reward_scale * self.reward_gradient

    def combined(self, factors: tuple[float, ...]) -> Tensor:
        """sum_i factor_i s_i."""
        return torch.einsum("e,pke...->pk...", torch.tensor(factors, dtype=self.scores.dtype), self.scores)

    def reference_score(self) -> Tensor:
        """Score of the Gaussian reference."""
        return -(self.y - self.level.reference.mean) / self.level.reference.variance

    def reference_combined(self, factors: tuple[float, ...]) -> Tensor:
        """sum_i factor_i s_i with the experts' own Gaussian references."""
        reference = self.level.reference
        total = torch.zeros_like(self.y)
        for factor, mean, variance in zip(factors, reference.means, reference.variances, strict=True):
            total = total - factor * (self.y - mean) / variance
        return total


@dataclass(frozen=True, eq=False)
class Proposal:
    """K(y' | y) = N(mean, variance), and how the backward kernel is built.

    Attributes:
        mean: (P, K, *event).
        variance: of every coordinate; 0 for a deterministic move.
        backward_slope: of the backward kernel's mean in y' (1: plain).
        backward_variance: of the backward kernel.
        gaussian: the move is that of the reference.
    """

    mean: Tensor
    variance: float
    backward_slope: float
    backward_variance: float
    gaussian: bool


def halves(level: Level, following: Level) -> tuple[float, ...]:
    """a_i delta_i / 2: what each expert's own velocity contributes to the move."""
    deltas = (a - b for a, b in zip(level.variances, following.variances, strict=True))
    return tuple(power * delta / 2 for power, delta in zip(level.powers, deltas, strict=True))


def plain(ends: Ends, following: Level, kappa: float) -> Proposal:
    """The Euler move."""
    delta = ends.level.h - following.h
    drift = ends.combined(halves(ends.level, following)) + 0.5 * kappa * delta * ends.score()
    return Proposal(ends.y + drift, kappa * delta, 1.0, kappa * delta, gaussian=False)


def reference_step(ends: Ends, following: Level, kappa: float) -> Proposal:
    """The move that is exact for the Gaussian reference."""
    level, delta = ends.level, ends.level.h - following.h
    before, after = level.reference, following.reference
    ratio = after.variance / before.variance
    log_ratio = -math.log(ratio)
    mean_inverse = log_ratio / (before.variance - after.variance) if abs(log_ratio) > 1e-9 else 1.0 / before.variance
    damping = math.exp(-0.5 * kappa * delta * mean_inverse)
    slope = math.sqrt(ratio) * damping
    variance = after.variance * -math.expm1(-kappa * delta * mean_inverse)
    factors = halves(level, following)
    residual = ends.combined(factors) - ends.reference_combined(factors)
    residual = residual + 0.5 * kappa * delta * (ends.score() - ends.reference_score())
    mean = after.mean + slope * (ends.y - before.mean) + residual
    return Proposal(mean.to(ends.y.dtype), variance, slope / ratio, variance / ratio, gaussian=True)


def noising(ends: Ends, following: Level) -> Proposal:
    """Noise is added (churn): the level rises."""
    rise = following.h - ends.level.h
    return Proposal(ends.y, rise, 1.0, rise, gaussian=False)


def rate_weight(before: Ends, after: Ends, proposal: Proposal) -> Tensor:
    """Log-weight increment (P, K) float64 of a move: the rate at its beginning for Euler moves, whose new points are
    too wide by the same order, and the average of both ends for the others."""
    first, last = before.level, after.level
    if not proposal.gaussian:
        return _rate(before, first, last)
    return 0.5 * sum(
        (_rate(ends, first, last) + _gauge(ends, first, last) for ends in (before, after)),
        torch.zeros(before.y.shape[:2], dtype=torch.float64),
    )


def _rate(ends: Ends, first: Level, last: Level) -> Tensor:
    """The integrand of :mod:`.targets` at one end, times the move."""
    factors = halves(replace(first, powers=ends.level.powers), last)
    squares = ends.scores.double().flatten(3).square().sum(dim=3)
    change = torch.tensor(last.powers, dtype=torch.float64) - torch.tensor(first.powers, dtype=torch.float64)
    return (
        _dot(ends.combined(factors), ends.score())
        - torch.einsum("e,pke->pk", torch.tensor(factors, dtype=torch.float64), squares)
        + (last.reward_scale - first.reward_scale) * ends.reward
        + torch.einsum("e,pke->pk", change, ends.log_q)
    )


def _gauge(ends: Ends, first: Level, last: Level) -> Tensor:
    """Divergence of, and work done by, the linear field that the reference move adds to the plain drift."""
    before, after = first.reference, last.reference
    factors = halves(first, last)
    stretch = math.sqrt(after.variance / before.variance) - 1.0
    field = (after.mean - before.mean) + stretch * (ends.y - before.mean)
    slope = stretch
    for factor, mean, variance in zip(factors, before.means, before.variances, strict=True):
        field = field + factor * (ends.y - mean) / variance
        slope += factor / variance
    return ends.y[0, 0].numel() * slope + _dot(field, ends.score())


def kernel_weight(before: Ends, after: Ends, proposal: Proposal, kappa: float) -> Tensor:
    """Log-weight increment (P, K) float64 of the move actually made."""
    first, last = before.level, after.level
    powers = [torch.tensor(level.powers, dtype=torch.float64) for level in (first, last)]
    change = torch.einsum("e,pke->pk", powers[1], after.log_q) - torch.einsum("e,pke->pk", powers[0], before.log_q)
    change = change + last.reward_scale * after.reward - first.reward_scale * before.reward
    forward = _log_normal(after.y, proposal.mean, proposal.variance)
    backward = _log_normal(before.y, _backward_mean(after, first, proposal, kappa), proposal.backward_variance)
    return change + backward - forward


def _backward_mean(after: Ends, first: Level, proposal: Proposal, kappa: float) -> Tensor:
    last = after.level
    delta = first.h - last.h
    if delta < 0.0:  # after noising: back along the score
        return after.y - delta * after.score()
    factors = tuple(a * (v - w) / 2 for a, v, w in zip(last.powers, first.variances, last.variances, strict=True))
    if not proposal.gaussian:
        return after.y - after.combined(factors) + 0.5 * kappa * delta * after.score()
    mean = first.reference.mean + proposal.backward_slope * (after.y - last.reference.mean)
    residual = after.combined(factors) - after.reference_combined(factors)
    return mean - residual + 0.5 * kappa * delta * (after.score() - after.reference_score())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the event (P, K) float64."""
    return (a.double() * b.double()).flatten(2).sum(dim=2)


def _log_normal(x: Tensor, mean: Tensor, variance: float) -> Tensor:
    difference = (x.double() - mean.double()).flatten(2)
    dimension = difference.shape[2]
    return -0.5 * (difference.square().sum(dim=2) / variance + dimension * math.log(2 * math.pi * variance))
