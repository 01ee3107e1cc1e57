r"""Heavy-tailed weights: Pareto-smoothed importance sampling, its k-hat, and truncation.

k-hat estimates how many moments the weights have: the mean of the weights has a finite variance for k < 1/2,
is usable in practice up to about 0.7, and does not exist for k >= 1. Neither function hides the raw values:
it returns new ones.

References:
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), "Pareto smoothed importance sampling", JMLR 25(72),
    section 2 and appendix D. Zhang and Stephens (2009), Technometrics 51, 316. Ionides (2008), J. Comput.
    Graph. Statist. 17, 295.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import WeightError
from .weights import as_log_weights, log_mean_exp

__all__ = ["ParetoSmoothed", "Truncated", "fit_generalized_pareto", "pareto_smooth", "truncate"]

_SMALLEST_TAIL = 5  # fewer points than this cannot be fitted (Vehtari et al. 2024, section 2.4)


@dataclass(frozen=True, eq=False)
class ParetoSmoothed:
    """Smoothed weights and the diagnostic.

    Attributes:
        log_weights: ``(N,)`` float64, on the scale of the input; only the tail differs from it.
        khat: shape of the fitted tail; ``+inf`` if there are too few draws to fit, ``-inf`` if the tail is
            flat.
        tail_size: number of weights that were replaced.
    """

    log_weights: Tensor
    khat: float
    tail_size: int

    @property
    def reliable(self) -> bool:
        """k-hat at most 0.7."""
        return self.khat <= 0.7


@dataclass(frozen=True, eq=False)
class Truncated:
    """Weights cut at ``mean(w) sqrt(N)``.

    Attributes:
        log_weights: ``(N,)`` float64.
        log_bound: log of the bound.
        n_truncated: how many weights were above it.
    """

    log_weights: Tensor
    log_bound: float
    n_truncated: int


def truncate(log_weights: Tensor) -> Truncated:
    """``w -> min(w, mean(w) sqrt(N))`` (Ionides 2008, section 2): a bounded bias for a finite variance.

    Args:
        log_weights: ``(N,)`` raw log-weights.

    Raises:
        WeightError: not one-dimensional, NaN or ``+inf``, or all zero.
    """
    values = _one_row(log_weights)
    bound = float(log_mean_exp(values)) + 0.5 * math.log(values.numel())
    return Truncated(values.clamp_max(bound), bound, int((values > bound).sum()))


def pareto_smooth(log_weights: Tensor) -> ParetoSmoothed:
    """Replaces the largest weights by the expected order statistics of a generalised Pareto tail.

    The tail holds ``min(0.2 N, 3 sqrt(N))`` draws; smoothed weights never exceed the largest raw one.

    Args:
        log_weights: ``(N,)`` raw log-weights, ``-inf`` allowed.

    Raises:
        WeightError: not one-dimensional, NaN or ``+inf``, or all zero.
    """
    values = _one_row(log_weights)
    top = values.max()
    shifted = values - top
    n_tail = math.ceil(min(0.2 * values.numel(), 3 * math.sqrt(values.numel())))
    n_tail = min(n_tail, values.numel() - 1)
    # The cutoff is the largest weight outside the tail; below exp(-708) a weight is zero in double precision.
    log_cutoff = max(float(shifted.sort().values[-n_tail - 1]), math.log(torch.finfo(torch.float64).tiny))
    tail = (shifted > log_cutoff).nonzero().reshape(-1)
    if log_cutoff >= 0.0:
        return ParetoSmoothed(values.clone(), -math.inf, 0)
    if tail.numel() < _SMALLEST_TAIL:
        return ParetoSmoothed(values.clone(), math.inf, 0)
    order = tail[shifted[tail].argsort()]
    cutoff = math.exp(log_cutoff)
    k, sigma = fit_generalized_pareto(shifted[order].exp() - cutoff)
    if not math.isfinite(k):
        return ParetoSmoothed(values.clone(), math.inf, 0)
    smooth = (_quantiles(order.numel(), k, sigma, values.device) + cutoff).log().clamp_max(0.0)
    return ParetoSmoothed(values.index_copy(0, order, smooth + top), k, order.numel())


def fit_generalized_pareto(excesses: Tensor) -> tuple[float, float]:
    """Shape k and scale sigma of a generalised Pareto law, by the posterior mean of Zhang and Stephens
    (2009).

    k is pulled towards 1/2 with the weight of ten observations (Vehtari et al. 2024, appendix C).

    Args:
        excesses: ``(M,)`` positive, ascending.

    Returns:
        ``(k, sigma)``; positive k is a heavy tail.
    """
    y = excesses.to(torch.float64)
    n = y.numel()
    n_grid = 30 + math.isqrt(n)
    index = torch.arange(1, n_grid + 1, dtype=torch.float64, device=y.device)
    quartile = y[int(n / 4 + 0.5) - 1]
    # Grid of theta = -k / sigma and profile log-likelihood, both as there.
    theta = (1 - (n_grid / (index - 0.5)).sqrt()) / (3 * quartile) + 1 / y[-1]
    shape = torch.log1p(-theta[:, None] * y).mean(dim=1)
    log_likelihood = n * ((-(theta / shape)).log() - shape - 1)
    weight = torch.softmax(log_likelihood, dim=0)
    weight = torch.where(weight >= 10 * torch.finfo(torch.float64).eps, weight, 0.0)
    mean_theta = float((weight / weight.sum() * theta).sum())
    k = float(torch.log1p(-mean_theta * y).mean())
    sigma = -k / mean_theta
    return (n * k + 10 * 0.5) / (n + 10), sigma


def _quantiles(n: int, k: float, sigma: float, device: torch.device) -> Tensor:
    """Generalised Pareto quantiles at (i - 1/2) / n, i = 1..n."""
    p = (torch.arange(n, dtype=torch.float64, device=device) + 0.5) / n
    if abs(k) < torch.finfo(torch.float64).eps:
        return -sigma * torch.log1p(-p)
    return sigma * torch.expm1(-k * torch.log1p(-p)) / k


def _one_row(log_weights: Tensor) -> Tensor:
    if log_weights.ndim != 1:
        raise WeightError(f"log-weights must be one-dimensional here, got shape {tuple(log_weights.shape)}")
    values = as_log_weights(log_weights)
    if bool(values.max() == -math.inf):
        raise WeightError("every weight is zero")
    return values
