"""Log-weights: the one place where weights are normalised, averaged and judged.

A log-weight is float64 and unnormalised. ``-inf`` is a dead particle (weight zero); ``+inf`` and NaN have no
meaning and are refused. Every function works along the last axis, so that a row is a population (or one set
of importance-sampling draws), and a row's result does not depend on the other rows, bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import WeightError

__all__ = [
    "as_log_weights",
    "effective_sample_size",
    "log_evidence_std_error",
    "log_mean_exp",
    "log_sum_exp",
    "normalize",
    "row_sum",
]


def as_log_weights(log_weights: Tensor) -> Tensor:
    """Checks log-weights and returns them as float64.

    Args:
        log_weights: any shape with at least one axis; ``-inf`` is allowed.

    Raises:
        WeightError: an entry is NaN or ``+inf``, or the last axis is empty.
    """
    if log_weights.ndim == 0 or log_weights.shape[-1] == 0:
        raise WeightError(
            f"log-weights need a last axis with at least one particle, got shape {tuple(log_weights.shape)}"
        )
    values = log_weights.to(torch.float64)
    top = values.amax(dim=-1)  # NaN if any entry is NaN: one pass finds both faults
    if bool((top.isnan() | (top == math.inf)).any()):
        n_nan, n_inf = int(values.isnan().sum()), int((values == math.inf).sum())
        raise WeightError(f"log-weights hold {n_nan} NaN and {n_inf} +inf entries; a weight must be finite or zero")
    return values


def row_sum(values: Tensor) -> Tensor:
    """Sum over the last axis whose bits do not depend on how many rows there are.

    ``Tensor.sum`` splits a long single row over threads but not a batch of rows, so a population would differ
    in its last bits alone and in a batch. A running sum has one order only.
    """
    return values.cumsum(dim=-1)[..., -1]


def log_sum_exp(log_weights: Tensor) -> Tensor:
    """``log sum_i exp(log w_i)`` over the last axis; ``-inf`` for a row of dead particles.

    Args:
        log_weights: ``(..., K)``.

    Returns:
        ``(...,)`` float64.
    """
    values = as_log_weights(log_weights)
    top = values.amax(dim=-1)
    shift = torch.where(top.isfinite(), top, 0.0)
    return shift + row_sum((values - shift[..., None]).exp()).log()


def log_mean_exp(log_weights: Tensor, dim: int = -1) -> Tensor:
    """``log (1/K) sum_i exp(log w_i)`` along ``dim``: the logarithm of an unbiased evidence estimate.

    Args:
        log_weights: K log-weights along ``dim``.
        dim: axis of the particles.

    Returns:
        float64, that axis removed; ``-inf`` where every particle is dead.
    """
    values = log_weights.movedim(dim, -1)
    return log_sum_exp(values) - math.log(values.shape[-1])


def normalize(log_weights: Tensor) -> Tensor:
    """Normalised weights ``W_i = w_i / sum_j w_j`` over the last axis.

    Args:
        log_weights: ``(..., K)``.

    Returns:
        ``(..., K)`` float64, each row summing to one.

    Raises:
        WeightError: a row has no particle alive, so there is nothing to normalise.
    """
    values = as_log_weights(log_weights)
    top = values.amax(dim=-1, keepdim=True)
    if bool((top == -math.inf).any()):
        rows = (top == -math.inf).reshape(-1).nonzero().reshape(-1).tolist()
        raise WeightError(f"row(s) {rows} hold only weights of zero and cannot be normalised")
    weights = (values - top).exp_()
    return weights.div_(row_sum(weights)[..., None])


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size ``(sum w)^2 / sum w^2``, between 1 and K; 0 for a row of dead particles.

    Args:
        log_weights: ``(..., K)``.

    Returns:
        ``(...,)`` float64, in particles.

    References:
        Kong, Liu and Wong (1994), JASA 89, 278, section 4.
    """
    values = as_log_weights(log_weights)
    top = values.amax(dim=-1, keepdim=True)
    weights = (values - torch.where(top.isfinite(), top, 0.0)).exp()
    # The maximum is one, so the sum of squares of a row that lives is at least one.
    return row_sum(weights).square() / row_sum(weights.square()).clamp_min(0.5)


def log_evidence_std_error(log_weights: Tensor) -> Tensor:
    """Standard error of :func:`log_mean_exp` for independent weights, by the delta method.

    ``se(log Z) = se(Z) / Z = sqrt((K / ESS - 1) / (K - 1))``. It holds for importance sampling and for the
    evidences of independent populations; for the particles of one SMC run use :mod:`feynkac.fkc.genealogy`.

    Args:
        log_weights: ``(..., K)``, K independent draws, K >= 2.

    Returns:
        ``(...,)`` float64; ``inf`` where every weight is zero.

    Raises:
        WeightError: fewer than two draws, from which no spread can be estimated.
    """
    k = log_weights.shape[-1]
    if k < 2:
        raise WeightError("a standard error needs at least two weights")
    ess = effective_sample_size(log_weights)
    return ((k / ess - 1).clamp_min(0) / (k - 1)).sqrt()
