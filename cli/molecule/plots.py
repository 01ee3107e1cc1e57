"""The pictures of an annealed molecule, each a function from an outcome to a matplotlib figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...fkc.weights import normalize
from ...molecular.free_energy import FreeEnergySurface
from ...steering.plot_style import colour
from ..report.style import (
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
)
from ..report.surface_parts import box, closed, closed_points, paint_surface, shade_region, shown_cap
from .results import Outcome, title

__all__ = ["draw_bonds", "draw_path", "draw_profiles", "draw_surfaces", "profiled"]

_COLOURS = {"model": MUTED, "unweighted": "#c08a1e", "annealed": ACCENT, "corrected": SECOND}
_TOP = 12.0
"""Profiles are drawn up to this many kT."""


def _effective(outcome: Outcome, way: str) -> str:
    return f"{outcome.analyses[way].ess:,.0f} effective samples"


@styled
def draw_surfaces(outcome: Outcome) -> Figure:
    """The two-dimensional surfaces side by side, on one colour scale, a contour each kT."""
    surfaces = {way: a.surface for way, a in outcome.analyses.items() if a.surface is not None}
    fig, panels = figure(11.2, 3.9, len(surfaces), sharey=True)
    cap = shown_cap(tuple(surfaces.values()))
    for ax, (way, surface) in zip(panels, surfaces.items(), strict=True):
        mesh = paint_surface(ax, surface, cap)
        ax.set_title(f"{_capital(title(outcome, way))}\n{_effective(outcome, way)}")
        style_axes(ax, surface.axes[0], "x")
        box(ax)
    style_axes(panels[0], surface.axes[1], "y")
    fig.colorbar(mesh, ax=panels, pad=0.01).set_label("free energy (kT), a contour each kT")
    return fig


def profiled(outcome: Outcome) -> dict[str, dict[str, FreeEnergySurface]]:
    """Profiles by variable and way, of variables that have one in every way: others hold no weight on their axis."""
    found = [{p.axes[0].name: p for p in analysis.profiles} for analysis in outcome.analyses.values()]
    shared = [name for name in found[0] if all(name in profiles for profiles in found)]
    return {name: dict(zip(outcome.analyses, (each[name] for each in found), strict=True)) for name in shared}


@styled
def draw_profiles(outcome: Outcome) -> Figure:
    """Profiles of the three laws with bands of two standard errors, and the reference where there is one.

    Free energies of normalised densities, so that noise at a curve's own minimum does not shift it against the others;
    zero is the minimum of the reference, else of the annealed law.
    """
    shown = profiled(outcome)
    fig, panels = rows_of_panels(len(shown), 4.9, 3.6)
    for ax, profiles in zip(panels, shown.values(), strict=True):
        (axis,) = profiles["annealed"].axes
        known = outcome.molecule.reference.get(f"{axis.name}_profile")
        reference = _normalised(_numbers(known)) if isinstance(known, dict) else None
        zero = float(
            np.min(_normalised(profiles["annealed"].free_energy_kT.numpy()) if reference is None else reference)
        )
        for way, profile in profiles.items():
            _profile(ax, profile, zero, _COLOURS[way], _capital(title(outcome, way)))
        if isinstance(known, dict) and reference is not None:
            degrees = known["bin_centres_degrees"]
            ax.plot(degrees, reference - zero, ls="none", marker="o", ms=3.2, color=INK, label="Reference")
        request = outcome.molecule.request.difference
        if request is not None and request.variable == axis.name:
            shade_region(ax, axis, request)
        style_axes(ax, axis, "x")
        ax.set_ylim(-0.8, _TOP)
        ax.set_title(f"Profile along {label(axis).split(' ')[0]}")
    for ax in panels[::WIDEST_ROW]:
        ax.set_ylabel("free energy (kT)")
    ncols = 4 if len(shown) > 1 else 2
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=ncols)
    return fig


def _profile(ax: Axes, profile: FreeEnergySurface, zero: float, shade: str, name: str) -> None:
    (axis,) = profile.axes
    error, ess = (closed(t.numpy(), axis) for t in (profile.std_error_kT, profile.ess))
    f = closed(_normalised(profile.free_energy_kT.numpy()), axis) - zero
    f = np.where(np.isfinite(f) & (ess >= 2), f, np.nan)
    points = closed_points(axis)
    ax.fill_between(points, f - 2 * error, f + 2 * error, color=shade, alpha=0.2, lw=0)
    ax.plot(points, f, color=shade, lw=1.5, marker=".", ms=3, label=name)


def _normalised(free_energies: Array) -> Array:
    """-log of the density relative to an even one over all cells."""
    finite = np.where(np.isfinite(free_energies), free_energies, np.inf)
    return free_energies + float(np.log(np.exp(-finite).mean()))


def _numbers(profile: dict[str, Any]) -> Array:
    return np.array([math.inf if v is None else v for v in profile["free_energy_kT"]])


@styled
def draw_bonds(outcome: Outcome) -> Figure:
    """Energy of the bonds alone, under every set of weights, beside the law of independent oscillators."""
    bonds = outcome.molecule.bonds
    fig, (left, right) = figure(9.6, 3.6, 2)
    cold, hot = outcome.frames["corrected"].kT, outcome.frames["model"].kT
    mean, width = 0.5 * bonds.count * hot, math.sqrt(0.5 * bonds.count) * hot
    edges = np.linspace(0.0, mean + 3.5 * width, 61)
    points = torch.linspace(1e-3, float(edges[-1]), 400, dtype=torch.float64)
    for ax, ways in ((left, ("model", "unweighted")), (right, ("annealed", "corrected"))):
        for way in (way for way in ways if way in outcome.frames):
            frames = outcome.frames[way]
            weights = normalize(frames.log_weights).numpy()
            counts = np.histogram(frames.bond_energies.numpy(), bins=edges, weights=weights)[0] / np.diff(edges)
            ax.stairs(counts, edges, color=_COLOURS[way], fill=True, alpha=0.35)
            ax.stairs(counts, edges, color=_COLOURS[way], lw=1.3, label=_capital(title(outcome, way)))
        for kT, style in ((cold, "-"), (hot, ":")) if ax is left else ((cold, "-"),):
            kelvin = outcome.molecule.config.model_temperature * kT / hot
            density = bonds.log_density(points, kT).exp().numpy()
            ax.plot(
                points.numpy(), density, color=INK, lw=1.2, ls=style, label=f"{bonds.count} oscillators, {kelvin:g} K"
            )
        ax.set(xlabel="energy of the bonds (kJ/mol)", xlim=(0, edges[-1]))
        ax.set_ylim(0, None)
        ax.legend(loc="upper right")
    left.set(ylabel="density (mol/kJ)", title="Without weights")
    right.set_title("With weights")
    return fig


@styled
def draw_path(outcome: Outcome) -> Figure:
    """Effective samples with the resamplings, distinct roots and log-evidence of each population, move by move."""
    arrays = outcome.arrays
    particles = arrays["log_weights"].shape[1]
    fig, (left, middle, right) = figure(11.0, 3.3, 3)
    moves = np.arange(1, arrays["ess"].shape[1] + 1)
    for p in range(len(arrays["ess"])):
        ess, resampled = arrays["ess"][p].numpy(), arrays["resampled"][p].bool().numpy()
        left.plot(moves, ess, color=colour(p), lw=1.2)
        first = "resampled" if resampled.any() and not arrays["resampled"][:p].any() else None
        left.plot(moves[resampled], ess[resampled], ls="none", marker="v", ms=4.5, color=colour(p), label=first)
        middle.plot(moves, arrays["distinct_roots"][p].numpy(), color=colour(p), lw=1.2)
        evidence = arrays["log_evidence"][p].numpy()
        right.plot(moves, np.where(np.isfinite(evidence), evidence, np.nan), color=colour(p), lw=1.2)
    left.set(title=f"Effective sample size of {particles:,}", ylabel="particles", ylim=(0, 1.05 * particles))
    middle.set(title="Distinct roots", ylabel="initial particles with descendants", ylim=(0, 1.05 * particles))
    right.set(title="log Z so far", ylabel="log Z")
    for ax in (left, middle, right):
        ax.set(xlabel="move", xlim=(1, moves[-1]))
    if arrays["resampled"].any():
        left.legend(loc="lower left")
    return fig


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
