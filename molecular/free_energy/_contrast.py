"""The log-ratio of the weights of two sets, and its first-order error by groups."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["contrast", "contrast_influence", "group_std_error", "log_ratio"]


def log_ratio(q: float, p: float) -> float:
    """ln(q / p); +inf when p is zero, -inf when only q is."""
    if p == 0:
        return math.inf
    return math.log(q / p) if q > 0 else -math.inf


def contrast_influence(weights: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """First-order change (n,) of ln[sum w outside / sum w inside] with the multiplicity of each sample."""
    p, q = weights[inside].sum(), weights[outside].sum()
    return weights * (outside.double() / q - inside.double() / p)


def group_std_error(influence: Tensor, groups: Tensor) -> float:
    """Error of a sum over independent groups, sqrt(G/(G-1) sum_g (sum in g)^2); influence (n,) sums to zero."""
    count = int(groups.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, groups, influence)
    return math.sqrt(count / (count - 1) * float(sums.square().sum())) if count > 1 else math.nan


def contrast(weights: Tensor, inside: Tensor, outside: Tensor, groups: Tensor) -> tuple[float, float]:
    """F(inside) - F(outside) in kT and its error by groups; an infinite value has a NaN error.

    Args:
        weights: (n,) of any scale, float64.
        inside, outside: (n,) bool, disjoint.
        groups: (n,) index of independent groups.
    """
    p, q = float(weights[inside].sum()), float(weights[outside].sum())
    if not (p > 0 and q > 0):
        return log_ratio(q, p), math.nan
    return log_ratio(q, p), group_std_error(contrast_influence(weights, inside, outside), groups)
