"""Random-walk Metropolis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from ..density import GeometricPath, Point
from ..streams import normal
from .base import Move, metropolis, per_particle

__all__ = ["RandomWalk"]


@dataclass(frozen=True)
class RandomWalk:
    """``y = x + s xi``, accepted with probability ``min(1, pi(y) / pi(x))``; ``step_size`` is s, in the unit
    of x.

    References:
        Metropolis et al. (1953), J. Chem. Phys. 21, 1087.
    """

    needs_score: bool = False
    exact: bool = True

    def __call__(self, generators: Sequence[Generator], point: Point, path: GeometricPath, step_size: Tensor) -> Move:
        """See :class:`feynkac.fkc.kernels.Kernel`."""
        noise = normal(generators, point.x.shape[1:], dtype=point.x.dtype).to(point.x.device)
        new = path.evaluate(point.x + per_particle(step_size, point.x) * noise, score=point.score is not None)
        return metropolis(generators, point, new, path.log_prob(new) - path.log_prob(point))
