"""Pictures and report of a free-energy run, from its weighted draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ...molecular.pipeline import Analysis, AnalysisRequest, WeightedDraws
from ..report import plots
from ..report.citations import citations
from ..report.html import Frame, write_page
from ..report.style import png
from ..results import Number
from .config import FreeEnergyConfig

__all__ = ["write_report"]


def write_report(
    folder: Path,
    frame: Frame,
    *,
    config: FreeEnergyConfig,
    draws: WeightedDraws,
    request: AnalysisRequest,
    analysis: Analysis,
) -> list[str]:
    """Write the pictures and ``report.html`` into ``folder``.

    Returns:
        Names of the pictures.
    """
    pictures = {
        name: (png(fig), caption, wide) for name, (fig, caption, wide) in _figures(draws, request, analysis).items()
    }
    return write_page(
        folder,
        frame,
        pictures=pictures,
        title=config.name,
        lead=_lead(config, frame.version),
        cards=_cards(frame.shown),
        citations=citations(config.system.force_field, frame.version, flow=config.proposal.checkpoint is not None),
    )


def _lead(config: FreeEnergyConfig, version: str) -> str:
    source = config.proposal.checkpoint or config.proposal.plugin
    return (
        f"{config.sampling.samples:,} draws of {source}, weighted to {' + '.join(config.system.force_field)} "
        f"at {config.system.temperature:g} K; seed {config.sampling.seed}; "
        f"feynkac {version}."
    )


def _cards(shown: Mapping[str, Number]) -> list[tuple[str, str]]:
    cards = []
    if "delta_f_kT" in shown:
        cards.append((shown["delta_f_kT"].text, shown["delta_f_kT"].label))
    cards += [
        (shown["ess"].remark, f"effective samples a draw, raw ({shown['ess'].text})"),
        (f"{shown['khat'].value:.2f}", f"Pareto k-hat, {shown['khat'].remark}"),
        (shown["log_evidence"].text, "log Z"),
    ]
    return cards


def _figures(draws: WeightedDraws, request: AnalysisRequest, analysis: Analysis) -> dict[str, tuple[Figure, str, bool]]:
    figures: dict[str, tuple[Figure, str, bool]] = {}
    if analysis.surface is not None:
        surface = analysis.surface
        how = "Kernel estimate" if surface.method == "kde" else "Histogram"
        if len(surface.axes) == 2:
            text = f"{how} from the raw weights; white where fewer than two effective samples lie."
            figures["fes"] = (plots.draw_surface(surface), text, False)
            x, y = surface.axes
            text = f"{x.name} and {y.name} as the proposal draws them, and with the weights applied."
            figures["density"] = (plots.draw_density(draws, (x, y)), text, True)
        else:
            figures["fes"] = (plots.draw_profiles((surface,), request.difference), f"{how}.", False)
    if analysis.profiles:
        text = (
            "Histograms from the raw weights, with bootstrap standard errors. Gaps: fewer than two effective "
            "samples. Shaded: the region of ΔF."
        )
        figures["profiles"] = (plots.draw_profiles(analysis.profiles, request.difference), text, True)
    text = "Left: all log-weights relative to the mean weight. Right: the largest weights, on which k-hat is fitted."
    figures["weights"] = (plots.draw_weights(draws, analysis), text, True)
    text = "Estimates from the first draws only: they should settle, and stay inside their own bands."
    figures["running"] = (plots.draw_running(analysis), text, True)
    return figures
