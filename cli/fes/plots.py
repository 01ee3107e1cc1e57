"""Pictures of `feynkac fes`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ...molecular.free_energy import Axis, Region
from ..report.style import ACCENT, INK, SECOND, Array, figure, style_axes, styled, to_display
from ..report.surface_parts import box, closed, closed_points
from .landscape import Landscape
from .texts import Box

__all__ = ["NEGATIVE_BIAS", "Unit", "draw_landscape", "shown_values"]

NEGATIVE_BIAS = "Negative bias"
"""Title of what is no free energy."""

_CAP_KT = 10.0
"""Surfaces of samples are coloured up to this many kT: above it samples are too few."""


@dataclass(frozen=True)
class Unit:
    """Of energies as they are shown: a kJ/mol is ``factor`` of it."""

    name: str
    factor: float

    @classmethod
    def of(cls, name: str, kT: float | None) -> Unit:
        """By name; kT needs a value."""
        return cls(name, {"kJ/mol": 1.0, "kcal/mol": 1 / 4.184}.get(name) or 1 / (kT or math.nan))


@styled
def draw_landscape(
    landscape: Landscape, unit: Unit, *, title: str, cap_kT: float | None = None, regions: Sequence[Box] = ()
) -> Figure:
    """F of one or two variables from its lowest value on.

    Args:
        landscape: of one or two variables.
        unit: to show.
        title: of the picture.
        cap_kT: kT in kJ/mol of a surface from samples, whose colours end at 10 kT; None for no cap.
        regions: to mark.
    """
    if len(landscape.axes) == 2:
        return _surface(landscape, unit, title, cap_kT, regions)
    return _profile(landscape, unit, title, regions)


def _profile(landscape: Landscape, unit: Unit, title: str, regions: Sequence[Box]) -> Figure:
    (axis,) = landscape.axes
    fig, (ax,) = figure(5.4, 3.5)
    points, values = closed_points(axis), closed(shown_values(landscape, unit), axis)
    for number, region in enumerate(regions):
        for _, interval in region.sides:
            for low, high in _spans(axis, interval):
                ax.axvspan(low, high, color=(SECOND, ACCENT)[number % 2], alpha=0.10, lw=0)
    if landscape.error is not None:
        error = closed(landscape.error.numpy() * unit.factor, axis)
        ax.fill_between(
            points, values - 2 * error, values + 2 * error, color=ACCENT, alpha=0.18, lw=0, label="± 2 s.e."
        )
        ax.fill_between(points, values - error, values + error, color=ACCENT, alpha=0.35, lw=0, label="± 1 s.e.")
        ax.legend(loc="upper left")
    ax.plot(points, values, color=INK, lw=1.4, marker="." if landscape.error is not None else "", ms=2.5)
    style_axes(ax, axis, "x")
    top = float(np.nanmax(values, initial=0.0))
    ax.set(
        title=title,
        ylabel=f"{_quantity(title)} ({unit.name})",
        ylim=(-0.04 * top - 0.05 * unit.factor, 1.08 * top + 1e-9),
    )
    return fig


def _surface(landscape: Landscape, unit: Unit, title: str, cap_kT: float | None, regions: Sequence[Box]) -> Figure:
    x, y = landscape.axes
    fig, (ax,) = figure(5.6, 4.5)
    values = shown_values(landscape, unit)
    for k, axis in enumerate((x, y)):
        values = np.concatenate([values, values.take([0], axis=k)], axis=k) if axis.periodic else values
    shown = np.ma.masked_invalid(values)
    top = float(shown.max()) if shown.count() else 1.0
    cap = top if cap_kT is None else min(top, _CAP_KT * cap_kT * unit.factor)
    white = matplotlib.colormaps["viridis"].with_extremes(over="white", bad="white")
    mesh = ax.pcolormesh(_edges(x), _edges(y), shown.T, cmap=white, vmin=0, vmax=max(cap, 1e-9), rasterized=True)
    masked = np.ma.masked_greater(shown, cap)
    highest = float(masked.max()) if masked.count() else 0.0
    levels = [level for level in MaxNLocator(10, steps=[1, 2, 5, 10]).tick_values(0, cap) if 0 < level < highest]
    if levels:
        ax.contour(
            closed_points(x), closed_points(y), masked.T, levels=levels, colors="white", linewidths=0.6, alpha=0.85
        )
    for number, region in enumerate(regions):
        _outline(ax, (x, y), region, ((SECOND, "--"), (INK, ":"))[number % 2])
    style_axes(ax, x, "x")
    style_axes(ax, y, "y")
    box(ax)
    ax.set_title(title)
    bar = fig.colorbar(mesh, ax=ax, pad=0.02, aspect=26)
    step = f", a contour each {levels[1] - levels[0]:g}" if len(levels) > 1 else ""
    bar.set_label(f"{_quantity(title)} ({unit.name}){step}")
    return fig


# --- parts ------------------------------------------------------------------------------------------------------------


def _quantity(title: str) -> str:
    return "-V" if title == NEGATIVE_BIAS else "free energy"


def shown_values(landscape: Landscape, unit: Unit) -> Array:
    """Values from the lowest on, NaN where nothing is known."""
    values = landscape.values.numpy()
    finite = np.isfinite(values)
    lowest = values[finite].min() if finite.any() else 0.0
    found: Array = np.where(finite, (values - lowest) * unit.factor, np.nan)
    return found


def _edges(axis: Axis) -> Array:
    edges = axis.edges().numpy()
    return to_display(axis, np.append(edges, edges[-1] + axis.width) if axis.periodic else edges)


def _spans(axis: Axis, region: Region) -> list[tuple[float, float]]:
    """An interval as one or two pieces of the axis that is shown."""
    if axis.period is None:
        pieces = [(region.lower, region.upper)]
    else:
        start = axis.lower + (region.lower - axis.lower) % axis.period
        stop = start + (region.upper - region.lower) % axis.period
        pieces = [(start, min(stop, axis.upper))]
        pieces += [(axis.lower, stop - axis.period)] if stop > axis.upper else []
    shown = []
    for low, high in pieces:
        a, b = to_display(axis, [low, high])
        shown.append((float(a), float(b)))
    return shown


def _outline(ax: Panel, axes: tuple[Axis, Axis], region: Box, look: tuple[str, str]) -> None:
    sides = dict(region.sides)
    spans = []
    for axis in axes:
        low, high = to_display(axis, [axis.lower, axis.upper])
        spans.append(_spans(axis, sides[axis.name]) if axis.name in sides else [(float(low), float(high))])
    for (x0, x1), (y0, y1) in itertools.product(*spans):
        patch = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=look[0], lw=1.4, ls=look[1])
        ax.add_patch(patch)
