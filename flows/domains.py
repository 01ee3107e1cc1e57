"""The domain of each internal coordinate, and the smooth maps from it to the real line.

A bond is positive, an angle lies in (0, pi). A torsion is *circular* when its law covers the circle, with a cut
where it is least likely; it is an *arc* when it stays on one side: half the circle for a sibling at a
tetrahedral centre (its side IS the chirality, or the label of a hydrogen), the whole circle cut opposite the data
for planar siblings and for double bonds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Domain", "Kind", "circular_mean", "lowest_density_cut", "torsion_domain"]

Kind = Literal["bond", "angle", "circular", "arc"]
_TWO_PI = 2.0 * math.pi


@dataclass(frozen=True)
class Domain:
    """Where one coordinate lives: ``kind``, and for a torsion the interval (lower, lower + width) in rad."""

    kind: Kind
    lower: float = 0.0
    width: float = math.inf

    @property
    def is_torsion(self) -> bool:
        """True for circular coordinates and arcs."""
        return self.kind in ("circular", "arc")

    def wrap(self, y: Tensor) -> Tensor:
        """Add the multiple of 2 pi that brings a torsion within pi of the middle of its interval."""
        if not self.is_torsion:
            return y
        start = self.lower + 0.5 * self.width - math.pi
        return start + torch.remainder(y - start, _TWO_PI)

    def contains(self, y: Tensor) -> Tensor:
        """True where a wrapped coordinate lies inside the domain."""
        return (y > self.lower) & (y < self.lower + self.width) | (self.kind == "circular") & y.isfinite()


def circular_mean(torsion: Tensor) -> float:
    """Direction of the mean resultant of ``torsion`` (n,), in rad."""
    angle = torsion.double()
    return math.atan2(angle.sin().mean().item(), angle.cos().mean().item())


def lowest_density_cut(torsion: Tensor, bins: int = 180) -> float:
    """Where on the circle a histogram of ``torsion`` (n,) is lowest: the middle of the widest lowest run (rad)."""
    folded = torch.remainder(torsion.double() + math.pi, _TWO_PI)
    index = (folded / _TWO_PI * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(index, minlength=bins).double()
    smooth = (counts.roll(1) + counts + counts.roll(-1)) / 3.0
    lowest = (smooth <= smooth.min()).tolist()
    best_start, best_length = 0, 0
    for start in range(bins):
        length = 0
        while length < bins and lowest[(start + length) % bins]:
            length += 1
        if length > best_length:
            best_start, best_length = start, length
    return -math.pi + (best_start + 0.5 * best_length) * _TWO_PI / bins


def torsion_domain(torsion: Tensor, *, stereo: bool, reference: float, outside: float = 1e-4) -> Domain:
    """Choose the domain of one torsion from data.

    Args:
        torsion: (n,) values in rad; may be empty, then the reference alone decides.
        stereo: the torsion tells two stereoisomers (or hydrogen labels) apart: the half circle that holds
            ``reference`` is used.
        reference: value in the reference structure, rad.
        outside: share of the data that may lie more than 90 degrees from the mean before the torsion counts
            as circular. Such points keep their place in the domain, at its far ends.
    """
    if stereo:
        wrapped = math.remainder(reference, _TWO_PI)
        return Domain("arc", 0.0 if wrapped > 0.0 else -math.pi, math.pi)
    if torsion.numel() == 0:
        return Domain("circular", -math.pi, _TWO_PI)
    centre = circular_mean(torsion)
    distance = (torch.remainder(torsion.double() - centre + math.pi, _TWO_PI) - math.pi).abs()
    if (distance > 0.5 * math.pi).double().mean().item() <= outside:
        return Domain("arc", centre - math.pi, _TWO_PI)
    return Domain("circular", lowest_density_cut(torsion), _TWO_PI)
