"""What biased dynamics has found: estimates under the frozen bias, their errors, and what speaks against them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fkc.bias import RepulsionBias
from ...fkc.pareto import pareto_smooth
from ...fkc.weights import effective_sample_size
from ...molecular.free_energy import (
    Axis,
    BiasDifference,
    ConvergenceReport,
    FreeEnergyDifference,
    FreeEnergySurface,
    block_groups,
    block_length,
    convergence,
    difference_from_bias,
    free_energy_difference,
    influence,
    integrated_autocorrelation,
)
from ...molecular.free_energy.difference import FewEffectiveSamplesWarning
from ...molecular.pipeline import DifferenceRequest
from ...molecular.pipeline_surfaces import known_log_weights, surfaces_of, weightless
from ..errors import UserError
from ..tables import VARIABLE
from .build import Setup
from .watch import cores, reach_of

__all__ = ["Outcome", "outcome_of"]

_ENOUGH_WALKERS = 16
"""With so many independent walkers errors come from their scatter; with fewer, from blocks of time."""

_MOST_QUADRATURE = 3
_MOST_CELLS = 250_000
"""Of a quadrature, where the kernels of a bias without a grid are summed."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run.

    Attributes:
        setup: what was run.
        arrays: of ``weights.npz``: those of :class:`~feynkac.cli.biased.rows.Rows` and single numbers.
        bias: frozen.
        groups: (T B,) independent groups of the samples, for errors; those without any weight are not counted.
        by_walkers: the groups are whole walkers.
        surface, profiles: free energies with errors, of axes that hold any weight.
        difference: of the region, None without one, or where its variable is finite in no sample with a weight;
            ``from_bias`` as the bias itself has it, without samples, None for an empty bias.
        report: on the difference's convergence.
        notes: on values that are not finite, on weight outside axes, and on what was left out for that.
        ess: effective samples of the weights.
        khat: of their tail.
    """

    setup: Setup
    arrays: Mapping[str, Tensor]
    bias: RepulsionBias
    groups: Tensor
    by_walkers: bool
    surface: FreeEnergySurface | None
    profiles: tuple[FreeEnergySurface, ...]
    difference: FreeEnergyDifference | None
    from_bias: BiasDifference | None
    report: ConvergenceReport | None
    ess: float
    khat: float
    notes: tuple[str, ...] = ()

    def number(self, name: str) -> float:
        """A single number among the arrays."""
        return float(self.arrays[name])


def outcome_of(setup: Setup, arrays: Mapping[str, Tensor], bias: RepulsionBias) -> Outcome:
    """Estimate everything that was asked for, as far as the samples allow.

    Raises:
        UserError: an array is missing.
        WeightError: no sample has a weight.
    """
    try:
        log_weights = arrays["log_weights"]
        values = {v.name: arrays[VARIABLE + v.name] for v in setup.variables}
    except KeyError as error:
        raise UserError(f"weights.npz: has no array {error}") from error
    request, known = setup.request.difference, log_weights
    if request is not None:
        known = known_log_weights(log_weights, values[request.variable])
        request = None if weightless(known) and not weightless(log_weights) else request
    report = None if request is None else _report(setup, request, values[request.variable], known)
    groups, by_walkers = _groups(arrays["bias"], log_weights, report)
    difference = None
    if request is not None:
        with warnings.catch_warnings():  # said by `warnings_of`, also when only the report is drawn again
            warnings.simplefilter("ignore", FewEffectiveSamplesWarning)
            difference = free_energy_difference(
                request.region.contains(values[request.variable]).reshape(-1),
                known.reshape(-1),
                kT=bias.kT,
                bootstrap=request.bootstrap,
                seed=setup.request.seed,
                groups=groups,
            )

    made = surfaces_of(
        {name: value.reshape(-1) for name, value in values.items()},
        log_weights.reshape(-1),
        surface=setup.request.surface,
        profiles=setup.request.profiles,
        kT=bias.kT,
        seed=setup.request.seed,
        groups=groups,
    )
    return Outcome(
        setup=setup,
        arrays=arrays,
        bias=bias,
        groups=groups,
        by_walkers=by_walkers,
        surface=made.surface,
        profiles=made.profiles,
        difference=difference,
        from_bias=None if request is None else _from_bias(setup, bias, request),
        report=report,
        ess=float(effective_sample_size(log_weights.reshape(-1))),
        khat=pareto_smooth(log_weights.reshape(-1)).khat,
        notes=made.notes,
    )


def _report(setup: Setup, request: DifferenceRequest, values: Tensor, log_weights: Tensor) -> ConvergenceReport:
    inside = request.region.contains(values)
    core_in, core_out = cores(values, request, reach_of(values, log_weights > -math.inf))
    axis = next((p.axes[0] for p in setup.request.profiles if p.axes[0].name == request.variable), None)
    return convergence(
        inside,
        log_weights,
        kT=setup.bias.kT,
        core_a=core_in,
        core_b=core_out,
        values=None if axis is None else values,
        axis=axis,
    )


def _groups(bias: Tensor, log_weights: Tensor, report: ConvergenceReport | None) -> tuple[Tensor, bool]:
    """Walkers where there are enough with a weight, else blocks of time of each."""
    steps, walkers = log_weights.shape
    living = int((log_weights > -math.inf).any(dim=0).sum())
    if living >= _ENOUGH_WALKERS:
        return _with_weight(torch.arange(walkers).repeat(steps), log_weights), True
    if report is not None:
        block = report.block
    else:
        series = influence(bias, log_weights)
        varies = bool((series != series.flatten()[0]).any())  # not under an empty bias, which says nothing of memory
        memory = integrated_autocorrelation(series, warn=False).memory if varies else float(steps)
        block = block_length(memory, steps, walkers, warn=False)
    block = min(block, block_length(float(steps), steps, max(1, living), warn=False))  # of few walkers more than one
    return _with_weight(block_groups(steps, walkers, block), log_weights), block >= steps


def _with_weight(groups: Tensor, log_weights: Tensor) -> Tensor:
    """Labels from 0 of the groups that have a weight; samples of others, which add nothing, go to the first."""
    used = log_weights.reshape(-1) > -math.inf
    labels, numbered = torch.unique(groups[used], return_inverse=True)
    found = torch.zeros_like(groups)
    found[used] = numbered
    return found if len(labels) else groups


def _from_bias(setup: Setup, bias: RepulsionBias, request: DifferenceRequest) -> BiasDifference | None:
    """The difference that the bias itself implies; None where it is not of a biased variable, there is no domain, or
    nothing was deposited."""
    if request.variable not in bias.names or not (bias.n_kernels or bias.counts.hills):
        return None
    column = bias.names.index(request.variable)
    axes = None if bias.grid_axes is not None else _quadrature(setup, bias)
    if bias.grid_axes is None and axes is None:
        return None
    return difference_from_bias(bias, lambda s: request.region.contains(s[:, column]), axes=axes)


def _quadrature(setup: Setup, bias: RepulsionBias) -> tuple[Axis, ...] | None:
    """Axes five cells a width over the domain of a bias without a grid."""
    axes = []
    for variable in bias.variables:
        span, period = setup.config.variables[variable.name].range, variable.period
        if period is None and span is None:
            return None
        lower, upper = (span.lower, span.upper) if span is not None else (-(period or 0.0) / 2, (period or 0.0) / 2)
        bins = math.ceil(5 * (upper - lower) / variable.sigma)
        axes.append(Axis(name=variable.name, lower=lower, upper=upper, bins=bins, periodic=period is not None))
    cells = math.prod(axis.bins for axis in axes)
    return tuple(axes) if len(axes) <= _MOST_QUADRATURE and cells <= _MOST_CELLS else None
