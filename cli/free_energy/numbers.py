"""The numbers of a free-energy run."""

from __future__ import annotations

from ...molecular.free_energy import FreeEnergyDifference
from ...molecular.pipeline import Analysis, DifferenceRequest
from ..results import KHAT_LIMIT, Number, region_text

__all__ = ["numbers"]


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
