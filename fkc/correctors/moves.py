r"""One move of a corrected sampler and what it weighs.

Noise variance falls from h to h' by delta (or rises: churn). The linear part is that of a guide (:mod:`.guides`), the
rest an Euler step along what the guide leaves, plus a control field. Two weights:

    rate     the integrand of :mod:`.targets`, and of guide and control, times the move
    kernel   log pi'(y') - log pi(y) + log L(y | y') - log K(y' | y)

A field c that is added to the drift adds its divergence and c . grad log pi to the rate. The kernel weight is exact for
the move actually made, at any number of steps, where the experts know their densities; the backward kernel L only
changes its variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .controls import Coefficients, control_field, control_rate
from .guides import Guide, Transport, transport
from .levels import Ends, Level, inner, spread

__all__ = ["DDIMTransition", "Normal", "Transition", "ddim_transition"]


@dataclass(frozen=True, eq=False)
class Normal:
    """A Gaussian kernel: ``mean`` (P, K, *event), ``variance`` of every coordinate () or (P, 1)."""

    mean: Tensor
    variance: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """(P, K) float64."""
        difference = (x.double() - self.mean.double()).flatten(2)
        squares = difference.square().sum(dim=2)
        if self.variance.ndim == 0:
            variance = float(self.variance)
            return -0.5 * (squares / variance + difference.shape[2] * math.log(2 * math.pi * variance))
        logs = difference.shape[2] * torch.log(2 * math.pi * self.variance)
        return -0.5 * (squares / self.variance + logs)


@dataclass(frozen=True, eq=False)
class Transition:
    """A move between two levels.

    Attributes:
        first: level before.
        last: level after.
        before: guide before.
        after: guide after.
        kappa: noise multiplier.
        control: coefficients of the control field, or None.
    """

    first: Level
    last: Level
    before: Guide
    after: Guide
    kappa: float
    control: Coefficients | None = None

    @property
    def fall(self) -> float:
        """delta = h - h'."""
        return self.first.h - self.last.h

    @property
    def euler(self) -> bool:
        """No guide, or noise added: the new points are those of an Euler move."""
        return self.fall < 0.0 or not bool((self.before.precision > 0.0).any())

    @cached_property
    def linear(self) -> Transport:
        """The guide's part."""
        return transport(self.before, self.after, self.kappa * self.fall)

    # --- kernels -----------------------------------------------------------------------------------------------------

    def forward(self, ends: Ends) -> Normal:
        """K(. | y)."""
        y = ends.y
        if self.fall < 0.0:
            return Normal(y, torch.tensor(-self.fall, dtype=torch.float64))
        velocity = self._velocity(ends, self.before) + self._control(ends, self.before)
        residual = velocity + 0.5 * self.kappa * self.fall * (ends.score() - self.before.score(y))
        linear = self.linear
        mean = self.after.mean + spread(linear.slope, y) * (y - self.before.mean) + residual
        return Normal(mean.to(y.dtype), linear.variance)

    def backward(self, ends: Ends) -> Normal:
        """L(. | y'), the move back along the same path."""
        y = ends.y
        if self.fall < 0.0:  # noise was added: back along the score
            return Normal(y - self.fall * ends.score(), torch.tensor(-self.fall, dtype=torch.float64))
        velocity = self._velocity(ends, self.after) + self._control(ends, self.after)
        residual = 0.5 * self.kappa * self.fall * (ends.score() - self.after.score(y)) - velocity
        linear = self.linear
        mean = self.before.mean + spread(linear.back_slope, y) * (y - self.after.mean) + residual
        return Normal(mean.to(y.dtype), linear.back_variance)

    def _halves(self, powers: tuple[float, ...]) -> tuple[float, ...]:
        """a_i delta_i / 2: what each expert's own velocity contributes to the move."""
        falls = (a - b for a, b in zip(self.first.variances, self.last.variances, strict=True))
        return tuple(power * fall / 2 for power, fall in zip(powers, falls, strict=True))

    def _velocity(self, ends: Ends, guide: Guide) -> Tensor:
        """The experts' velocities without the guide's."""
        factors = self._halves(ends.level.powers)
        return ends.combined(factors) - guide.combined(factors, ends.y)

    def _control(self, ends: Ends, guide: Guide) -> Tensor:
        if self.control is None:
            return torch.zeros((), dtype=ends.y.dtype)
        return control_field(self.control, ends, guide, self.fall)

    # --- weights -----------------------------------------------------------------------------------------------------

    def kernel_weight(
        self, before: Ends, after: Ends, log_before: Tensor | None = None, made: Normal | None = None
    ) -> Tensor:
        """Log-weight increment (P, K) float64 of the move actually made; ``log_before`` (P, K) if the particles come
        from another law than the target at ``before``, ``made`` if the kernel of the move is kept."""
        change = after.log_target() - (before.log_target() if log_before is None else log_before)
        kernel = self.forward(before) if made is None else made
        return change + self.backward(after).log_density(before.y) - kernel.log_density(after.y)

    def rate_weight(self, before: Ends, after: Ends) -> Tensor:
        """Log-weight increment (P, K) float64: the rate at the beginning for Euler moves, whose new points are too wide
        by the same order, and the average of both ends for the others."""
        if self.euler:
            return self.rate(before)
        return 0.5 * (self.rate(before) + self.rate(after))

    def rate(self, ends: Ends) -> Tensor:
        """The integrand at one end, times the move."""
        total = self.bare_rate(ends)
        if self.control is not None:
            guide = self.before if ends.level is self.first else self.after
            total = total + control_rate(self.control, ends, guide, self.fall)
        return total

    def bare_rate(self, ends: Ends) -> Tensor:
        """The same without the control."""
        factors = self._halves(ends.level.powers)
        squares = ends.scores.double().flatten(3).square().sum(dim=3)
        total = inner(ends.combined(factors), ends.score())
        total = total - squares @ torch.tensor(factors, dtype=torch.float64)
        if ends.reward is not None:
            total = total + (self.last.reward_scale - self.first.reward_scale) * ends.reward
        if self.last.powers != self.first.powers:
            change = torch.tensor(self.last.powers, dtype=torch.float64) - torch.tensor(
                self.first.powers, dtype=torch.float64
            )
            assert ends.log_q is not None  # moving exponents are tracked; checked by the model
            total = total + ends.log_q @ change
        return total if self.euler else total + self._guide_rate(ends)

    def _guide_rate(self, ends: Ends) -> Tensor:
        """Divergence of, and work done by, the linear field that the guide adds to the plain drift."""
        y, guide = ends.y, self.before
        factors = self._halves(self.first.powers)
        stretch = self.linear.stretch
        field = (self.after.mean - guide.mean) + spread(stretch, y) * (y - guide.mean) - guide.combined(factors, y)
        slope = stretch - guide.trace(factors)
        return y[0, 0].numel() * slope + inner(field, ends.score())


@dataclass(frozen=True, eq=False)
class DDIMTransition(Transition):
    r"""The step that a DDIM scheduler makes of the combined clean prediction :math:`D = y + h(S + R)`,

    .. math:: y' = D + \sqrt{(h' - V)/h}\,(y - D) + \sqrt V z, \qquad V = \eta^2 h'(1 - h'/h)

    (Song, Meng, Ermon 2021, eq. 12 and 16, in the frame y = x/alpha): eta = 1 is the step of DDPM and of the ancestral
    Euler sampler. Its backward kernel is its own reversal for data at one point D,

    .. math:: y = D' + \sqrt{h(h' - V)}/h'\,(y' - D') + \sqrt{V h/h'} z,

    at eta = 1 the noising kernel; so the kernel weight is that of the step taken. Made by :func:`ddim_transition`, with
    ``kappa`` = V/delta.
    """

    def forward(self, ends: Ends) -> Normal:
        """K(. | y)."""
        if self.fall < 0.0:
            return super().forward(ends)
        h, variance = self.first.h, self.kappa * self.fall
        clean = ends.y + h * ends.score()
        along = math.sqrt(max(self.last.h - variance, 0.0) / h)
        return Normal(clean + along * (ends.y - clean), torch.tensor(variance, dtype=torch.float64))

    def backward(self, ends: Ends) -> Normal:
        """L(. | y')."""
        if self.fall < 0.0:
            return super().backward(ends)
        h, following, variance = self.first.h, self.last.h, self.kappa * self.fall
        clean = ends.y + following * ends.score()
        along = math.sqrt(h * max(following - variance, 0.0)) / following
        return Normal(clean + along * (ends.y - clean), torch.tensor(variance * h / following, dtype=torch.float64))


def ddim_transition(first: Level, last: Level, before: Guide, after: Guide, noise: float) -> DDIMTransition:
    """The step with eta^2 = ``noise``; a rise of the noise is made as ever."""
    fall = first.h - last.h
    kappa = noise * last.h * (1.0 - last.h / first.h) / fall if fall > 0.0 else noise
    return DDIMTransition(first, last, before, after, kappa)
