r"""Annealed importance sampling and SMC samplers: from a proposal that can be drawn from to a target that
cannot.

The path is geometric, :math:`\log\pi_t = (1-t)\log q + t\log p`, t from 0 to exactly 1. At step k the
particles are weighted from :math:`t_{k-1}` to :math:`t_k`, resampled if need be, and moved by a kernel for
:math:`\pi_{t_k}`; a last move is made at t = 1. With a fixed schedule and a fixed step size the evidence is
an unbiased estimate of :math:`\int p / \int q`. A schedule or a step size adapted to the particles costs a
bias of order 1/K in the evidence (Beskos et al. 2016); rerun with the schedule found, as a
:class:`FixedSchedule`, where that matters.

References:
    Neal (2001), Statistics and Computing 11, 125. Del Moral, Doucet and Jasra (2006), JRSS B
    68, 411. Zhou, Johansen and Aston (2016), J. Comput. Graph. Statist. 25, 701, section 3.3.
    Beskos, Jasra, Kantas and Thiery (2016), Ann. Appl. Probab. 26, 1111.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from .cloud import Cloud
from .density import GeometricPath, LogDensity, Point
from .errors import ScheduleExhausted
from .kernels.base import Kernel
from .population import Population
from .weights import log_sum_exp

__all__ = [
    "AdaptiveSchedule",
    "FixedSchedule",
    "Schedule",
    "SampledDensity",
    "StepSizeTuning",
    "Tempering",
    "conditional_ess",
    "tempering_increment",
]


class SampledDensity(Protocol):
    """A proposal one can draw from: the part of the proposal protocol that tempering needs."""

    def sample_and_log_prob(self, n: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
        """``(n, *event)`` and ``(n,)``."""
        ...


class Schedule(Protocol):
    """Chooses the next inverse temperature of every population."""

    @property
    def max_steps(self) -> int:
        """Upper bound on the number of increments."""
        ...

    def next_time(self, step: int, time: Tensor, log_ratio: Tensor, log_weights: Tensor) -> Tensor:
        """Next time ``(P,)`` after increments 1..``step``; ``log_ratio = log p - log q`` and weights are
        ``(P, K)``."""
        ...


def tempering_increment(log_prob: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Log-weight gained at fixed x when t goes from ``before`` to ``after``: ``(after - before) (log p - log
    q)``.

    Args:
        log_prob: ``(P, K, 2)``, columns log q and log p.
        before: ``(P,)``.
        after: ``(P,)``.

    Returns:
        ``(P, K)``; exactly zero where the time does not change.
    """
    change = (after - before)[:, None]
    return torch.where(change == 0, 0.0, change * (log_prob[..., 1] - log_prob[..., 0]))


def conditional_ess(log_weights: Tensor, log_increment: Tensor) -> Tensor:
    r"""Conditional ESS as a fraction, :math:`(\sum_i W_i w_i)^2 / \sum_i W_i w_i^2`, in [0, 1].

    It measures the increment alone: weights carried from before count as the base measure.

    Args:
        log_weights: carried, ``(P, K)``.
        log_increment: ``(P, K)``.

    Returns:
        ``(P,)``; 1 for a row with nothing alive.

    References:
        Zhou, Johansen and Aston (2016), section 3.3; here divided by K.
    """
    total = log_sum_exp(log_weights)
    first = log_sum_exp(log_weights + log_increment)
    second = log_sum_exp(log_weights + 2 * log_increment)
    value = (2 * first - second - total).exp()
    return torch.where(value.isfinite(), value, 1.0)


@dataclass(frozen=True)
class FixedSchedule:
    """Times given beforehand.

    Attributes:
        times: strictly increasing, above 0, the last one exactly 1.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        increasing = all(a < b for a, b in zip((0.0, *self.times), self.times, strict=False))
        if not self.times or not increasing or self.times[-1] != 1.0:
            raise ValueError(
                f"times must increase strictly from above 0 to exactly 1, got {self.times}: a schedule that "
                "stops before 1 samples another target"
            )

    @classmethod
    def linear(cls, n: int) -> FixedSchedule:
        """n equal increments: 1/n, 2/n, ..., 1."""
        return cls(tuple((i + 1) / n for i in range(n)))

    @property
    def max_steps(self) -> int:
        """Number of increments."""
        return len(self.times)

    def next_time(self, step: int, time: Tensor, log_ratio: Tensor, log_weights: Tensor) -> Tensor:
        """See :class:`Schedule`."""
        return torch.full_like(time, self.times[min(step, len(self.times) - 1)])


@dataclass(frozen=True)
class AdaptiveSchedule:
    """The largest increment whose conditional ESS is still ``cess`` of the particles, found by bisection.

    Attributes:
        cess: fraction in (0, 1).
        max_steps: increments allowed before :class:`feynkac.fkc.ScheduleExhausted` is raised.
    """

    cess: float
    max_steps: int

    def __post_init__(self) -> None:
        if not 0 < self.cess < 1:
            raise ValueError(f"cess is a fraction between 0 and 1, got {self.cess}")

    def next_time(self, step: int, time: Tensor, log_ratio: Tensor, log_weights: Tensor) -> Tensor:
        """See :class:`Schedule`. Particles where p is zero are dead at any t > 0 and do not count.

        Raises:
            ScheduleExhausted: step ``max_steps`` would not reach 1.
        """
        usable = log_ratio.isfinite()
        ratio = torch.where(usable, log_ratio, 0.0)
        weights = torch.where(usable, log_weights, -torch.inf)
        low, high = time.clone(), torch.ones_like(time)
        reaches = conditional_ess(weights, (1 - time)[:, None] * ratio) >= self.cess
        for _ in range(60):  # halves [t, 1] down to the spacing of double precision
            middle = (low + high) / 2
            good = conditional_ess(weights, (middle - time)[:, None] * ratio) >= self.cess
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        chosen = torch.where(reaches, 1.0, torch.maximum(low, torch.nextafter(time, torch.ones_like(time))))
        if step + 1 >= self.max_steps and bool((chosen < 1).any()):
            raise ScheduleExhausted(
                f"{self.max_steps} increments reach only t = {float(chosen.min()):.3g}; allow more steps or "
                "a lower cess"
            )
        return chosen


@dataclass(frozen=True)
class StepSizeTuning:
    """Robbins-Monro adaptation ``log h += rate (acceptance - target)`` after each move, per population.

    Attributes:
        target: acceptance wanted (0.574 is optimal for MALA, 0.234 for random walks, in high dimension).
        rate: gain.
    """

    target: float
    rate: float

    def tuned(self, step_size: Tensor, acceptance: Tensor) -> Tensor:
        """New step size ``(P,)``."""
        return step_size * (self.rate * (acceptance - self.target)).exp()


@dataclass(frozen=True)
class Tempering:
    """The Feynman-Kac model of an annealed population.

    Attributes:
        proposal: draws ``x_0``.
        source: log-density of the proposal; normalised if the evidence is to be that of the target.
        target: unnormalised log-density p.
        kernel: moves particles at fixed t.
        schedule: times.
        step_size: of the kernel, in the unit that the kernel states.
        moves: kernel applications at each time; 0 gives plain importance sampling.
        tuning: adaptation of the step size, or None for a fixed one.
    """

    proposal: SampledDensity
    source: LogDensity
    target: LogDensity
    kernel: Kernel
    schedule: Schedule
    step_size: float
    moves: int
    tuning: StepSizeTuning | None = None

    @property
    def n_steps(self) -> int:
        """See :class:`feynkac.fkc.FeynmanKacModel`."""
        return self.schedule.max_steps

    def initial(self, generators: Sequence[Generator], particles: int) -> tuple[Cloud, Tensor]:
        """See :class:`feynkac.fkc.FeynmanKacModel`."""
        draws = [self.proposal.sample_and_log_prob(particles, generator=g)[0] for g in generators]
        x = torch.stack(draws).detach()
        zeros = torch.zeros(len(generators), dtype=torch.float64, device=x.device)
        point = self._path(zeros).evaluate(x, score=self.kernel.needs_score)
        shared = {
            "previous_time": zeros,
            "time": zeros,
            "step_size": torch.full_like(zeros, self.step_size),
            "acceptance": torch.ones_like(zeros),
            "n_invalid": torch.zeros_like(zeros, dtype=torch.int64),
        }
        weights = torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)
        cloud = self._advanced(0, _to_cloud(point, weights, shared), weights)
        return cloud, self.log_potential(0, cloud, cloud)

    def move(self, generators: Sequence[Generator], step: int, cloud: Cloud, population: Population) -> Cloud:
        """Kernel moves at the present time, then the choice of the next one."""
        point, shared = _to_point(cloud), dict(cloud.shared)
        path = self._path(shared["time"])
        log_weight = torch.zeros_like(population.log_weights)
        for _ in range(self.moves):
            moved = self.kernel(generators, point, path, shared["step_size"])
            point, log_weight = moved.point, log_weight + moved.log_weight
            shared["acceptance"] = moved.accepted.to(torch.float64).mean(dim=-1)
            shared["n_invalid"] = shared["n_invalid"] + moved.n_invalid
            if self.tuning is not None:
                shared["step_size"] = self.tuning.tuned(shared["step_size"], shared["acceptance"])
        return self._advanced(step, _to_cloud(point, log_weight, shared), population.log_weights + log_weight)

    def log_potential(self, step: int, previous: Cloud, cloud: Cloud) -> Tensor:
        """Weight of the kernel plus the tempering increment to the next time."""
        shared = cloud.shared
        increment = tempering_increment(cloud.carried["log_prob"], shared["previous_time"], shared["time"])
        return cloud.carried["kernel_log_weight"] + increment

    def finished(self, step: int, cloud: Cloud) -> Tensor:
        """True once the last moves, at t = 1, are made."""
        return cloud.shared["previous_time" if self.moves else "time"] >= 1

    def _path(self, time: Tensor) -> GeometricPath:
        return GeometricPath((self.source, self.target), torch.stack([1 - time, time], dim=-1))

    def _advanced(self, step: int, cloud: Cloud, log_weights: Tensor) -> Cloud:
        time = cloud.shared["time"]
        log_prob = cloud.carried["log_prob"]
        carried = torch.where(log_weights.isnan(), -torch.inf, log_weights)
        following = time
        if bool((time < 1).any()):
            following = self.schedule.next_time(step, time, log_prob[..., 1] - log_prob[..., 0], carried)
        following = torch.where(time < 1, following, time)
        return replace(cloud, shared={**cloud.shared, "previous_time": time, "time": following})


def _to_cloud(point: Point, kernel_log_weight: Tensor, shared: dict[str, Tensor]) -> Cloud:
    carried = {"log_prob": point.log_prob, "kernel_log_weight": kernel_log_weight}
    if point.score is not None:
        carried["score"] = point.score
    return Cloud(point.x, carried, shared)


def _to_point(cloud: Cloud) -> Point:
    return Point(cloud.x, cloud.carried["log_prob"], cloud.carried.get("score"))
