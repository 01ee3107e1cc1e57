"""Pictures of how estimates settle: drift of a sum of hills, Delta F of samples over time and blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from torch import Tensor

from ..report.style import ACCENT, INK, MUTED, SECOND, figure, style_axes, styled
from ..report.surface_parts import closed, closed_points
from .estimates import Estimates
from .landscape import Landscape
from .plots import Unit, shown_values

__all__ = ["draw_difference", "draw_drift"]

_MOST_PROFILES = 40


@styled
def draw_drift(
    hills: Sequence[int], landscapes: Sequence[Landscape], differences: Sequence[float] | None, unit: Unit
) -> Figure:
    """How F moves as hills are added: profiles over time, or the change between files; and Delta F.

    Args:
        hills: number of hills behind each landscape.
        landscapes: of one grid, two at least.
        differences: Delta F of each in kJ/mol, or None.
        unit: to show.
    """
    one_dimensional = len(landscapes[0].axes) == 1
    fig, panels = figure(9.2, 3.4, 2)
    if one_dimensional:
        _profiles_in_time(fig, panels[0], hills, landscapes, unit)
    else:
        _changes(panels[0], hills, landscapes, unit)
    if differences is None:
        if one_dimensional:
            _changes(panels[1], hills, landscapes, unit)
        else:
            spread = [float(np.nanmax(shown_values(one, unit))) for one in landscapes]
            panels[1].plot(hills, spread, color=SECOND, marker=".")
            panels[1].set(title="Highest above lowest value", xlabel="hills", ylabel=unit.name)
    else:
        panels[1].plot(hills, np.array(differences) * unit.factor, color=SECOND, marker=".")
        panels[1].axhline(differences[-1] * unit.factor, color=MUTED, lw=0.8, ls="--", zorder=0)
        panels[1].set(title="ΔF read off the hills, no error bar", xlabel="hills", ylabel=f"ΔF ({unit.name})")
    for ax in panels[one_dimensional:]:
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return fig


def _profiles_in_time(
    fig: Figure, ax: Panel, hills: Sequence[int], landscapes: Sequence[Landscape], unit: Unit
) -> None:
    (axis,) = landscapes[0].axes
    chosen = sorted({*np.linspace(0, len(landscapes) - 1, min(_MOST_PROFILES, len(landscapes))).round().astype(int)})
    colours = matplotlib.colormaps["viridis"].reversed()
    norm = matplotlib.colors.Normalize(hills[0], hills[-1])
    for k in chosen:
        shown = closed(shown_values(landscapes[k], unit), axis)
        ax.plot(closed_points(axis), shown, color=colours(norm(hills[k])), lw=1.0)
    style_axes(ax, axis, "x")
    ax.set(title="As hills are added", ylabel=f"free energy ({unit.name})")
    fig.colorbar(matplotlib.cm.ScalarMappable(norm, colours), ax=ax, pad=0.02, aspect=26, label="hills")


def _changes(ax: Panel, hills: Sequence[int], landscapes: Sequence[Landscape], unit: Unit) -> None:
    moved = [a.change_from(b) * unit.factor for b, a in itertools.pairwise(landscapes)]
    ax.plot(hills[1:], moved, color=ACCENT, marker=".")
    ax.set(title="Change since the file before", xlabel="hills", ylabel=f"r.m.s. change ({unit.name})")
    ax.set_ylim(0.0, None)


@styled
def draw_difference(found: Estimates, unit: Unit) -> Figure:
    """Delta F from growing times and from separate stretches, and its error for growing blocks."""
    difference, report, curve = found.difference, found.report, found.curve
    assert difference is not None
    assert report is not None
    fig, (left, middle, right) = figure(12.0, 3.4, 3)
    scale, kT = found.samples.spacing or 1.0, found.kT * unit.factor
    time = "time (ps)" if found.samples.spacing is not None else "frames a walker"
    running = report.running
    end = running.stop.numpy() * scale
    value, error = running.value.numpy() * kT, running.std_error.numpy() * kT
    left.fill_between(end, value - 2 * error, value + 2 * error, color=ACCENT, alpha=0.18, lw=0, label="± 2 s.e.")
    left.fill_between(end, value - error, value + error, color=ACCENT, alpha=0.35, lw=0, label="± 1 s.e.")
    left.plot(end, value, color=INK, marker=".", ms=4)
    left.set(title="Running estimate of ΔF", xlabel=time, ylabel=f"ΔF ({unit.name})", xlim=(0.0, end[-1]))
    for stretches, shade, name in ((report.segments, SECOND, "fifths"), (report.halves, MUTED, "halves")):
        centre = 0.5 * (stretches.start + stretches.stop).double().numpy() * scale
        width = 0.5 * (stretches.stop - stretches.start).double().numpy() * scale
        bars = stretches.std_error.numpy() * kT
        middle.errorbar(centre, stretches.value.numpy() * kT, xerr=width, yerr=bars, fmt="o", ms=4, color=shade,
                        label=name, capsize=2)  # fmt: skip
    middle.set(title="Stretches of time", xlabel=time, ylabel=f"ΔF ({unit.name})", xlim=(0.0, end[-1]))
    for ax in (left, middle):
        ax.axhline(difference.value * kT, color=INK, lw=0.9, zorder=0)
    left.legend(loc="best")
    middle.legend(loc="best", ncols=2)
    _limit(left, report.segments.value * kT, report.segments.std_error * kT, difference.value * kT)
    if curve is None:
        right.set_axis_off()
        return fig
    lengths = curve.lengths.numpy() * scale
    by_blocks, spread = curve.std_error.numpy() * kT, curve.spread.numpy() * kT
    right.errorbar(lengths, by_blocks, yerr=spread, color=ACCENT, marker="o", ms=4, capsize=2)
    right.axhline(difference.std_error * kT, color=SECOND, lw=1.0, ls="--", label=f"quoted: {found.grouping}")
    right.set_xscale("log")
    right.set_ylim(0.0, None)
    right.set(
        title="Error of ΔF by blocks", xlabel="length of a block: " + time, ylabel=f"standard error ({unit.name})"
    )
    right.legend(loc="lower right")
    return fig


def _limit(ax: Panel, values: Tensor, errors: Tensor, value: float) -> None:
    """Limits that leave out the wild first estimates."""
    low, high = (values - 2 * errors).numpy(), (values + 2 * errors).numpy()
    ends = [v for v in (*low, *high, value) if math.isfinite(v)]
    if ends:
        margin = 0.05 * (max(ends) - min(ends)) + 1e-9
        ax.set_ylim(min(ends) - margin, max(ends) + margin)
