"""Whether a free-energy difference from walkers has settled: halves, segments, correlation, crossings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...fkc.pareto import pareto_smooth
from ...fkc.weights import effective_sample_size
from ._contrast import contrast, contrast_influence
from ._profile import ProfileHalves, profile_halves
from ._samples import check_kT, normalized_weights
from .autocorrelation import Autocorrelation, integrated_autocorrelation, weighted_mean
from .axis import Axis
from .blocks import block_groups, block_length
from .crossings import Crossings, count_crossings
from .verdicts import verdicts

__all__ = ["ConvergenceReport", "TimedDifference", "convergence"]

_RUNNING_POINTS = 25


@dataclass(frozen=True, kw_only=True, eq=False)
class TimedDifference:
    """Delta F from several stretches of time, (k,) each; in kT, errors by blocks, NaN where a region was empty.

    Attributes:
        start, stop: steps, ``stop`` excluded.
        value: Delta F.
        std_error: its error.
    """

    start: Tensor
    stop: Tensor
    value: Tensor
    std_error: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvergenceReport:
    """What speaks for and against an estimate of Delta F_AB = -kT ln(sum over A of w / sum over B of w).

    Attributes:
        value: in kT, from all samples.
        std_error: in kT, from the autocovariance of the influence of each frame; NaN when a region is empty.
        std_error_blocks: in kT, from the spread of blocks; it should agree.
        kT: kJ/mol.
        block: steps in a block.
        blocks: number of blocks of all walkers together.
        halves: from the first and the second half of the time.
        halves_z: their difference over its error; NaN when undefined.
        segments: from equal stretches of time.
        trend_z: slope of a line through the segments over its error, taken from ``std_error``; NaN when undefined.
        running: from the start to growing times.
        profile: free energies of the cells of a variable from both halves; None when no values were given.
        ess: Kish's effective sample size of the weights, in frames.
        independent: independent, unweighted samples that would give P(A) with the same error: weights and correlation.
        autocorrelation: of the influence of each frame on Delta F; None when a region is empty.
        khat: Pareto shape of the weights' tail; above 0.7 averages are unreliable.
        crossings: between the cores of A and B, in frames with a weight; walkers without one are left out. ``entered``
            and ``left`` are the events into A and out of it, which a stationary run has alike.
        verdicts: what is wrong, in words; empty when nothing was found.
    """

    value: float
    std_error: float
    std_error_blocks: float
    kT: float
    block: int
    blocks: int
    halves: TimedDifference
    halves_z: float
    segments: TimedDifference
    trend_z: float
    running: TimedDifference
    profile: ProfileHalves | None
    ess: float
    independent: float
    autocorrelation: Autocorrelation | None
    khat: float
    crossings: Crossings
    verdicts: tuple[str, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether no verdict was passed; what was never visited cannot be missed."""
        return not self.verdicts


def convergence(
    in_a: Tensor,
    log_weights: Tensor,
    *,
    kT: float,
    in_b: Tensor | None = None,
    core_a: Tensor | None = None,
    core_b: Tensor | None = None,
    values: Tensor | None = None,
    axis: Axis | None = None,
    segments: int = 5,
    block: int | None = None,
) -> ConvergenceReport:
    """Report on Delta F between regions A and B from walkers with weights.

    Args:
        in_a: (T, B) or (T,) bool, whether a frame lies in A; a row a time.
        log_weights: raw, the same shape; -inf for frames that do not count.
        kT: kJ/mol.
        in_b: whether a frame lies in B; everything not in A when left out.
        core_a, core_b: cores of the regions for counting crossings; the regions themselves when left out, which counts
            every recrossing of a shared border.
        values: one variable, the same shape, for profiles of both halves; needs ``axis``.
        axis: of the profiles.
        segments: number of stretches of time, at least 3.
        block: steps in a block; chosen from the correlation time when left out.

    Raises:
        ValueError: for shapes that do not fit, fewer than 4 steps a segment, or regions that overlap.
        WeightError: for weights that cannot be normalised.

    Example:
        >>> report = convergence(phi > 0, log_weights, kT=2.494, core_a=abs(phi - 1) < 0.3, core_b=abs(phi + 1.3) < 0.5)
        >>> report.converged, report.verdicts
    """
    check_kT(kT)
    a, b, raw = _shaped(in_a, in_b, log_weights, segments)
    steps, walkers = raw.shape
    weights = normalized_weights(raw.reshape(-1)).reshape(raw.shape)
    cores = [_core(name, core, region) for name, core, region in (("core_a", core_a, a), ("core_b", core_b, b))]
    crossings = count_crossings(*cores, alive=raw > -math.inf)
    correlation = _correlation(weights, a, b)
    if block is None:
        memory = float(steps) if correlation is None else correlation.memory
        block = block_length(memory, steps, walkers, warn=False)
    groups = block_groups(steps, walkers, block)
    value, by_blocks = contrast(weights.reshape(-1), a.reshape(-1), b.reshape(-1), groups)
    std_error = math.nan if correlation is None else correlation.std_error
    halves = _stretches(weights, a, b, block, _even(steps, 2))
    parts = _stretches(weights, a, b, block, _even(steps, segments))
    report = ConvergenceReport(
        value=value,
        std_error=std_error,
        std_error_blocks=by_blocks,
        kT=float(kT),
        block=block,
        blocks=int(groups.max()) + 1,
        halves=halves,
        halves_z=_halves_z(halves),
        segments=parts,
        trend_z=_trend_z(parts, std_error),
        running=_stretches(weights, a, b, block, [(0, stop) for _, stop in _even(steps, min(_RUNNING_POINTS, steps))]),
        profile=_profile(values, axis, weights, block),
        ess=float(effective_sample_size(raw.reshape(-1))),
        independent=0.0 if correlation is None else weighted_mean(a.double(), raw, warn=False).effective,
        autocorrelation=correlation,
        khat=pareto_smooth(raw.reshape(-1)).khat,
        crossings=crossings,
    )
    return replace(report, verdicts=verdicts(report))


def _shaped(a: Tensor, b: Tensor | None, log_weights: Tensor, segments: int) -> tuple[Tensor, Tensor, Tensor]:
    b = ~a if b is None and a.dtype == torch.bool else a if b is None else b
    if not a.shape == b.shape == log_weights.shape or a.ndim not in (1, 2) or {a.dtype, b.dtype} != {torch.bool}:
        raise ValueError(
            f"regions and log_weights must be (T, B), regions bool, got {a.dtype} {tuple(a.shape)}, {b.dtype} "
            f"{tuple(b.shape)}, {tuple(log_weights.shape)}"
        )
    if bool((a & b).any()):
        raise ValueError("the regions overlap")
    if segments < 3 or a.shape[0] < 4 * segments:
        raise ValueError(f"{a.shape[0]} steps make fewer than 4 steps for each of {segments} (at least 3) segments")
    flat = [x.detach().cpu().reshape(x.shape[0], -1) for x in (a, b, log_weights)]
    return flat[0], flat[1], flat[2].double()


def _core(name: str, core: Tensor | None, region: Tensor) -> Tensor:
    """(T, B), the region itself when left out."""
    if core is None:
        return region
    if core.ndim not in (1, 2) or core.numel() != region.numel() or core.shape[0] != region.shape[0]:
        raise ValueError(f"{name} must be {tuple(region.shape)} bool, got {tuple(core.shape)}")
    return core.detach().cpu().reshape(region.shape)


def _correlation(weights: Tensor, a: Tensor, b: Tensor) -> Autocorrelation | None:
    """Of the influence on Delta F; None when one region has no weight."""
    if not (float(weights[a].sum()) > 0 and float(weights[b].sum()) > 0):
        return None
    return integrated_autocorrelation(weights.numel() * contrast_influence(weights, a, b), warn=False)


def _even(steps: int, parts: int) -> list[tuple[int, int]]:
    ends = [round(k * steps / parts) for k in range(parts + 1)]
    return list(itertools.pairwise(ends))


def _stretches(weights: Tensor, a: Tensor, b: Tensor, block: int, bounds: Sequence[tuple[int, int]]) -> TimedDifference:
    found = []
    for start, stop in bounds:
        groups = block_groups(stop - start, weights.shape[1], min(block, stop - start))
        part = slice(start, stop)
        found.append(contrast(weights[part].reshape(-1), a[part].reshape(-1), b[part].reshape(-1), groups))
    return TimedDifference(
        start=torch.tensor([start for start, _ in bounds]),
        stop=torch.tensor([stop for _, stop in bounds]),
        value=torch.tensor([value for value, _ in found], dtype=torch.float64),
        std_error=torch.tensor([error for _, error in found], dtype=torch.float64),
    )


def _halves_z(halves: TimedDifference) -> float:
    error = float(halves.std_error.square().sum().sqrt())
    return float(halves.value[1] - halves.value[0]) / error if error > 0 else math.nan


def _trend_z(parts: TimedDifference, std_error: float) -> float:
    """Slope over its error; one error for all segments, as that of a few blocks is noise and depends on the value."""
    count = len(parts.value)
    if not (bool(torch.isfinite(parts.value).all()) and std_error > 0):
        return math.nan
    time = torch.arange(count, dtype=torch.float64) - (count - 1) / 2
    return float((time * parts.value).sum() / (time.square().sum() * count).sqrt()) / std_error


def _profile(values: Tensor | None, axis: Axis | None, weights: Tensor, block: int) -> ProfileHalves | None:
    if (values is None) != (axis is None):
        raise ValueError("a profile needs both values and axis")
    if values is None or axis is None:
        return None
    if values.numel() != weights.numel() or values.shape[0] != weights.shape[0]:
        raise ValueError(f"values must be {tuple(weights.shape)}, got {tuple(values.shape)}")
    return profile_halves(values.detach().cpu().double().reshape(weights.shape), weights, axis, block)
