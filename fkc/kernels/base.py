"""What a Markov move is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from ..density import GeometricPath, Point
from ..streams import uniform

__all__ = ["Kernel", "Move", "metropolis", "per_particle"]


@dataclass(frozen=True, eq=False)
class Move:
    """Where the particles went.

    Attributes:
        point: the new particles with their densities.
        log_weight: ``(P, K)``, zero for an exact kernel; else what makes the move exact in expectation.
        accepted: ``(P, K)`` bool.
        n_invalid: ``(P,)`` int64, proposals whose density was NaN. An exact kernel rejects them.
    """

    point: Point
    log_weight: Tensor
    accepted: Tensor
    n_invalid: Tensor


class Kernel(Protocol):
    """A Markov move for the particles of a path density."""

    @property
    def needs_score(self) -> bool:
        """Whether points must carry scores."""
        ...

    @property
    def exact(self) -> bool:
        """True if the kernel leaves the density invariant; False if its ``log_weight`` has to be added."""
        ...

    def __call__(self, generators: Sequence[Generator], point: Point, path: GeometricPath, step_size: Tensor) -> Move:
        """One move of every particle; ``step_size`` ``(P,)``, in the unit that the kernel states."""
        ...


def per_particle(step_size: Tensor, x: Tensor) -> Tensor:
    """``step_size`` ``(P,)`` shaped to multiply ``x`` ``(P, K, *event)``."""
    return step_size.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def metropolis(generators: Sequence[Generator], old: Point, new: Point, log_ratio: Tensor) -> Move:
    """Accepts ``new`` with probability ``min(1, exp(log_ratio))``; NaN is a rejection, and counted."""
    draw = uniform(generators, log_ratio.shape[1:]).to(log_ratio.device)
    accepted = draw.log() < log_ratio
    n_invalid = new.log_prob.isnan().any(dim=-1).sum(dim=-1)
    return Move(new.where(accepted, old), torch.zeros_like(log_ratio), accepted, n_invalid)
