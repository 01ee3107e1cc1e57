"""What a convergence report says in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from .autocorrelation import TIMES_PER_SERIES

if TYPE_CHECKING:
    from .convergence import ConvergenceReport

__all__ = ["verdicts"]

HALVES_Z = 2.5
"""Halves of a converged run differ by more in 1.2 per cent of cases."""

TREND_Z = 3.0
"""A converged run has a steeper line through its segments in 0.3 per cent of cases."""

PROFILE_SHARE = 0.05
"""Share of cells that may differ by three errors between halves."""

RARE_CELL = 0.01
"""Cells with a smaller share may be missed by one half."""

FEW_CROSSINGS = 10
"""A rate from fewer events has an error of a third and more."""

FEW_INDEPENDENT = 50
"""With fewer independent samples even a population of one half is known to 0.14 only."""

FEW_BLOCKS = 8
"""An error bar from fewer blocks is uncertain by more than a quarter."""

FLUX_Z = 3.0
"""A stationary run has a larger net flux in at most 0.3 per cent of cases."""

TIMES_FOR_AN_ERROR = 20
"""A correlation time from walkers that cover fewer of it is too small, and with it the error bar."""

SHARE_BOTH = 0.25
"""With fewer walkers in both regions the result is made by where walkers were started."""

KHAT = 0.7
"""Above, averages over the weights have no error bar (Vehtari et al., JMLR 25(72) (2024))."""


def verdicts(report: ConvergenceReport) -> tuple[str, ...]:
    """Sentences on what is wrong; none for a report in which nothing was found."""
    found = [*_regions(report), *_drift(report), *_samples(report), *_crossings(report)]
    return tuple(found)


def _regions(report: ConvergenceReport) -> list[str]:
    if report.value == math.inf:
        return ["region A holds no weight: it was never visited, and Delta F is not defined"]
    if report.value == -math.inf:
        return ["region B holds no weight: it was never visited, and Delta F is not defined"]
    empty = int((~torch.isfinite(report.segments.value)).sum())
    total = report.segments.value.numel()
    return [f"{empty} of {total} time segments hold no weight in one of the regions"] if empty else []


def _drift(report: ConvergenceReport) -> list[str]:
    found = []
    if abs(report.halves_z) > HALVES_Z:
        change = float(report.halves.value[1] - report.halves.value[0])
        found.append(f"halves differ by {abs(report.halves_z):.1f} standard errors ({change:+.2f} kT with time)")
    if abs(report.trend_z) > TREND_Z:
        found.append(f"estimates drift with time: the slope through the segments is {report.trend_z:+.1f} errors")
    if report.profile is not None:
        z = report.profile.z
        known = torch.isfinite(z)
        apart = int((z[known].abs() > 3).sum())
        if apart > max(1.0, PROFILE_SHARE * int(known.sum())):
            found.append(f"{apart} of {int(known.sum())} cells of the profile differ by over 3 errors between halves")
        populated = report.profile.value.min(0).values < -math.log(RARE_CELL)
        once = int((torch.isinf(report.profile.difference) & populated).sum())
        if once:
            cells = "1 cell" if once == 1 else f"{once} cells"
            found.append(f"{cells} of the profile with a share above {RARE_CELL} visited in one half only")
    return found


def _samples(report: ConvergenceReport) -> list[str]:
    found = []
    correlation = report.autocorrelation
    if correlation is not None and correlation.short:
        few = correlation.steps < TIMES_FOR_AN_ERROR * correlation.tau
        bound = "; the error bar is a lower bound" if few else ""
        found.append(
            f"a walker covers only {correlation.steps / correlation.tau:.0f} correlation times (tau = "
            f"{correlation.tau:.3g} steps); {TIMES_PER_SERIES} are wanted{bound}"
        )
    if report.independent < FEW_INDEPENDENT:
        found.append(f"only {report.independent:.0f} effective independent samples")
    if report.blocks < FEW_BLOCKS:
        found.append(f"only {report.blocks} independent blocks: the error bar itself is a guess")
    if report.khat > KHAT:
        found.append(f"the weights have a heavy tail: Pareto k-hat is {report.khat:.2f}, above {KHAT}")
    return found


def _crossings(report: ConvergenceReport) -> list[str]:
    found = []
    crossings = report.crossings
    if crossings.total < FEW_CROSSINGS:
        found.append(f"only {crossings.total} crossings between the regions, fewer than {FEW_CROSSINGS}")
    if abs(crossings.flux_z) > FLUX_Z:
        found.append(
            f"{crossings.entered} walkers' passages into the region and {crossings.left} out of it: the populations "
            "are still moving; lengthen the filling or the burn-in"
        )
    if crossings.fraction_both < SHARE_BOTH:
        found.append(f"only {crossings.both} of {crossings.walkers} walkers visited both regions")
    return found
