"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from ..density import GeometricPath, Point
from .base import Move, metropolis
from .langevin import langevin_proposal

__all__ = ["MALA"]


@dataclass(frozen=True)
class MALA:
    """A Langevin step accepted with probability ``min(1, exp(log_ratio))``; ``step_size`` is h, in the
    squared unit of x.

    References:
        Roberts and Tweedie (1996), Bernoulli 2, 341, section 1.4.
    """

    needs_score: bool = True
    exact: bool = True

    def __call__(self, generators: Sequence[Generator], point: Point, path: GeometricPath, step_size: Tensor) -> Move:
        """See :class:`feynkac.fkc.kernels.Kernel`."""
        new, log_ratio = langevin_proposal(generators, point, path, step_size)
        return metropolis(generators, point, new, log_ratio)
