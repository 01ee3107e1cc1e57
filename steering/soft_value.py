"""Soft-value guidance: every particle draws M children a step and keeps one in proportion to exp(value/temperature)
(SVDD, Li et al. 2024).

With weights kept it is nested SMC: the particle gains log mean_m exp(b_m) - a, where b_m = value(child m)/temperature
and a is the value carried by the parent, and the estimate of Z is unbiased for every K and M. Temperature 0 takes the
best child; that has no weights and is reported as biased.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from .context import FinalContext, StepContext
from .controls import Memory, Target, Weighed, When
from .gradient import Gradient
from .rewards import Reward
from .scales import Fixed
from .tilt import RewardTilt, Space, reward_calls
from .values import Draws

__all__ = ["SoftValueGuidance"]


@dataclass(frozen=True, eq=False)
class SoftValueGuidance:
    """Tilt to p(x0) exp(r(x0)/``temperature``) / Z by choosing among ``candidates`` children.

    Attributes:
        value: the reward r, judged at x0-hat on the way (posterior-mean value) and at x0 in the end. A sequence gives
            each prompt its own.
        temperature: alpha; 0 takes the arg-max child.
        candidates: M.
        then: smaller counts for later shares of the trajectory: ``candidates=8, then=(4, 2, 1)`` draws 8 children in
            the first quarter, 4 in the second, and so on. Rows beyond the count cost neither denoiser nor reward.
        when: moves at which children are chosen; between them the M children go their own ways (blockwise selection).
        on: as for :class:`~feynkac.steering.FKSteering`.
        intermediate: ``"denoised"``, ``"tempered"``, :class:`~feynkac.steering.Draws`, or a callable of the context
            giving soft values (rows,) in units of the reward, such as a regressed value network.
        curvature: of the reward, for ``"tempered"``.
        gradient: as for :class:`~feynkac.steering.FKSteering`.
        chunk_size: samples handed to the value at a time; that of ``attach`` if None.
    """

    value: Reward | Sequence[Reward]
    temperature: float
    candidates: int
    then: Sequence[int] = ()
    when: When = None
    on: Space = "images"
    intermediate: Literal["denoised", "tempered"] | Draws | Callable[[StepContext], Tensor] = "denoised"
    curvature: float = 1.0
    gradient: Gradient | None = None
    chunk_size: int | None = None
    _tilt: RewardTilt = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise ValueError(f"temperature: got {self.temperature}, expected a finite number >= 0")
        if self.candidates < 1:
            raise ValueError(f"candidates: got {self.candidates}, expected at least 1")
        if any(not 1 <= count <= self.candidates for count in self.then):
            raise ValueError(f"then: got {tuple(self.then)}, expected counts from 1 to candidates = {self.candidates}")
        scale = Fixed(1.0 if self.greedy else 1.0 / self.temperature)
        calls = reward_calls(self.value, self.chunk_size)
        tilt = RewardTilt(
            calls, scale, "difference", self.when, self.intermediate, self.on, self.curvature, 0, self.gradient
        )
        object.__setattr__(self, "_tilt", tilt)

    @property
    def name(self) -> str:
        """Name of the value."""
        return self._tilt.name

    @property
    def greedy(self) -> bool:
        """Takes the best child: no weights."""
        return self.temperature == 0.0

    @property
    def reward_calls(self) -> int:
        """Samples scored so far."""
        return self._tilt.calls

    def count_at(self, fraction: float) -> int:
        """Children of the moves at this fraction of the trajectory, in [0, 1)."""
        counts = (self.candidates, *self.then)
        return counts[min(int(fraction * len(counts)), len(counts) - 1)]

    def begin(self, rows: int) -> Memory:
        """Value zero."""
        return self._tilt.begin(rows)

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """Difference potential of the value: b_m - a."""
        return self._tilt.weigh(context, memory)

    def target(self, final: FinalContext, memory: Memory) -> Target:
        """r(x0)/temperature."""
        return self._tilt.target(final, memory)
