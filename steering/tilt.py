"""The tilt by a reward that FK steering and soft-value guidance share: judge, scale, remember, take back.

With V_t the log-value of a row (:mod:`.values`) the log-potential of a scored step is

    difference   V_t - V at the last scored step      telescopes by itself
    max          max of V over the steps so far
    sum          sum of V over the steps so far
    callable     anything of (rewards so far (rows, n), lambda)

and the last correction, lambda r(x0) - (all that was applied), is the controller's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .context import FinalContext, StepContext
from .controls import Memory, Target, Weighed, When, due
from .gradient import Gradient, Variable
from .rewards import Reward, RewardCalls
from .scales import FoundScale, Scale, ScaleQuestion
from .values import Estimate, Lambda, Value, estimate, scaled

__all__ = ["Potential", "RewardTilt", "Space"]

Potential = Literal["difference", "max", "sum"] | Callable[[Tensor, float], Tensor]
Space = Literal["images", "latents", "tokens"]


@dataclass(frozen=True, eq=False)
class RewardTilt:
    """exp(lambda r(x0)).

    Attributes:
        rewards: one for all populations, or one each.
        scale: lambda.
        potential: see above.
        when: scored moves.
        value: see :mod:`.values`.
        on: what the reward is given.
        curvature: of ``value="tempered"``.
        lag: 0: a state is judged before it moves on; 1: its children carry the verdict.
        gradient: of the proposal, or None.
    """

    rewards: tuple[RewardCalls, ...]
    scale: Scale
    potential: Potential
    when: When
    value: Value
    on: Space
    curvature: float
    lag: int
    gradient: Gradient | None

    def __post_init__(self) -> None:
        if isinstance(self.potential, str) and self.potential not in ("difference", "max", "sum"):
            raise ValueError(f"potential: got {self.potential!r}, expected 'difference', 'max', 'sum' or a callable")
        if isinstance(self.value, str) and self.value not in ("denoised", "tempered"):
            raise ValueError(f"value: got {self.value!r}, expected 'denoised', 'tempered', Draws(n) or a callable")
        if self.on not in ("images", "latents", "tokens"):
            raise ValueError(f"on: got {self.on!r}, expected 'images', 'latents' or 'tokens'")
        if self.lag not in (0, 1):
            raise ValueError(f"lag: got {self.lag}, expected 0 (judge the child) or 1 (judge the parent)")
        if self._finds and not isinstance(self.scale, FoundScale):
            raise ValueError(f"scale: {type(self.scale).__name__} knows no number and has no rule to find one")
        if self._finds and (self.lag or callable(self.potential)):
            raise ValueError("scale: one that is found from the particles needs lag 0 and a named potential")
        if self.gradient is not None and (self.on == "tokens" or (callable(self.value) and self.value is not None)):
            raise ValueError("gradient: needs continuous states and a value made from the reward")

    @property
    def name(self) -> str:
        """Name of the reward."""
        return self.rewards[0].name

    @property
    def calls(self) -> int:
        """Samples scored so far."""
        return sum(reward.calls for reward in self.rewards)

    def begin(self, rows: int) -> Memory:
        """No reward seen, value zero."""
        zeros = torch.zeros(rows, dtype=torch.float64)
        memory = {"value": zeros}
        if self.potential in ("max", "sum"):
            memory["running"] = zeros - torch.inf if self.potential == "max" else zeros
        if callable(self.potential):
            memory["rewards"] = torch.zeros((rows, 0), dtype=torch.float64)
        if self._finds:
            memory |= {"scale": zeros, "applied": zeros}
        return memory

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """Log-potential of x0-hat, or what lag 1 has kept back."""
        kept = memory.get("pending")
        if not due(self.when, context):
            if kept is None:
                return None
            return Weighed(kept, {name: value for name, value in memory.items() if name != "pending"})
        found, variable = self._estimate(context)
        scale = self._scale(context, memory, found)
        gradient = None
        if variable is None or self.gradient is None:
            value = found.log_value(scale)
        else:
            with torch.enable_grad():
                value = found.log_value(scale)
            gradient = self.gradient.direction(context, value, variable, context.deviation)
            value = value.detach()
        value = self._possible(value, memory, context.layout[0])
        log_potential, memory = self._potential(value, found.reward, scale, memory)
        if isinstance(scale, Tensor):
            memory |= {"scale": scale, "applied": memory["applied"] + log_potential}
        if self.lag:
            memory |= {"pending": log_potential}
            log_potential = torch.zeros_like(value) if kept is None else kept
        return Weighed(log_potential, memory, found.reward, gradient)

    def target(self, final: FinalContext, memory: Memory) -> Target:
        """lambda r(x0)."""
        samples = final.images if self.on == "images" else final.sample
        reward = self._judge(samples, len(final.sample), final.layout[0], final.chunk_size)
        number = self.scale.known(1.0)
        if number is not None:
            everywhere = torch.full((final.layout[0],), number, dtype=torch.float64)
            return Target(scaled(number, reward), reward, everywhere)
        question = self._question(1.0, final.log_weights, final.layout, memory, reward)
        finder = self._finder()
        scale = finder.at_the_end(question)
        notes = finder.remarks(scale, final.layout[1] * final.layout[2])
        return Target(scaled(_per_row(scale, len(reward)), reward), reward, scale, notes)

    @property
    def _finds(self) -> bool:
        """The scale on the way is found from the particles."""
        return self.scale.known(0.0) is None

    def _finder(self) -> FoundScale:
        assert isinstance(self.scale, FoundScale)  # nothing else has an unknown scale; checked at the beginning
        return self.scale

    # --- judging -----------------------------------------------------------------------------------------------------

    def _estimate(self, context: StepContext) -> tuple[Estimate, Variable | None]:
        if self.gradient is None or context.deviation == 0.0:
            clean = context.clean if self.value is None or not callable(self.value) else context.sample
            return estimate(self.value, context, clean, self._judge_of(context), self.curvature), None
        with torch.enable_grad():
            variable, clean = self.gradient.inputs(context)
            return estimate(self.value, context, clean, self._judge_of(context), self.curvature), variable

    def _judge_of(self, context: StepContext) -> Callable[[Tensor], Tensor]:
        def judge(clean: Tensor) -> Tensor:
            samples: Any = clean
            if self.on == "images":
                samples = self._images(context, clean)
            return self._judge(samples, len(clean), context.layout[0], context.chunk_size)

        return judge

    def _images(self, context: StepContext, clean: Tensor) -> Any:
        if clean.requires_grad:
            return context.differentiable_images(clean)
        return context.images if clean is context.clean else context.decode(clean)

    def _judge(self, samples: Any, count: int, populations: int, chunk_size: int | None) -> Tensor:
        """Rewards (count,) float64; each population by its own reward if there are several."""
        if len(self.rewards) == 1:
            return self.rewards[0](samples, count, chunk_size)
        if len(self.rewards) != populations:
            raise ValueError(f"reward: got {len(self.rewards)} of them, expected one or one a prompt ({populations})")
        size = count // populations
        parts = [r(samples[i * size : (i + 1) * size], size, chunk_size) for i, r in enumerate(self.rewards)]
        return torch.cat(parts)

    # --- scale and potential -----------------------------------------------------------------------------------------

    def _scale(self, context: StepContext, memory: Memory, found: Estimate) -> Lambda:
        number = self.scale.known(context.fraction)
        if number is not None:
            return number

        def value(scale: Tensor) -> Tensor:
            found_value = found.log_value(_per_row(scale, len(found.reward))).detach()
            return self._possible(found_value, memory, context.layout[0])

        question = self._question(context.fraction, context.log_weights, context.layout, memory, found.reward, value)
        return _per_row(self._finder().on_the_way(question), len(found.reward))

    def _question(
        self,
        fraction: float,
        log_weights: Tensor,
        layout: tuple[int, int, int],
        memory: Memory,
        reward: Tensor,
        value: Callable[[Tensor], Tensor] | None = None,
    ) -> ScaleQuestion:
        populations = layout[0]
        carried = log_weights.repeat_interleave(layout[2], dim=1)
        base = carried - memory["applied"].reshape(populations, -1)

        def log_increment(scale: Tensor) -> Tensor:
            if value is None:
                gain = scaled(_per_row(scale, len(reward)), reward) - memory["applied"]
            else:
                gain = self._gain(value(scale), memory)
            return gain.reshape(populations, -1)

        previous = memory["scale"].reshape(populations, -1)[:, 0]
        return ScaleQuestion(fraction, previous, reward.reshape(populations, -1), base, carried, log_increment)

    def _gain(self, value: Tensor, memory: Memory) -> Tensor:
        if self.potential == "max":
            return torch.maximum(memory["running"], value)
        if self.potential == "sum":
            return memory["running"] + value
        return value - memory["value"]

    @staticmethod
    def _possible(value: Tensor, memory: Memory, populations: int) -> Tensor:
        """Values with a number everywhere. On the way an impossible x0-hat is no verdict on x0: it counts as the worst
        of its population, or, if all are impossible, as what the row carries. Only the end can kill."""
        if bool(value.isfinite().all()):
            return value
        grouped = value.reshape(populations, -1)
        worst = torch.where(grouped.isfinite(), grouped, torch.inf).amin(dim=1, keepdim=True).expand_as(grouped)
        filled = torch.where(worst.isfinite(), worst, memory["value"].reshape(populations, -1))
        return torch.where(grouped.isfinite(), grouped, filled).reshape(-1)

    def _potential(self, value: Tensor, reward: Tensor, scale: Lambda, memory: Memory) -> tuple[Tensor, Memory]:
        if callable(self.potential):
            assert isinstance(scale, float)  # refused above
            known = torch.where(reward.isfinite(), reward, value / scale if scale else 0.0)
            rewards = torch.cat([memory["rewards"], known[:, None]], dim=1)
            return self.potential(rewards, scale).to(torch.float64), {**memory, "value": value, "rewards": rewards}
        log_potential = self._gain(value, memory)
        if self.potential == "difference":
            return log_potential, {**memory, "value": value}
        return log_potential, {**memory, "value": value, "running": log_potential}


def reward_calls(reward: Reward | Sequence[Reward], chunk_size: int | None) -> tuple[RewardCalls, ...]:
    """Counted calls of one reward, or of one a population.

    Raises:
        ValueError: an empty sequence, or something that cannot be called.
    """
    rewards = list(reward) if isinstance(reward, Sequence) else [reward]
    if not rewards:
        raise ValueError("reward: got an empty sequence, expected a callable or one a prompt")
    for one in rewards:
        if not callable(one):
            raise ValueError(f"reward: got {type(one).__name__}, expected a callable of samples")
    return tuple(RewardCalls(one, chunk_size) for one in rewards)


def _per_row(scale: Tensor, rows: int) -> Tensor:
    """(P,) -> (rows,)."""
    return scale.repeat_interleave(rows // len(scale))
