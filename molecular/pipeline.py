"""From weighted draws to free energies: what `feynkac run` computes, as plain functions.

Drawing and weighting are `flows.importance_sample`; this module evaluates collective variables on the
draws and turns weights into surfaces, profiles, a difference and the diagnostics that go with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..fkc.pareto import pareto_smooth
from ..fkc.weights import effective_sample_size, log_evidence_std_error, log_mean_exp
from .cvs import CollectiveVariable
from .free_energy import (
    FreeEnergyDifference,
    FreeEnergySurface,
    Region,
    free_energy_difference,
)
from .pipeline_surfaces import SurfaceRequest, known_log_weights, surfaces_of, weightless

__all__ = [
    "Analysis",
    "AnalysisRequest",
    "DifferenceRequest",
    "RunningEstimate",
    "SurfaceRequest",
    "WeightedDraws",
    "analyse",
    "evaluate_variables",
]


@dataclass(frozen=True, kw_only=True)
class WeightedDraws:
    """Draws reduced to what free energies need.

    Attributes:
        log_weights: (n,) raw, -inf for draws without a finite energy.
        log_q: (n,) log-density of the proposal.
        energies: (n,) kJ/mol.
        variables: name -> (n,) values of a collective variable.
        kT: kJ/mol.
    """

    log_weights: torch.Tensor
    log_q: torch.Tensor
    energies: torch.Tensor
    variables: Mapping[str, torch.Tensor]
    kT: float


@dataclass(frozen=True, kw_only=True)
class DifferenceRequest:
    """The free energy of a region of one variable against the rest.

    ``unit`` labels its ends; ``shown`` are the ends in that unit where it is not the region's own.
    """

    variable: str
    region: Region
    bootstrap: int
    unit: str = ""
    shown: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class AnalysisRequest:
    """What to compute; ``seed`` is that of the bootstraps."""

    surface: SurfaceRequest | None
    profiles: tuple[SurfaceRequest, ...]
    difference: DifferenceRequest | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class RunningEstimate:
    """How estimates settle: from the first ``samples[k]`` draws, (m,) each; NaN where undefined.

    ``difference`` and ``std_error`` are in kT, by the delta method.
    """

    samples: torch.Tensor
    ess: torch.Tensor
    log_evidence: torch.Tensor
    difference: torch.Tensor
    std_error: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Free energies with their errors, and how far the weights can be trusted.

    Attributes:
        n_samples: number of draws.
        n_zero_weight: draws of weight zero (no finite energy or density).
        log_evidence, log_evidence_std_error: log Z of exp(-E/kT) in the proposal's base measure.
        ess, ess_smoothed: effective samples of the raw and of the Pareto-smoothed weights.
        khat: shape of the tail of the weights; above 0.7 no estimate is reliable.
        smoothed_log_weights: (n,).
        surface, profiles: from the raw weights; those without any weight inside their axes are left out.
        difference: from the raw weights; ``difference_smoothed`` from the Pareto-smoothed ones. None if not asked for,
            or if the variable is finite in no draw with a weight.
        running: estimates against the number of draws.
        notes: sentences on values that are not finite, on weight outside axes, and on what was left out.
    """

    n_samples: int
    n_zero_weight: int
    log_evidence: float
    log_evidence_std_error: float
    ess: float
    ess_smoothed: float
    khat: float
    smoothed_log_weights: torch.Tensor
    surface: FreeEnergySurface | None
    profiles: tuple[FreeEnergySurface, ...]
    difference: FreeEnergyDifference | None
    difference_smoothed: FreeEnergyDifference | None
    running: RunningEstimate
    notes: tuple[str, ...] = ()

    @property
    def ess_fraction(self) -> float:
        """Raw effective samples a draw."""
        return self.ess / self.n_samples

    @property
    def ess_smoothed_fraction(self) -> float:
        """Pareto-smoothed effective samples a draw."""
        return self.ess_smoothed / self.n_samples


def evaluate_variables(
    variables: Sequence[CollectiveVariable], positions: torch.Tensor, *, chunk_size: int = 10_000
) -> dict[str, torch.Tensor]:
    """Values (n,) float64 of each variable on positions (n, N, 3) nm, by name, without gradients."""
    with torch.no_grad():
        return {
            v.name: torch.cat([v(part).double().cpu() for part in torch.split(positions, chunk_size)])
            for v in variables
        }


def analyse(draws: WeightedDraws, request: AnalysisRequest) -> Analysis:
    """Compute everything that was asked for from weighted draws; equal input gives equal bits.

    A variable that is not finite in a draw, or misses its axis in all of them, costs what needs it and a note.

    Raises:
        WeightError: if no draw has a positive weight.
        ValueError: if a variable of the request is not among the draws.

    Warns:
        FewEffectiveSamplesWarning: when a side of the region holds too few effective samples.
    """
    log_weights = draws.log_weights
    smoothed = pareto_smooth(log_weights)
    _check_names(draws, request)
    made = surfaces_of(
        draws.variables,
        log_weights,
        surface=request.surface,
        profiles=request.profiles,
        kT=draws.kT,
        seed=request.seed,
    )
    return Analysis(
        n_samples=log_weights.numel(),
        n_zero_weight=int((log_weights == -math.inf).sum()),
        log_evidence=float(log_mean_exp(log_weights)),
        log_evidence_std_error=float(log_evidence_std_error(log_weights)),
        ess=float(effective_sample_size(log_weights)),
        ess_smoothed=float(effective_sample_size(smoothed.log_weights)),
        khat=smoothed.khat,
        smoothed_log_weights=smoothed.log_weights,
        surface=made.surface,
        profiles=made.profiles,
        difference=_difference(draws, log_weights, request),
        difference_smoothed=_difference(draws, smoothed.log_weights, request),
        running=_running(draws, request.difference),
        notes=made.notes,
    )


def _check_names(draws: WeightedDraws, request: AnalysisRequest) -> None:
    wanted = [*request.profiles, *([request.surface] if request.surface is not None else [])]
    names = [axis.name for each in wanted for axis in each.axes]
    names += [request.difference.variable] if request.difference is not None else []
    for name in names:
        if name not in draws.variables:
            raise ValueError(f"no variable {name!r} among the draws; there are {', '.join(draws.variables) or 'none'}")


def _difference(
    draws: WeightedDraws, log_weights: torch.Tensor, request: AnalysisRequest
) -> FreeEnergyDifference | None:
    if request.difference is None:
        return None
    values = draws.variables[request.difference.variable]
    known = known_log_weights(log_weights, values)
    if weightless(known):
        return None
    inside = request.difference.region.contains(values)
    return free_energy_difference(inside, known, kT=draws.kT, bootstrap=request.difference.bootstrap, seed=request.seed)


def _running(draws: WeightedDraws, request: DifferenceRequest | None, points: int = 120) -> RunningEstimate:
    r"""Estimates from growing prefixes, all from running sums of w, w^2 and their shares inside the region.

    var p = [ (1-p)^2 S_in + p^2 S_out ] / S^2 with S_in, S_out the sums of w^2 inside and outside: the delta
    method of `free_energy_difference` without its factor n / (n - 1).
    """
    n = draws.log_weights.numel()
    ends = torch.unique(
        torch.logspace(math.log10(max(2, min(50, n // 10))), math.log10(n), points).round().long().clamp(1, n)
    )
    top = draws.log_weights.max()
    w = torch.exp(draws.log_weights.double() - top)
    inside, known = torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    if request is not None:
        values = draws.variables[request.variable]
        inside, known = request.region.contains(values), torch.isfinite(values)
    columns = torch.stack([w, w * w, w * inside, w * w * inside, w * known, w * w * known], dim=1)
    total, squares, total_in, squares_in, total_known, squares_known = columns.cumsum(0)[ends - 1].unbind(1)
    p = total_in / total_known
    variance = ((1 - p) ** 2 * squares_in + p**2 * (squares_known - squares_in)) / total_known**2
    defined = (p > 0) & (p < 1)
    return RunningEstimate(
        samples=ends,
        ess=total**2 / squares,
        log_evidence=torch.log(total / ends) + top,
        difference=torch.where(defined, torch.log((1 - p) / p), math.nan),
        std_error=torch.where(defined, variance.sqrt() / (p * (1 - p)), math.nan),
    )
