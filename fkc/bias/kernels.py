"""Kernels: hills as they are deposited, and the merging of near ones into fewer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..ops import kernel_sum
from .shapes import Shape
from .variables import differences

__all__ = ["Hills", "Kernels", "merged"]

Conserved = Literal["height", "volume"]


@dataclass(frozen=True, eq=False)
class Kernels:
    """M Gaussian kernels.

    Attributes:
        centers: (M, d) float64.
        widths: (M, d).
        heights: (M,).
    """

    centers: Tensor
    widths: Tensor
    heights: Tensor

    @classmethod
    def none(cls, dimension: int) -> Kernels:
        """No kernel at all."""
        empty = torch.zeros((0, dimension), dtype=torch.float64)
        return cls(empty, empty, torch.zeros(0, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.heights)

    def plus(self, more: Kernels) -> Kernels:
        """These and more."""
        if not len(more):
            return self
        return Kernels(
            torch.cat([self.centers, more.centers]),
            torch.cat([self.widths, more.widths]),
            torch.cat([self.heights, more.heights]),
        )

    def rows(self, index: Tensor) -> Kernels:
        """Some of them."""
        return Kernels(self.centers[index], self.widths[index], self.heights[index])

    def value_and_gradient(self, points: Tensor, periods: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Sum at points (B, d): (B,) and (B, d)."""
        found: tuple[Tensor, Tensor] = kernel_sum(
            points, self.centers, self.widths, self.heights, periods, shape.scale, shape.shift, shape.cutoff
        )
        return found


@dataclass(frozen=True, eq=False)
class Hills(Kernels):
    """Kernels as a bias gained them, with the time of each.

    Attributes:
        times: (M,) float64, in the unit of the caller.
    """

    times: Tensor

    def __post_init__(self) -> None:
        m, d = self.centers.shape
        if self.widths.shape != (m, d) or self.heights.shape != (m,) or self.times.shape != (m,):
            raise ValueError(
                f"hills: centers {(m, d)}, widths {tuple(self.widths.shape)}, heights {tuple(self.heights.shape)}, "
                f"times {tuple(self.times.shape)} do not fit"
            )


def merged(kept: Kernels, new: Kernels, periods: Tensor, threshold: float, conserved: Conserved) -> Kernels:
    """``kept`` and ``new`` with each new kernel joined to the nearest kept one closer than ``threshold`` widths.

    The mean and the variance of joined kernels are kept, and the sum of their heights (as in PLUMED's OPES) or of
    their volumes. New ones without a neighbour become kept ones in turn; kept ones that have come closer than the
    threshold are joined as well, until none are. The scheme is that of Invernizzi, Piaggi, Parrinello 2020 (Phys. Rev.
    X 10, 041034), for one kernel at a time; here all new ones of a batch see the same kept ones.

    Args:
        kept: kernels that are merged among themselves already.
        new: in the order of their deposit.
        periods: (d,), 0 for an open variable.
        threshold: in widths of the kept kernel.
        conserved: what joined kernels have in common.
    """
    changed = torch.zeros(0, dtype=torch.int64)
    if len(kept) and len(new):
        nearest, distance = _nearest(new.centers, kept, periods)
        close = distance < threshold
        if bool(close.any()):
            changed = torch.unique(nearest[close])
            kept = _joined(kept, new.rows(close), nearest[close], periods, conserved)
        new = new.rows(~close)
    while len(new):  # the first of those left takes in its neighbours
        first = new.rows(torch.tensor([0]))
        near = _nearest(new.centers, first, periods)[1] < threshold
        near[0] = False
        count = int(near.sum())
        if count:
            first = _joined(first, new.rows(near), torch.zeros(count, dtype=torch.int64), periods, conserved)
            changed = torch.cat([changed, torch.tensor([len(kept)])])
        kept = kept.plus(first)
        rest = ~near
        rest[0] = False
        new = new.rows(rest)
    return _settled(kept, changed, periods, threshold, conserved)


def _nearest(points: Tensor, kernels: Kernels, periods: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest kernel of each point and its distance, in widths of the kernel."""
    distance, nearest = _squared(points, kernels, periods).min(dim=1)
    return nearest, distance.sqrt()


def _squared(points: Tensor, kernels: Kernels, periods: Tensor) -> Tensor:
    """Squared distances (n, M) of points (n, d) from kernels, in widths of the kernels."""
    total = torch.zeros((len(points), len(kernels)), dtype=torch.float64)
    for k, period in enumerate(periods.tolist()):
        away = points[:, k, None] - kernels.centers[:, k]
        if period > 0.0:
            away.sub_(torch.mul(away, 1.0 / period).round_(), alpha=period)
        away.div_(kernels.widths[:, k])
        total.addcmul_(away, away)
    return total


def _joined(kept: Kernels, new: Kernels, into: Tensor, periods: Tensor, conserved: Conserved) -> Kernels:
    """``kept`` with each of ``new`` (n) joined to the one that ``into`` (n,) names."""

    def mass(kernels: Kernels) -> Tensor:
        return kernels.heights if conserved == "height" else kernels.heights * kernels.widths.prod(dim=1)

    own, more = mass(kept), mass(new)
    total = own.index_add(0, into, more)
    safe = torch.where(total > 0, total, 1.0)[:, None]
    offset = differences(new.centers, kept.centers[into], periods)
    first = torch.zeros_like(kept.centers).index_add(0, into, more[:, None] * offset) / safe
    second = own[:, None] * kept.widths.square()
    second = second.index_add(0, into, more[:, None] * (new.widths.square() + offset.square())) / safe
    touched = torch.zeros(len(own), dtype=torch.bool).index_fill(0, into, True) & (total > 0)
    centers = kept.centers + first
    around = torch.where(periods > 0, differences(centers, torch.zeros_like(centers), periods), centers)
    widths = (second - first.square()).clamp_min(0.0).sqrt()
    widths = torch.where(touched[:, None], widths, kept.widths)
    heights = total if conserved == "height" else total / widths.prod(dim=1)
    return Kernels(
        torch.where(touched[:, None], around, kept.centers), widths, torch.where(touched, heights, kept.heights)
    )


def _settled(kernels: Kernels, moved: Tensor, periods: Tensor, threshold: float, conserved: Conserved) -> Kernels:
    """Joins kernels that have moved to a neighbour closer than the threshold, until none are."""
    while len(moved) and len(kernels) > 1:
        distance = _squared(kernels.centers[moved], kernels, periods)
        distance[torch.arange(len(moved)), moved] = torch.inf  # to itself
        nearest, taker = distance.min(dim=1)
        close = nearest < threshold * threshold
        if not bool(close.any()):
            break
        moved, taker = moved[close], taker[close]
        giver, to = moved[:1], taker[:1]
        kernels = _joined(kernels, kernels.rows(giver), to, periods, conserved)
        moved = torch.unique(torch.cat([moved[1:], to]))
        moved = moved[moved != giver]
        alive = torch.ones(len(kernels), dtype=torch.bool).index_fill(0, giver, False)
        kernels, moved = kernels.rows(alive), moved - (moved > giver).long()
    return kernels
