r"""The scale lambda of a tilt exp(lambda r): a number, a schedule on the way to it, or found from the particles.

Only the last value is a target; those on the way choose intermediate values and cancel. A scale that is found from
the particles is found in each population by itself; like any adaptive choice it leaves the evidence consistent but
no longer exactly unbiased (Beskos et al. 2016, "On the convergence of adaptive sequential Monte Carlo methods").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..fkc.tempering import conditional_ess
from ..fkc.weights import log_sum_exp

__all__ = ["Fixed", "FoundScale", "Scale", "ScaleQuestion", "Scheduled", "TargetESS", "TargetKL", "as_scale"]


@dataclass(frozen=True, eq=False)
class ScaleQuestion:
    """What a scale may look at, population by population.

    Attributes:
        fraction: of the trajectory, in [0, 1); 1 at the end.
        previous: (P,) the last scale found, 0 at the beginning.
        reward: (P, N) float64 of the rows, candidates included.
        log_base: (P, N) log-weights of the rows as draws of the untilted sampler.
        log_weights: (P, N) that the rows carry.
        log_increment: lambda (P,) -> (P, N) what their log-weights would gain.
    """

    fraction: float
    previous: Tensor
    reward: Tensor
    log_base: Tensor
    log_weights: Tensor
    log_increment: Callable[[Tensor], Tensor]


class Scale(Protocol):
    """A rule for lambda. One whose ``known`` may be None is a :class:`FoundScale` too."""

    def known(self, fraction: float) -> float | None:
        """lambda at a fraction of the trajectory (1: that of the target), or None where it must be found."""
        ...


@runtime_checkable
class FoundScale(Protocol):
    """A rule that finds lambda from the particles where it is not known."""

    def known(self, fraction: float) -> float | None:
        """See :class:`Scale`."""
        ...

    def on_the_way(self, question: ScaleQuestion) -> Tensor:
        """(P,) lambda of an intermediate value."""
        ...

    def at_the_end(self, question: ScaleQuestion) -> Tensor:
        """(P,) lambda of the target."""
        ...

    def remarks(self, scale: Tensor, rows: int) -> tuple[str, ...]:
        """What to say of scales (P,) found from ``rows`` particles each."""
        ...


_FOUND = "the scale was found from the particles: the evidence is consistent, not exactly unbiased"


@dataclass(frozen=True)
class Fixed:
    """One number."""

    value: float

    def __post_init__(self) -> None:
        _refuse_scale(self.value)

    def known(self, fraction: float) -> float:
        """The number."""
        return self.value


@dataclass(frozen=True)
class Scheduled:
    """lambda ``factor``(fraction of the trajectory) on the way, lambda at the end.

    Attributes:
        value: lambda.
        factor: e.g. ``lambda u: u ** 2``; finite and not negative.
    """

    value: float
    factor: Callable[[float], float]

    def __post_init__(self) -> None:
        _refuse_scale(self.value)

    def known(self, fraction: float) -> float:
        """lambda factor(fraction); lambda at the end.

        Raises:
            ValueError: the factor is not a finite number >= 0.
        """
        if fraction >= 1.0:
            return self.value
        factor = float(self.factor(fraction))
        if not (math.isfinite(factor) and factor >= 0.0):
            raise ValueError(f"factor: got {factor} at fraction {fraction}, expected a finite number >= 0")
        return self.value * factor


@dataclass(frozen=True)
class TargetESS:
    """The scale rises at every scored step as far as the effective sample size allows.

    Attributes:
        fraction: of the particles; the conditional effective sample size of one step (Zhou, Johansen and Aston 2016,
            eq. 3.16: what the step's own increment leaves of the weighted particles) does not fall below it.
        value: lambda of the target, which the rise never passes and the end always has; None: the target is whatever
            scale was reached.
    """

    fraction: float
    value: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction < 1.0:
            raise ValueError(f"fraction: got {self.fraction}, expected a number between 0 and 1")
        if self.value is not None:
            _refuse_scale(self.value)

    def known(self, fraction: float) -> float | None:
        """The target's lambda, if it was given."""
        return self.value if fraction >= 1.0 else None

    def on_the_way(self, question: ScaleQuestion) -> Tensor:
        """The largest lambda, not below the last one, that leaves enough."""

        def enough(scale: Tensor) -> Tensor:
            left = conditional_ess(question.log_weights, question.log_increment(scale))
            return left >= self.fraction

        limit = math.inf if self.value is None else self.value
        return _largest(enough, question.previous, limit)

    def at_the_end(self, question: ScaleQuestion) -> Tensor:
        """As far as the last step allows."""
        return self.on_the_way(question)

    def remarks(self, scale: Tensor, rows: int) -> tuple[str, ...]:
        """It was found."""
        return (_FOUND,)


@dataclass(frozen=True)
class TargetKL:
    r"""The scale at which the tilted law is ``nats`` away from the sampler's own:

    .. math:: KL(p_\lambda\|p) = \lambda E_\lambda[r] - \log Z(\lambda) = \text{nats},

    both terms estimated from the particles with their paths' weights.

    Attributes:
        nats: of the target.
        largest: lambda is never larger; where the reward is bounded and the wish is not reachable it is this, or,
            without a limit, 0.
    """

    nats: float
    largest: float = math.inf

    def __post_init__(self) -> None:
        if not (math.isfinite(self.nats) and self.nats >= 0.0):
            raise ValueError(f"nats: got {self.nats}, expected a finite number >= 0")
        if not self.largest > 0.0:
            raise ValueError(f"largest: got {self.largest}, expected a positive number")

    def known(self, fraction: float) -> None:
        """Never: it depends on the rewards."""

    def on_the_way(self, question: ScaleQuestion) -> Tensor:
        """The root in lambda."""
        base = question.log_base - log_sum_exp(question.log_base)[:, None]
        alive = base > -math.inf
        reward = torch.where(alive & (question.reward > -math.inf), question.reward, 0.0)

        def within(scale: Tensor) -> Tensor:
            tilted = torch.where(question.reward > -math.inf, base + scale[:, None] * reward, -math.inf)
            log_z = log_sum_exp(tilted)
            shares = (tilted - torch.where(log_z.isfinite(), log_z, 0.0)[:, None]).exp()
            return scale * (shares * reward).sum(dim=1) - log_z <= self.nats

        return _largest(within, torch.zeros_like(question.previous), self.largest)

    at_the_end = on_the_way

    def remarks(self, scale: Tensor, rows: int) -> tuple[str, ...]:
        """It was found; and whether so few particles can say."""
        said = [_FOUND]
        if self.nats > 0.5 * math.log(rows):
            said.append(
                f"TargetKL({self.nats:g}) with {rows} particles: a divergence above half of log K = "
                f"{math.log(rows):.2f} cannot be estimated from them; use more particles or fewer nats"
            )
        elif bool((scale == 0.0).any()) and self.nats > 0.0:
            said.append(f"TargetKL({self.nats:g}) was not reached: the rewards do not differ enough; the scale is 0")
        return tuple(said)


def as_scale(scale: "float | Scale") -> Scale:
    """A number as a rule; rules as they are.

    Raises:
        ValueError: neither.
    """
    given: Any = scale
    if callable(getattr(given, "known", None)):
        rule: Scale = given
        return rule
    if not hasattr(given, "__float__"):
        raise ValueError(f"scale: got {given!r}, expected a number, Scheduled, TargetESS or TargetKL")
    return Fixed(float(given))


def _refuse_scale(value: float) -> None:
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"scale: got {value}, expected a finite number >= 0 (negate the reward to steer away)")


def _largest(holds: Callable[[Tensor], Tensor], start: Tensor, limit: float) -> Tensor:
    """The largest scale from ``start`` to ``limit`` (P,) at which a falling condition holds, by doubling and
    bisection to 50 bits; ``start`` itself if it fails there."""
    low, step = start.clone(), torch.ones_like(start)
    ceiling = torch.full_like(start, min(limit, 1e12))
    high = torch.minimum(low + step, ceiling)
    for _ in range(64):
        good = holds(high) & (high < ceiling)
        if not bool(good.any()):
            break
        low = torch.where(good, high, low)
        step = torch.where(good, 2.0 * step, step)
        high = torch.where(good, torch.minimum(low + step, ceiling), high)
    at_ceiling = holds(high) & (high >= ceiling)
    if limit == math.inf:  # nothing that was seen depends on the scale: nothing is learned of it
        return torch.where(at_ceiling, start, _bisected(holds, low, high))
    return torch.where(at_ceiling, ceiling, _bisected(holds, low, high))


def _bisected(holds: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The last scale at which the condition holds, between one at which it does and one at which it does not."""
    for _ in range(50):
        middle = 0.5 * (low + high)
        good = holds(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return low
