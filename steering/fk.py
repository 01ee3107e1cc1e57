"""FK steering: tilt a sampler to p(x0) exp(scale r(x0)) / Z by potentials of the reward of x0-hat (Singhal et al.
2025). All potentials, values, schedules and proposals have the same limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .context import FinalContext, StepContext
from .controls import Memory, Target, Weighed, When
from .gradient import Gradient
from .rewards import Reward
from .scales import Fixed, Scale, as_scale
from .tilt import Potential, RewardTilt, Space, reward_calls
from .values import Draws

__all__ = ["FKSteering"]


@dataclass(frozen=True, eq=False)
class FKSteering:
    """Tilt to p(x0) exp(``scale`` r(x0)) / Z.

    Attributes:
        reward: samples -> one number each; what the samples are is said by ``on``. A sequence gives each prompt its
            own.
        scale: lambda of the target; or :class:`~feynkac.steering.Scheduled`, :class:`~feynkac.steering.TargetESS`,
            :class:`~feynkac.steering.TargetKL`.
        potential: ``"difference"``, ``"max"``, ``"sum"`` of the values, or a callable of (rewards so far (rows, n),
            lambda) giving log-potentials (rows,).
        when: the moves at which x0-hat is scored: indices, a predicate of the context, or None for all.
        value: ``"denoised"``: lambda r(x0-hat); ``"tempered"``: the same over 1 + lambda ``curvature`` w_t, w_t the
            posterior variance, which stops early values from over-sharpening; :class:`~feynkac.steering.Draws`; or a
            callable of the context giving values (rows,) in units of the reward.
        on: ``"images"``: decoded as the pipeline does; ``"latents"``: x0-hat itself; ``"tokens"``: the likeliest clean
            sequence.
        curvature: of the reward, for ``"tempered"``.
        lag: 0: a state is judged before it moves on; 1: its children are weighted by the parent's verdict, as in the
            published code.
        gradient: proposals that follow the reward's gradient, weights corrected exactly; needs
            ``attach(transition="stochastic")`` and a differentiable reward.
        chunk_size: samples handed to the reward at a time; that of ``attach`` if None.
    """

    reward: Reward | Sequence[Reward]
    scale: float | Scale
    potential: Potential = "difference"
    when: When = None
    value: Literal["denoised", "tempered"] | Draws | Callable[[StepContext], Tensor] = "denoised"
    on: Space = "images"
    curvature: float = 1.0
    lag: Literal[0, 1] = 0
    gradient: Gradient | None = None
    chunk_size: int | None = None
    _tilt: RewardTilt = field(init=False, repr=False)

    def __post_init__(self) -> None:
        calls = reward_calls(self.reward, self.chunk_size)
        tilt = RewardTilt(
            calls,
            as_scale(self.scale),
            self.potential,
            self.when,
            self.value,
            self.on,
            self.curvature,
            self.lag,
            self.gradient,
        )
        object.__setattr__(self, "_tilt", tilt)

    @property
    def name(self) -> str:
        """Name of the reward."""
        return self._tilt.name

    @property
    def candidates(self) -> int:
        """One: particles are judged, not chosen among siblings."""
        return 1

    @property
    def reward_calls(self) -> int:
        """Samples scored so far."""
        return self._tilt.calls

    def begin(self, rows: int) -> Memory:
        """No reward seen, value zero."""
        return self._tilt.begin(rows)

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """Log-potential of x0-hat."""
        return None if self._idle else self._tilt.weigh(context, memory)

    def target(self, final: FinalContext, memory: Memory) -> Target:
        """``scale`` r(x0); at scale 0 the reward is reported and weighs nothing."""
        judged = self._tilt.target(final, memory)
        return Target(torch.zeros_like(judged.log_tilt), judged.reward, judged.scale) if self._idle else judged

    @property
    def _idle(self) -> bool:
        """Scale 0 asks for nothing, so nothing is asked on the way."""
        return isinstance(self._tilt.scale, Fixed) and self._tilt.scale.value == 0.0
