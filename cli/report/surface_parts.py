"""What pictures of free energies share: colours and contours of a surface, closed circles, shaded regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from ...molecular.free_energy import Axis, FreeEnergySurface
from ...molecular.pipeline import DifferenceRequest
from .style import SECOND, Array, to_display

__all__ = [
    "CAP_KT",
    "box",
    "closed",
    "closed_points",
    "contour_step",
    "paint_surface",
    "shade_region",
    "shown_cap",
    "too_thin",
    "visible_share",
]

CAP_KT = 10.0
"""Surfaces are coloured up to this many kT: above it samples are too few for colours to mean anything."""

_DENSE_KT = 12.0
_THIN = 0.5
"""Of the weight: with less in the cells that are shown, contours would be those of their gaps."""


def shown_cap(surfaces: Sequence[FreeEnergySurface], most: float = CAP_KT) -> float:
    """The end of the colour scale in kT: the highest value that is shown, at most ``most`` kT."""
    highest = [float(_visible(surface).max()) for surface in surfaces if _visible(surface).count()]
    return min(most, max(1.0, math.ceil(max(highest, default=1.0))))


def paint_surface(ax: Axes, surface: FreeEnergySurface, cap: float) -> QuadMesh:
    """Colours of a two-dimensional surface up to ``cap`` kT, and contours unless it is too thin; for the scale of
    colours."""
    x, y = surface.axes
    shown = _visible(surface)
    white = matplotlib.colormaps["viridis"].with_extremes(over="white", bad="white")
    mesh = ax.pcolormesh(
        _wrapped_edges(x),
        _wrapped_edges(y),
        shown.T,
        cmap=white,
        vmin=0,
        vmax=cap,
        rasterized=True,
    )
    levels = np.arange(contour_step(cap), cap, contour_step(cap))
    if levels.size and shown.count() and not too_thin(surface):
        points = [closed_points(axis) for axis in surface.axes]
        lines = np.ma.masked_where(_wrapped(surface.ess.numpy(), surface.axes) < 4, shown)
        ax.contour(*points, lines.T, levels=levels, colors="white", linewidths=0.6, alpha=0.85)
    return mesh


def visible_share(surface: FreeEnergySurface) -> float:
    """Of the weight, in the cells that are shown: those with two effective samples or more."""
    volume = math.prod(axis.width for axis in surface.axes)
    return float((surface.density[surface.ess >= 2] * volume).sum())


def too_thin(surface: FreeEnergySurface) -> bool:
    """Whether so much of the weight inside the axes lies in cells that are not shown that contours mean nothing."""
    volume = math.prod(axis.width for axis in surface.axes)
    return visible_share(surface) < _THIN * float((surface.density * volume).sum())


def contour_step(cap: float) -> int:
    """kT between contours: one up to 12 kT, two beyond, where they would run together."""
    return 1 if cap <= _DENSE_KT else 2


def _visible(surface: FreeEnergySurface) -> np.ma.MaskedArray[Any, np.dtype[np.float64]]:
    """Free energies in kT, masked where they rest on fewer than two effective samples."""
    values, ess = (_wrapped(t.numpy(), surface.axes) for t in (surface.free_energy_kT, surface.ess))
    return np.ma.masked_where(~np.isfinite(values) | (ess < 2), values)


def _wrapped(values: Array, axes: tuple[Axis, ...]) -> Array:
    """Values with the first cells of periodic axes repeated behind the last: cells are centred on grid points."""
    for dim, axis in enumerate(axes):
        if axis.periodic:
            values = np.concatenate([values, values.take([0], axis=dim)], axis=dim)
    return values


def _wrapped_edges(axis: Axis) -> Array:
    edges = axis.edges().numpy()
    return to_display(axis, np.append(edges, edges[-1] + axis.width) if axis.periodic else edges)


def box(ax: Axes) -> None:
    """All four sides of the frame."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)


def closed_points(axis: Axis) -> Array:
    """Grid points as they are shown, the first of a periodic axis once more at its end."""
    points = axis.points().numpy()
    if axis.periodic:
        points = np.append(points, axis.upper)
    return to_display(axis, points)


def closed(values: Array, axis: Axis) -> Array:
    """Values for :func:`closed_points`."""
    return np.append(values, values[0]) if axis.periodic else values


def shade_region(ax: Axes, axis: Axis, difference: DifferenceRequest) -> None:
    """Mark the region of the difference."""
    region = difference.region
    spans = [(region.lower, region.upper)]
    if region.lower > region.upper:
        spans = [(region.lower, axis.upper), (axis.lower, region.upper)]
    for low, high in spans:
        ax.axvspan(*to_display(axis, [low, high]), color=SECOND, alpha=0.10, lw=0)
