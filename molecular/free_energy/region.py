"""A region of one collective variable."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

__all__ = ["Region"]


@dataclass(frozen=True)
class Region:
    """The values between ``lower`` and ``upper``, ends excluded; around the circle on a periodic variable.

    With a period the values are compared modulo the period, and ``lower > upper`` means the arc that crosses the
    end of the circle.

    Args:
        lower, upper: in the unit of the variable.
        period: of the variable, or None.

    Raises:
        ValueError: if the region is empty, covers the whole circle, or its ends are not finite.

    Example:
        >>> Region(0.0, 2.0, period=2 * math.pi).contains(torch.tensor([1.0, -1.0])).tolist()
        [True, False]
    """

    lower: float
    upper: float
    period: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lower) and math.isfinite(self.upper)):
            raise ValueError(f"region: ends must be finite, got {self.lower}, {self.upper}")
        if self.period is None and not self.lower < self.upper:
            raise ValueError(f"region: the lower end {self.lower} must lie below the upper end {self.upper}")
        if self.period is not None and (self.lower == self.upper or abs(self.upper - self.lower) >= self.period):
            raise ValueError(f"region: {self.lower} to {self.upper} is empty or the whole circle")

    def contains(self, values: torch.Tensor) -> torch.Tensor:
        """Which values (n,) lie inside, bool (n,); NaN never does."""
        if self.period is None:
            return (values > self.lower) & (values < self.upper)
        past = torch.remainder(values - self.lower, self.period)
        return (past > 0) & (past < (self.upper - self.lower) % self.period)
