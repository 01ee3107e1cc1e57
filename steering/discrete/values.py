r"""Intermediate values of masked states: what a control asks of a sequence that is not finished.

With logits for the masked positions the clean sequence is either the likeliest one,

.. math:: \lambda \hat v = \lambda\, r(\arg\max),

or n independent draws from the model's per-position laws, with the scale inside the average:

.. math:: \lambda \hat v = \log \frac1n \sum_{i=1}^n \exp(\lambda r(x_0^{(i)})).

Both only choose the way; the target is the same. The draws are made once a step and the realised value travels with
its particle, which is what keeps random values exact (Singhal et al. 2025, "A general framework for inference-time
scaling and steering of diffusion models").
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fkc.streams import generator_for, split_seed
from ..context import StepContext
from ..rewards import Reward
from .scheduler import MaskedDiffusionScheduler
from .tokens import clean_tokens

__all__ = ["TokenValue"]


@dataclass(frozen=True, eq=False)
class TokenValue:
    """``value`` of FKSteering, or ``intermediate`` of SoftValueGuidance, for masked diffusion.

    Attributes:
        scheduler: of the pipeline.
        reward: clean tokens (n, L) int64 -> n numbers.
        scale: lambda; for SoftValueGuidance 1/temperature, with ``temperature`` given too.
        draws: n; 0 takes the likeliest sequence.
        seed: of the draws; each population and step has a stream of its own.
        temperature: factor on the result: 1 for FKSteering, which wants lambda times a value; SoftValueGuidance
            divides by its temperature, so it wants the value itself.
    """

    scheduler: MaskedDiffusionScheduler
    reward: Reward
    scale: float
    draws: int = 0
    seed: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale: got {self.scale}, expected a finite number")
        if self.draws < 0:
            raise ValueError(f"draws: got {self.draws}, expected 0 (the likeliest sequence) or more")
        if self.draws and self.seed is None:
            raise ValueError("seed: is needed with draws > 0")

    def __call__(self, context: StepContext) -> Tensor:
        """Log-values (rows,) float64 of the states at the beginning of a step.

        Raises:
            ValueError: the reward did not return one number a sequence.
        """
        if self.draws == 0:
            filled = clean_tokens(context.output, context.sample, self.scheduler.mask_token_id)
            return self.temperature * self.scale * self._reward(filled)
        copies = self.scheduler.clean_samples(context.output, context.sample, self.draws, self._generators(context))
        rewards = self._reward(copies.flatten(0, 1)).reshape(copies.shape[:2])
        return self.temperature * ((self.scale * rewards).logsumexp(dim=1) - math.log(self.draws))

    def _generators(self, context: StepContext) -> list[torch.Generator]:
        """One a row, shared by the rows of a population: a prompt's draws are the same alone or in a batch."""
        populations = context.layout[0]
        rows = len(context.sample) // populations
        step_seed = split_seed(self.seed or 0, context.index)
        return [g for p in range(populations) for g in [generator_for(step_seed, p, 1)] * rows]

    def _reward(self, tokens: Tensor) -> Tensor:
        values = torch.as_tensor(self.reward(tokens)).detach().double().cpu().reshape(-1)
        if len(values) != len(tokens):
            raise ValueError(f"reward: returned {len(values)} numbers for {len(tokens)} sequences, expected one each")
        return values
