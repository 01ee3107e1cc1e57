"""Blocks of correlated walkers: groups for the bootstrap, and how the error settles as blocks grow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .autocorrelation import ShortSeriesWarning, influence

__all__ = ["BlockErrorCurve", "block_error_curve", "block_groups", "block_length"]

_TIMES_PER_BLOCK = 10
"""Memory times a block holds: its mean has a variance too small by 1/10, its error by 5 per cent."""

_FEWEST_BLOCKS = 8
"""With fewer groups an error is itself uncertain by more than a quarter."""


@dataclass(frozen=True, kw_only=True)
class BlockErrorCurve:
    """Standard error of a weighted mean against the length of the blocks it was computed from.

    Attributes:
        lengths: (L,) int64, steps in a block, ascending.
        std_error: (L,) error from the spread of block means.
        spread: (L,) standard error of ``std_error`` for normal block means, ``std_error / sqrt(2 (G - 1))``.
        blocks: (L,) int64, number G of blocks, all walkers together.
        plateau: error at the shortest length that is long enough; NaN when none is.
        plateau_spread: its standard error.
        plateau_length: that length, or None.
    """

    lengths: Tensor
    std_error: Tensor
    spread: Tensor
    blocks: Tensor
    plateau: float
    plateau_spread: float
    plateau_length: int | None


def block_groups(steps: int, walkers: int, block: int) -> Tensor:
    """Labels (T*B,) of the blocks of a series (T, B) flattened row by row (time first, walkers fastest).

    A group is a stretch of ``block`` steps of one walker; steps left over at the end join the last stretch.

    Args:
        steps: T.
        walkers: B.
        block: steps in a block, 1 to T; T makes every walker a group.

    Raises:
        ValueError: for numbers out of range.

    Example:
        >>> block_groups(5, 2, 2).reshape(5, 2).tolist()
        [[0, 1], [0, 1], [2, 3], [2, 3], [2, 3]]
    """
    if steps < 1 or walkers < 1 or not 1 <= block <= steps:
        raise ValueError(f"blocks of {block} steps do not fit {steps} steps of {walkers} walkers")
    stretch = torch.div(torch.arange(steps), block, rounding_mode="floor").clamp_max(steps // block - 1)
    return (stretch[:, None] * walkers + torch.arange(walkers)).reshape(-1)


def block_length(memory: float, steps: int, walkers: int, *, warn: bool = True) -> int:
    """Steps in a block: ten times the memory of the series, at most a whole walker.

    Stretches of one walker that follow each other then share a tenth of their variance; walkers share nothing.  When
    that leaves fewer than 8 groups the blocks are made shorter, as the spread of so few says nothing.

    Args:
        memory: in steps, `Autocorrelation.memory` of the influence of the estimate.
        steps: T.
        walkers: B.
        warn: whether too short a series is warned of.

    Raises:
        ValueError: if there are fewer than two samples or ``memory`` is not a number.

    Warns:
        ShortSeriesWarning: when blocks had to be shorter than that to have 8 of them.
    """
    if math.isnan(memory) or steps * walkers < 2:
        raise ValueError(f"no blocks for a memory of {memory} and {steps} steps of {walkers} walkers")
    wanted = max(1, math.ceil(min(_TIMES_PER_BLOCK * memory, steps)))
    most = max(1, steps // math.ceil(_FEWEST_BLOCKS / walkers))
    if wanted > most and warn:
        warnings.warn(
            f"{walkers} walkers of {steps} steps hold fewer than {_FEWEST_BLOCKS} blocks of {_TIMES_PER_BLOCK} times "
            f"the memory ({memory:.3g} steps): errors by block may be too small",
            ShortSeriesWarning,
            stacklevel=2,
        )
    return min(wanted, most)


def block_error_curve(
    values: Tensor, log_weights: Tensor | None = None, *, lengths: Sequence[int] | None = None
) -> BlockErrorCurve:
    r"""Error of a (weighted) mean for growing blocks, and its plateau.

    With G blocks of b steps the error is that of a mean over groups, :math:`\sigma_b^2 = \frac{G}{G-1} \sum_g
    (\sum_{n \in g} x_n)^2 / n^2`, x the influence of each sample.  The plateau is the shortest b with
    :math:`b^3 > 2 T B (\sigma_b / \sigma_1)^4`: there the bias of short blocks and the noise of few blocks balance
    (Lee et al., Phys. Rev. E 83, 066706 (2011), after Wolff, Comput. Phys. Commun. 156, 143 (2004)).

    Args:
        values: (T,) or (T, B), a row a time.
        log_weights: raw log-weights of the same shape; equal weights without them.
        lengths: steps in a block; by default 1, 2, 4, ... and the whole walker, while at least 4 blocks remain.

    Raises:
        ValueError: for shapes that do not fit or lengths that leave fewer than two blocks.
    """
    log_weights = torch.zeros_like(values, dtype=torch.float64) if log_weights is None else log_weights
    series = influence(values, log_weights)
    series = series[:, None] if series.ndim == 1 else series
    if series.ndim != 2:
        raise ValueError(f"values must be (T,) or (T, B), got {tuple(values.shape)}")
    steps, walkers = series.shape
    chosen = _default_lengths(steps, walkers) if lengths is None else sorted(set(lengths))
    found = [_error_by_block(series, block) for block in chosen]
    std_error = torch.tensor([error for error, _ in found], dtype=torch.float64)
    blocks = torch.tensor([count for _, count in found])
    spread = std_error / torch.sqrt(2.0 * (blocks - 1))
    single = _error_by_block(series, 1)[0]
    enough = [
        k
        for k, (block, (error, _)) in enumerate(zip(chosen, found, strict=True))
        if single > 0 and (block == steps or block**3 > 2 * steps * walkers * (error / single) ** 4)
    ]
    at = enough[0] if enough else None
    return BlockErrorCurve(
        lengths=torch.tensor(chosen),
        std_error=std_error,
        spread=spread,
        blocks=blocks,
        plateau=math.nan if at is None else float(std_error[at]),
        plateau_spread=math.nan if at is None else float(spread[at]),
        plateau_length=None if at is None else chosen[at],
    )


def _default_lengths(steps: int, walkers: int) -> list[int]:
    doubled = [1 << k for k in range(steps.bit_length()) if 1 << k <= steps]
    return [b for b in sorted({*doubled, steps}) if (steps // b) * walkers >= 4] or [1]


def _error_by_block(series: Tensor, block: int) -> tuple[float, int]:
    steps, walkers = series.shape
    groups = block_groups(steps, walkers, block)
    count = int(groups.max()) + 1
    if count < 2:
        raise ValueError(f"blocks of {block} steps leave fewer than two blocks")
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, groups, series.reshape(-1))
    return math.sqrt(count / (count - 1) * float(sums.square().sum())) / series.numel(), count
