"""Errors and warnings of the Feynman-Kac core, one class per meaning."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CheckpointError",
    "NonFiniteWeightWarning",
    "ParetoWarning",
    "PathCollapsed",
    "PopulationCollapsed",
    "ScheduleExhausted",
    "UnstableNoise",
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


class PathCollapsed(ValueError):
    """A target cannot be normalised at some noise level, although it can be at both ends.

    Attributes:
        variance: noise variance of the level.
        progress: 0 at the noise, 1 at the data.
        precision: of the target's Gaussian reference there, not positive.
    """

    def __init__(self, variance: float, progress: float, precision: float) -> None:
        super().__init__(
            f"the target cannot be normalised at noise variance {variance:.4g} (progress {progress:.3g}): its Gaussian "
            f"reference has precision {precision:.4g} there; let the exponents move along the path, or give the "
            "experts one clock"
        )
        self.variance, self.progress, self.precision = variance, progress, precision


class UnstableNoise(ValueError):
    """A noise multiplier at which weighted particles drift away from their target.

    Attributes:
        noise: kappa that was asked for.
        bound: what it must exceed.
    """

    def __init__(self, noise: float, bound: float, remedy: str) -> None:
        super().__init__(
            f"noise: got {noise:g}, expected more than {bound:.4g}: below that the truth is not attracting for this "
            f"target, and sampling noise grows along the path; {remedy}, or pass force=True"
        )
        self.noise, self.bound = noise, bound


class ParetoWarning(RuntimeWarning):
    """The k-hat of weights is above 0.7, or the leverage of a draw above 0.2: too few draws count, and neither a mean
    nor its error bar can be relied on."""


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
