"""Shapes of a kernel, as functions of q = half the squared distance in widths."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["SHAPES", "Shape"]

_DP2CUTOFF = 6.25


@dataclass(frozen=True)
class Shape:
    """``scale`` exp(-q) + ``shift`` for q below ``cutoff``, 0 beyond.

    Attributes:
        scale: of the exponential.
        shift: makes the shape end at zero.
        cutoff: in q; inf for none.
    """

    scale: float = 1.0
    shift: float = 0.0
    cutoff: float = math.inf

    @property
    def reach(self) -> float:
        """Distance in widths beyond which a kernel is zero."""
        return math.sqrt(2.0 * self.cutoff)

    @property
    def separable(self) -> bool:
        """Is a kernel the product of one factor a variable?"""
        return math.isinf(self.cutoff)

    @classmethod
    def ending_at(cls, reach: float) -> Shape:
        """Lowered so that it is zero from ``reach`` widths on; its peak is a little below one."""
        return cls(1.0, -math.exp(-0.5 * reach * reach), 0.5 * reach * reach)


def _stretched() -> Shape:
    scale = 1.0 / (1.0 - math.exp(-_DP2CUTOFF))
    return Shape(scale, 1.0 - scale, _DP2CUTOFF)


SHAPES = {
    "gaussian": Shape(),
    "truncated-gaussian": Shape(cutoff=_DP2CUTOFF),
    "stretched-gaussian": _stretched(),
}
"""``gaussian`` has no end; ``truncated-gaussian`` and ``stretched-gaussian`` (peak one, zero at the end) end at 3.5
widths as in PLUMED before and since 2.8."""
