"""The look of this package's pictures. No global state of matplotlib is touched."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["ACCENT", "FAINT", "INK", "LOOK", "MUTED", "PALETTE", "Array", "colour", "saved", "styled"]

Array = NDArray[np.float64]
P = ParamSpec("P")
INK, MUTED, FAINT, ACCENT = "#1b2733", "#8a97a5", "#d5dbe1", "#1f6fb2"
PALETTE = ("#1f6fb2", "#d1603d", "#3f8f5b", "#8a5fa8", "#c08a1e", "#4aa3a8", "#b0476e", "#6b6f2a")
LOOK: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "mathtext.fontset": "dejavusans",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this module's style, leaving matplotlib's settings as they were."""

    @functools.wraps(draw)
    def run(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(LOOK):
            return draw(*args, **kwargs)

    return run


def colour(index: int) -> str:
    """The colour of a population or of a root."""
    return PALETTE[index % len(PALETTE)]


def saved(fig: Figure, path: str | Path | None) -> Figure:
    """The figure, written to ``path`` too if there is one."""
    if path is not None:
        fig.savefig(path, dpi=180, facecolor="white")
    return fig
