"""Pictures and report of a repelled run."""

from __future__ import annotations

from pathlib import Path

from ..report.html import Frame, write_page
from ..report.style import png
from ..results import Number
from . import plots
from .config import RepelledConfig
from .results import Outcome

__all__ = ["repelled_citations", "write_repelled_report"]

_DPI = 150


def write_repelled_report(
    folder: Path,
    frame: Frame,
    *,
    config: RepelledConfig,
    outcome: Outcome,
) -> list[str]:
    """Write the pictures and ``report.html`` into ``folder``.

    Returns:
        Names of the pictures.
    """
    frozen = "the frozen batches" if outcome.frozen else "the last batch"
    pictures = {
        "samples": (
            png(plots.draw_samples(outcome), 100),
            "Samples of all populations of the first batch and of the last, in the order of their classes, with "
            "weights under the law that each batch was drawn from.",
            True,
        ),
        "plane": (
            png(plots.draw_plane(outcome), _DPI),
            f"{_PLANES[config.features.projection]}; samples of {frozen}, a colour a class, areas by weight. Blue: the "
            "bias that acted on them.",
            True,
        ),
        "coverage": (
            png(plots.draw_coverage(outcome), _DPI),
            "Cells of half a kernel width that hold a sample, and the entropy of the classes, of all batches so far.",
            True,
        ),
        "classes": (
            png(plots.draw_classes(outcome), _DPI),
            f"Shares of the classes: as sampled in {frozen}, with the bias undone from all batches, and without a "
            "bias; standard errors.",
            True,
        ),
    }
    return write_page(
        folder,
        frame,
        pictures=pictures,
        title=config.name,
        lead=_lead(config, frame.version),
        cards=_cards(frame.numbers),
        citations=repelled_citations(config, frame.version),
    )


_PLANES = {
    "discriminant": "The plane of the classifier's embedding that parts the classes best",
    "pca": "The plane of largest variance of the classifier's embedding",
}


def _lead(config: RepelledConfig, version: str) -> str:
    s, rewards = config.sampling, "".join(f" times exp({r.scale:g} {r.name})" for r in config.rewards)
    return (
        f"Samples of the model's law{rewards}, batch after batch, each repelled in a plane of features from where "
        f"those before it have been: {s.batches} batches that deposit, {s.frozen} under the last bias, each of "
        f"{s.populations} populations of {config.steering.particles}; seed {s.seed}; feynkac {version}."
    )


def _cards(numbers: list[Number]) -> list[tuple[str, str]]:
    shown = {n.key: n for n in numbers}
    cards = [(shown[key].text, f"{shown[key].label}; {shown[key].remark}") for key in ("cells", "entropy", "ess")]
    if "largest_z" in shown:
        cards.append((shown["largest_z"].text, f"{shown['largest_z'].label}; {shown['largest_z'].remark}"))
    return cards


_WELL_TEMPERED = (
    "Well-tempered metadynamics: A. Barducci, G. Bussi, M. Parrinello, Phys. Rev. Lett. 100, 020603 (2008)."
)
_STEERING = (
    "FK steering: R. Singhal, Z. Horvitz, R. Teehan, M. Ren, Z. Yu, K. McKeown, R. Ranganath, arXiv:2501.06848 (2025)."
)
_OPES = "OPES: M. Invernizzi, M. Parrinello, J. Phys. Chem. Lett. 11, 2731 (2020)."
_DISCRIMINANT = "The plane that parts classes: M. Loog, R. P. W. Duin, R. Haeb-Umbach, IEEE TPAMI 23, 762 (2001)."


def repelled_citations(config: RepelledConfig, version: str) -> list[str]:
    """References for a run, one line each."""
    found = [
        f"feynkac: the feynkac developers, version {version}.",
        _OPES if config.bias.rule == "opes" else _WELL_TEMPERED,
        _STEERING,
        "Batches joined: M. R. Shirts, J. D. Chodera, J. Chem. Phys. 129, 124105 (2008).",
        "diffusers: P. von Platen et al., Diffusers: state-of-the-art diffusion models, "
        "github.com/huggingface/diffusers.",
    ]
    return [*found, _DISCRIMINANT] if config.features.projection == "discriminant" else found
