"""Errors and warnings of the Feynman-Kac core, one class per meaning."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CheckpointError",
    "NonFiniteWeightWarning",
    "PopulationCollapsed",
    "ScheduleExhausted",
    "WeightError",
]


class WeightError(ValueError):
    """A log-weight or an increment has no meaning: infinite weight, wrong shape, nothing left to
    normalise."""


class NonFiniteWeightWarning(RuntimeWarning):
    """A potential returned NaN: those particles count as dead (weight zero)."""


class ScheduleExhausted(RuntimeError):
    """An adaptive schedule did not reach its end within the number of steps that the caller allowed."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, truncated, altered, or belongs to another run."""


class PopulationCollapsed(RuntimeError):
    """Every particle of a population has weight zero.

    Attributes:
        populations: indices of the collapsed populations.
        step: number of reweightings done when it happened, counted from 0.
        particles: particles in each of them (all dead).
        result: what the other populations gave, where the loop could finish them; else None.
    """

    def __init__(self, populations: Sequence[int], step: int, particles: int, result: object = None) -> None:
        names = ", ".join(str(p) for p in populations)
        plural = "s" if len(populations) > 1 else ""
        super().__init__(
            f"population{plural} {names} collapsed at step {step}: all {particles} of {particles} particles "
            "have weight zero"
        )
        self.populations = tuple(int(p) for p in populations)
        self.step = step
        self.particles = particles
        self.result = result
