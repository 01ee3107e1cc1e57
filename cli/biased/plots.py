"""The pictures of biased dynamics, each a function from an outcome to a matplotlib figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ...molecular.free_energy import Axis, ConvergenceReport, FreeEnergyDifference
from ...steering.plot_style import colour
from ..report.style import ACCENT, INK, MUTED, SECOND, Array, figure, style_axes, styled, to_display
from ..report.surface_parts import closed, closed_points, shade_region
from ..tables import VARIABLE
from .results import Outcome

__all__ = ["draw_convergence", "draw_filling", "draw_halves", "draw_walkers"]

_NAMES = {"fill": "filling", "burn-in": "burn-in"}
_STAGES = tuple(_NAMES)
_WIDEST_BAR_KT = 1e4
_SHOWN_KT = 15.0
_REFERENCE = "#3f8f5b"
_SHOWN_WALKERS, _MOST_COLUMNS = 4, 2


@styled
def draw_filling(outcome: Outcome) -> Figure:
    """The bias that walkers feel while it grows; and c(t), or for OPES the number of kernels."""
    time, low, mean, high, rct = (
        _array(outcome, f"fill.{name}") for name in ("time", "bias_min", "bias_mean", "bias_max", "rct")
    )
    fig, panels = figure(8.6, 3.2, 2)
    left, right = panels
    left.fill_between(time, low, high, color=ACCENT, alpha=0.18, lw=0, label="all walkers")
    left.plot(time, high, color=ACCENT, lw=1.0, label="highest")
    left.plot(time, mean, color=INK, lw=1.5, label="mean")
    left.set(title="Bias felt while it grows", xlabel="time (ps)", ylabel="V (kJ/mol)", xlim=(0.0, time[-1]))
    left.legend(loc="lower right")
    if np.isfinite(rct).any():
        right.plot(time, rct, color=SECOND)
        right.set(title="c(t), the offset of the bias", ylabel="c(t) (kJ/mol)")
    else:
        right.plot(time, _array(outcome, "fill.kernels"), color=SECOND)
        right.set(title="Kernels after merging", ylabel="kernels")
        right.set_ylim(0.0, None)
    right.set(xlabel="time (ps)", xlim=(0.0, time[-1]))
    return fig


@styled
def draw_walkers(outcome: Outcome) -> Figure:
    """The first biased variables of a few walkers through all stages, a row a walker."""
    names, request = outcome.bias.names[:_MOST_COLUMNS], outcome.setup.request.difference
    stages = [stage for stage in _STAGES if f"{stage}.time" in outcome.arrays]  # not those of no length
    early = [_array(outcome, f"{stage}.series") for stage in stages]
    times = [_array(outcome, f"{stage}.time") for stage in stages]
    followed = early[0].shape[1] if early else outcome.arrays["log_weights"].shape[1]
    shown = min(_SHOWN_WALKERS, followed)
    time = np.concatenate([*times, _array(outcome, "time")])
    fig = Figure(figsize=(5.2 * len(names) + 0.4, 1.1 * shown + 1.0), layout="constrained")
    panels = fig.subplots(shown, len(names), sharex=True, sharey="col", squeeze=False)
    for k, name in enumerate(names):
        series = np.concatenate([*(part[..., k] for part in early), _array(outcome, VARIABLE + name)[:, :followed]])
        variable = next(v for v in outcome.setup.variables if v.name == name)
        axis = _axis(name, variable.period, variable.unit, series)
        for walker, ax in enumerate(panels[:, k]):
            ax.plot(time, to_display(axis, series[:, walker]), ls="none", marker=".", ms=2.2, color=colour(walker))
            style_axes(ax, axis, "y")
            if request is not None and request.variable == name:
                _mark_region(ax, axis, request.region.lower, request.region.upper)
            for end in (t[-1] for t in times if len(t)):
                ax.axvline(end, color=INK, lw=0.9, ls="--")
        panels[-1, k].set(xlabel="time (ps)", xlim=(0.0, time[-1]))
    passed = ", ".join([*(_NAMES[stage] for stage in stages), "production"])
    title = f"{shown} of {outcome.setup.settings.walkers:,} walkers: {passed}"
    panels[0, 0].set_title(title)
    return fig


@styled
def draw_convergence(outcome: Outcome, report: ConvergenceReport, difference: FreeEnergyDifference) -> Figure:
    """The difference from growing and from separate stretches of the production, with what the bias says."""
    settings = outcome.setup.settings
    record = settings.record_steps * settings.time_step
    fig, (left, right) = figure(9.6, 3.3, 2, sharey=True)
    running = report.running
    time = running.stop.numpy() * record
    left.fill_between(time, *_band(running.value, running.std_error, 2.0), color=ACCENT, alpha=0.18, lw=0)
    left.fill_between(time, *_band(running.value, running.std_error, 1.0), color=ACCENT, alpha=0.35, lw=0)
    left.plot(time, running.value.numpy(), color=INK, marker=".", ms=4)
    left.set(title="Running estimate of ΔF", xlabel="production (ps)", ylabel="ΔF (kT)", xlim=(0.0, time[-1]))
    for stretches, shade, name in ((report.segments, SECOND, "fifths"), (report.halves, MUTED, "halves")):
        middle = 0.5 * (stretches.start + stretches.stop).double().numpy() * record
        width = 0.5 * (stretches.stop - stretches.start).double().numpy() * record
        bars: dict[str, Any] = {"xerr": width, "yerr": stretches.std_error.numpy()}
        right.errorbar(middle, stretches.value.numpy(), **bars, fmt="o", ms=4, color=shade, label=name, capsize=2)
    right.set(title="Stretches of the production", xlabel="production (ps)", xlim=(0.0, time[-1]))
    for ax in (left, right):
        ax.axhline(difference.value, color=INK, lw=0.9, ls="-", zorder=0)
    _limit(left, outcome, report, difference)
    for ax in (left, right):
        _mark_others(ax, outcome)
    right.legend(loc="best", ncols=2)
    if left.get_legend_handles_labels()[0]:
        left.legend(loc="best")
    return fig


@styled
def draw_halves(outcome: Outcome, report: ConvergenceReport) -> Figure:
    """Profiles along the region's variable from both halves, and their difference in standard errors."""
    profile = report.profile
    assert profile is not None
    axis = profile.axis
    fig, (left, right) = figure(9.2, 3.3, 2)
    points = closed_points(axis)
    lowest = float(profile.value.min())
    for half, (shade, name) in enumerate(((ACCENT, "first half"), (SECOND, "second half"))):
        value, error = (closed(part[half].numpy(), axis) for part in (profile.value - lowest, profile.std_error))
        value = np.where(np.isfinite(value), value, np.nan)
        left.fill_between(points, value - 2 * error, value + 2 * error, color=shade, alpha=0.2, lw=0)
        left.plot(points, value, color=shade, lw=1.3, label=name)
    left.set(title="Profiles of both halves", ylabel="free energy (kT)", ylim=(-0.4, _SHOWN_KT))
    left.legend(loc="best")
    z = closed(profile.z.numpy(), axis)
    right.axhspan(-2, 2, color=MUTED, alpha=0.18, lw=0)
    right.plot(points, np.where(np.isfinite(z), z, np.nan), ls="none", marker="o", ms=3, color=INK)
    right.set(title="Second half minus first", ylabel="standard errors")
    reach = max(4.0, float(np.nanmax(np.abs(z[np.isfinite(z)]), initial=0.0)) + 0.5)
    right.set_ylim(-reach, reach)
    request = outcome.setup.request.difference
    for ax in (left, right):
        if request is not None:
            shade_region(ax, axis, request)
        style_axes(ax, axis, "x")
    return fig


# --- parts ------------------------------------------------------------------------------------------------------------


def _array(outcome: Outcome, name: str) -> Array:
    found: Array = outcome.arrays[name].double().numpy()
    return found


def _band(value: Tensor, error: Tensor, times: float) -> tuple[Array, Array]:
    low, high = value - times * error, value + times * error
    return low.numpy(), high.numpy()


def _axis(name: str, period: float | None, unit: str, values: Array) -> Axis:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if period is not None:
        low, high = -period / 2, period / 2
    elif not low < high:
        low, high = low - 0.5, high + 0.5
    return Axis(name=name, lower=low, upper=high, bins=2, periodic=period is not None, unit=unit)


def _mark_region(ax: Panel, axis: Axis, lower: float, upper: float) -> None:
    spans = [(lower, upper)] if lower < upper else [(lower, axis.upper), (axis.lower, upper)]
    for low, high in spans:
        ax.axhspan(*to_display(axis, [low, high]), color=SECOND, alpha=0.10, lw=0)


def _mark_others(ax: Panel, outcome: Outcome) -> None:
    """What the bias itself says, and the reference: as a band, or beyond the limits as an arrow with its value."""
    if outcome.from_bias is not None and math.isfinite(outcome.from_bias.value):
        ax.axhline(outcome.from_bias.value, color=SECOND, lw=1.0, ls=":", zorder=0, label="read off the bias")
    known, (low, high) = _reference(outcome), ax.get_ylim()
    if known is None:
        return
    value, error = known
    if value + error > low and value - error < high:
        ax.axhspan(value - error, value + error, color=_REFERENCE, alpha=0.3, lw=0, zorder=0, label="reference")
        return
    edge, away = (1.0, -1.0) if value > high else (0.0, 1.0)
    ax.annotate(
        f"reference {value:.2f} kT",
        xy=(0.5, edge),
        xytext=(0.5, edge + 0.14 * away),
        xycoords="axes fraction",
        textcoords="axes fraction",
        ha="center",
        va="center",
        fontsize=8,
        color=_REFERENCE,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        arrowprops={"arrowstyle": "->", "color": _REFERENCE},
    )


def _reference(outcome: Outcome) -> tuple[float, float] | None:
    request = outcome.setup.request.difference
    known = outcome.setup.reference.get("delta_f_kT")
    if request is None or not isinstance(known, dict):
        return None
    key = f"probability_{request.region.lower:g}_{request.variable}_{request.region.upper:g}"
    return (known["value"], known.get("std_error", 0.0)) if key in outcome.setup.reference else None


def _limit(ax: Panel, outcome: Outcome, report: ConvergenceReport, difference: FreeEnergyDifference) -> None:
    """Limits that leave out the wild first estimates."""
    values = [difference.value]
    for stretches in (report.segments, report.halves):
        finite = np.isfinite(stretches.value.numpy()) & (stretches.std_error.numpy() < _WIDEST_BAR_KT)
        spread = np.stack(_band(stretches.value, stretches.std_error, 1.5))
        values += spread[:, finite].ravel().tolist()
    if outcome.from_bias is not None:
        values.append(outcome.from_bias.value)
    finite_values = [v for v in values if math.isfinite(v)]
    if finite_values:
        margin = 0.15 + 0.1 * (max(finite_values) - min(finite_values))
        ax.set_ylim(min(finite_values) - margin, max(finite_values) + margin)
    ax.yaxis.set_major_locator(MaxNLocator(6))
