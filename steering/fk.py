"""FK steering: tilt a sampler to p(x0) exp(scale r(x0)) / Z by potentials of the reward of x0-hat (Singhal et al.
2025).

With r_t the reward at a scored step (t runs downwards), the log-potential there is

    difference   scale_t r_t - (scale r at the last scored step)      telescopes by itself
    max          scale_t max over the steps so far of r
    sum          scale_t sum over the steps so far of r
    callable     anything of (rewards so far (rows, n), scale_t)

and the last correction, scale r(x0) - (all that was applied), is the controller's: all potentials have the same limit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .context import StepContext
from .controls import Memory, Weighed, When, due
from .rewards import Reward, RewardCalls

__all__ = ["FKSteering", "Potential"]

Potential = Literal["difference", "max", "sum"] | Callable[[Tensor, float], Tensor]
Space = Literal["images", "latents", "tokens"]


@dataclass(frozen=True, eq=False)
class FKSteering:
    """Tilt to p(x0) exp(``scale`` r(x0)) / Z.

    Attributes:
        reward: samples -> one number each; what the samples are is said by ``on``. scale: lambda of the target.
        potential: see the module's docstring. when: the moves at which x0-hat is scored. value: ``"denoised"``:
        lambda r(x0-hat); ``"tempered"``: the same over 1 + lambda ``curvature`` w_t, w_t the posterior variance,
            which stops early values from over-sharpening; or a callable of the context giving (rows,) log-values.
        on: ``"images"``: decoded as the pipeline does; ``"latents"``: x0-hat itself.
        curvature: of the reward, for ``"tempered"``.
        chunk_size: samples handed to the reward at a time.
    """

    reward: Reward
    scale: float
    potential: Potential = "difference"
    when: When = None
    value: Literal["denoised", "tempered"] | Callable[[StepContext], Tensor] = "denoised"
    on: Space = "images"
    curvature: float = 1.0
    chunk_size: int | None = None
    _calls: RewardCalls = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0.0):
            raise ValueError(
                f"scale: got {self.scale}, expected a finite number >= 0 (negate the reward to steer away)"
            )
        if isinstance(self.potential, str) and self.potential not in ("difference", "max", "sum"):
            raise ValueError(f"potential: got {self.potential!r}, expected 'difference', 'max', 'sum' or a callable")
        if self.on not in ("images", "latents", "tokens"):
            raise ValueError(f"on: got {self.on!r}, expected 'images', 'latents' or 'tokens'")
        object.__setattr__(self, "_calls", RewardCalls(self.reward, self.chunk_size))

    @property
    def name(self) -> str:
        """Name of the reward."""
        return self._calls.name

    @property
    def candidates(self) -> int:
        """One: particles are judged, not chosen among siblings."""
        return 1

    @property
    def reward_calls(self) -> int:
        """Samples scored so far."""
        return self._calls.calls

    def begin(self, rows: int) -> Memory:
        """No reward seen, value zero."""
        return {
            "value": torch.zeros(rows, dtype=torch.float64),
            "rewards": torch.zeros((rows, 0), dtype=torch.float64),
        }

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """Log-potential of x0-hat."""
        if not due(self.when, context):
            return None
        value, reward = self._value(context)
        rewards = torch.cat([memory["rewards"], reward[:, None]], dim=1)
        if self.potential == "difference":
            log_potential = torch.where(value > -torch.inf, value - memory["value"], -torch.inf)
        elif callable(self.potential):
            log_potential = self.potential(rewards, self.scale).to(torch.float64)
        else:
            seen = rewards.amax(dim=1) if self.potential == "max" else rewards.sum(dim=1)
            log_potential = self.scale * seen
        return Weighed(log_potential, {"value": value, "rewards": rewards})

    def log_target(self, final: Tensor, decode: Callable[[Tensor], Any]) -> Tensor:
        """``scale`` r(x0)."""
        return self.scale * self._reward(final, decode)

    def _value(self, context: StepContext) -> tuple[Tensor, Tensor]:
        if callable(self.value):
            value = self.value(context).detach().double().cpu()
            return value, value / self.scale if self.scale else value
        reward = self._reward(context.clean, lambda _: context.images)
        scale = self.scale
        if self.value == "tempered":
            scale = scale / (1.0 + scale * self.curvature * context.posterior_variance)
        return scale * reward, reward

    def _reward(self, clean: Tensor, decode: Callable[[Tensor], Any]) -> Tensor:
        if self.scale == 0.0:
            return torch.zeros(len(clean), dtype=torch.float64)
        return self._calls(decode(clean) if self.on == "images" else clean, len(clean))
