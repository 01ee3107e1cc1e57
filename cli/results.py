"""The numbers of a run with their errors: one list for the terminal, results.json and the report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..molecular.free_energy import FreeEnergyDifference
from ..molecular.pipeline import Analysis, DifferenceRequest

__all__ = ["KHAT_LIMIT", "Number", "as_json", "numbers", "region_text"]

KHAT_LIMIT = 0.7
"""Above this shape of the tail no importance-sampling estimate is to be trusted (Vehtari et al. 2024)."""


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
        if self.error is None or not math.isfinite(self.error):
            whole = self.value == int_or_nan(self.value) or abs(self.value) >= 1000
            value = f"{self.value:,.0f}" if whole else f"{self.value:.3g}"
            return value + unit + (" ± unknown" if self.error is not None else "")
        digits = 2 if self.error == 0 else min(max(0, 1 - math.floor(math.log10(self.error))), 6)
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}{unit}"


def int_or_nan(value: float) -> float:
    """The integer nearest to a finite value."""
    return float(round(value)) if math.isfinite(value) else math.nan


def numbers(analysis: Analysis, request: DifferenceRequest | None, energy_calls: int) -> list[Number]:
    """Everything that a run has computed, in the order in which it is shown."""
    a = analysis
    khat_remark = "above 0.7: do not trust these weights" if a.khat > KHAT_LIMIT else "below 0.7: reliable"
    found = [
        Number("samples", "samples", a.n_samples),
        Number("zero_weight", "samples of weight zero", a.n_zero_weight),
        Number("energy_calls", "energy calls", energy_calls),
        Number("ess", "effective samples, raw weights", round(a.ess, 1), remark=f"{a.ess_fraction:.1%}"),
        Number(
            "ess_smoothed",
            "effective samples, Pareto-smoothed",
            round(a.ess_smoothed, 1),
            remark=f"{a.ess_smoothed_fraction:.1%}",
        ),
        Number("khat", "Pareto k-hat", a.khat, remark=khat_remark),
        Number("log_evidence", "log Z", a.log_evidence, a.log_evidence_std_error),
    ]
    if a.difference is not None and a.difference_smoothed is not None and request is not None:
        found += _difference_numbers(a.difference, a.difference_smoothed, request)
    return found


def _difference_numbers(
    raw: FreeEnergyDifference, smoothed: FreeEnergyDifference, request: DifferenceRequest
) -> list[Number]:
    region = region_text(request)
    name = f"ΔF of {region} against the rest"
    return [
        Number("delta_f_kT", name, raw.value, raw.std_error, "kT"),
        Number("delta_f_kJ_mol", name, raw.value_kJ_mol, raw.std_error_kJ_mol, "kJ/mol"),
        Number(
            "delta_f_smoothed_kT",
            f"{name}, Pareto-smoothed",
            smoothed.value,
            smoothed.std_error,
            "kT",
        ),
        Number("probability", f"probability of {region}", raw.probability, raw.probability_std_error),
        Number("ess_inside", "effective samples inside the region", round(raw.ess_inside, 1)),
        Number("ess_outside", "effective samples outside", round(raw.ess_outside, 1)),
    ]


def region_text(request: DifferenceRequest) -> str:
    """The region of a difference in words."""
    unit = f" {request.unit}" if request.unit else ""
    return f"{request.region.lower:g} < {request.variable} < {request.region.upper:g}{unit}"


def as_json(found: list[Number], warnings: list[str]) -> dict[str, Any]:
    """The numbers for ``results.json``; what is not finite is text, as JSON has no word for it."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    rows = {n.key: {k: plain(v) for k, v in asdict(n).items() if k != "key" and v != ""} for n in found}
    return {"numbers": rows, "warnings": warnings}
