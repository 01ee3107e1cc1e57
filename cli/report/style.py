"""One look for all plots: sizes, colours, axes in degrees, both energy units. No global state is touched."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...molecular.free_energy import Axis
from ...steering.plot_style import ACCENT, INK, LOOK, MUTED, styled

__all__ = [
    "ACCENT",
    "INK",
    "MUTED",
    "SECOND",
    "WIDEST_ROW",
    "Array",
    "figure",
    "label",
    "png",
    "rows_of_panels",
    "style_axes",
    "styled",
    "to_display",
]

Array = NDArray[np.float64]
SECOND = "#d1603d"
WIDEST_ROW = 3
"""Panels beside one another: more could not be read on a page."""
_GREEK = {"phi": "ϕ", "psi": "ψ", "omega": "ω", "chi": "χ", "theta": "θ", "zeta": "ζ"}


def figure(width: float, height: float, columns: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """A figure with a row of axes; sizes in inches."""
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(1, columns, squeeze=False, **kwargs)[0]
    return fig, list(axes)


def rows_of_panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels of one y axis, in rows of at most ``WIDEST_ROW``; sizes of a panel in inches."""
    columns = min(count, WIDEST_ROW)
    rows = -(-count // columns)
    fig = Figure(figsize=(width * columns + 0.5, height * rows), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False, sharey=True).ravel().tolist()
    for empty in axes[count:]:
        empty.remove()
    return fig, axes[:count]


def png(fig: Figure, dpi: int = 180) -> bytes:
    """The figure as PNG, equal figures giving equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(LOOK):
        fig.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def label(axis: Axis) -> str:
    """Name and shown unit: torsions as Greek letters in degrees."""
    name = _GREEK.get(axis.name, axis.name)
    unit = "deg" if axis.unit == "rad" else axis.unit
    return f"{name} ({unit})" if unit else name


def to_display(axis: Axis, values: Any) -> Array:
    """Values in the shown unit: radians become degrees."""
    factor = 180 / math.pi if axis.unit == "rad" else 1.0
    shown: Array = np.asarray(values, dtype=np.float64) * factor
    return shown


def style_axes(ax: Axes, axis: Axis, which: str) -> None:
    """Limits, ticks and label of one variable along ``which`` ("x" or "y")."""
    low, high = to_display(axis, [axis.lower, axis.upper])
    getattr(ax, f"set_{which}lim")(low, high)
    getattr(ax, f"set_{which}label")(label(axis))
    if axis.periodic and axis.unit == "rad" and math.isclose(high - low, 360):
        getattr(ax, f"set_{which}ticks")(np.arange(math.ceil(low / 90) * 90, high + 1e-6, 90))
