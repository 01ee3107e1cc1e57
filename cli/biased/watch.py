"""Running numbers of biased dynamics, for the lines of ``metrics.jsonl``; kept in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...fkc.bias import RepulsionBias
from ...molecular.dynamics import Staged
from ...molecular.free_energy import Region
from ...molecular.pipeline import DifferenceRequest

__all__ = ["Watch", "cores", "outside_grid", "reach_of"]

_MARGIN = 0.25
"""Of the narrower of a region and what is left of a circle, or of the range of the values: by so much the cores keep
away from the border."""


def reach_of(values: Tensor, counted: Tensor | None = None) -> tuple[float, float]:
    """Lowest and highest of the finite values, only of those ``counted`` where that is given; inf, -inf without any."""
    kept = torch.isfinite(values) if counted is None else torch.isfinite(values) & counted
    found = values[kept]
    return (float(found.min()), float(found.max())) if len(found) else (math.inf, -math.inf)


def cores(
    values: Tensor, request: DifferenceRequest, reach: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Which values lie well inside the region, and which well outside.

    Where an open variable has values beyond one end of the region only, the other end is no border: how far off it was
    put makes no difference.

    Args:
        values: any shape.
        request: with the region.
        reach: lowest and highest value that is ever taken, of an open variable; by default of ``values``.
    """
    region = request.region
    if region.period is not None:
        width = (region.upper - region.lower) % region.period
        margin = _MARGIN * min(width, region.period - width)
        inner = Region(region.lower + margin, region.upper - margin, region.period)
        wider = Region(region.lower - margin, region.upper + margin, region.period)
        return inner.contains(values), ~wider.contains(values) & torch.isfinite(values)
    low, high = reach_of(values) if reach is None else reach
    lower, upper = region.lower, region.upper
    if low < upper and high > lower:  # otherwise nothing lies inside
        lower, upper = (lower if low < lower else -math.inf), (upper if high > upper else math.inf)
    width = min(upper, high) - max(lower, low)
    rest = (high - low) - width
    margin = _MARGIN * (min(width, rest) if min(width, rest) > 0 else region.upper - region.lower)
    inside = (values > lower + margin) & (values < upper - margin)
    outside = (values < lower - margin) | (values > upper + margin)
    return inside & torch.isfinite(values), outside & torch.isfinite(values)


def outside_grid(bias: RepulsionBias, values: Tensor) -> Tensor:
    """Which values (..., d) of the biased variables lie beyond an end of the bias's grid."""
    found = torch.zeros(values.shape[:-1], dtype=torch.bool)
    for column, axis in enumerate(bias.grid_axes or ()):
        if not axis.periodic:
            found |= (values[..., column] < axis.lower) | (values[..., column] > axis.upper)
    return found


class Watch:
    """Counts along the records of a run.

    Args:
        walkers: their number.
        request: the region whose crossings are counted, or None.
        state: of an earlier watch, to go on from.
    """

    def __init__(
        self, walkers: int, request: DifferenceRequest | None, state: Mapping[str, Tensor] | None = None
    ) -> None:
        self.request = request
        self.last = torch.zeros(walkers, dtype=torch.int8)
        self.counts = torch.zeros(2, dtype=torch.int64)
        self.sums = torch.full((2,), -math.inf, dtype=torch.float64)
        self.stage = torch.zeros((), dtype=torch.int64)
        self.reach = torch.tensor([math.inf, -math.inf], dtype=torch.float64)
        if state is not None:
            self.last, self.counts = state["last"].clone(), state["counts"].clone()
            self.sums, self.stage = state["sums"].clone(), state["stage"].clone()
            self.reach = state.get("reach", self.reach).clone()

    def state_dict(self) -> dict[str, Tensor]:
        """To go on from."""
        names = ("last", "counts", "sums", "stage", "reach")
        return {name: getattr(self, name) for name in names}

    def take(self, staged: Staged, values: Mapping[str, Tensor]) -> None:
        """Take in a record with its variables (B,) by name."""
        record = staged.record
        stage = ("fill", "burn-in", "sample").index(staged.stage)
        if stage != int(self.stage):  # weights of another bias, or of no use: a new sum
            self.stage, self.sums = torch.tensor(stage), torch.full_like(self.sums, -math.inf)
        twice = torch.stack([record.log_weights, 2.0 * record.log_weights])
        self.sums = torch.logaddexp(self.sums, torch.logsumexp(twice, dim=1))
        if stage:
            self.counts[1] += int((outside_grid(staged.state.bias, record.values) & record.alive).sum())
        if self.request is not None:
            of_walkers = values[self.request.variable]
            low, high = reach_of(of_walkers, record.alive)
            ends = min(float(self.reach[0]), low), max(float(self.reach[1]), high)
            self.reach = torch.tensor(ends, dtype=torch.float64)
            inside, outside = cores(of_walkers, self.request, ends)
            now = torch.where(record.alive, inside.to(torch.int8) - outside.to(torch.int8), 0).to(torch.int8)
            self.counts[0] += int(((now != 0) & (self.last != 0) & (now != self.last)).sum())
            self.last = torch.where(now != 0, now, self.last)

    @property
    def ess(self) -> float:
        """Kish's effective samples of the records of this stage; approximate while the bias grows."""
        return math.exp(2.0 * float(self.sums[0]) - float(self.sums[1])) if self.sums[1] > -math.inf else 0.0

    def line(self, staged: Staged, energy_calls: int) -> dict[str, Any]:
        """What to write down now."""
        record, state = staged.record, staged.state
        bias = record.bias[record.alive]
        return {
            "stage": staged.stage,
            "time_ps": round(record.time, 6),
            "deposits": state.deposits,
            "kernels": state.bias.n_kernels,
            "bias_min": float(bias.min()),
            "bias_mean": float(bias.mean()),
            "bias_max": float(bias.max()),
            "rct": record.rct if math.isfinite(record.rct) else None,
            "ess": round(self.ess, 3),
            "crossings": int(self.counts[0]) if self.request is not None else None,
            "retired": int((~record.alive).sum()),
            "outside_grid": state.bias.counts.outside + int(self.counts[1]),
            "energy_calls": energy_calls,
        }
