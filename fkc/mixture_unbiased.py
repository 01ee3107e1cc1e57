"""Integrals against an unnormalised target without any bias, from an adapted mixture with control variates.

Pooled weights see the shares of later rounds, which depend on earlier draws, and coefficients fitted to the draws that
they correct depend on them: a bias of order 1 / N each. Here a round is weighted by its own mixture, decided before it,
and each half of a round takes its coefficients from the other half and from earlier rounds. A round's error has then
mean zero given the past; the errors are martingale differences, and their variances add.

References:
    Marin, Pudlo and Sedki (2019), Bernoulli 25, 1977 (what pooled weights of adapted rounds do to consistency).
    Avramidis and Wilson (1993), Oper. Res. Lett. 14, 187 (coefficients from other draws: splitting).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .control_variates import least_squares, regress_controls
from .mixture_sample import MixtureSample, with_one

__all__ = ["FOLDS", "UnbiasedIntegrals", "unbiased_integrals"]

FOLDS = 2  # in every round each component has a multiple of it


@dataclass(frozen=True, eq=False)
class UnbiasedIntegrals:
    """Integrals of functions against the unnormalised target, whose expectation is exact at any number of draws.

    The price of no bias is that the value for a positive function can be negative.

    Attributes:
        names: m names.
        values: (m,), times ``exp(log_scale)``.
        covariance: (m, m) of ``values``.
        evidence: integral of the target, times ``exp(log_scale)``.
        evidence_std_error: its standard error, same factor.
        log_scale: log of the common factor.
    """

    names: tuple[str, ...]
    values: Tensor
    covariance: Tensor
    evidence: float
    evidence_std_error: float
    log_scale: float


def unbiased_integrals(
    sample: MixtureSample, names: tuple[str, ...], values: Tensor, mixtures: Tensor, use_controls: bool
) -> UnbiasedIntegrals:
    """The mean of the rounds' own estimates.

    Args:
        sample: of R rounds of equal size, the draws of a component following one another in each.
        names: m names.
        values: (N, m) functions.
        mixtures: (R, J) shares of the components in each round.
        use_controls: take the components' densities out.
    """
    rounds = [sample.select(sample.round_index == r) for r in range(len(mixtures))]
    shift = max(float(part.log_weights.max()) for part in rounds)
    found = []
    for r, part in enumerate(rounds):
        mine = sample.round_index == r
        terms = with_one(values[mine]) * (part.log_weights - shift).exp()[:, None]
        if use_controls:
            terms = terms - _corrections(sample, values, mixtures[r].log(), r, shift)
        found.append(regress_controls(terms, part.controls[:, :0], strata=part.component))
    share = 1 / len(rounds)
    means = share * torch.stack([fit.means for fit in found]).sum(dim=0)
    covariance = share**2 * torch.stack([fit.covariance for fit in found]).sum(dim=0)
    error = math.sqrt(float(covariance[-1, -1]))
    return UnbiasedIntegrals(names, means[:-1], covariance[:-1, :-1], float(means[-1]), error, shift)


def _corrections(sample: MixtureSample, values: Tensor, log_shares: Tensor, index: int, shift: float) -> Tensor:
    """What controls take out of the terms (n, m + 1) of one round, each draw with coefficients of others.

    A component's draws follow one another in a multiple of the folds, so that every fold has the round's own shares:
    the expectation of the sum of its controls is zero.
    """
    mine = sample.round_index == index
    controls = sample.select(mine).controls
    fold = torch.full_like(sample.round_index, -1)
    fold[mine] = torch.arange(len(controls)) % FOLDS
    found = values.new_empty(len(controls), values.shape[1] + 1)
    for k in range(FOLDS):
        rows = (sample.round_index <= index) & (fold != k)
        others = sample.select(rows)
        # least squares under this round's mixture, from draws of another: rows count by the ratio of the two densities
        root = ((others.log_densities + log_shares).logsumexp(dim=1) + others.log_mixture)[:, None] / 2
        integrands = with_one(values[rows]) * (others.log_target[:, None] - shift - root).exp()
        fit = least_squares((others.log_densities - root).exp(), integrands)
        own = fold[mine] == k
        found[own] = controls[own] @ fit.coefficients
    return found
