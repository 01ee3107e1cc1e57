"""Pictures of a steered run: traces, family tree, weighted samples. Each is a matplotlib figure; none touches pyplot.

Nothing else of the package imports this module, so that matplotlib is needed by those alone who draw.
"""

import math
import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from .plot_grid import image_grid
from .plot_style import FAINT, MUTED, Array, colour, saved, styled
from .run import Run

__all__ = ["image_grid", "plot_ancestry", "plot_run"]

_NAMED = 6
"""Up to this many populations have a name in the legend."""


# --- traces ---------------------------------------------------------------------------------------------------------


@styled
def plot_run(run: Run, *, control: str | None = None, path: str | Path | None = None) -> Figure:
    """Effective sample size, rewards and log-evidence over the moves; the last point is that of the outputs.

    Args:
        run: complete, or as far as it has come.
        control: whose rewards; the first one's if None.
        path: where to save the figure too; the suffix says the format.

    Raises:
        KeyError: no control of that name.
        RuntimeError: nothing has run yet.
    """
    fig = Figure(figsize=(11.0, 3.3), layout="constrained")
    panels = fig.subplots(1, 3)
    _draw_ess(panels[0], run)
    _draw_rewards(panels[1], run, control)
    _draw_evidence(panels[2], run)
    for ax in panels:
        ax.set_xlabel("move")
        ax.set_xlim(-0.5, max(len(run.records), 1) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return saved(fig, path)


def _with_end(trace: list[Tensor], end: Tensor) -> tuple[NDArray[np.int64], Array]:
    """Moves (n + 1,) and values (n + 1, P), the outputs' own behind the last move."""
    return np.arange(len(trace) + 1), torch.stack([*trace, end]).double().numpy()


def _draw_ess(ax: Axes, run: Run) -> None:
    moves, ess = _with_end([record.ess for record in run.records], run.ess)
    size = run.log_weights.shape[1]
    resampled = _resampled(run)
    ax.axhline(size / 2, color=MUTED, lw=0.8, ls="--", zorder=0, label="K/2")
    for p in range(ess.shape[1]):
        ax.plot(moves, ess[:, p], color=colour(p), label=f"population {p}" if 1 < ess.shape[1] <= _NAMED else None)
        at = np.flatnonzero(resampled[:, p])
        first = "resampled" if len(at) and not resampled[:, :p].any() else None
        ax.plot(at, ess[at, p], ls="none", marker="v", ms=4.5, color=colour(p), mec="white", mew=0.5, label=first)
    ax.set_ylim(0, 1.05 * size)
    ax.set_ylabel("particles")
    ax.set_title(f"Effective sample size of {size}")
    ax.legend(loc="lower left")


def _resampled(run: Run) -> NDArray[np.bool_]:
    """(moves, P) bool: the population was resampled in that move."""
    if not run.records:
        return np.zeros((0, run.log_weights.shape[0]), dtype=bool)
    assert run.population is not None
    populations = [*(record.population for record in run.records), run.population]
    counts = torch.stack([population.n_resamplings for population in populations])
    some = torch.tensor([record.ancestors is not None for record in run.records])
    found: NDArray[np.bool_] = ((counts.diff(dim=0) > 0) & some[:, None]).numpy()
    return found


def _draw_rewards(ax: Axes, run: Run, control: str | None) -> None:
    moves, rewards = run.reward_trace(control)
    name = control if control is not None else _first_control(run)
    if name in run.rewards_by_control:
        moves = torch.cat([moves, torch.tensor([len(run.records)])])
        rewards = torch.cat([rewards.double(), run.rewards_by_control[name][None].double()])
    values = np.where(np.isfinite(rewards.numpy()), rewards.numpy(), np.nan)
    x = moves.numpy()
    point = "." if len(x) == 1 else None  # a line through one point is not seen
    for p in range(values.shape[1]):
        low, mean, high, best = _summary(values[:, p])
        alone = p == 0
        ax.fill_between(x, low, high, color=colour(p), alpha=0.2, lw=3 if point else 0, label="10 to 90 %" * alone)
        ax.plot(x, mean, color=colour(p), marker=point, label="mean" * alone)
        ax.plot(x, best, color=colour(p), lw=1.0, ls=":", marker=point, label="best" * alone)
    ax.set_ylabel("reward")
    title = f"Rewards: {textwrap.shorten(name, 40, placeholder='...')}" if name else "No reward was measured"
    ax.set_title(title, parse_math=False)
    if len(x):
        ax.legend(loc="best")


def _first_control(run: Run) -> str:
    names = [*run.rewards_by_control, *(name for record in run.records for name in record.rewards)]
    return names[0] if names else ""


def _summary(values: Array) -> tuple[Array, Array, Array, Array]:
    """10 % quantile, mean, 90 % quantile and maximum over the particles (n, K); NaN where none is possible."""
    rows = [row[~np.isnan(row)] for row in values]
    found = [(np.quantile(r, 0.1), r.mean(), np.quantile(r, 0.9), r.max()) if len(r) else (np.nan,) * 4 for r in rows]
    low, mean, high, best = np.array(found, dtype=np.float64).reshape(-1, 4).T
    return low, mean, high, best


def _draw_evidence(ax: Axes, run: Run) -> None:
    moves, evidence = _with_end([record.log_evidence for record in run.records], run.log_evidence)
    errors = run.log_evidence_std_error if run.log_weights.shape[1] > 1 else torch.full_like(run.log_evidence, math.inf)
    for p in range(evidence.shape[1]):
        ax.plot(moves, np.where(np.isfinite(evidence[:, p]), evidence[:, p], np.nan), color=colour(p))
        if math.isfinite(errors[p]) and math.isfinite(evidence[-1, p]):
            bar = float(errors[p])
            ax.errorbar(moves[-1:], evidence[-1:, p], yerr=bar, fmt="o", ms=3.5, color=colour(p), capsize=2.5)
    ax.set_ylabel("log-evidence so far")
    last = ", ".join(f"{value:.2f}" for value in evidence[-1, :3].tolist())
    ax.set_title(f"Log-evidence: {last}{', ...' if evidence.shape[1] > 3 else ''}")


# --- the family tree ------------------------------------------------------------------------------------------------


@styled
def plot_ancestry(run: Run, population: int = 0, *, path: str | Path | None = None) -> Figure:
    """Every particle joined to its ancestor, move by move; lineages that reach the end are coloured by their root.

    Args:
        run: complete, or as far as it has come.
        population: which one.
        path: where to save the figure too.

    Raises:
        IndexError: no such population.
        RuntimeError: nothing has run yet.
    """
    count, size = run.log_weights.shape
    if not 0 <= population < count:
        raise IndexError(f"population: got {population}, expected 0 to {count - 1}")
    ancestors, roots, alive = _lineages(run, population)
    fig = Figure(
        figsize=(min(max(3.0 + 0.12 * len(ancestors), 6.0), 11.0), min(1.6 + 0.16 * size, 8.0)), layout="constrained"
    )
    ax = fig.subplots()
    extinct, surviving, colours = [], [], []
    for move, parents in enumerate(ancestors):
        for child, parent in enumerate(parents):
            segment = [(move, parent), (move + 1, child)]
            if alive[move + 1][child]:
                surviving.append(segment)
                colours.append(colour(roots[move + 1][child]))
            else:
                extinct.append(segment)
    ax.add_collection(LineCollection(extinct, colors=FAINT, linewidths=0.7, label="extinct"))
    ax.add_collection(LineCollection(surviving, colors=colours, linewidths=1.3, capstyle="round", label="surviving"))
    ends = [colour(root) for root in roots[-1]]
    ax.scatter([len(ancestors)] * size, range(size), s=6, color=ends, zorder=3)
    ax.set_xlim(-0.3, len(ancestors) + 0.5)
    ax.set_ylim(size - 0.5, -0.5)
    ax.set_xlabel("move")
    ax.set_ylabel("particle")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    kept = int(run.distinct_roots[population])
    ax.set_title(f"Ancestry: {kept} distinct root{'s' if kept != 1 else ''} of {size}")
    return saved(fig, path)


def _lineages(run: Run, population: int) -> tuple[list[list[int]], list[list[int]], list[list[bool]]]:
    """Ancestors (moves, K); roots and whether a descendant reaches the end, (moves + 1, K) each."""
    everyone = list(range(run.log_weights.shape[1]))
    ancestors = [everyone if a is None else [int(i) for i in a[population]] for a in run.ancestors]
    roots = [everyone]
    for parents in ancestors:
        roots.append([roots[-1][parent] for parent in parents])
    alive = [[True] * len(everyone)]
    for parents in reversed(ancestors):
        needed = {parent for parent, child in zip(parents, alive[0], strict=True) if child}
        alive.insert(0, [slot in needed for slot in everyone])
    return ancestors, roots, alive
