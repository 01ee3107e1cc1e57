"""COLVAR to free energies with error bars: reweighting, blocks, convergence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from ...molecular.free_energy import FreeEnergySurface
from ...molecular.io import write_fes, write_fes_uncertainty
from ...molecular.units import GAS_CONSTANT
from ...molecular.units import kT as thermal_energy
from ..errors import UserError
from ..printing import print_results
from ..quantities import DIMENSIONS, parse_quantity
from ..results import KHAT_LIMIT, Number
from ..yaml_lines import load_yaml
from .axes import data_axes
from .estimates import Estimates, estimate
from .inputs import Inputs
from .landscape import Landscape
from .options import FesOptions, implied_temperature
from .outputs import Outputs, refuse_existing, write_rest
from .plots import Unit, draw_landscape
from .regions import Regions
from .samples import Samples, read_samples
from .time_plots import draw_difference

__all__ = ["fes_from_samples"]

_FEWEST = 2.0
"""Cells on fewer effective samples are left out of pictures."""

_ROUNDED = 2e-3
"""Relative; 2.49 typed for 2.494 is no other temperature."""


def fes_from_samples(console: Console, inputs: Inputs, options: FesOptions) -> None:
    """Reweight frames, write tables with errors, draw them.

    Raises:
        UserError: an option that does not fit.
        FileExistsError: an output is there already.
        FileFormatError: a damaged file.
    """
    differs = _other_temperature(inputs.run, options.kT)
    if inputs.run is not None and options.kT is None:
        options = replace(options, kT=_kT_of(inputs.run))
    thermal, doubts = implied_temperature(options.needed_kT("reweighting samples"))
    outputs = Outputs.of(options.outfile, "fes.dat")
    assert outputs.table is not None
    drawn = [outputs.beside(".png"), *([outputs.beside("_deltaf.png")] if options.deltaf is not None else [])]
    record = outputs.beside(".json")
    refuse_existing([outputs.table, outputs.uncertainty, *(drawn if options.plots else []), record])
    with console.status("reading"):
        samples = read_samples(inputs.paths, options)
    regions = Regions.of(options, samples.periods)
    used = samples.values[samples.log_weights > -math.inf]
    axes = data_axes(samples.names, samples.domains, used, options)
    if options.kde is not None and len(options.kde) != len(axes):
        raise UserError(f"--kde: {len(options.kde)} widths for {len(axes)} variables ({', '.join(samples.names)})")
    with console.status("computing free energies"):
        found = estimate(samples, axes, regions.inside, regions.outside, options)
    unit = Unit.of(options.units, options.kT)
    numbers, notes = [*_numbers(found, regions, unit), *thermal], [*differs, *doubts, *found.warnings()]
    write_fes(outputs.table, found.surface)
    write_fes_uncertainty(outputs.uncertainty, found.surface)
    pictures = {}
    if options.plots:
        boxes = regions.boxes
        landscape = _visible(found.surface)
        pictures[drawn[0]] = draw_landscape(landscape, unit, title=_title(found), cap_kT=found.kT, regions=boxes)
        if found.report is not None:
            pictures[drawn[1]] = draw_difference(found, unit)
    write_rest(numbers, notes, record, pictures)
    files = [outputs.table, outputs.uncertainty, *pictures, record]
    print_results(console, numbers, notes, files, heading="files")


def _kT_of(run: Path) -> float:
    """kT of a run's config.

    Raises:
        UserError: it names no temperature.
    """
    system = load_yaml(run / "config.yaml").data.get("system")
    text = system.get("temperature") if isinstance(system, dict) else None
    try:
        return thermal_energy(parse_quantity(text, DIMENSIONS["temperature"]))
    except ValueError as error:
        raise UserError(f"{run / 'config.yaml'}: no system.temperature; give --kt or --temperature") from error


def _other_temperature(run: Path | None, kT: float | None) -> list[str]:
    """A warning where the kT that was typed is not that of the run."""
    if run is None or kT is None:
        return []
    try:
        own = _kT_of(run)
    except UserError:  # that is why it was typed
        return []
    if math.isclose(kT, own, rel_tol=_ROUNDED):
        return []
    typed, ran = kT / GAS_CONSTANT, own / GAS_CONSTANT
    text = f"the run was at {ran:.4g} K (kT = {own:.4g} kJ/mol, its config.yaml), but --kt or --temperature say"
    return [f"{text} {typed:.4g} K ({kT:.4g} kJ/mol): the weights are those of another temperature"]


def _visible(surface: FreeEnergySurface) -> Landscape:
    known = surface.ess >= _FEWEST
    values = torch.where(known, surface.free_energy, math.inf)
    return Landscape(surface.axes, values, error=torch.where(known, surface.std_error, math.nan))


def _title(found: Estimates) -> str:
    return "Free energy, " + ("kernel estimate" if found.surface.method == "kde" else "reweighted")


# --- numbers ----------------------------------------------------------------------------------------------------------


def _numbers(found: Estimates, regions: Regions, unit: Unit) -> Iterator[Number]:
    yield from _difference_numbers(found, regions, unit)
    samples = found.samples
    steps, walkers = samples.log_weights.shape
    used = int((samples.log_weights > -math.inf).sum())
    yield Number("frames", "frames used", used, remark=_frames_text(samples, steps, walkers))
    yield Number("invalid", "rows left out: not finite", samples.invalid)
    yield Number(
        "ess",
        "effective frames of the weights",
        round(found.ess, 1),
        remark=f"{found.ess / used:.1%}; weights {samples.weighting}",
    )
    yield Number(
        "khat", "Pareto k-hat", found.khat, remark="do not trust these weights" if found.khat > KHAT_LIMIT else ""
    )
    yield from _time_numbers(found)
    shape = " x ".join(str(axis.bins) for axis in found.surface.axes)
    error = found.surface.std_error[torch.isfinite(found.surface.free_energy) & (found.surface.ess >= _FEWEST)]
    typical = float(error.median()) * unit.factor if error.numel() else math.nan
    yield Number("cell_error", "error of F, median over cells", typical, None, unit.name, f"{shape} cells")


def _frames_text(samples: Samples, steps: int, walkers: int) -> str:
    parts = [f"of {samples.rows:,} rows"]
    if walkers > 1:
        parts.append(f"{walkers:,} walkers of up to {steps:,} frames")
    if samples.skipped:
        parts.append(f"{samples.skipped:,} skipped at the start")
    if samples.repeated:
        parts.append(f"{samples.repeated:,} whose times stand again left out")
    return "; ".join(parts)


def _difference_numbers(found: Estimates, regions: Regions, unit: Unit) -> Iterator[Number]:
    difference = found.difference
    if difference is None:
        return
    label, kT = f"ΔF of {regions.text}", found.kT * unit.factor
    how = f"error from {found.grouping}"
    yield Number("delta_f", label, difference.value * kT, difference.std_error * kT, unit.name, how)
    if unit.name != "kT":
        yield Number("delta_f_kT", label, difference.value, difference.std_error, "kT")
    inside = "" if found.inside is None else found.inside.text
    yield Number("probability", f"probability of {inside}", difference.probability, difference.probability_std_error)
    if found.outside is not None:
        text = f"probability of {found.outside.text}"
        yield Number("probability_against", text, difference.probability_outside)
    yield Number("ess_inside", "effective frames inside", round(difference.ess_inside, 1), remark="by weights alone")
    yield Number("ess_outside", "effective frames outside", round(difference.ess_outside, 1), remark="by weights alone")
    report = found.report
    if report is None:
        return
    yield Number("std_error_correlation", "error of ΔF from autocorrelation", report.std_error * kT, None, unit.name)
    if report.independent < int((found.samples.log_weights > -math.inf).sum()):  # more cannot be: a rare region
        yield Number("independent", "independent samples behind ΔF", round(report.independent, 1))
    crossings = report.crossings
    visited = f"{crossings.both} of {crossings.walkers} walkers were in both"
    yield Number("crossings", "crossings between the regions", crossings.total, remark=visited)
    yield Number("halves_z", "halves differ by", report.halves_z, None, "standard errors")
    yield Number("trend_z", "drift through five stretches of time", report.trend_z, None, "standard errors")


def _time_numbers(found: Estimates) -> Iterator[Number]:
    scale, unit = found.samples.spacing or 1.0, "frames" if found.samples.spacing is None else "ps"
    report = found.report
    if report is not None and report.autocorrelation is not None:
        tau, error = report.autocorrelation.tau * scale, report.autocorrelation.tau_std_error * scale
        yield Number("correlation_time", "correlation time of ΔF", tau, error, unit)
    yield Number("correlation_variables", "correlation time of the variables", found.correlation * scale, None, unit)
    remark = found.grouping + ("" if found.block is None else f", each of {found.block * scale:g} {unit}")
    yield Number("groups", "independent groups behind the errors", found.groups, remark=remark)
