"""How often walkers went from one region to another and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Crossings", "count_crossings"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Crossings:
    """Transitions between two core sets; a walker counts as in the core that it visited last.

    Attributes:
        a_to_b, b_to_a: (B,) int64 events of each walker.
        visited_a, visited_b: (B,) bool.
        counted: (B,) bool, whether any frame of a walker counts; those of a walker retired from the start do not.
    """

    a_to_b: Tensor
    b_to_a: Tensor
    visited_a: Tensor
    visited_b: Tensor
    counted: Tensor

    @property
    def total(self) -> int:
        """Events of both directions, all walkers together."""
        return int(self.a_to_b.sum() + self.b_to_a.sum())

    @property
    def entered(self) -> int:
        """Events into A, all walkers together."""
        return int(self.b_to_a.sum())

    @property
    def left(self) -> int:
        """Events out of A, all walkers together."""
        return int(self.a_to_b.sum())

    @property
    def flux_z(self) -> float:
        r"""Net flux into A over its error, :math:`(n - m) / \sqrt{n + m}` of n events in and m out; 0 without any.

        Reversed in time an event of one direction is one of the other, so their numbers have one mean in a stationary
        reversible run. The variance of the difference is n + m for independent events, and smaller for walkers that go
        back and forth, whose events alternate.
        """
        return (self.entered - self.left) / math.sqrt(self.total) if self.total else 0.0

    @property
    def walkers(self) -> int:
        """Number of walkers with a frame that counts."""
        return int(self.counted.sum())

    @property
    def left_out(self) -> int:
        """Number of walkers without one; they are not among ``walkers``."""
        return self.counted.numel() - self.walkers

    @property
    def both(self) -> int:
        """Walkers that visited both cores."""
        return int((self.visited_a & self.visited_b).sum())

    @property
    def fraction_both(self) -> float:
        """Share of ``walkers`` that visited both cores; NaN without any."""
        return self.both / self.walkers if self.walkers else math.nan


def count_crossings(core_a: Tensor, core_b: Tensor, *, alive: Tensor | None = None) -> Crossings:
    """Events A to B and B to A, with hysteresis: what happens between the cores is not counted.

    Membership is all that is looked at, so the way around the circle of a periodic variable makes no difference.

    Args:
        core_a, core_b: (T, B) or (T,) bool, disjoint; put their ends well inside the basins, or recrossings of a single
            border are counted.
        alive: bool, the same shape: the frames that count; all when left out. A walker is where it was last seen in a
            frame that counts.

    Raises:
        ValueError: for shapes or types that do not fit, or cores that overlap.

    Example:
        >>> x = torch.tensor([-1.0, 0.1, -0.1, 0.2, 1.0, 0.0, 1.0, -1.0])
        >>> found = count_crossings(x < -0.5, x > 0.5)
        >>> int(found.a_to_b), int(found.b_to_a)
        (1, 1)
    """
    if core_a.shape != core_b.shape or core_a.ndim not in (1, 2) or {core_a.dtype, core_b.dtype} != {torch.bool}:
        raise ValueError(f"cores must be (T, B) bool, got {tuple(core_a.shape)} and {tuple(core_b.shape)}")
    if alive is not None and (alive.shape != core_a.shape or alive.dtype != torch.bool):
        raise ValueError(f"alive must be {tuple(core_a.shape)} bool, got {alive.dtype} {tuple(alive.shape)}")
    if bool((core_a & core_b).any()):
        raise ValueError("the cores overlap")
    a, b = (core.detach().cpu().reshape(core.shape[0], -1) for core in (core_a, core_b))
    counts = torch.ones_like(a) if alive is None else alive.detach().cpu().reshape(a.shape)
    a, b = a & counts, b & counts
    label = a.to(torch.int8) - b.to(torch.int8)
    steps = torch.arange(label.shape[0])[:, None].expand_as(label)
    last = torch.where(label != 0, steps, -1).cummax(0).values
    state = torch.where(last >= 0, label.gather(0, last.clamp_min(0)), 0)
    before, after = state[:-1], state[1:]
    return Crossings(
        a_to_b=((before == 1) & (after == -1)).sum(0),
        b_to_a=((before == -1) & (after == 1)).sum(0),
        visited_a=a.any(0),
        visited_b=b.any(0),
        counted=counts.any(0),
    )
