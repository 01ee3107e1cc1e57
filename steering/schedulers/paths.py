"""The Gaussian path of a diffusers scheduler, for correctors."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from ...fkc.diffusion import Diffusion
from ..errors import SteeringError
from .levels import Level, rule_for

__all__ = ["NoiseTable", "diffusion_of", "noise_table"]


_WHOLE = {"steps_offset": 0, "use_dynamic_shifting": False}
"""Settings at which ``set_timesteps`` covers the training steps and asks for nothing else; the levels are the same."""


@dataclass(frozen=True)
class NoiseTable:
    """What a scheduler says at every noise level, from data (t = 0) to noise (t = 1).

    Attributes:
        levels: with rising sigma/alpha.
        timesteps: what its denoiser is told there.
        scales: what its sample is multiplied by for the denoiser.
    """

    levels: tuple[Level, ...]
    timesteps: tuple[float, ...]
    scales: tuple[float, ...]

    def diffusion(self) -> Diffusion:
        """The path in the scheduler's own sample space."""
        return Diffusion.table([level.alpha for level in self.levels], [level.sigma for level in self.levels])

    def at(self, t: float) -> tuple[Level, float, float]:
        """Level, timestep and scale at ``t``; linear between the entries, sigma/alpha and alpha in their logarithms as
        :meth:`diffusion` has them."""
        place = min(max(t, 0.0), 1.0) * (len(self.levels) - 1)
        below = min(int(place), len(self.levels) - 2)
        share = place - below
        if share > 1.0 - 1e-9:
            below, share = below + 1, 0.0
        lower, upper = self.levels[below], self.levels[min(below + 1, len(self.levels) - 1)]
        alpha = lower.alpha ** (1.0 - share) * upper.alpha**share
        sigma = alpha * (lower.sigma / lower.alpha) ** (1.0 - share) * (upper.sigma / upper.alpha) ** share

        def between(a: float, b: float) -> float:
            return a + share * (b - a)

        level = Level(alpha, sigma, between(lower.skip, upper.skip), between(lower.scale, upper.scale))
        following = min(below + 1, len(self.levels) - 1)
        timestep = between(self.timesteps[below], self.timesteps[following])
        return level, timestep, between(self.scales[below], self.scales[following])


def noise_table(scheduler: Any, *, points: int = 1000) -> NoiseTable:
    """The levels of a scheduler, tabulated.

    Args:
        scheduler: of a registered class; it is copied, not touched.
        points: of the table, at most; the scheduler's training steps bound it.

    Raises:
        UnsupportedScheduler: the class is not known.
        SteeringError: it evaluates its denoiser several times a move.
        ValueError: fewer than two distinct levels.
    """
    rule = rule_for(scheduler)
    own = copy.deepcopy(scheduler)
    own.register_to_config(**{name: value for name, value in _WHOLE.items() if name in own.config})
    own.set_timesteps(min(points, int(own.config.get("num_train_timesteps", points))))
    levels, timesteps = rule.levels(own)[:-1], [float(t) for t in own.timesteps]
    if rule.stages > 1 or len(levels) != len(timesteps):
        raise SteeringError(
            f"{type(scheduler).__name__}: evaluates its denoiser several times a move, so it has no path"
        )
    kept: list[int] = []
    for i in reversed(range(len(levels))):
        level = levels[i]
        if not (level.sigma > 0.0 and level.alpha > 0.0):
            continue
        if not kept or level.sigma / level.alpha > levels[kept[-1]].sigma / levels[kept[-1]].alpha:
            kept.append(i)
    one = torch.ones(1, dtype=torch.float64)
    scales = []
    for i in kept:
        own._step_index = None  # each level is asked by its timestep
        scales.append(float(own.scale_model_input(one, own.timesteps[i])) if hasattr(own, "scale_model_input") else 1.0)
    return NoiseTable(tuple(levels[i] for i in kept), tuple(timesteps[i] for i in kept), tuple(scales))


def diffusion_of(scheduler: Any, *, points: int = 1000) -> Diffusion:
    """alpha and sigma of a scheduler's own sample space, tabulated from data (t = 0) to noise (t = 1).

    Args:
        scheduler: of a registered class; it is copied, not touched.
        points: of the table, at most; the scheduler's training steps bound it.

    Raises:
        UnsupportedScheduler: the class is not known.
        SteeringError: it evaluates its denoiser several times a move.
        ValueError: fewer than two distinct levels.
    """
    return noise_table(scheduler, points=points).diffusion()
