"""Pictures and report of an annealed molecule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ..report.citations import CORRECTORS, force_field_citations
from ..report.html import Frame, write_page
from ..report.plots import draw_weights
from ..report.style import png
from ..results import Number
from . import plots
from .config import MoleculeConfig
from .results import Outcome

__all__ = ["molecule_citations", "write_molecule_report"]

_DPI = 150


def write_molecule_report(
    folder: Path,
    frame: Frame,
    *,
    outcome: Outcome,
) -> list[str]:
    """Write the pictures and ``report.html`` into ``folder``.

    Returns:
        Names of the pictures.
    """
    config = outcome.molecule.config
    drawn = _figures(outcome).items()
    return write_page(
        folder,
        frame,
        pictures={name: (png(fig, _DPI), caption, wide) for name, (fig, caption, wide) in drawn},
        title=config.name,
        lead=_lead(config, frame.version),
        cards=_cards(frame.shown),
        citations=molecule_citations(config, frame.version),
    )


def _lead(config: MoleculeConfig, version: str) -> str:
    s = config.sampling
    return (
        f"{config.pipeline} of {config.model_temperature:g} K to the power {config.exponent:g}, and weighted to "
        f"{' + '.join(config.system.force_field)} at {config.system.temperature:g} K. {s.populations} populations of "
        f"{s.particles:,}, {s.steps} steps; seed {s.seed}; feynkac {version}."
    )


def _cards(shown: Mapping[str, Number]) -> list[tuple[str, str]]:
    cards = []
    for way in ("annealed", "corrected"):
        for name in ("delta_f_kT", "ess"):
            if f"{way}.{name}" in shown:
                number = shown[f"{way}.{name}"]
                remark = f"; {number.remark}" if name == "ess" else ""
                cards.append((number.text, number.label + remark))
    if "reference.delta_f_kT" in shown:
        cards.insert(0, (shown["reference.delta_f_kT"].text, shown["reference.delta_f_kT"].label))
    return cards


def _figures(outcome: Outcome) -> dict[str, tuple[Figure, str, bool]]:
    figures: dict[str, tuple[Figure, str, bool]] = {}
    surface = outcome.analyses["corrected"].surface
    if surface is not None and len(surface.axes) == 2:
        how = "Kernel estimates" if surface.method == "kde" else "Histograms"
        text = f"{how} on one colour scale; white where fewer than two effective samples lie."
        figures["surfaces"] = (plots.draw_surfaces(outcome), text, True)
    if plots.profiled(outcome):
        text = (
            "Of normalised densities, with two standard errors of independent draws (relatives make the true ones "
            "larger). Gaps: fewer than two effective samples. Shaded: the region of ΔF."
        )
        figures["profiles"] = (plots.draw_profiles(outcome), text, True)
    text = (
        "Energy of the harmonic bonds alone. Oscillators: the law of as many independent ones, without the pull of "
        "angles and other atoms on the bonds, which raises the mean by some per cent."
    )
    figures["bonds"] = (plots.draw_bonds(outcome), text, True)
    text = "Effective samples, ancestors and log Z on the way from noise to data; a colour a population."
    figures["path"] = (plots.draw_path(outcome), text, True)
    text = "Weights with the last correction to the true energy. Left: all of them. Right: the largest."
    corrected = outcome.frames["corrected"].draws, outcome.analyses["corrected"]
    figures["weights"] = (draw_weights(*corrected), text, True)
    return figures


_ALWAYS = (
    *CORRECTORS,
    "OpenMM 8: P. Eastman et al., J. Phys. Chem. B 128, 109 (2024).",
    "MDTraj: R. T. McGibbon et al., Biophys. J. 109, 1528 (2015).",
    "diffusers: P. von Platen et al., Diffusers: state-of-the-art diffusion models, github.com/huggingface/diffusers.",
)


def molecule_citations(config: MoleculeConfig, version: str) -> list[str]:
    """References for a run, one line each."""
    return [*(line.format(version=version) for line in _ALWAYS), *force_field_citations(config.system.force_field)]
