"""Exact laws of choosing among a finite number of draws: no Monte-Carlo truth needed.

Best-of-N picks the best of N independent draws; greedy soft-value guidance picks the best of M children at every
step; soft guidance picks a child in proportion to its value. None of them samples the tilted law at finite N or M:
these are the laws they do sample.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .enumerated import EnumeratedMaskedModel

__all__ = ["best_of_n_law", "entropy", "greedy_value_law", "kl_divergence", "soft_value_pair_law", "total_variation"]

_TIE = 1e-9  # values this close are one level


def best_of_n_law(law: Tensor, value: Tensor, n: int) -> Tensor:
    """Law of the best of ``n`` independent draws, ties shared by base mass: P(best value <= u) = F(u)^n.

    Args:
        law: (..., S) probabilities.
        value: (S,) or (..., S).
        n: number of draws.

    Returns:
        (..., S) probabilities.

    Raises:
        ValueError: n below one.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, expected at least 1")
    value = value.expand_as(law)
    at_most = _mass(law, value, lambda other, own: other <= own + _TIE)
    below = _mass(law, value, lambda other, own: other < own - _TIE)
    level = at_most - below
    chosen = at_most**n - below**n
    return torch.where(law > 0, law * chosen / torch.where(level > 0, level, 1.0), 0.0)


def _mass(law: Tensor, value: Tensor, relation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return (relation(value[..., None, :], value[..., :, None]) * law[..., None, :]).sum(dim=-1)


def greedy_value_law(model: EnumeratedMaskedModel, reward: Callable[[Tensor], Tensor], candidates: int) -> Tensor:
    """Law (V^L,) of soft-value guidance at temperature 0: at each step the best of ``candidates`` children (SVDD,
    arg-max).

    On the way a child's value is the reward of its likeliest clean sequence, at the last step its own reward; the
    child drawn first wins a tie.
    """
    law = model.start
    on_the_way = reward(model.filled).double()  # equals the reward itself on clean states
    for matrix in model.transitions:
        law = law @ best_of_n_law(matrix, on_the_way, candidates)
    return law[model.clean_states]


def soft_value_pair_law(model: EnumeratedMaskedModel, reward: Callable[[Tensor], Tensor], scale: float) -> Tensor:
    """Law (V^L,) of soft-value guidance with M = 2 children, exact values and no weights: biased at any finite M.

    A child x' is kept with probability h(x')/(h(x') + h(x'')), x'' its sibling.
    """
    law = model.start
    for matrix, h in zip(model.transitions, model.values(reward, scale)[1:], strict=True):
        total = h[:, None] + h
        share = torch.where(total > 0, 2.0 * h[:, None] / torch.where(total > 0, total, 1.0), 0.0)
        law = law @ (matrix * (matrix @ share.T))
    return law[model.clean_states]


def entropy(law: Tensor) -> float:
    """Of probabilities, in nats."""
    return float(-torch.special.xlogy(law, law).sum())


def kl_divergence(law: Tensor, base: Tensor) -> float:
    """KL(law || base) in nats."""
    return float((torch.special.xlogy(law, law) - torch.special.xlogy(law, base)).sum())


def total_variation(law: Tensor, other: Tensor) -> float:
    """Half the sum of absolute differences."""
    return float(0.5 * (law - other).abs().sum())
