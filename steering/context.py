"""What a control sees of one step, before the particles move."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from .predictions import clean_prediction, noise_prediction, score
from .schedulers.levels import Level

__all__ = ["StepContext"]


@dataclass(frozen=True, eq=False)
class StepContext:
    """One move of the sampler, seen before it is made.

    Rows are P populations x K particles x M candidates, a population's rows side by side, its particles' candidates
    side by side.

    Attributes:
        index: 0 for the first move. ``n_moves``: how many there are.
        timestep: as the pipeline passed it.
        level: noise level of ``sample``; ``following``: that after the move.
        sample: (rows, ...) x_t, in the pipeline's dtype.
        output: (rows, ...) what the denoiser said, guidance included.
        prediction, exploding: how ``output`` is to be read.
        layout: (P, K, M).
        decode: clean latents (rows, ...) -> what rewards on images see.
    """

    index: int
    n_moves: int
    timestep: Any
    level: Level
    following: Level
    sample: Tensor
    output: Tensor
    prediction: str
    exploding: bool
    layout: tuple[int, int, int]
    decode: Callable[[Tensor], Any]

    @cached_property
    def clean(self) -> Tensor:
        """x0-hat (rows, ...), unclipped, float32 or float64."""
        return clean_prediction(self.sample, self.output, self.level, self.prediction, exploding=self.exploding)

    @cached_property
    def noise(self) -> Tensor:
        """eps-hat (rows, ...)."""
        return noise_prediction(self.sample, self.clean, self.level)

    @cached_property
    def score(self) -> Tensor:
        """Score (rows, ...) of the law of x_t."""
        return score(self.noise, self.level)

    @cached_property
    def images(self) -> Any:
        """x0-hat as the pipeline would decode it."""
        return self.decode(self.clean)

    @property
    def fraction(self) -> float:
        """Share of the moves already made, in [0, 1)."""
        return self.index / self.n_moves

    @property
    def posterior_variance(self) -> float:
        """Variance of x0 given x_t for data of unit variance: sigma^2 / (alpha^2 + sigma^2)."""
        return self.level.sigma**2 / (self.level.alpha**2 + self.level.sigma**2)
