"""The numbers of biased dynamics in the order in which they are shown, and what a reader of them should know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...fkc.bias import OpesBias
from ...molecular.free_energy.difference import FEW_EFFECTIVE_SAMPLES
from ..results import KHAT_LIMIT, Number, region_text
from ..tables import VARIABLE
from .bias import asked_nodes
from .build import Setup
from .results import Outcome
from .watch import outside_grid

__all__ = ["doubts_of", "numbers", "warnings_of"]

_APART = 2.0
"""Errors from walkers and from correlation that differ by this factor are worth a word."""
_FAR_FROM_REFERENCE = 3.0
"""Combined errors."""
_WORST_ERROR_KT = 1e4
"""Larger errors are unknown: a bootstrap or an influence with next to no weight on one side."""
_FORGETTING = 5.0
"""Correlation times that a burn-in should last."""
_WIDE_SIGMA, _NARROW_SIGMA = 0.25, 0.01
"""Of an open variable's range, or of the circle."""


def numbers(outcome: Outcome) -> list[Number]:
    """Everything that a run has computed, in the order in which it is shown."""
    return [*_differences(outcome), *_trust(outcome), *_counts(outcome)]


def _differences(outcome: Outcome) -> Iterator[Number]:
    request, found = outcome.setup.request.difference, outcome.difference
    if request is None or found is None:
        return
    region = region_text(request)
    name = f"ΔF of {region} against the rest"
    how = f"error from {_units(outcome)}"
    known = _reference(outcome)
    clear = found.std_error <= _WORST_ERROR_KT
    yield Number("delta_f_kT", name, found.value, found.std_error if clear else math.inf, "kT", how)
    error_kJ_mol = found.std_error_kJ_mol if clear else math.inf
    yield Number("delta_f_kJ_mol", name, found.value_kJ_mol, error_kJ_mol, "kJ/mol")
    if known is not None:
        yield Number("reference.delta_f_kT", f"{name}, reference", known[0], known[1], "kT")
    if outcome.from_bias is not None:
        remark = "no error bar; not an estimate to quote"
        yield Number("from_bias_kT", f"{name}, read off the bias", outcome.from_bias.value, None, "kT", remark)
    yield Number("probability", f"probability of {region}", found.probability, found.probability_std_error)
    yield Number("ess_inside", "effective samples inside the region", round(found.ess_inside, 1))
    yield Number("ess_outside", "effective samples outside", round(found.ess_outside, 1))


def _trust(outcome: Outcome) -> Iterator[Number]:
    steps, walkers = outcome.arrays["log_weights"].shape
    records = int(torch.isfinite(outcome.arrays["log_weights"]).sum())
    share = f"{outcome.ess / (steps * walkers):.1%} of {steps:,} records of {walkers:,} walkers"
    yield Number("ess", "effective samples of the weights", round(outcome.ess, 1), remark=share)
    remark = f"above {KHAT_LIMIT}: do not trust these weights" if outcome.khat > KHAT_LIMIT else "below 0.7: reliable"
    yield Number("khat", "Pareto k-hat", outcome.khat, remark=remark)
    report = outcome.report
    if report is None:
        return
    if report.autocorrelation is not None:
        record = outcome.setup.settings.record_steps * outcome.setup.settings.time_step
        tau, error = report.autocorrelation.tau * record, report.autocorrelation.tau_std_error * record
        yield Number("correlation_ps", "correlation time of ΔF's influence", tau, error, "ps")
        if report.independent <= records:  # more would come from negative correlations that are noise
            yield Number("independent", "independent samples behind ΔF", round(report.independent, 1))
        by = "autocorrelation, in place of " + _units(outcome)
        if report.std_error <= _WORST_ERROR_KT:
            yield Number("std_error_correlation_kT", "error of ΔF from correlation", report.std_error, None, "kT", by)
    yield Number("halves_z", "halves of the production differ by", report.halves_z, None, "standard errors")
    yield Number("trend_z", "drift through five stretches of time", report.trend_z, None, "standard errors")
    crossings = report.crossings
    visited = f"{crossings.both} of {crossings.walkers} walkers were in both"
    remark = f"{crossings.entered:,} in, {crossings.left:,} out; {visited}"
    yield Number("crossings", "crossings between the region and the rest", crossings.total, remark=remark)


def _counts(outcome: Outcome) -> Iterator[Number]:
    settings = outcome.setup.settings
    deposits, hills = int(outcome.number("deposits")), int(outcome.number("hills"))
    yield Number("deposits", "deposits", deposits, remark=f"{hills:,} hills in {settings.fill_ps:g} ps of filling")
    if isinstance(outcome.bias, OpesBias):
        yield Number("kernels", "kernels, merged", outcome.bias.n_kernels)
    yield Number("bias_max", "highest bias that a walker felt", float(outcome.arrays["bias"].max()), None, "kJ/mol")
    retired, outside = int(outcome.number("retired")), int(outcome.number("outside"))
    yield Number("retired", "retired walkers", retired, remark=f"of {settings.walkers:,}")
    yield Number("outside", "samples outside the bias's grid", outside)
    yield Number("energy_calls", "energy calls", outcome.number("energy_calls"))
    seconds = outcome.number("seconds")
    rate = outcome.number("energy_calls") / max(seconds, 1e-9)
    yield Number("wall_seconds", "wall time", round(seconds, 1), None, "s", f"{rate:,.0f} energy calls a second")


def _units(outcome: Outcome) -> str:
    count = int(outcome.groups.max()) + 1
    return f"{count:,} walkers" if outcome.by_walkers else f"{count:,} blocks of time"


# --- warnings ---------------------------------------------------------------------------------------------------------


def warnings_of(outcome: Outcome, caught: Sequence[str]) -> list[str]:
    """What a reader of the numbers should know."""
    notes, settings = list(dict.fromkeys(caught)), outcome.setup.settings
    retired, outside = int(outcome.number("retired")), int(outcome.number("outside"))
    restarted = int(outcome.number("restarted"))
    if restarted:
        notes.append(
            f"{restarted} of {settings.walkers} walkers lost their finite energy while they were relaxed or melted, "
            "and started again from an earlier place or from another walker's"
        )
    if retired:
        text = "use a shorter time step, a longer melt, or a lower height of hills"
        notes.append(f"{retired} of {settings.walkers} walkers had no finite energy any more and were retired: {text}")
    if outside:
        alive = outcome.arrays["log_weights"] > -math.inf
        here = int((outside_grid(outcome.bias, _biased(outcome)) & alive).sum())
        notes.append(
            f"{outside:,} samples lay beyond an end of the bias's grid (of the production's, {here:,} of "
            f"{int(alive.sum()):,}): the bias does not push there; widen the grid or put up walls"
        )
    if outcome.khat > KHAT_LIMIT:
        notes.append(f"Pareto k-hat is {outcome.khat:.2f}, above {KHAT_LIMIT}: the weights have too heavy a tail")
    notes += outcome.notes
    notes += [*doubts_of(outcome.setup), *_about_grid(outcome), *_doubts(outcome)]
    return notes


def doubts_of(setup: Setup) -> Iterator[str]:
    """What is doubtful in the config of a run, also before it is made."""
    circles = {v.name: v.sigma / v.period for v in setup.bias.variables if v.period is not None}
    for name, share in (setup.config.sigma_shares() | circles).items():
        if share > _WIDE_SIGMA:
            yield f"sigma of {name} is {share:.2g} of the variable's range: the bias resolves little; a tenth is better"
        elif share < _NARROW_SIGMA:
            whole = "circle" if name in circles else "range"
            yield (
                f"sigma of {name} is {share:.2g} of the variable's {whole}: {1.0 / share:,.0f} hills side by side "
                "cover it once, so that filling takes as many times longer and the bias stays rough; a thirtieth to a "
                "tenth is usual"
            )


def _about_grid(outcome: Outcome) -> Iterator[str]:
    setup = outcome.setup
    nodes = asked_nodes(setup.config, setup.bias.variables)
    if nodes and outcome.bias.grid_axes is None:
        yield f"a grid of the bias would have {nodes:,} nodes, too many: its kernels were summed without one"


def _reference(outcome: Outcome) -> tuple[float, float | None] | None:
    """The reference's difference of the same region, with its error."""
    request, known = outcome.setup.request.difference, outcome.setup.reference.get("delta_f_kT")
    if request is None or not isinstance(known, dict):
        return None
    key = f"probability_{request.region.lower:g}_{request.variable}_{request.region.upper:g}"
    return (known["value"], known.get("std_error")) if key in outcome.setup.reference else None


def _error_text(error: float) -> str:
    return f"{error:.2f} kT" if error <= _WORST_ERROR_KT else "unknown"


def _doubts(outcome: Outcome) -> Iterator[str]:
    difference, report = outcome.difference, outcome.report
    if difference is not None and min(difference.ess_inside, difference.ess_outside) < FEW_EFFECTIVE_SAMPLES:
        few = min(difference.ess_inside, difference.ess_outside)
        yield f"only {few:.1f} effective samples on one side of the region: ΔF and its error are unreliable"
    known = _reference(outcome)
    if difference is not None and known is not None:
        both = math.hypot(difference.std_error, known[1] or 0.0)
        if math.isfinite(difference.value) and abs(difference.value - known[0]) > _FAR_FROM_REFERENCE * both:
            many = f"{abs(difference.value - known[0]) / both:.1f} combined errors" if both > 0 else "far"
            yield f"ΔF is {difference.value:.2f} kT, {many} from the reference's {known[0]:.2f} kT"
    if report is None or difference is None:
        return
    if report.autocorrelation is not None:
        settings = outcome.setup.settings
        times = settings.burn_in_ps / (report.autocorrelation.tau * settings.record_steps * settings.time_step)
        if times < _FORGETTING:
            yield (
                f"burn_in: {settings.burn_in_ps:g} ps is only {times:.1f} correlation times of ΔF's influence; "
                f"take at least {_FORGETTING:g}"
            )
    said = {f"the weights have a heavy tail: Pareto k-hat is {report.khat:.2f}, above {KHAT_LIMIT}"}
    yield from (f"convergence: {verdict}" for verdict in report.verdicts if verdict not in said)
    if report.std_error > 0 and difference.std_error > 0:
        ratio = max(report.std_error / difference.std_error, difference.std_error / report.std_error)
        if ratio > _APART:
            yield (
                f"the error of ΔF is {_error_text(difference.std_error)} from {_units(outcome)}, but "
                f"{_error_text(report.std_error)} from autocorrelation: take the larger, or run longer"
            )


def _biased(outcome: Outcome) -> Tensor:
    """(T, B, d)."""
    return torch.stack([outcome.arrays[VARIABLE + name] for name in outcome.bias.names], dim=-1)
