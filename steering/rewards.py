"""Calling a reward: any callable from samples to one number a sample, with its failures contained."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..fkc.errors import NonFiniteWeightWarning

__all__ = ["Reward", "RewardCalls"]

Reward = Callable[[Any], Tensor | Sequence[float]]


class RewardCalls:
    """Evaluates one reward in chunks and counts.

    A sample whose reward is not a number counts as impossible (-inf: weight zero); one that raises stops the run, with the
    reward's name in the message.
    """

    def __init__(self, reward: Reward, chunk_size: int | None = None) -> None:
        self.reward, self.chunk_size = reward, chunk_size
        self.calls = 0
        self.n_invalid = 0

    @property
    def name(self) -> str:
        """Name of the callable."""
        return str(getattr(self.reward, "__name__", type(self.reward).__name__))

    def __call__(self, samples: Any, rows: int) -> Tensor:
        """Rewards (rows,) float64 on the CPU.

        Raises:
            ValueError: the reward did not return one number a sample.
        """
        size = self.chunk_size or rows
        parts = [self._evaluate(samples[i : i + size], len(range(i, min(i + size, rows)))) for i in range(0, rows, size)]
        values = torch.cat(parts)
        self.calls += rows
        bad = values.isnan() | (values == torch.inf)
        if bool(bad.any()):
            if self.n_invalid == 0:
                warnings.warn(
                    f"reward {self.name}: {int(bad.sum())} of {rows} values are not finite; those samples count as impossible",
                    NonFiniteWeightWarning,
                    stacklevel=2,
                )
            self.n_invalid += int(bad.sum())
            values = torch.where(bad, -torch.inf, values)
        return values

    def _evaluate(self, samples: Any, count: int) -> Tensor:
        values = torch.as_tensor(self.reward(samples)).detach().double().cpu().reshape(-1)
        if len(values) != count:
            raise ValueError(f"reward {self.name}: returned {len(values)} numbers for {count} samples, expected one each")
        return values
