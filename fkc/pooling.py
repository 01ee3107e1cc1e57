"""Several populations of one run as one sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .smc import SMCResult
from .weights import normalize

__all__ = ["joint_weights", "merged", "pooled_evidence", "population_shares"]


def merged(result: SMCResult, function: Callable[[Tensor], Tensor], *, alike: bool = False) -> tuple[Tensor, Tensor]:
    """Mean of a function under the target, from all populations, and its standard error.

    Populations count by their evidence, or ``alike``; the error comes from their spread, of a single one from its
    family tree.
    """
    means = result.mean(function)
    if len(means) == 1:
        return means[0], result.std_error(function)[0]
    shares = population_shares(result, alike=alike).reshape(-1, *(1,) * (means.ndim - 1))
    mean = (shares * means).sum(dim=0)
    count = len(means)
    return mean, ((shares * (means - mean)).square().sum(dim=0) * count / (count - 1)).sqrt()


def population_shares(result: SMCResult, *, alike: bool) -> Tensor:
    """(P,) float64, how much each population counts; NaN if all have collapsed."""
    if alike:
        return torch.full_like(result.log_evidence, 1.0 / len(result.log_evidence))
    if bool((result.log_evidence == -torch.inf).all()):
        return torch.full_like(result.log_evidence, torch.nan)
    return normalize(result.log_evidence)


def pooled_evidence(result: SMCResult) -> tuple[float, float]:
    """Log of the mean evidence, and its standard error: from the populations' spread, or a single one's family tree."""
    if len(result.log_evidence) == 1:
        return float(result.log_evidence[0]), float(result.log_evidence_std_error[0])
    found = result.evidence()
    return found.log_evidence, found.std_error


def joint_weights(result: SMCResult, *, alike: bool) -> Tensor:
    """(P K,) normalised weights of all samples together."""
    return (population_shares(result, alike=alike)[:, None] * result.population.weights).reshape(-1)
