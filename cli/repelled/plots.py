"""The pictures of a repelled run, each a function from an outcome to a matplotlib figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...fkc.weights import normalize
from ...steering.plot_grid import image_grid
from ..report.style import ACCENT, INK, MUTED, SECOND, figure, styled
from .results import Batches, Outcome

__all__ = ["draw_classes", "draw_coverage", "draw_plane", "draw_samples"]

_COLOURS = {"repelled": ACCENT, "plain": MUTED}
_LABELS = {"repelled": "repelled", "plain": "without the bias"}
_SHOWN = 32
_GRID = 160
_CLASSES: Any = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#555b61", "#a8a800", "#17becf",
)  # fmt: skip


def draw_samples(outcome: Outcome) -> Figure:
    """Samples of all populations of the first batch and of the last, in the order of their classes, with their weights
    among those shown."""
    batches, (_, populations, size) = outcome.repelled, outcome.repelled.shape
    each = min(size, max(1, _SHOWN // populations))
    chosen = torch.linspace(0, size - 1, each).long()  # neighbours may be copies
    images: list[Any] = []
    weights = []
    for index in (0, -1):
        order = batches.classes[index][:, chosen].reshape(-1).argsort(stable=True)
        pictures = batches.images[index][:, chosen.numpy()].reshape(-1, *batches.images.shape[3:])
        images += list(pictures[order.numpy()])
        weights.append(batches.biased_log_weights[index][:, chosen].reshape(-1)[order])
    titles = ["First batch, no bias yet", f"Batch {batches.shape[0]}, repelled"]
    return image_grid(images, torch.stack(weights), columns=min(len(order), 16), titles=titles, ordered=False)


@styled
def draw_plane(outcome: Outcome) -> Figure:
    """Samples in the plane: all plain ones, and those of the last batches under the bias, whose contours are drawn."""
    panels = [("plain", outcome.plain)] if outcome.plain is not None else []
    panels.append(("repelled", outcome.repelled))
    fig, axes = figure(5.4 * len(panels) + 0.9, 5.0, len(panels), sharex=True, sharey=True)
    last = max(outcome.frozen, 1)
    for ax, (way, batches) in zip(axes, panels, strict=True):
        if way == "repelled":
            _contours(fig, ax, outcome)
        _scatter(ax, batches, last, outcome.n_classes)
        count = last * batches.shape[1] * batches.shape[2]
        where = "without the bias" if way == "plain" else "under the last bias"
        ax.set(title=f"{count:,} samples {where}", xlabel="axis 1")
    axes[0].set_ylabel("axis 2")
    handles = [
        axes[0].plot([], [], "o", ms=5, color=_CLASSES[c % len(_CLASSES)], label=str(c))[0]
        for c in range(outcome.n_classes)
    ]
    axes[0].legend(handles=handles, loc="upper left", ncols=2, handletextpad=0.1, columnspacing=0.6)
    return fig


def _contours(fig: Figure, ax: Axes, outcome: Outcome) -> None:
    bias = outcome.repelled.rounds[-1].bias
    every = torch.cat([outcome.plane.values, outcome.repelled.values.reshape(-1, 2)])
    margin = 0.05 * (every.amax(dim=0) - every.amin(dim=0))
    low, high = every.amin(dim=0) - margin, every.amax(dim=0) + margin
    ax.set(xlim=(float(low[0]), float(high[0])), ylim=(float(low[1]), float(high[1])))
    nodes = [torch.linspace(float(a), float(b), _GRID, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    surface = bias(torch.cartesian_prod(*nodes)).reshape(_GRID, _GRID)
    surface = surface - surface.min()
    filled = ax.contourf(nodes[0], nodes[1], surface.T.numpy(), levels=10, cmap="Blues", alpha=0.75, zorder=0)
    ax.contour(nodes[0], nodes[1], surface.T.numpy(), levels=10, colors=[ACCENT], linewidths=0.5, zorder=1)
    fig.colorbar(filled, ax=ax, pad=0.02, shrink=0.8).set_label("bias (kT)")


def _scatter(ax: Axes, batches: Batches, last: int, classes: int) -> None:
    """The samples of the last batches; areas are weights under the biased law."""
    values = batches.values[-last:].reshape(-1, 2)
    weights = torch.cat([normalize(row.reshape(-1)) for row in batches.biased_log_weights[-last:]])
    seen = batches.classes[-last:].reshape(-1)
    area = (9.0 * weights * len(weights) / last).clamp(0.5, 60.0)
    for c in range(classes):
        some: Tensor = seen == c
        colour = _CLASSES[c % len(_CLASSES)]
        x, y = values[some].T.numpy()
        ax.scatter(x, y, s=area[some].numpy(), color=colour, lw=0.3, ec="white", zorder=2)


@styled
def draw_coverage(outcome: Outcome) -> Figure:
    """Occupied cells and the entropy of the classes against batches, with the bias and without."""
    fig, (left, right) = figure(9.6, 3.4, 2)
    for way, batches in reversed(outcome.ways()):
        x = np.arange(1, batches.shape[0] + 1)
        style: dict[str, Any] = {"color": _COLOURS[way], "marker": "o", "ms": 3.5, "label": _LABELS[way]}
        left.plot(x, batches.occupied(outcome.cells), **style)
        right.plot(x, batches.entropies(outcome.n_classes), **style)
    if outcome.frozen:
        for ax in (left, right):
            ax.axvspan(x[-1] - outcome.frozen + 0.5, x[-1] + 0.5, color=MUTED, alpha=0.15, lw=0, label="bias frozen")
    right.axhline(np.log(outcome.n_classes), color=INK, lw=0.8, ls="--")
    left.set(title="Cells of the plane with a sample", xlabel="batch", ylabel="cells", ylim=(0, None))
    right.set(title="Entropy of the classes", xlabel="batch", ylabel="nats")
    right.text(0.7, np.log(outcome.n_classes), "all classes alike", va="bottom", fontsize=8.5)
    low, _ = right.get_ylim()
    right.set_ylim(low, np.log(outcome.n_classes) + 0.06)
    for ax in (left, right):
        ax.set_xlim(0.5, x[-1] + 0.5)
    left.legend(loc="lower right")
    return fig


@styled
def draw_classes(outcome: Outcome) -> Figure:
    """Share of each class: under the last bias, undone from all batches, and of plain draws."""
    fig, (ax,) = figure(8.2, 3.4)
    count, batches = outcome.n_classes, outcome.repelled
    last = max(outcome.frozen, 1)
    biased = torch.stack([batches.biased_shares(batches.shape[0] - 1 - i, count) for i in range(last)]).mean(dim=0)
    bars: list[tuple[str, str, Tensor, Tensor | None]] = [("repelled, as sampled", SECOND, biased, None)]
    bars.append(("repelled, bias undone", ACCENT, *batches.class_shares(count)))
    if outcome.plain is not None:
        bars.append((_LABELS["plain"], MUTED, *outcome.plain.class_shares(count)))
    width = 0.84 / len(bars)
    for i, (label, colour, values, errors) in enumerate(bars):
        places = np.arange(count) + (i - 0.5 * (len(bars) - 1)) * width
        ax.bar(places, values.numpy(), width * 0.92, color=colour, label=label)
        if errors is not None:
            down = np.minimum(errors.numpy(), values.numpy())
            ax.errorbar(places, values.numpy(), yerr=[down, errors.numpy()], fmt="none", ecolor=INK, lw=0.9, capsize=2)
    ax.set_xticks(range(count))
    ax.set(title="Classes seen by the classifier", xlabel="class", ylabel="share")
    ax.legend(loc="best")
    return fig
