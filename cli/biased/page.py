"""Pictures and report of biased dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ..report.citations import biased_citations
from ..report.html import Frame, write_page
from ..report.plots import draw_profiles, draw_surface
from ..report.style import png
from ..results import Number
from . import plots
from .results import Outcome

__all__ = ["write_biased_report"]

_HIGHEST_KT = 20.0
"""Of a surface's colours: a bias takes walkers to where no other sample would be."""


def write_biased_report(
    folder: Path,
    frame: Frame,
    *,
    outcome: Outcome,
) -> list[str]:
    """Write the pictures and ``report.html`` into ``folder``.

    Returns:
        Names of the pictures.
    """
    config = outcome.setup.config
    return write_page(
        folder,
        frame,
        pictures={name: (png(fig), caption, wide) for name, (fig, caption, wide) in _figures(outcome).items()},
        title=config.name,
        lead=_lead(outcome, frame.version),
        cards=_cards(frame.shown),
        citations=biased_citations(config.bias.kind, config.system.force_field, frame.version),
    )


def _lead(outcome: Outcome, version: str) -> str:
    config, s = outcome.setup.config, outcome.setup.settings
    kind = "OPES" if config.bias.kind == "opes" else "Well-tempered metadynamics"
    return (
        f"{kind} along {', '.join(outcome.bias.names)}: {s.walkers:,} walkers, {s.fill_ps:g} ps of filling, "
        f"{s.burn_in_ps:g} ps of burn-in and {s.production_ps:g} ps under the frozen bias, weighted to "
        f"{' + '.join(config.system.force_field)} at {s.temperature:g} K; seed {config.sampling.seed}; "
        f"feynkac {version}."
    )


def _cards(shown: Mapping[str, Number]) -> list[tuple[str, str]]:
    keys = ("delta_f_kT", "reference.delta_f_kT", "probability", "ess", "crossings", "wall_seconds")
    cards = []
    for number in (shown[key] for key in keys if key in shown):
        remark = f"; {number.remark}" if number.key in ("ess", "crossings") else ""
        cards.append((number.text, number.label + remark))
    return cards


def _figures(outcome: Outcome) -> dict[str, tuple[Figure, str, bool]]:
    figures: dict[str, tuple[Figure, str, bool]] = {}
    request = outcome.setup.request.difference
    if outcome.surface is not None and len(outcome.surface.axes) == 2:
        how = "Kernel estimate" if outcome.surface.method == "kde" else "Histogram"
        text = f"{how} under the frozen bias, weighted; white where fewer than two effective samples lie."
        figures["fes"] = (draw_surface(outcome.surface, _HIGHEST_KT), text, False)
    elif outcome.surface is not None:
        figures["fes"] = (draw_profiles((outcome.surface,), request), "Under the frozen bias, weighted.", False)
    if outcome.profiles:
        text = (
            "Under the frozen bias, weighted, with bootstrap standard errors over independent groups. Gaps: fewer "
            "than two effective samples. Shaded: the region of ΔF."
        )
        figures["profiles"] = (draw_profiles(outcome.profiles, request), text, True)
    if outcome.report is not None and outcome.difference is not None:
        text = (
            "Left: from the start of the production to growing times. Right: from separate stretches, which should "
            "scatter about one value as their errors say. Dotted: what the frozen bias implies by itself. An arrow "
            "points to a reference beyond the axis."
        )
        figures["convergence"] = (plots.draw_convergence(outcome, outcome.report, outcome.difference), text, True)
        if outcome.report.profile is not None:
            text = "The two halves of the production apart; two standard errors. Few points should leave the grey band."
            figures["halves"] = (plots.draw_halves(outcome, outcome.report), text, True)
    text = "While the bias grows it flattens what walkers see; it is frozen at the end of this picture."
    if "fill.time" in outcome.arrays:
        figures["filling"] = (plots.draw_filling(outcome), text, True)
    text = "Walkers that change basins often are what makes the weights trustworthy. Shaded: the region of ΔF."
    figures["walkers"] = (plots.draw_walkers(outcome), text, True)
    return figures
