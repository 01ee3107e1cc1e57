"""Pictures and report of a steering job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ...steering.plots import image_grid, plot_ancestry, plot_run
from ..report.html import Frame, write_page
from ..report.style import png
from .config import SteerConfig
from .results import Result

__all__ = ["steer_citations", "write_steer_report"]

_SHOWN = 8
"""Seeds of a prompt whose samples are shown in the grid."""

_DPI = 150
_KINDS = ("samples", "run", "ancestry")


def write_steer_report(
    folder: Path,
    frame: Frame,
    *,
    config: SteerConfig,
    results: Sequence[Result],
) -> list[str]:
    """Write the pictures and ``report.html`` into ``folder``.

    Returns:
        Names of the pictures.
    """
    drawn = [(result.condition.slug, _figures(result)) for result in results]
    pictures = {}
    for kind in _KINDS:
        wide = kind != "ancestry" or len(results) == 1
        for slug, figures in drawn:
            figure, caption = figures[kind]
            pictures[f"{kind}_{slug}"] = (png(figure, _DPI), caption, wide)
    return write_page(
        folder,
        frame,
        pictures=pictures,
        title=config.name,
        lead=_lead(config, frame.version),
        cards=_cards(results),
        citations=steer_citations(config, frame.version),
    )


def _lead(config: SteerConfig, version: str) -> str:
    s = config.steering
    target = " + ".join(f"{reward.scale:g} {reward.name}" for reward in config.rewards)
    if s.method == "soft-value":
        target = f"({target}) / {s.temperature:g}"
    candidates = f" with {s.candidates} candidates a step" if s.method == "soft-value" else ""
    last = config.sampling.seed + config.sampling.seeds - 1
    seeds = f"seed {last}" if config.sampling.seeds == 1 else f"seeds {config.sampling.seed} to {last}"
    return (
        f"{config.model.folder} with {config.model.scheduler}, {s.method}: {s.particles} particles{candidates}, "
        f"weighted to the pipeline's own law times exp({target}); {seeds}; "
        f"feynkac {version}."
    )


def _cards(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The four numbers of a single prompt, or the log-evidence of the first six."""
    if len(results) > 1:
        return [(r.log_evidence.text, f"log-evidence, {r.condition.title[:40]}") for r in results[:6]]
    run, size = results[0].run, results[0].run.log_weights.shape[1]
    name = next(iter(run.rewards_by_control))
    return [
        (results[0].log_evidence.text, "log-evidence"),
        (f"{float(run.ess.min()):.1f}", f"effective samples of {size}"),
        (f"{int(run.distinct_roots.min())}", f"distinct roots of {size}"),
        (results[0].reward(name).text, f"mean of {name}, weighted"),
    ]


def _figures(result: Result) -> dict[str, tuple[Figure, str]]:
    run, title, seeds = result.run, result.condition.title, result.seeds
    shown = min(len(seeds), _SHOWN)
    rewards = next(iter(run.rewards_by_control.values()))
    images = [picture for pictures in result.pictures[:shown] for picture in pictures]
    rows = [title if len(seeds) == 1 else f"{title}, seed {seed}" for seed in seeds[:shown]]
    weights = torch.where(run.log_weights.isnan(), -torch.inf, run.log_weights)[:shown]
    grid = image_grid(images, weights, rewards=rewards[:shown], titles=rows)
    left_out = f" The first {shown} of {len(seeds)} seeds." if shown < len(seeds) else ""
    colours = " A colour a seed." if len(seeds) > 1 else ""
    return {
        "samples": (grid, f"Samples with their normalised weights and rewards, the heaviest first.{left_out}"),
        "run": (plot_run(run), f"{title}. The last point is that of the samples; triangles: resampled.{colours}"),
        "ancestry": (
            plot_ancestry(run),
            f"{title}, seed {seeds[0]}. Lines join each particle to its ancestor; grey lineages died out.",
        ),
    }


_ALWAYS = (
    "feynkac: the feynkac developers, version {version}.",
    "diffusers: P. von Platen et al., Diffusers: state-of-the-art diffusion models, github.com/huggingface/diffusers.",
    "Standard errors from one run: A. Lee, N. Whiteley, Biometrika 105, 609 (2018).",
)
_METHODS = {
    "fk": "FK steering: R. Singhal, Z. Horvitz, R. Teehan, M. Ren, Z. Yu, K. McKeown, R. Ranganath, "
    "arXiv:2501.06848 (2025).",
    "soft-value": "Soft-value guidance (SVDD): X. Li, Y. Zhao, C. Wang, G. Scalia, G. Eraslan, S. Nair, T. Biancalani, "
    "S. Ji, A. Regev, S. Levine, M. Uehara, arXiv:2408.08252 (2024).",
}
_REWARDS = {
    "clip_score": "CLIP: A. Radford et al., ICML, PMLR 139, 8748 (2021).",
    "jpeg_size": "Compressibility as a reward: K. Black, M. Janner, Y. Du, I. Kostrikov, S. Levine, arXiv:2305.13301 "
    "(2023).",
    "qed": "QED: G. R. Bickerton et al., Nature Chem. 4, 90 (2012).",
    "synthetic_accessibility": "Synthetic accessibility: P. Ertl, A. Schuffenhauer, J. Cheminform. 1, 8 (2009).",
}


def steer_citations(config: SteerConfig, version: str) -> list[str]:
    """References for a job, one line each."""
    found = [line.format(version=version) for line in _ALWAYS]
    if config.steering.method in _METHODS:
        found.insert(1, _METHODS[config.steering.method])
    names = {re.split(r"[.:]", reward.name)[0] for reward in config.rewards}
    return found + [text for name, text in _REWARDS.items() if name in names]
