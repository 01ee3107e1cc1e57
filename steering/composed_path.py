"""Levels and moves of a composed pipeline, in the frame y = x/alpha."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..fkc.correctors import Exponent
from ..fkc.correctors import Target as Composed
from ..fkc.correctors.controls import fixed_coefficients
from ..fkc.correctors.guides import guides_between
from ..fkc.correctors.levels import Level as NoiseLevel
from ..fkc.correctors.moves import Transition
from ..fkc.diffusion import Diffusion
from ..fkc.experts import Expert
from .errors import SteeringError
from .schedulers.levels import Level

__all__ = ["ComposedPath", "Place", "answer"]

_PURE = 1e-4
"""alpha of a level of pure noise (flow matching begins at one), in units of sigma."""


@dataclass(frozen=True)
class Place:
    """Where a step begins.

    Attributes:
        alpha: of the scheduler's sample space.
        h: (sigma/alpha)^2.
        progress: 0 noise, 1 data.
        start: variance in the frame y of the noise that the pipeline begins with, at the first step; 0 later.
    """

    alpha: float
    h: float
    progress: float
    start: float = 0.0

    @classmethod
    def at(cls, level: Level, index: int, moves: int, start_deviation: float = 0.0) -> Place:
        """The place of a scheduler's level; pure noise is taken for almost pure noise."""
        alpha = max(level.alpha, _PURE * level.sigma)
        return cls(alpha, (level.sigma / alpha) ** 2, index / moves, (start_deviation / alpha) ** 2)


@dataclass(frozen=True, eq=False)
class ComposedPath:
    """The target of a composition at every level, as far as it does not depend on the particles.

    Attributes:
        exponents: of the pipeline and of each expert.
        experts: besides the pipeline.
        mean: claimed of the data.
        std: claimed of the data, a number or a function of the noise-to-signal ratio.
        control: see :class:`feynkac.steering.Composition`.
    """

    exponents: tuple[Exponent, ...]
    experts: tuple[Expert, ...]
    mean: float
    std: float | Callable[[float], float]
    control: Literal["none", "score"]

    def __post_init__(self) -> None:
        for expert in self.experts:
            if expert.clock is not None:
                raise ValueError("clock: got an expert on another schedule, expected the pipeline's own")
        for name, size in (("target", 256), ("level", 256), ("transition", 4)):  # caches of this path alone
            object.__setattr__(self, name, functools.lru_cache(maxsize=size)(getattr(self, name)))

    def std_at(self, ratio: float) -> float:
        """Claimed at a noise-to-signal ratio."""
        return self.std(ratio) if callable(self.std) else self.std

    def target(self, guidance: float, branches: int, std: float) -> Composed[Expert]:
        """The product of powers for a guidance scale, one or two branches, and a claimed deviation."""
        first, rest = self.exponents[0], self.exponents[1:]
        own = Expert(_unasked, _ANY, "denoised", mean=self.mean, std=std)
        shares: tuple[Exponent, ...] = (first,)
        if branches == 2:
            shares = (_times(first, 1.0 - guidance), _times(first, guidance))
        return Composed((*[own] * branches, *self.experts), (*shares, *rest))

    def level(self, place: Place, std: float, guidance: float, branches: int, shape: tuple[int, ...]) -> NoiseLevel:
        """The level at ``place`` with the deviation ``std`` claimed where the move begins. At the pipeline's first step
        it is the noise's: the law of exponents that add up to one."""
        target = self.target(guidance, branches, std)
        powers = target.powers(place.progress)
        variances = tuple(expert.variance(place.h) for expert in target.experts)
        reference = target.reference(place.h, place.progress, shape)
        if place.start > 0.0:
            if sum(powers) <= 0.0:
                raise SteeringError(f"exponents: add up to {sum(powers):g}, expected more than 0")
            powers = tuple(a / sum(powers) for a in powers)
            noise = torch.tensor(place.start, dtype=torch.float64)
            reference = replace(reference, mean=torch.zeros_like(reference.mean), variance=noise)
        alphas = (place.alpha,) * len(powers)
        return NoiseLevel(place.h, place.progress, variances, alphas, powers, 0.0, reference)

    def transition(self, first: NoiseLevel, last: NoiseLevel) -> Transition:
        """The move between two levels."""
        before, after = guides_between("reference", self.target(1.0, 1, self.std_at(1.0)), first, last)
        fixed = fixed_coefficients("score", first) if self.control == "score" else None
        return Transition(first, last, before, after, 1.0, fixed)


_ANY = Diffusion.edm()


def _unasked(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the pipeline's own predictions are read off its calls")


def _times(exponent: Exponent, factor: float) -> Exponent:
    return (lambda u: exponent(u) * factor) if callable(exponent) else exponent * factor


def answer(expert: Expert, y: Tensor, h: float) -> Tensor:
    """E[x0 | y]; above the noisiest level of the expert's path that of the same x, below the last the same score."""
    if expert.clock is not None:
        return expert.denoised(y, h)
    low, high = (float(expert.diffusion.noise(t)) ** 2 for t in (expert.diffusion.t_min, expert.diffusion.t_max))
    if h > high:
        return expert.denoised(y * (high / h) ** 0.5, high)
    if h < low:
        return y + h / low * (expert.denoised(y, low) - y)
    return expert.denoised(y, h)
