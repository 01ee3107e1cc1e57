"""Running means with error bars and thinned samples, in memory that does not grow with the length of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Estimate", "Kept", "Tally", "batched_error"]

_BATCHES = 64
_LAGGED = 32
_SERIES = 32
"""Whose spread is an error that is itself known to one part in eight."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean over sweeps and ladders.

    Attributes:
        mean: (...) float64.
        std_error: the same shape, see :func:`batched_error`.
        sweeps: that were averaged.
    """

    mean: Tensor
    std_error: Tensor
    sweeps: int


@dataclass(frozen=True, eq=False)
class Tally:
    """Sums of a function over batches of sweeps; full, they are merged two by two.

    Attributes:
        sums: (L, 64, ...) float64, L independent ladders.
        size: sweeps a batch.
        count: sweeps so far.
    """

    sums: Tensor
    size: int
    count: int

    @classmethod
    def empty(cls, values: Tensor) -> Tally:
        """Nothing yet of values (L, ...)."""
        return cls(torch.zeros((len(values), _BATCHES, *values.shape[1:]), dtype=torch.float64), 1, 0)

    def added(self, values: Tensor) -> Tally:
        """And one sweep's values (L, ...)."""
        sums, size = self.sums.clone(), self.size
        if self.count == size * _BATCHES:
            sums = torch.cat([sums[:, 0::2] + sums[:, 1::2], torch.zeros_like(sums[:, : _BATCHES // 2])], dim=1)
            size *= 2
        sums[:, self.count // size] += values.to(torch.float64)
        return Tally(sums, size, self.count + 1)

    def estimate(self) -> Estimate:
        """Mean and error over all ladders and sweeps; NaN before the first sweep."""
        mean = self.sums.sum(dim=1).mean(dim=0) / (self.count or math.nan)
        whole = self.count // self.size
        return Estimate(mean, batched_error(self.sums[:, :whole] / self.size), self.count)


def batched_error(values: Tensor) -> Tensor:
    r"""Standard error of the mean of L independent series ``values`` (L, T, ...), each correlated in time.

    With 32 series or more: the spread of their means; nothing is assumed about the correlation in time. With fewer, the
    series are cut into at most 32 batches (walkers come back in trips of the ladder's length, which a batch should
    outlast) and the autocovariances :math:`\gamma_k` of the batch means, pooled over the series, are summed in pairs
    :math:`\Gamma_m = \gamma_{2m} + \gamma_{2m+1}` as long as these are positive, and not let rise:
    :math:`(-\gamma_0 + 2\sum_m \Gamma_m)/n`. ``inf`` with fewer than eight sweeps.

    References:
        Geyer (1992), Statist. Sci. 7, 473, section 3.3 (initial monotone sequence).
    """
    series, length = values.shape[:2]
    if series >= _SERIES and length > 0:
        means = values.double().mean(dim=1)
        return means.std(dim=0) / math.sqrt(series)
    if length < 8:
        return torch.full(values.shape[2:], torch.inf, dtype=torch.float64)
    size = math.ceil(length / _LAGGED)
    used = length - length % size
    batches = values[:, length - used :].double().reshape(series, used // size, size, *values.shape[2:]).mean(dim=2)
    centred, n = batches - batches.mean(dim=(0, 1)), batches.shape[1]
    lags = [(centred[:, : n - k] * centred[:, k:]).sum(dim=(0, 1)) / (series * n) for k in range(n - n % 2)]
    pairs = torch.stack(lags[0::2]) + torch.stack(lags[1::2])
    positive = (pairs > 0.0).to(torch.int64).cumprod(dim=0)
    total = 2.0 * (pairs.cummin(dim=0).values * positive).sum(dim=0) - lags[0]
    variance = torch.maximum(total, lags[0]) / (series * n)
    return variance.sqrt()


@dataclass(frozen=True, eq=False)
class Kept:
    """States of some sweeps, evenly spaced; full, every second one goes.

    Attributes:
        states: (P, K, *event) each.
        limit: how many at most, even.
        stride: sweeps between them.
        count: sweeps so far.
    """

    states: tuple[Tensor, ...]
    limit: int
    stride: int = 1
    count: int = 0

    def added(self, x: Tensor) -> Kept:
        """And one sweep's states."""
        states, stride = self.states, self.stride
        if self.count % stride == 0:
            if len(states) == self.limit:
                states, stride = states[::2], 2 * stride
            if self.count % stride == 0:
                states = (*states, x)
        return Kept(states, self.limit, stride, self.count + 1)

    def stacked(self, like: Tensor) -> Tensor:
        """(T, P, K, *event)."""
        return torch.stack(self.states) if self.states else like.new_zeros((0, *like.shape))

    def state_dict(self, like: Tensor) -> dict[str, Tensor]:
        """As tensors."""
        return {"states": self.stacked(like), "place": torch.tensor([self.limit, self.stride, self.count])}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Kept:
        """Inverse of :meth:`state_dict`."""
        limit, stride, count = (int(n) for n in state["place"])
        return cls(tuple(state["states"].unbind(0)), limit, stride, count)
