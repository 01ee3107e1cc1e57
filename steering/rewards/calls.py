"""Calling a reward: any callable from samples to one number a sample, with its failures contained."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...fkc.errors import NonFiniteWeightWarning

__all__ = ["Reward", "RewardCalls", "RewardError", "WrongLength", "evaluate", "one_each", "reward_name"]

Reward = Callable[[Any], Tensor | Sequence[float]]


class WrongLength(ValueError):
    """A reward did not return one number a sample."""


class RewardError(RuntimeError):
    """A reward raised for every sample that it was given: a fault of the reward, not of a sample."""


def reward_name(reward: Reward) -> str:
    """What a reward is called in reports: its ``name``, its ``__name__``, or that of its class."""
    if isinstance(reward, functools.partial):
        return reward_name(reward.func)
    return str(getattr(reward, "name", None) or getattr(reward, "__name__", type(reward).__name__))


def evaluate(reward: Reward, samples: Any, count: int) -> Tensor:
    """Values (count,) float64 on the CPU of one plain call; what the reward raises passes through.

    Raises:
        WrongLength: the reward did not return one number a sample.
    """
    return one_each(reward(samples), reward_name(reward), count).detach()


def one_each(answer: Tensor | Sequence[float], name: str, count: int) -> Tensor:
    """What a reward answered as (count,) float64 on the CPU; gradients survive.

    Raises:
        WrongLength: it is not one number a sample.
    """
    values = torch.as_tensor(answer).double().cpu().reshape(-1)
    if len(values) != count:
        raise WrongLength(f"reward {name}: returned {len(values)} numbers for {count} samples, expected one each")
    return values


class RewardCalls:
    """Evaluates one reward in chunks, contains its failures and counts.

    A sample whose reward is NaN or +inf, and one for which the reward raises while it works for others, count as
    impossible (-inf: weight zero), with one warning a run. A chunk that raises is called again sample by sample to find
    the culprit.

    Args:
        reward: samples -> one number each.
        chunk_size: samples handed over at a time; all at once if None.

    Attributes:
        calls: samples handed to the reward, repeated ones included.
        n_invalid: samples that counted as impossible because the reward was NaN, +inf or raised.
        n_raised: those among them for which it raised.
    """

    def __init__(self, reward: Reward, chunk_size: int | None = None) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1 or None")
        self.reward, self.chunk_size = reward, chunk_size
        self.calls = 0
        self.n_invalid = 0
        self.n_raised = 0

    @property
    def name(self) -> str:
        """Name of the callable."""
        return reward_name(self.reward)

    def __call__(self, samples: Any, rows: int, chunk_size: int | None = None) -> Tensor:
        """Rewards (rows,) float64 on the CPU; below plus infinity.

        Gradients survive where the samples carry a graph.

        Args:
            samples: what the reward takes, ``rows`` of them.
            rows: their number.
            chunk_size: samples handed over at a time, where the reward has no chunk size of its own.

        Raises:
            WrongLength: the reward did not return one number a sample.
            RewardError: it raised for every one of the ``rows`` samples.
        """
        errors: list[Exception] = []
        size = self.chunk_size or chunk_size or rows
        bounds = [(start, min(start + size, rows)) for start in range(0, rows, size)]
        parts = [self._contained(samples[start:stop], stop - start, errors) for start, stop in bounds]
        values = parts[0] if len(parts) == 1 else torch.cat(parts)
        if errors and len(errors) == rows:
            raise RewardError(
                f"reward {self.name} raised for each of {rows} samples: {_described(errors[0])}"
            ) from errors[0]
        return self._checked(values, errors)

    def _contained(self, samples: Any, count: int, errors: list[Exception]) -> Tensor:
        self.calls += count
        try:
            values = one_each(self.reward(samples), self.name, count)
            return values if isinstance(samples, Tensor) and samples.requires_grad else values.detach()
        except WrongLength:
            raise
        except Exception as error:
            if count == 1:
                errors.append(error)
                return torch.full((1,), torch.nan, dtype=torch.float64)
        return torch.cat([self._contained(samples[i : i + 1], 1, errors) for i in range(count)])

    def _checked(self, values: Tensor, errors: list[Exception]) -> Tensor:
        if bool((values < torch.inf).all()):
            return values
        bad = values.isnan() | (values == torch.inf)
        count = int(bad.sum())
        if self.n_invalid == 0:
            raised = f", {len(errors)} of them because it raised ({_described(errors[0])})" if errors else ""
            warnings.warn(
                f"reward {self.name}: {count} of {len(values)} values are not finite{raised}; "
                "those samples count as impossible",
                NonFiniteWeightWarning,
                stacklevel=3,
            )
        self.n_invalid += count
        self.n_raised += len(errors)
        return torch.where(bad, -torch.inf, values)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
