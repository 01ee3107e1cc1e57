"""Estimates from weighted frames: surface, difference, errors, what speaks against them."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fkc.pareto import pareto_smooth
from ...fkc.weights import effective_sample_size, normalize
from ...molecular.free_energy import (
    Axis,
    BlockErrorCurve,
    ConvergenceReport,
    FewEffectiveSamplesWarning,
    FreeEnergyDifference,
    FreeEnergySurface,
    block_error_curve,
    block_groups,
    block_length,
    convergence,
    free_energy_difference,
    free_energy_surface,
    influence,
    integrated_autocorrelation,
)
from ...molecular.free_energy.difference import FEW_EFFECTIVE_SAMPLES
from ...molecular.pipeline import DifferenceRequest
from ..biased.watch import cores, reach_of
from ..errors import UserError
from ..results import KHAT_LIMIT
from .options import FesOptions
from .samples import Samples
from .texts import Box

__all__ = ["Estimates", "estimate"]

ENOUGH_WALKERS = 16
"""With so many independent walkers errors come from their scatter; with fewer, from blocks of time."""

BOOTSTRAP = 200
SEED = 0
_SEGMENTS = 5
_FEWEST_STEPS = 4 * _SEGMENTS
_FEWEST_GROUPS = 8
_APART = 2.0
"""Errors from groups and from correlation that differ by this factor are worth a word."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """What weighted frames say.

    Attributes:
        samples: the frames.
        kT: kJ/mol.
        surface: with errors.
        groups: number of independent groups behind the errors.
        grouping: what they are, in words.
        block: frames in a block; None where the groups are walkers.
        correlation: correlation time in frames of the slowest thing looked at.
        ess: Kish's effective samples of the weights.
        khat: Pareto shape of their tail.
        inside, outside: regions of the difference; outside None: the rest.
        difference, report, curve: of the difference; None without one, or with too few frames.
    """

    samples: Samples
    kT: float
    surface: FreeEnergySurface
    groups: int
    grouping: str
    block: int | None
    correlation: float
    ess: float
    khat: float
    inside: Box | None = None
    outside: Box | None = None
    difference: FreeEnergyDifference | None = None
    report: ConvergenceReport | None = None
    curve: BlockErrorCurve | None = None

    def warnings(self) -> list[str]:
        """What a reader of the numbers should know."""
        notes = list(self.samples.notes)
        if self.khat > KHAT_LIMIT:
            notes.append(f"Pareto k-hat is {self.khat:.2f}, above {KHAT_LIMIT}: the weights have too heavy a tail")
        if self.surface.n_outside:
            notes.append(f"{self.surface.n_outside:,} frames lie outside the grid; they count in the normalisation")
        if self.report is None and self.groups < _FEWEST_GROUPS:
            notes.append(f"only {self.groups} independent groups: the errors themselves are guesses")
        if self.difference is None:
            return notes
        few = min(self.difference.ess_inside, self.difference.ess_outside)
        if few < FEW_EFFECTIVE_SAMPLES:
            notes.append(f"only {few:.1f} effective frames on one side of ΔF: it and its error are unreliable")
        if self.report is None:
            return [*notes, f"fewer than {_FEWEST_STEPS} frames a walker: nothing can be said of convergence"]
        tail = "the weights have a heavy tail"
        notes += [f"convergence: {verdict}" for verdict in self.report.verdicts if not verdict.startswith(tail)]
        mine, other = self.difference.std_error, self.report.std_error
        if mine > 0 and other > 0 and max(mine / other, other / mine) > _APART:
            text = f"the error of ΔF is {mine:.2f} kT from {self.grouping}, but {other:.2f} kT from autocorrelation"
            notes.append(f"{text}: take the larger, or run longer")
        return notes


def estimate(
    samples: Samples, axes: tuple[Axis, ...], inside: Box | None, outside: Box | None, options: FesOptions
) -> Estimates:
    """Surface, and difference of two regions, with errors by independent groups.

    Raises:
        UserError: blocks that do not fit, or no frame inside the grid.
    """
    kT = options.needed_kT("reweighting samples")
    logs = samples.log_weights
    a = None if inside is None else inside.contains(samples.columns)
    b = None if outside is None else outside.contains(samples.columns)
    report = None if a is None or len(logs) < _FEWEST_STEPS else _report(samples, a, b, inside, kT, options)
    slowest = _slowest(samples)
    memory = slowest[1] if report is None or report.autocorrelation is None else max(
        slowest[1], report.autocorrelation.memory
    )  # fmt: skip
    labels, grouping, block = _groups(logs, memory, options)
    kept = (logs > -math.inf).reshape(-1)
    groups = torch.unique(labels[kept], return_inverse=True)[1]
    count = int(groups.max()) + 1
    if count < 2:
        raise UserError("all frames with a weight are in one block: no error can be told; use more --blocks")
    flat, weights = samples.values.reshape(-1, len(samples.names))[kept], logs.reshape(-1)[kept]
    try:
        surface = free_energy_surface(
            flat,
            weights,
            kT=kT,
            axes=axes,
            method="histogram" if options.kde is None else "kde",
            bandwidth=options.kde,
            bootstrap=BOOTSTRAP,
            seed=SEED,
            groups=groups,
        )
    except ValueError as error:
        if "inside the axes" in str(error):
            raise UserError("--min and --max: no frame lies between them") from error
        raise
    return Estimates(
        samples=samples,
        kT=kT,
        surface=surface,
        groups=count,
        grouping=grouping.format(count=f"{count:,}"),
        block=block,
        correlation=slowest[0],
        ess=float(effective_sample_size(weights)),
        khat=pareto_smooth(weights).khat,
        inside=inside,
        outside=outside,
        difference=None if a is None else _difference(a, b, logs, kept, kT, groups),
        report=report,
        curve=None if a is None else _curve(a, b, logs),
    )


def _difference(
    a: Tensor, b: Tensor | None, logs: Tensor, kept: Tensor, kT: float, groups: Tensor
) -> FreeEnergyDifference:
    with warnings.catch_warnings():  # said by `Estimates.warnings`
        warnings.simplefilter("ignore", FewEffectiveSamplesWarning)
        return free_energy_difference(
            a.reshape(-1)[kept],
            logs.reshape(-1)[kept],
            kT=kT,
            outside=None if b is None else b.reshape(-1)[kept],
            bootstrap=BOOTSTRAP,
            seed=SEED,
            groups=groups,
        )


def _report(
    samples: Samples, a: Tensor, b: Tensor | None, inside: Box | None, kT: float, options: FesOptions
) -> ConvergenceReport:
    core_a, core_b = None, None
    if b is None and inside is not None and len(inside.sides) == 1:
        name, region = inside.sides[0]
        values, request = samples.columns[name], DifferenceRequest(variable=name, region=region, bootstrap=0)
        inner, outer = cores(values, request, reach_of(values, samples.log_weights > -math.inf))
        if bool(inner.any()) and bool(outer.any()):  # otherwise the border itself is what is crossed
            core_a, core_b = inner, outer
    logs = samples.log_weights
    block = None if options.blocks is None else max(1, len(logs) // options.blocks)
    return convergence(a, logs, kT=kT, in_b=b, core_a=core_a, core_b=core_b, segments=_SEGMENTS, block=block)


def _slowest(samples: Samples) -> tuple[float, float]:
    """Longest correlation time and memory, in frames, of the influences on means of the variables."""
    logs = samples.log_weights
    found = [(0.5, 0.0)]
    if len(logs) < 4:
        return found[0]
    for name, values in samples.columns.items():
        period = samples.periods[name]
        angle = None if period is None else 2 * math.pi * values / period
        for series in (values,) if angle is None else (angle.cos(), angle.sin()):
            moves = influence(torch.where(logs > -math.inf, series, 0.0), logs)
            if float(moves.var()) > 0:
                result = integrated_autocorrelation(moves, warn=False)
                found.append((result.tau, result.memory))
    return max(tau for tau, _ in found), max(memory for _, memory in found)


def _groups(logs: Tensor, memory: float, options: FesOptions) -> tuple[Tensor, str, int | None]:
    """Labels (T B,), what they are in words, and frames in a block."""
    steps, walkers = logs.shape
    if options.blocks is not None:
        if options.blocks > steps:
            raise UserError(f"--blocks {options.blocks}: a walker has {steps:,} frames")
        block = max(1, steps // options.blocks)
        labels = (torch.arange(steps) * options.blocks // steps)[:, None] * walkers + torch.arange(walkers)
        return labels.reshape(-1), "{count} blocks of time, as asked for", block
    if walkers >= ENOUGH_WALKERS:
        return torch.arange(walkers).repeat(steps), "{count} walkers", None
    if steps * walkers < 2:
        raise UserError("one frame is too few for an error")
    block = block_length(memory, steps, walkers, warn=False)
    return block_groups(steps, walkers, block), "{count} blocks of time", block


def _curve(a: Tensor, b: Tensor | None, logs: Tensor) -> BlockErrorCurve | None:
    """Error of Delta F in kT for growing blocks: that of the mean of 1_B / P(B) - 1_A / P(A), which is zero."""
    weights = normalize(logs.reshape(-1)).reshape(logs.shape)
    b = ~a if b is None else b
    p, q = float(weights[a].sum()), float(weights[b & (logs > -math.inf)].sum())
    if not (p > 0 and q > 0) or logs.numel() < 8:
        return None
    return block_error_curve(b.double() / q - a.double() / p, logs)
