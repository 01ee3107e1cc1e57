"""The pictures of a free-energy run, each a function from results to a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MultipleLocator, NullFormatter, PercentFormatter, ScalarFormatter

from ...fkc.weights import normalize
from ...molecular.free_energy import Axis, FreeEnergyDifference, FreeEnergySurface
from ...molecular.pipeline import Analysis, DifferenceRequest, RunningEstimate, WeightedDraws
from .style import (
    ACCENT,
    INK,
    MUTED,
    SECOND,
    WIDEST_ROW,
    Array,
    figure,
    label,
    rows_of_panels,
    style_axes,
    styled,
    to_display,
)
from .surface_parts import (
    CAP_KT,
    box,
    closed,
    closed_points,
    contour_step,
    paint_surface,
    shade_region,
    shown_cap,
    too_thin,
    visible_share,
)

__all__ = ["draw_density", "draw_profiles", "draw_running", "draw_surface", "draw_weights"]


@styled
def draw_surface(surface: FreeEnergySurface, most: float = CAP_KT) -> Figure:
    """A two-dimensional surface with contours, up to ``most`` kT.

    White: above the cap, or fewer than two effective samples, where colours and lines would follow noise. Where such
    cells hold most of the weight there are no contours, and the picture says so.
    """
    x, y = surface.axes
    fig, (ax,) = figure(5.4, 4.5)
    cap = shown_cap((surface,), most)
    mesh = paint_surface(ax, surface, cap)
    style_axes(ax, x, "x")
    style_axes(ax, y, "y")
    box(ax)
    thin = too_thin(surface)
    note = f"\ntoo few samples: colours show {visible_share(surface):.0%} of the weight" if thin else ""
    ax.set_title(f"Free-energy surface{note}")
    bar = fig.colorbar(mesh, ax=ax, pad=0.02, aspect=26)
    contours = f", a contour each {'' if contour_step(cap) == 1 else '2 '}kT"
    bar.set_label(f"free energy (kT){'' if thin else contours}")
    bar.ax.yaxis.set_major_locator(MultipleLocator(2))
    return fig


@styled
def draw_profiles(profiles: tuple[FreeEnergySurface, ...], difference: DifferenceRequest | None) -> Figure:
    """One-dimensional profiles with bands of one and two standard errors; the region of the difference shaded.

    Values that rest on fewer than two effective samples are left out.
    """
    fig, panels = rows_of_panels(len(profiles), 4.1, 3.3)
    highest = 1.0
    for k, (ax, profile) in enumerate(zip(panels, profiles, strict=True)):
        (axis,) = profile.axes
        f, error, ess = (closed(t.numpy(), axis) for t in (profile.free_energy_kT, profile.std_error_kT, profile.ess))
        f = np.where(np.isfinite(f) & (ess >= 2), f, np.nan)
        points = closed_points(axis)
        if difference is not None and difference.variable == axis.name:
            shade_region(ax, axis, difference)
        ax.fill_between(points, f - 2 * error, f + 2 * error, color=ACCENT, alpha=0.18, lw=0, label="± 2 s.e.")
        ax.fill_between(points, f - error, f + error, color=ACCENT, alpha=0.35, lw=0, label="± 1 s.e.")
        ax.plot(points, f, color=INK, lw=1.3, marker=".", ms=2.5)  # dots: values without a neighbour
        highest = max(highest, float(np.nanmax(f + error, initial=1.0)))
        style_axes(ax, axis, "x")
        ax.set_ylim(-0.4, min(highest + 1, 1.5 * CAP_KT))
        if k % WIDEST_ROW == 0:
            ax.set_ylabel("free energy (kT)")
        if k == 0:
            ax.legend(loc="best")
        right = ax.secondary_yaxis("right", functions=_both_ways(profile.kT))  # type: ignore[arg-type]
        right.spines["right"].set_visible(True)
        if k == len(profiles) - 1 or k % WIDEST_ROW == WIDEST_ROW - 1:
            right.set_ylabel("free energy (kJ/mol)")
        else:
            right.set_yticklabels([])
        ax.set_title(f"Profile along {label(axis).split(' ')[0]}")
    return fig


def _both_ways(kt: float) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    return (lambda f: f * kt, lambda f: f / kt)


@styled
def draw_weights(draws: WeightedDraws, analysis: Analysis) -> Figure:
    """Distribution of the log-weights, and the largest weights beside their Pareto-smoothed values."""
    fig, (left, right) = figure(8.6, 3.3, 2)
    relative = (draws.log_weights - analysis.log_evidence).numpy()
    finite = relative[np.isfinite(relative)]
    low = max(float(np.quantile(finite, 0.002)), float(finite.max()) - 15)
    left.hist(finite, bins=np.linspace(low, float(finite.max()), 70).tolist(), color=ACCENT, alpha=0.85, lw=0)
    left.axvline(0, color=INK, lw=0.8, ls="--")
    left.set_xlabel(r"$\ln\,(w / \overline{w})$")
    left.set_ylabel("draws")
    left.set_title(f"Log-weights: ESS {analysis.ess_fraction:.1%} of {analysis.n_samples:,}")
    below = int((finite < low).sum())
    if below:
        left.text(0.02, 0.96, f"{below} draws left of the axis", transform=left.transAxes, fontsize=8, va="top")
    tail = max(20, int(min(0.2 * len(relative), 3 * math.sqrt(len(relative)))))
    smoothed = (analysis.smoothed_log_weights - analysis.log_evidence).numpy()
    share = (np.arange(2 * tail) + 0.5)[: len(relative)] / len(relative)
    looks: tuple[tuple[Array, dict[str, Any]], ...] = (
        (relative, {"marker": "o", "ms": 2.6, "ls": "none", "color": ACCENT, "label": "raw", "alpha": 0.7}),
        (smoothed, {"color": SECOND, "lw": 1.5, "label": "Pareto-smoothed"}),
    )
    for values, style in looks:
        largest = np.sort(values)[::-1][: len(share)]
        # Hopeless weights span hundreds of decades, which no axis can show.
        visible = largest > largest[0] - 30
        right.loglog(np.exp(largest[visible]), share[visible], **style)
    right.xaxis.set_major_formatter(ScalarFormatter())
    right.xaxis.set_minor_formatter(NullFormatter())
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.set_xlabel(r"$w / \overline{w}$")
    right.set_ylabel("share of draws above")
    right.set_title(f"Tail of the weights: k̂ = {analysis.khat:.2f}")
    right.legend(loc="lower left")
    return fig


@styled
def draw_running(analysis: Analysis) -> Figure:
    """Effective sample size, and the free-energy difference, against the number of draws."""
    running = analysis.running
    shown = analysis.difference is not None
    fig, panels = figure(8.6 if shown else 4.6, 3.1, 2 if shown else 1)
    n = running.samples.numpy()
    ax = panels[0]
    ax.semilogx(n, (running.ess / running.samples).numpy(), color=ACCENT)
    ax.axhline(analysis.ess_fraction, color=MUTED, lw=0.8, ls="--", zorder=0)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel("draws")
    ax.set_ylabel("effective samples a draw")
    ax.set_title("Efficiency of the proposal")
    ax.set_xlim(n[0], n[-1] + 1)
    if analysis.difference is not None:
        _draw_running_difference(panels[1], running, analysis.difference)
    return fig


def _draw_running_difference(ax: Axes, running: RunningEstimate, result: FreeEnergyDifference) -> None:
    n, value, error = (t.numpy() for t in (running.samples, running.difference, running.std_error))
    ax.set_xscale("log")
    ax.set_xlim(n[0], n[-1] + 1)
    ax.set_xlabel("draws")
    ax.set_ylabel("ΔF (kT)")
    ax.set_title(f"ΔF = {result.value:.2f} ± {result.std_error:.2f} kT")
    if not math.isfinite(result.value):
        ax.text(0.5, 0.5, "no weight on one side of the region", transform=ax.transAxes, ha="center")
        return
    ax.fill_between(n, value - 2 * error, value + 2 * error, color=SECOND, alpha=0.15, lw=0)
    ax.fill_between(n, value - error, value + error, color=SECOND, alpha=0.30, lw=0)
    ax.plot(n, value, color=SECOND)
    ax.axhline(result.value, color=MUTED, lw=0.8, ls="--", zorder=0)
    if 0 < result.std_error < math.inf:
        ax.set_ylim(result.value - 12 * result.std_error, result.value + 12 * result.std_error)


@styled
def draw_density(draws: WeightedDraws, axes: tuple[Axis, Axis]) -> Figure:
    """Two variables as proposed and as reweighted, on one logarithmic colour scale."""
    x, y = axes
    fig, panels = figure(8.6, 4.0, 2, sharey=True)
    keep = torch.isfinite(draws.log_weights)
    for axis in axes:
        keep = keep & torch.isfinite(draws.variables[axis.name])
    values = [to_display(axis, draws.variables[axis.name][keep]) for axis in axes]
    weights = normalize(draws.log_weights[keep]).numpy()
    edges = [to_display(axis, np.linspace(axis.lower, axis.upper, 91)) for axis in axes]
    raw, weighted = (
        np.histogram2d(values[0], values[1], bins=edges, weights=w, density=True)[0] for w in (None, weights)
    )
    top = max(raw.max(), weighted.max())
    norm = LogNorm(vmin=top * 1e-3, vmax=top)
    for ax, density, title in zip(panels, (raw, weighted), ("As proposed", "Reweighted"), strict=True):
        mesh = ax.pcolormesh(*edges, np.ma.masked_equal(density.T, 0), norm=norm, cmap="viridis", rasterized=True)
        ax.set_title(title)
        style_axes(ax, x, "x")
        box(ax)
    style_axes(panels[0], y, "y")
    bar = fig.colorbar(mesh, ax=panels, pad=0.01, extend="min")
    bar.set_label("density / highest density")
    bar.ax.set_yticks([top * 10.0**k for k in range(-3, 1)], labels=[f"$10^{{{k}}}$" for k in range(-3, 1)])
    bar.ax.minorticks_off()
    return fig
