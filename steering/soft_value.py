"""Soft-value guidance: every particle draws M children a step and keeps one in proportion to exp(value/temperature)
(SVDD, Li et al. 2024).

With weights kept it is nested SMC: the particle gains log mean_m exp(b_m) - a, where b_m = value(child m)/temperature
and a is the value carried by the parent, and the estimate of Z is unbiased for every K and M. Temperature 0 takes the
best child; that has no weights and is reported as biased.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .context import StepContext
from .controls import Memory, Weighed, When, due
from .fk import Space
from .rewards import Reward, RewardCalls

__all__ = ["SoftValueGuidance"]


@dataclass(frozen=True, eq=False)
class SoftValueGuidance:
    """Tilt to p(x0) exp(r(x0)/``temperature``) / Z by choosing among ``candidates`` children.

    Attributes:
        value: the reward r, judged at x0-hat on the way (posterior-mean value) and at x0 in the end. temperature:
        alpha; 0 takes the arg-max child. candidates: M. when: moves at which children are chosen; between them the M
        children go their own ways (blockwise selection). on: as for :class:`~feynkac.steering.FKSteering`.
        intermediate: a callable of the context giving (rows,) values instead of r(x0-hat), such as a regressed value
        network. chunk_size: samples handed to the value at a time.
    """

    value: Reward
    temperature: float
    candidates: int
    when: When = None
    on: Space = "images"
    intermediate: Callable[[StepContext], Tensor] | None = None
    chunk_size: int | None = None
    _calls: RewardCalls = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise ValueError(f"temperature: got {self.temperature}, expected a finite number >= 0")
        if self.candidates < 1:
            raise ValueError(f"candidates: got {self.candidates}, expected at least 1")
        object.__setattr__(self, "_calls", RewardCalls(self.value, self.chunk_size))

    @property
    def name(self) -> str:
        """Name of the value."""
        return self._calls.name

    @property
    def greedy(self) -> bool:
        """Takes the best child: no weights."""
        return self.temperature == 0.0

    @property
    def reward_calls(self) -> int:
        """Samples scored so far."""
        return self._calls.calls

    def begin(self, rows: int) -> Memory:
        """Value zero."""
        return {"value": torch.zeros(rows, dtype=torch.float64)}

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """Difference potential of the value: b_m - a."""
        if not due(self.when, context):
            return None
        if self.intermediate is not None:
            value = self.intermediate(context).detach().double().cpu()
        else:
            value = self._calls(context.images if self.on == "images" else context.clean, len(context.sample))
        value = self._scaled(value)
        log_potential = torch.where(value > -torch.inf, value - memory["value"], -torch.inf)
        return Weighed(log_potential, {"value": value})

    def log_target(self, final: Tensor, decode: Callable[[Tensor], Any]) -> Tensor:
        """r(x0)/temperature."""
        return self._scaled(self._calls(decode(final) if self.on == "images" else final, len(final)))

    def _scaled(self, value: Tensor) -> Tensor:
        return value if self.greedy else value / self.temperature
