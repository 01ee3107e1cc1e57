"""The pictures of a corrected run, each a function from an outcome to a matplotlib figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from ...fkc.pooling import joint_weights
from ...steering.plot_style import colour
from ..report.style import ACCENT, INK, MUTED, SECOND, Array, figure, styled
from .results import Outcome, joint_draws, mode_masses

__all__ = ["draw_classes", "draw_images", "draw_modes", "draw_trace", "draw_vectors"]

_TITLES = {"weighted": "With weights", "unweighted": "Without weights"}
_COLOURS = {"weighted": ACCENT, "unweighted": SECOND}
_NAMED = 6


# --- along the path -------------------------------------------------------------------------------------------------


@styled
def draw_trace(outcome: Outcome) -> Figure:
    """Effective sample size with the resamplings, distinct roots, and log Z so far, against the noise."""
    fig, (left, middle, right) = figure(11.0, 3.3, 3)
    record, size = outcome.weighted.collected, outcome.weighted.log_weights.shape[1]
    ess, roots, evidence = (record[key].double().numpy() for key in ("ess", "distinct_roots", "log_evidence"))
    resampled = record["resampled"].numpy()
    x = record["sigma"][:, 0].numpy()
    for p in range(ess.shape[1]):
        left.plot(x, ess[:, p], color=colour(p), lw=1.2)
        at = np.flatnonzero(resampled[:, p])
        before = np.maximum(at - 1, 0)
        first = "resampled" if len(at) and not resampled[:, :p].any() else None
        left.plot(x[before], ess[before, p], ls="none", marker="v", ms=4.5, color=colour(p), mec="white", label=first)
        middle.plot(x, roots[:, p], color=colour(p), lw=1.2)
        shown = np.where(np.isfinite(evidence[:, p]), evidence[:, p], np.nan)
        right.plot(x, shown, color=colour(p), lw=1.2)
    left.set(title=f"Effective sample size of {size}", ylabel="particles", ylim=(0, 1.05 * size))
    middle.set(title="Distinct roots", ylabel="initial particles with descendants", ylim=(0, 1.05 * size))
    right.set(title="log Z so far", ylabel="log Z")
    if outcome.truth is not None:
        right.plot(x[-1:], [outcome.truth.log_integral], "*", ms=10, color=INK, label="exact", zorder=5)
        right.legend(loc="best")
    if resampled.any():
        left.legend(loc="lower left")
    for ax in (left, middle, right):
        ax.set_xscale("log")
        ax.set_xlim(x.max() * 1.1, x.min() / 1.1)
        ax.set_xlabel("noise σ/α, falling")
    return fig


# --- vectors --------------------------------------------------------------------------------------------------------


@styled
def draw_vectors(outcome: Outcome) -> Figure:
    """The first two coordinates (or the one) as they are exactly, with weights and without."""
    if outcome.weighted.x.shape[2] == 1:
        return _line(outcome)
    grid = None if outcome.truth is None else outcome.truth.grid
    panels = [*(["exact"] if grid is not None else []), *(way for way, _ in outcome.ways())]
    edges = _edges(outcome)
    tall = min(max(float(np.ptp(edges[1]) / np.ptp(edges[0])), 0.5), 1.5)
    fig, axes = figure(3.6 * len(panels) + 1.0, 3.3 * tall + 0.9, len(panels), sharey=True)
    found = {}
    for name in panels:
        if name == "exact":
            assert grid is not None
            points, weights = grid.points.numpy(), grid.masses.numpy()
        else:
            points, weights = _cloud(outcome, name)
        found[name] = np.histogram2d(points[:, 0], points[:, 1], bins=edges, weights=weights, density=True)[0]
    top = max(float(found["exact" if "exact" in found else "weighted"].max()), 1e-300)
    norm = LogNorm(vmin=top * 1e-3, vmax=top)
    for ax, name in zip(axes, panels, strict=True):
        shown = np.ma.masked_less(found[name].T, top * 1e-3 if name == "exact" else 1e-300)
        mesh = ax.pcolormesh(*edges, shown, norm=norm, cmap="viridis", rasterized=True)
        ax.set(title=_TITLES.get(name, "Exact"), xlabel="x1", xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]])
        ax.set_box_aspect(tall)
        for side in ("top", "right"):
            ax.spines[side].set_visible(True)
    axes[0].set_ylabel("x2")
    bar = fig.colorbar(mesh, ax=axes, pad=0.01, extend="both")
    bar.set_label("density")
    return fig


def _cloud(outcome: Outcome, way: str) -> tuple[Array, Array]:
    """All samples (P K, d) and their normalised weights (P K,)."""
    result = outcome.weighted if way == "weighted" else outcome.unweighted
    assert result is not None
    points: Array = result.x.double().flatten(0, 1).numpy()
    return points, joint_weights(result, alike=way == "unweighted").numpy()


def _edges(outcome: Outcome, bins: int = 80) -> list[Array]:
    """Of cells that hold all but the outermost thousandths of the samples."""
    clouds = [_cloud(outcome, way)[0][:, :2] for way, _ in outcome.ways()]
    low, high = np.quantile(np.concatenate(clouds), [0.001, 0.999], axis=0)
    margin = 0.08 * (high - low) + 1e-9
    return [np.linspace(a, b, bins + 1) for a, b in zip(low - margin, high + margin, strict=True)]


def _line(outcome: Outcome) -> Figure:
    fig, (ax,) = figure(6.4, 3.6)
    edges = _edges(outcome)[0]
    for way, _ in outcome.ways():
        points, weights = _cloud(outcome, way)
        height, _ = np.histogram(points[:, 0], bins=edges, weights=weights, density=True)
        ax.stairs(height, edges, color=_COLOURS[way], label=_TITLES[way].lower(), lw=1.6)
    if outcome.truth is not None and outcome.truth.grid is not None:
        grid = outcome.truth.grid
        ax.plot(grid.axes[0].numpy(), grid.log_density.exp().numpy(), color=INK, lw=1.2, label="exact")
    ax.set(title="Density", xlabel="x1", ylabel="density", xlim=edges[[0, -1]])
    ax.legend(loc="best")
    return fig


@styled
def draw_modes(outcome: Outcome) -> Figure:
    """The mass of each mode against the exact one."""
    assert outcome.truth is not None
    assert outcome.truth.masses is not None
    exact = outcome.truth.masses.numpy()
    fig, (ax,) = figure(4.6, 4.2)
    found = {way: [t.numpy() for t in mode_masses(outcome, way)] for way, _ in outcome.ways()}
    positive = np.concatenate([exact, *(masses for masses, _ in found.values())])
    low, high = float(positive[positive > 1e-6].min()) / 1.5, float(positive.max()) * 1.5
    for way, (masses, errors) in reversed(found.items()):
        bars = np.where(np.isfinite(errors), errors, 0.0)
        style: dict[str, Any] = {"fmt": "o", "ms": 3.6, "lw": 0.8, "color": _COLOURS[way]}
        down = np.minimum(bars, np.maximum(masses - low, 0.0))
        ax.errorbar(exact, masses, yerr=[down, bars], label=_TITLES[way].lower(), **style)
    ax.plot([low, high], [low, high], color=MUTED, lw=0.8, zorder=0)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ax.set(title="Mass of each mode", xlabel="exact", ylabel="sampled")
    ax.legend(loc="upper left")
    return fig


# --- images ---------------------------------------------------------------------------------------------------------


@styled
def draw_images(outcome: Outcome, columns: int = 10, rows: int = 6) -> Figure:
    """Equally weighted draws by way, side by side, with the classes that the classifier sees below them."""
    ways = [way for way, _ in outcome.ways()]
    rows = min(rows, math.ceil(outcome.weighted.log_weights.numel() / columns))
    fig, axes = figure(5.4 * len(ways), 5.2 * rows * _row(outcome) / (columns * (1 + _GAP)) + 0.6, len(ways))
    for ax, (way, result) in zip(axes, outcome.ways(), strict=True):
        flat = result.x.flatten(0, 1)
        places = joint_draws(outcome, way, columns * rows)
        if way in outcome.classes:
            seen = outcome.classes[way].reshape(-1)[places]
            places = places[seen.argsort(stable=True)]
        labels = outcome.classes[way].reshape(-1)[places] if way in outcome.classes else None
        _mosaic(ax, flat[places], labels, columns)
        ax.set_title("Resampled by weight" if way == "weighted" else "Without weights")
    return fig


_GAP, _LABEL = 0.08, 0.22


def _row(outcome: Outcome) -> float:
    """Height of a row of images over the width of one."""
    height, width = outcome.weighted.x.shape[-2:]
    return height / width + _GAP + (_LABEL if outcome.classes else 0.0)


def _mosaic(ax: Axes, images: Tensor, labels: Tensor | None, columns: int) -> None:
    pixels = (images.double() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    tall = pixels.shape[1] / pixels.shape[2]
    step = tall + _GAP + (_LABEL if labels is not None else 0.0)
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        left, top = column * (1 + _GAP), row * step
        shown = picture[..., 0] if picture.shape[2] == 1 else picture
        box = (left, left + 1, top + tall, top)
        ax.imshow(shown, extent=box, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        if labels is not None:
            ax.text(left + 0.5, top + tall + 0.02, str(int(labels[i])), fontsize=7, ha="center", va="top", color=MUTED)
    ax.set_xlim(-_GAP, columns * (1 + _GAP))
    ax.set_ylim(math.ceil(len(pixels) / columns) * step, -_GAP)
    ax.set_aspect("equal")
    ax.set_axis_off()


@styled
def draw_classes(outcome: Outcome) -> Figure:
    """Share of each class with weights and without, with standard errors."""
    fig, (ax,) = figure(6.6, 3.3)
    ways = [way for way, _ in outcome.ways()]
    width = 0.8 / len(ways)
    for i, way in enumerate(ways):
        values, errors = (t.numpy() for t in outcome.shares(way))
        places = np.arange(len(values)) + (i - 0.5 * (len(ways) - 1)) * width
        ax.bar(places, values, width * 0.94, color=_COLOURS[way], label=_TITLES[way].lower())
        told = np.isfinite(errors) & (errors > 1e-6)
        bars = [np.minimum(errors, values)[told], errors[told]]
        ax.errorbar(places[told], values[told], yerr=bars, fmt="none", ecolor=INK, lw=0.9, capsize=2)
    ax.set_xticks(range(outcome.n_classes))
    ax.set(title="Classes seen by the classifier", xlabel="class", ylabel="share", ylim=(0, 1.05))
    ax.set_xlim(-0.6, outcome.n_classes - 0.4)
    ax.legend(loc="upper right")
    return fig
