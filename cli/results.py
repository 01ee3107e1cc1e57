"""The numbers of a run with their errors: one list for the terminal, results.json and the report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..molecular.pipeline import DifferenceRequest

__all__ = ["KHAT_LIMIT", "Number", "as_json", "region_text"]

KHAT_LIMIT = 0.7
"""Above this shape of the tail no importance-sampling estimate is to be trusted (Vehtari et al. 2024)."""


_SMALLEST, _SMALLEST_ERROR = 1e-4, 5e-6
"""Numbers below the one, or with errors below the other, are written in powers of ten."""


@dataclass(frozen=True)
class Number:
    """A number with its error and unit, a key for programs, a label for people, and perhaps a remark."""

    key: str
    label: str
    value: float
    error: float | None = None
    unit: str = ""
    remark: str = ""

    @property
    def text(self) -> str:
        """Value, error and unit, rounded to what the error allows."""
        unit = f" {self.unit}" if self.unit else ""
        if math.isnan(self.value):
            return "not defined"
        if self.error is None or not math.isfinite(self.error):
            whole = self.value == int_or_nan(self.value) or abs(self.value) >= 1000
            value = f"{self.value:,.0f}" if whole else f"{self.value:.3g}"
            return value + unit + (" ± unknown" if self.error is not None else "")
        if 0 < self.error < _SMALLEST_ERROR or 0 < max(abs(self.value), self.error) < _SMALLEST:
            return f"{self.value:.2e} ± {self.error:.1e}{unit}"
        digits = 2 if self.error == 0 else min(max(0, 1 - math.floor(math.log10(self.error))), 6)
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}{unit}"


def int_or_nan(value: float) -> float:
    """The integer nearest to a finite value."""
    return float(round(value)) if math.isfinite(value) else math.nan


def region_text(request: DifferenceRequest) -> str:
    """The region of a difference in words, in the unit it was written in."""
    lower, upper = request.shown or (request.region.lower, request.region.upper)
    unit = f" {request.unit}" if request.unit else ""
    seam = " across the seam" if request.region.lower > request.region.upper else ""
    return f"{lower:.4g} < {request.variable} < {upper:.4g}{unit}{seam}"


def as_json(found: list[Number], warnings: list[str]) -> dict[str, Any]:
    """The numbers for ``results.json``; what is not finite is text, as JSON has no word for it."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    rows = {n.key: {k: plain(v) for k, v in asdict(n).items() if k != "key" and v != ""} for n in found}
    return {"numbers": rows, "warnings": warnings}
