"""Bootstrap replicates of weighted samples, by sample or by group."""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["bootstrap_counts", "check_groups"]

_ELEMENTS_AT_ONCE = 8_000_000
"""Replicates are drawn in pieces of this many counts: 64 MB of float64."""


def check_groups(groups: torch.Tensor | None, n: int) -> torch.Tensor:
    """Group index (n,) from 0 without gaps; one group a sample when ``groups`` is None.

    Raises:
        ValueError: if the labels are not n integers, or name fewer than two groups.
    """
    if groups is None:
        return torch.arange(n)
    if groups.shape != (n,) or groups.is_floating_point():
        raise ValueError(f"groups must hold {n} integers, got {groups.dtype} {tuple(groups.shape)}")
    index: torch.Tensor = torch.unique(groups, return_inverse=True)[1]
    if int(index.max()) < 1:
        raise ValueError("bootstrap by group needs at least two groups")
    return index


def bootstrap_counts(generator: torch.Generator, groups: torch.Tensor, replicates: int) -> Iterator[torch.Tensor]:
    """Multinomial bootstrap: how often each sample occurs in each replicate.

    Whole groups (independent samples, walkers, or blocks longer than the correlation time) are drawn with
    replacement, as many as there are; a sample counts as often as its group (Efron & Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 6; blocks: Künsch, Ann. Stat. 17, 1217 (1989)).

    Args:
        generator: source of randomness, on the CPU.
        groups: (n,) group index from 0 without gaps, from `check_groups`.
        replicates: number of replicates R.

    Yields:
        Pieces (r, n) float64 whose r add up to R.
    """
    n_groups = int(groups.max()) + 1
    own_groups = n_groups == groups.numel()
    piece = max(1, _ELEMENTS_AT_ONCE // max(groups.numel(), n_groups))
    for start in range(0, replicates, piece):
        r = min(piece, replicates - start)
        drawn = torch.randint(n_groups, (r, n_groups), generator=generator)
        counts = torch.zeros(r, n_groups, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones(1, dtype=torch.float64).expand(r, n_groups))
        yield counts if own_groups else counts[:, groups]
