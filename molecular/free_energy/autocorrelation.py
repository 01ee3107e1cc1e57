r"""Time correlation of walkers and what it leaves of their samples.

The autocovariance is averaged over walkers around their common mean and summed as long as pairs of lags stay positive
(Geyer, Stat. Sci. 7, 473 (1992), section 3.3: the initial positive sequence).  Around the *common* mean, walkers that
each sit in a basin of their own look correlated for as long as they were watched, which is what they are.  The rule
needs no guess of the slowest time, and follows a slow, weak component under a fast one (weights on top of hops between
basins), where windows that grow with the correlation time found so far stop too early.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fkc.weights import effective_sample_size
from ._samples import normalized_weights

__all__ = [
    "Autocorrelation",
    "ShortSeriesWarning",
    "WeightedMean",
    "influence",
    "integrated_autocorrelation",
    "weighted_mean",
]

TIMES_PER_SERIES = 50
"""A walker watched for fewer correlation times than this has shown too little of its own memory."""


class ShortSeriesWarning(UserWarning):
    """A series covers so few correlation times that its correlation time, and errors from it, are guesses."""


@dataclass(frozen=True, kw_only=True)
class Autocorrelation:
    r"""Integrated autocorrelation time :math:`\tau = 1/2 + \sum_{t \ge 1} \rho(t)` of a stationary series.

    Attributes:
        tau: in steps of the series; 1/2, the smallest value, for independent samples.
        tau_std_error: its standard error.
        memory: :math:`\sum_t t \rho(t) / \tau`, the time scale of the slow part: tau for one exponential, longer where
            fast noise lies over slow motion. Blocks of b steps miss a share memory / b of the variance.
        window: last lag of the sum.
        mean: of the series.
        std_error: of the mean, correlation included.
        steps: length T of a walker.
        walkers: number B of walkers.
    """

    tau: float
    tau_std_error: float
    memory: float
    window: int
    mean: float
    std_error: float
    steps: int
    walkers: int

    @property
    def inefficiency(self) -> float:
        """Statistical inefficiency g = 2 tau: how many samples are worth one independent sample."""
        return 2 * self.tau

    @property
    def inefficiency_std_error(self) -> float:
        """Standard error of g."""
        return 2 * self.tau_std_error

    @property
    def independent(self) -> float:
        """Independent samples that would give the mean equally well, T B / g."""
        return self.steps * self.walkers / self.inefficiency

    @property
    def short(self) -> bool:
        """Whether a walker covers fewer than 50 correlation times."""
        return self.tau > 0.5 and self.steps < TIMES_PER_SERIES * self.tau


@dataclass(frozen=True, kw_only=True)
class WeightedMean:
    """A self-normalised mean with the error that weights and time correlation leave together.

    Attributes:
        value: sum of w f over sum of w.
        std_error: of ``value``.
        effective: independent, unweighted samples of the target with the same error, var(f) / std_error^2.
        ess: Kish's effective sample size of the weights alone, in frames.
        autocorrelation: of the influence w (f - value).
    """

    value: float
    std_error: float
    effective: float
    ess: float
    autocorrelation: Autocorrelation


def integrated_autocorrelation(series: Tensor, *, warn: bool = True) -> Autocorrelation:
    r"""Correlation time of walkers that share one stationary law.

    The bias of subtracting the estimated mean is removed to order 1/(T B), and the error of tau is
    :math:`\tau \sqrt{4 (W + 1/2 - \tau) / (T B)}` with the window W (Wolff, Comput. Phys. Commun. 156, 143 (2004),
    equations 49 and 42).  tau is a little too large rather than too small: the sum ends where noise turns a pair
    negative, and samples that alternate count as independent.

    Args:
        series: (T,) or (T, B) finite values, a row a time.
        warn: whether a short series is warned of.

    Raises:
        ValueError: for another shape, fewer than four times, values that are not finite, or a constant series.

    Warns:
        ShortSeriesWarning: when a walker covers fewer than 50 correlation times.

    Example:
        >>> noise = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
        >>> round(integrated_autocorrelation(noise).inefficiency, 1)
        1.0
    """
    values = _as_series(series)
    steps, walkers = values.shape
    mean = values.mean()
    covariance = _autocovariance(values - mean)
    variance = float(covariance[0])
    if not variance > 0:
        raise ValueError("a constant series has no correlation time")
    total = steps * walkers
    window, tau, moment = _initial_positive_sum(covariance / variance)
    # sum of the covariance over lags -W..W, corrected for the mean that was estimated from the same data
    spectral = 2 * max(tau, 0.5) * variance * (1 + (2 * window + 1) / total)
    tau = max(0.5, spectral / (2 * (variance + spectral / total)))
    result = Autocorrelation(
        tau=tau,
        tau_std_error=tau * math.sqrt(4 * max(window + 0.5 - tau, 0.5) / total),
        memory=min(max(moment / tau, 0.0), float(steps)),
        window=window,
        mean=float(mean),
        std_error=math.sqrt(spectral / total),
        steps=steps,
        walkers=walkers,
    )
    if warn and result.short:
        warnings.warn(
            f"{steps} steps are {steps / tau:.0f} correlation times of {tau:.3g} steps, fewer than "
            f"{TIMES_PER_SERIES}: the correlation time and errors from it may be too small",
            ShortSeriesWarning,
            stacklevel=2,
        )
    return result


def influence(values: Tensor, log_weights: Tensor) -> Tensor:
    r"""What each sample adds to a self-normalised mean: :math:`n \bar w_i (f_i - \bar f)`, of mean zero.

    The error of a weighted mean is, to first order, that of the plain mean of this series.

    Args:
        values: f of every sample, any shape; ignored where the weight is zero.
        log_weights: raw log-weights, the same shape.

    Returns:
        float64, the same shape.

    Raises:
        ValueError: for shapes that differ, or values of positive weight that are not finite.
    """
    if values.shape != log_weights.shape:
        raise ValueError(f"values {tuple(values.shape)} and log_weights {tuple(log_weights.shape)} differ in shape")
    weights = normalized_weights(log_weights.reshape(-1)).reshape(log_weights.shape)
    used = torch.where(weights > 0, values.detach().cpu().double(), 0.0)
    if not bool(torch.isfinite(used).all()):
        raise ValueError("values of samples with a positive weight must be finite")
    return weights.numel() * weights * (used - (weights * used).sum())


def weighted_mean(values: Tensor, log_weights: Tensor, *, warn: bool = True) -> WeightedMean:
    """Mean under the weights, its error, and the independent samples behind it.

    Args:
        values: (T,) or (T, B), a row a time.
        log_weights: raw log-weights, the same shape.
        warn: whether a short series is warned of.

    Raises:
        ValueError: see `influence` and `integrated_autocorrelation`.

    Warns:
        ShortSeriesWarning: when a walker covers fewer than 50 correlation times of the influence.
    """
    series = influence(values, log_weights)
    weights = normalized_weights(log_weights.reshape(-1)).reshape(log_weights.shape)
    used = torch.where(weights > 0, values.detach().cpu().double(), 0.0)
    mean = float((weights * used).sum())
    correlation = integrated_autocorrelation(series, warn=warn)
    variance = float((weights * (used - mean) ** 2).sum())
    return WeightedMean(
        value=mean,
        std_error=correlation.std_error,
        effective=variance / correlation.std_error**2 if correlation.std_error > 0 else math.inf,
        ess=float(effective_sample_size(log_weights.reshape(-1))),
        autocorrelation=correlation,
    )


def _as_series(series: Tensor) -> Tensor:
    values = series.detach().cpu().double()
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[0] < 4 or values.shape[1] < 1:
        raise ValueError(f"a series must be (T,) or (T, B) with at least 4 times, got {tuple(series.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError("a series must be finite")
    return values


def _autocovariance(centred: Tensor) -> Tensor:
    """Mean over walkers and start times of x(t) x(t + lag), (T,), of a series (T, B) of mean zero."""
    steps = centred.shape[0]
    padded = 1 << (2 * steps - 1).bit_length()  # no lag wraps around
    power = torch.zeros(padded // 2 + 1, dtype=torch.float64)
    for part in torch.split(centred, 64, dim=1):
        transformed = torch.fft.rfft(part, n=padded, dim=0)
        power += (transformed.real.square() + transformed.imag.square()).sum(1)
    products = torch.fft.irfft(power, n=padded)[:steps]
    pairs = torch.arange(steps, 0, -1, dtype=torch.float64) * centred.shape[1]
    return torch.div(products, pairs)


def _initial_positive_sum(correlation: Tensor) -> tuple[int, float, float]:
    """Last lag before rho(2k) + rho(2k + 1) turns negative; tau and the sum of t rho(t) up to it."""
    pairs = correlation[: correlation.numel() // 2 * 2].reshape(-1, 2).sum(1)
    negative = (pairs <= 0).nonzero()
    count = max(1, int(negative[0, 0]) if negative.numel() else pairs.numel())
    kept = correlation[: 2 * count]
    moment = torch.arange(2 * count, dtype=torch.float64) @ kept
    return 2 * count - 1, float(kept.sum()) - 0.5, float(moment)
