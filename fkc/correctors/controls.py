r"""Control fields: drift that is added along the score, a line and the reward's gradient, and counted in the weight.

Over a move of noise variance delta the field is

.. math:: c = \tfrac\delta2\bigl(\theta_s (S - S_{guide}) + \theta_l (y - m)/P + \theta_r R\bigr),

S the combined score, N(m, P) the target's Gaussian reference, R the gradient of beta r. Its coefficients are

    score          theta_s = -(A - 1)/A, A the sum of the exponents: the velocity of the experts themselves, and
                   constant weights for any Gaussian
    reward         theta_r = 1: the reward's whole gradient
    least_squares  the three that make the variance of the coming increment smallest in each population (Ren et al.
                   2026, DriftLite, variance-controlling guidance, with a third field that needs no divergence)

The rate gains the divergence of c and c . (S + R); so score and least_squares need the divergence of the experts'
scores, and reward and least_squares the reward's Laplacian. Kernel weights need neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .guides import Guide
from .levels import Ends, Level, inner, spread

__all__ = ["Coefficients", "Control", "control_field", "control_rate", "fixed_coefficients", "least_squares"]

Control = Literal["none", "score", "reward", "least_squares"]

_RIDGE = 1e-3
"""Of the normal equations, relative to their diagonal."""


@dataclass(frozen=True, eq=False)
class Coefficients:
    """theta_s, theta_l and theta_r, () or (P, 1) float64 each; None: the field is not used."""

    score: Tensor | None = None
    linear: Tensor | None = None
    reward: Tensor | None = None


def fixed_coefficients(control: Control, level: Level) -> Coefficients | None:
    """Those that do not look at the particles."""
    if control == "score":
        total = sum(level.powers)
        return Coefficients(score=torch.tensor(-(total - 1.0) / total, dtype=torch.float64))
    if control == "reward":
        return Coefficients(reward=torch.ones((), dtype=torch.float64))
    return None


def control_field(control: Coefficients, ends: Ends, guide: Guide, fall: float) -> Tensor:
    """c (P, K, *event)."""
    total = torch.zeros_like(ends.y)
    for name, theta in _used(control):
        total = total + spread(0.5 * fall * theta, ends.y).to(ends.y) * _field(name, ends, guide)
    return total


def control_rate(control: Coefficients, ends: Ends, guide: Guide, fall: float) -> Tensor:
    """What c adds to the rate times the move (P, K) float64."""
    total = torch.zeros(ends.y.shape[:2], dtype=torch.float64)
    for name, theta in _used(control):
        total = total + 0.5 * fall * theta * _unit_rate(name, ends, guide)
    return total


def least_squares(ends: Ends, guide: Guide, rate: Tensor, fall: float, weights: Tensor) -> Coefficients:
    """The coefficients that make the weighted variance of rate + c's rate smallest in each population.

    Args:
        ends: the beginning of the move.
        guide: there.
        rate: (P, K) of the move without control.
        fall: delta.
        weights: (P, K) normalised.
    """
    names = ["score", "linear", *(["reward"] if ends.reward is not None and ends.level.reward_scale else [])]
    w = torch.where(weights.isfinite(), weights, 0.0)
    columns = torch.stack([0.5 * fall * _unit_rate(name, ends, guide) for name in names], dim=2)
    centred = columns - (w[:, :, None] * columns).sum(dim=1, keepdim=True)
    target = rate - (w * rate).sum(dim=1, keepdim=True)
    gram = torch.einsum("pk,pki,pkj->pij", w, centred, centred)
    moment = torch.einsum("pk,pki,pk->pi", w, centred, target)
    size = gram.diagonal(dim1=1, dim2=2).clamp(min=1e-300).sqrt()
    scaled = gram / (size[:, :, None] * size[:, None, :]) + _RIDGE * torch.eye(len(names), dtype=gram.dtype)
    theta = -torch.linalg.solve(scaled, moment / size) / size
    theta = torch.where(theta.isfinite(), theta, 0.0)
    return Coefficients(**{name: theta[:, i : i + 1] for i, name in enumerate(names)})


def _used(control: Coefficients) -> list[tuple[str, Tensor]]:
    found = [("score", control.score), ("linear", control.linear), ("reward", control.reward)]
    return [(name, theta) for name, theta in found if theta is not None]


def _field(name: str, ends: Ends, guide: Guide) -> Tensor:
    level = ends.level
    if name == "score":
        return ends.combined(level.powers) - guide.combined(level.powers, ends.y)
    if name == "linear":
        return (ends.y - level.reference.mean) / level.reference.variance
    assert ends.reward_gradient is not None  # checked by the model
    return level.reward_scale * ends.reward_gradient


def _unit_rate(name: str, ends: Ends, guide: Guide) -> Tensor:
    level, dimension = ends.level, ends.y[0, 0].numel()
    if name == "score":
        assert ends.divergences is not None
        powers = torch.tensor(level.powers, dtype=torch.float64)
        divergence = ends.divergences @ powers - dimension * guide.trace(level.powers)
    elif name == "linear":
        divergence = dimension / level.reference.variance
    else:
        assert ends.reward_laplacian is not None
        divergence = level.reward_scale * ends.reward_laplacian
    return divergence + inner(_field(name, ends, guide), ends.score())
