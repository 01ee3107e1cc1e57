"""Noise levels and what is known at them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..experts import Expert
from .targets import GaussianReference, Target

__all__ = ["Ends", "Level", "inner", "level_of", "spread"]


@dataclass(frozen=True, eq=False)
class Level:
    """A noise level of the sampler.

    Attributes:
        h: noise variance.
        progress: u, 0 at the noise and 1 at the data.
        variances: of each expert's own noise.
        alphas: of each expert's own path.
        powers: exponents.
        reward_scale: beta.
        reference: the target's Gaussian.
    """

    h: float
    progress: float
    variances: tuple[float, ...]
    alphas: tuple[float, ...]
    powers: tuple[float, ...]
    reward_scale: float
    reference: GaussianReference


def level_of(target: Target[Expert], h: float, u: float, shape: tuple[int, ...]) -> Level:
    """The level at noise variance ``h`` and progress ``u``.

    Raises:
        PathCollapsed: the target cannot be normalised there.
    """
    experts = target.experts
    for i, expert in enumerate(experts):
        try:
            expert.place(h)
        except ValueError as error:
            raise ValueError(
                f"levels: experts[{i}] does not reach sigma/alpha = {h**0.5:.4g} ({error}); give levels within the "
                "paths of all experts"
            ) from error
    data = sum(expert.std**2 for expert in experts) / len(experts)
    return Level(
        h,
        u,
        tuple(expert.variance(h) for expert in experts),
        tuple(expert.place(h)[1] for expert in experts),
        target.powers(u),
        target.reward_scale(u, data / (data + h)),
        target.reference(h, u, shape),
    )


@dataclass(frozen=True, eq=False)
class Ends:
    """Particles (P, K, *event) at a level, and what was evaluated there.

    Attributes:
        level: where.
        y: particles.
        scores: (P, K, E, *event) of the experts.
        log_q: (P, K, E) float64 log-densities of the experts, known or tracked; None where nobody needs them.
        divergences: (P, K, E) float64 of the scores; None where nobody needs them.
        reward: (P, K) float64; None without a reward.
        reward_gradient: (P, K, *event) of r; None without a reward.
        reward_laplacian: (P, K) float64 of r; None where nobody needs it.
    """

    level: Level
    y: Tensor
    scores: Tensor
    log_q: Tensor | None = None
    divergences: Tensor | None = None
    reward: Tensor | None = None
    reward_gradient: Tensor | None = None
    reward_laplacian: Tensor | None = None

    def score(self) -> Tensor:
        """S + R (P, K, *event): gradient of the log target."""
        total = self.combined(self.level.powers)
        if self.reward_gradient is not None:
            total = total + self.level.reward_scale * self.reward_gradient
        return total

    def combined(self, factors: tuple[float, ...]) -> Tensor:
        """sum_i factor_i s_i (P, K, *event)."""
        total = self.scores[:, :, 0] * factors[0]
        for i, factor in enumerate(factors[1:], 1):
            total = total + self.scores[:, :, i] * factor
        return total

    def log_target(self) -> Tensor:
        """sum_i a_i log q_i + beta r (P, K) float64.

        Raises:
            ValueError: the experts' densities are neither known nor tracked.
        """
        if self.log_q is None:
            raise ValueError("log_q: the experts' densities are neither known nor tracked")
        total = self.log_q @ torch.tensor(self.level.powers, dtype=torch.float64)
        return total if self.reward is None else total + self.level.reward_scale * self.reward


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the event (P, K) float64 of a product of (P, K, *event)."""
    return (a.double() * b.double()).flatten(2).sum(dim=2)


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A number a population, (P or 1, 1) or (), shaped to multiply ``like`` (P, K, *event)."""
    return value if value.ndim == 0 else value.reshape(*value.shape, *[1] * (like.ndim - value.ndim))
