"""Log-weights: the one place where weights are normalised, averaged and judged.

A log-weight is float64 and unnormalised. ``-inf`` is a dead particle (weight zero); ``+inf`` and NaN have no
meaning and are refused. Every function works along the last axis, so that a row is a population (or one set
of importance-sampling draws), and a row's result does not depend on the other rows, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import WeightError

__all__ = [
    "as_log_weights",
    "effective_sample_size",
    "Summary",
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
    return _checked(log_weights)[0]


def _checked(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Log-weights as float64, and the largest of each row (...,)."""
    if log_weights.ndim == 0 or log_weights.shape[-1] == 0:
        raise WeightError(
            f"log-weights need a last axis with at least one particle, got shape {tuple(log_weights.shape)}"
        )
    values = log_weights.to(torch.float64)
    top = values.amax(dim=-1)  # NaN if any entry is NaN: one pass finds both faults
    if not bool((top < math.inf).all()):
        n_nan, n_inf = int(values.isnan().sum()), int((values == math.inf).sum())
        raise WeightError(f"log-weights hold {n_nan} NaN and {n_inf} +inf entries; a weight must be finite or zero")
    return values, top


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
    summary = Summary.of(log_weights)
    return summary.shift + summary.total.log()


def log_mean_exp(log_weights: Tensor, dim: int = -1) -> Tensor:
    """``log (1/K) sum_i exp(log w_i)`` along ``dim``: the logarithm of an unbiased evidence estimate.

    Args:
        log_weights: K log-weights along ``dim``.
        dim: axis of the particles.

    Returns:
        float64, that axis removed; ``-inf`` where every particle is dead.
    """
    return Summary.of(log_weights.movedim(dim, -1)).log_mean


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
    return Summary.of(log_weights).ess


@dataclass(frozen=True, eq=False)
class Summary:
    """What one pass over log-weights ``(..., K)`` gives: everything else is a few numbers a row.

    Attributes:
        shift: ``(...,)`` the largest log-weight of a row; a finite number where all are dead.
        relative: ``(..., K)`` weights over the largest one.
        total: ``(...,)`` their sum, at least 1 for a row that lives, 0 for a dead one.
    """

    shift: Tensor
    relative: Tensor
    total: Tensor

    @classmethod
    def of(cls, log_weights: Tensor) -> Summary:
        """One pass.

        Raises:
            WeightError: see :func:`as_log_weights`.
        """
        values, top = _checked(log_weights)
        shift = top.clamp_min(_LOWEST)
        relative = (values - shift[..., None]).exp_()
        return cls(shift, relative, row_sum(relative))

    @property
    def ess(self) -> Tensor:
        """Kish's effective sample size ``(...,)``; 0 for a dead row."""
        # the largest weight is one, so the sum of squares of a row that lives is at least one
        return self.total.square() / row_sum(self.relative.square()).clamp_min(0.5)

    @property
    def log_mean(self) -> Tensor:
        """Log of the mean weight ``(...,)``; ``-inf`` for a dead row."""
        return self.shift + (self.total / self.relative.shape[-1]).log()

    @property
    def weights(self) -> Tensor:
        """Normalised weights ``(..., K)``; zeros for a dead row."""
        return self.relative / self.total.clamp_min(0.5)[..., None]


_LOWEST = torch.finfo(torch.float64).min


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
