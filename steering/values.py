r"""Intermediate values: what lambda r is expected to become, seen from x_t.

    denoised   lambda r(x0-hat)
    tempered   lambda r(x0-hat) / (1 + lambda kappa w_t)
    draws      log (1/n) sum_i exp(lambda r(x0_i)),  x0_i from the law of x0 given x_t
    callable   lambda v(context)

w_t is the posterior variance of x0. For Gaussian data and a reward of curvature kappa the exact value,
:math:`\log E[\exp(\lambda r(x_0))|x_t]`, is the tempered one up to a constant; the plain one over-sharpens early steps.
All of them only choose the way: the realised value travels with its particle and is taken back in the end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .context import StepContext

__all__ = ["Draws", "Estimate", "Judge", "Value", "estimate"]


@dataclass(frozen=True)
class Draws:
    """``n`` clean draws a row, lambda inside the average.

    Attributes:
        n: how many.
        data_variance: of the data, for continuous states (tokens are drawn from the model's own law).
    """

    n: int
    data_variance: float = 1.0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n: got {self.n}, expected at least 1")
        if not self.data_variance > 0.0:
            raise ValueError(f"data_variance: got {self.data_variance}, expected a positive number")


Value = Literal["denoised", "tempered"] | Draws | Callable[[StepContext], Tensor]
Lambda = float | Tensor
Judge = Callable[[Tensor], Tensor]
"""Clean states (n, ...) -> rewards (n,) float64."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """``reward`` (rows,) as reported, and ``log_value``: lambda, a number or (rows,), -> log-value (rows,) float64."""

    reward: Tensor
    log_value: Callable[[Lambda], Tensor]


def estimate(value: Value, context: StepContext, clean: Tensor, judge: Judge, curvature: float) -> Estimate:
    """The value of every row.

    Args:
        value: one of the above.
        context: of the step.
        clean: x0-hat (rows, ...), with a graph if the gradient is wanted.
        judge: the reward.
        curvature: kappa of ``"tempered"``.

    Raises:
        ValueError: a callable that did not return one number a row.
    """
    if isinstance(value, Draws):
        return _averaged(value, context, clean, judge)
    if callable(value):
        found = torch.as_tensor(value(context)).double().cpu().reshape(-1)
        if len(found) != len(context.sample):
            raise ValueError(f"value: returned {len(found)} numbers for {len(context.sample)} rows, expected one each")
        return Estimate(found.detach(), lambda scale: scaled(scale, found))
    reward = judge(clean)
    if value == "denoised":
        return Estimate(reward.detach(), lambda scale: scaled(scale, reward))
    width = curvature * context.posterior_variance()
    return Estimate(reward.detach(), lambda scale: scaled(scale / (1.0 + scale * width), reward))


def scaled(scale: Lambda, reward: Tensor) -> Tensor:
    """scale reward, where 0 times minus infinity is minus infinity: an impossible sample stays impossible."""
    if isinstance(scale, float) and scale > 0.0:
        return scale * reward
    return torch.where(reward > -torch.inf, scale * reward.clamp_min(torch.finfo(reward.dtype).min), -torch.inf)


def _averaged(value: Draws, context: StepContext, clean: Tensor, judge: Judge) -> Estimate:
    drawn = context.draws(value.n, value.data_variance)
    if clean.requires_grad:
        drawn = drawn + (clean - clean.detach())[:, None]
    rewards = judge(drawn.flatten(0, 1)).reshape(len(drawn), value.n)
    mean = rewards.detach().mean(dim=1)

    def log_value(scale: Lambda) -> Tensor:
        each = scale if isinstance(scale, float) else scale[:, None]
        return scaled(each, rewards).logsumexp(dim=1) - math.log(value.n)

    return Estimate(mean, log_value)
