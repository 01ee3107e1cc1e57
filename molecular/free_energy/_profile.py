"""Free energies of the cells of one variable from the two halves of a run, with errors by blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .axis import Axis
from .blocks import block_groups

__all__ = ["ProfileHalves", "profile_halves"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProfileHalves:
    """-ln P(cell) in kT from the first (row 0) and the second half (row 1) of the time.

    Attributes:
        axis: of the cells.
        value: (2, bins); +inf where a half never was.
        std_error: (2, bins), first order, by blocks; NaN where a half never was.
    """

    axis: Axis
    value: Tensor
    std_error: Tensor

    @property
    def difference(self) -> Tensor:
        """(bins,) second half minus first; NaN where neither was, infinite where one was."""
        return self.value[1] - self.value[0]

    @property
    def z(self) -> Tensor:
        """(bins,) difference over its error; NaN where undefined."""
        return self.difference / self.std_error.square().sum(0).sqrt()


def profile_halves(values: Tensor, weights: Tensor, axis: Axis, block: int) -> ProfileHalves:
    """Profiles from values (T, B) and weights (T, B), blocks of ``block`` steps."""
    middle = values.shape[0] // 2
    found = [_profile(values[part], weights[part], axis, block) for part in (slice(0, middle), slice(middle, None))]
    return ProfileHalves(
        axis=axis,
        value=torch.stack([value for value, _ in found]),
        std_error=torch.stack([error for _, error in found]),
    )


def _profile(values: Tensor, weights: Tensor, axis: Axis, block: int) -> tuple[Tensor, Tensor]:
    steps, walkers = values.shape
    groups = block_groups(steps, walkers, min(block, steps))
    count = int(groups.max()) + 1
    w = (weights / weights.sum()).reshape(-1)
    used = w > 0
    # NaN values of frames without weight fall into any cell: they add nothing
    cell = axis.cell(torch.where(used, values.reshape(-1), axis.lower))
    cell = torch.where(cell < 0, axis.bins, cell)
    sums = torch.zeros(count * (axis.bins + 1), dtype=torch.float64)
    sums.index_add_(0, groups * (axis.bins + 1) + cell, w)
    table = sums.reshape(count, -1)
    p, share = table.sum(0)[:-1], table.sum(1)
    influence = table[:, :-1] / p - share[:, None]
    sd = (count / max(count - 1, 1) * influence.square().sum(0)).sqrt()
    empty = p <= 0
    return torch.where(empty, math.inf, -p.log()), torch.where(empty | (count < 2), math.nan, sd)
