"""The picture of a fitted value: how much it explains at each noise level, and its calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ...steering.learned import LevelQuality
from .style import ACCENT, MUTED, SECOND, figure, styled

__all__ = ["draw_value"]


@styled
def draw_value(levels: Sequence[LevelQuality], predicted: Tensor, observed: Tensor, *, loss: str) -> Figure:
    """Correlation with the final reward and explained share by move; value against what the rewards were.

    Args:
        levels: quality at each recorded move.
        predicted: (bins,) mean values.
        observed: (bins,) soft values, or means, of the rewards in the same bins.
        loss: "exp" or "mean".
    """
    fig, (left, middle, right) = figure(11.0, 3.4, 3)
    moves = [level.move for level in levels]
    left.plot(moves, [level.correlation for level in levels], color=ACCENT, label="value")
    middle.plot(moves, [level.explained for level in levels], color=ACCENT, label="value")
    if all(level.denoised_correlation is not None for level in levels):
        for ax, judged in (
            (left, [level.denoised_correlation for level in levels]),
            (middle, [level.denoised_explained for level in levels]),
        ):
            ax.plot(moves, np.array(judged, dtype=np.float64), color=SECOND, label=r"$r(\hat x_0)$")
    left.set(title="Correlation with the final reward", xlabel="move", ylim=(None, 1.05))
    left.legend()
    share = "$R^2$" if loss == "mean" else "share of the deviance"
    middle.set(title="Explained, held out", xlabel="move", ylabel=share, ylim=(-1.05, 1.05))
    middle.axhline(0.0, color=MUTED, linewidth=0.8, label="best constant")
    middle.legend()
    low, high = float(predicted.min()), float(predicted.max())
    right.plot([low, high], [low, high], color=MUTED, linewidth=0.8)
    right.plot(predicted.tolist(), observed.tolist(), "o", color=ACCENT)
    kind = "mean" if loss == "mean" else "soft value"
    right.set(title="Calibration, tenths of all states", xlabel="value", ylabel=f"{kind} of the rewards")
    return fig
