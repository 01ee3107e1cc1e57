"""Pictures and report of a corrected run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..report.citations import CORRECTORS
from ..report.html import Frame, write_page
from ..report.style import png
from ..results import Number
from . import plots
from .config import CorrectedConfig, TargetConfig
from .exponent import Exponent
from .results import Outcome

__all__ = ["corrected_citations", "formula", "write_corrected_report"]

_DPI = 150
_KINDS = ("samples", "classes", "modes", "path")


def write_corrected_report(
    folder: Path,
    frame: Frame,
    *,
    config: CorrectedConfig,
    outcomes: Sequence[Outcome],
) -> list[str]:
    """Write the pictures and ``report.html`` into ``folder``.

    Returns:
        Names of the pictures.
    """
    drawn = [(outcome.name, _figures(outcome)) for outcome in outcomes]
    pictures = {}
    for kind in _KINDS:
        for name, figures in drawn:
            if kind in figures:
                figure, caption, wide = figures[kind]
                pictures[f"{kind}_{name}"] = (png(figure, _DPI), caption, wide)
    return write_page(
        folder,
        frame,
        pictures=pictures,
        title=config.name,
        lead=_lead(config, frame.version),
        cards=_cards(frame.numbers, outcomes),
        citations=corrected_citations(config, frame.version),
    )


def formula(target: TargetConfig) -> str:
    """What a target is, in one line: ``four · nine``, ``three^1.5``, ``any^-1 · three^2``."""
    names = target.experts
    if target.weight is not None:
        rest = Exponent(1.0 - target.weight.start, 1.0 - target.weight.end)
        return f"{_power(names[0], rest)} · {_power(names[1], target.weight)}"
    if target.exponents is not None:
        return " · ".join(_power(name, power) for name, power in zip(names, target.exponents, strict=True))
    product = " · ".join(names)
    if target.exponent is None:
        return product
    return _power(product if len(names) == 1 else f"({product})", target.exponent)


def _power(name: str, exponent: Exponent) -> str:
    return f"{name}^({exponent})" if exponent.moving else f"{name}^{exponent}"


def _lead(config: CorrectedConfig, version: str) -> str:
    s, levels = config.sampling, config.levels
    targets = "; ".join(f"{name} = {formula(target)}" for name, target in config.targets.items())
    many = f"{s.populations} populations of {s.particles:,}" if s.populations > 1 else f"{s.particles:,}"
    return (
        f"{targets}. {many} particles, {s.steps} steps from noise {levels.sigma_max:.4g} to {levels.sigma_min:.4g}, "
        f"{s.gauge} gauge, control {s.control}, weights {s.weights}; seed {s.seed}; feynkac {version}."
    )


def _cards(numbers: Sequence[Number], outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """log Z and effective samples of the first three targets."""
    shown = {n.key: n for n in numbers}
    cards = []
    for outcome in outcomes[:3]:
        prefix, label = (f"{outcome.name}.", f"{outcome.name}: ") if len(outcomes) > 1 else ("", "")
        evidence, ess = shown[f"{prefix}log_evidence"], shown[f"{prefix}ess"]
        cards.append((evidence.text, f"{label}log Z; {evidence.remark.partition(';')[0]}"))
        roots = shown[f"{prefix}distinct_roots"]
        cards.append((ess.text, f"{label}effective samples, {ess.remark}; {roots.text} distinct roots"))
    return cards


def _figures(outcome: Outcome) -> dict[str, tuple[Figure, str, bool]]:
    what = f"{outcome.name} = {formula(outcome.section)}"
    figures: dict[str, tuple[Figure, str, bool]] = {}
    if outcome.is_image:
        order = ", in the order of the class that the classifier sees" if outcome.classes else ""
        plain = " Without weights: plain guidance." if outcome.section.form == "guidance" else ""
        figures["samples"] = (plots.draw_images(outcome), f"{what}. Equally weighted draws{order}.{plain}", True)
    elif outcome.weighted.x.ndim == 3:
        exact = "" if outcome.truth is None else f" Exact: {outcome.truth.how}."
        figures["samples"] = (plots.draw_vectors(outcome), f"{what}, one colour scale.{exact}", True)
    text = "Effective samples, ancestors and log Z on the way from noise to data; a colour a population."
    figures["path"] = (plots.draw_trace(outcome), f"{outcome.name}. {text}", True)
    if outcome.classes:
        text = f"{outcome.name}. Share of each class, with standard errors."
        figures["classes"] = (plots.draw_classes(outcome), text, False)
    if outcome.truth is not None and outcome.truth.masses is not None and len(outcome.truth.masses) > 1:
        text = f"{outcome.name}. Share of the samples nearest to each of the {len(outcome.truth.masses)} modes."
        figures["modes"] = (plots.draw_modes(outcome), text, False)
    return figures


_ALWAYS = (
    *CORRECTORS,
    "Standard errors from one run: A. Lee, N. Whiteley, Biometrika 105, 609 (2018).",
)
_GUIDANCE = "Classifier-free guidance: J. Ho, T. Salimans, arXiv:2207.12598 (2022)."
_DIFFUSERS = (
    "diffusers: P. von Platen et al., Diffusers: state-of-the-art diffusion models, github.com/huggingface/diffusers."
)
_FORTY = "Forty Gaussians: L. I. Midgley, V. Stimper, G. N. C. Simm, B. Schölkopf, J. M. Hernández-Lobato, ICLR (2023)."


def corrected_citations(config: CorrectedConfig, version: str) -> list[str]:
    """References for a run, one line each."""
    found = [line.format(version=version) for line in _ALWAYS]
    if any(target.form == "guidance" for target in config.targets.values()):
        found.append(_GUIDANCE)
    experts = config.experts.values()
    if any(expert.pipeline is not None for expert in experts):
        found.append(_DIFFUSERS)
    if any(expert.mixture is not None and expert.mixture.case == "gmm40" for expert in experts):
        found.append(_FORTY)
    return found
