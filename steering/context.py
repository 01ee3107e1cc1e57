"""What a control sees: one move before it is made, and the final states."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from ..fkc.streams import generator_for, split_seed
from ..fkc.weights import effective_sample_size
from .denoiser import Branches
from .errors import SteeringError
from .predictions import clean_prediction, noise_prediction, score
from .schedulers.levels import Level

__all__ = ["Decode", "FinalContext", "StepContext"]

Decode = Callable[[Tensor], Any]
"""Clean latents (rows, ...) -> what rewards on images see."""


@dataclass(frozen=True, eq=False)
class StepContext:
    """One move of the sampler, seen before it is made.

    Rows are P populations x K particles x M candidates, a population's rows side by side, its particles' candidates
    side by side.

    Attributes:
        index: 0 for the first move.
        n_moves: how many there are.
        timestep: as the pipeline passed it.
        level: noise level of ``sample``.
        following: that after the move.
        sample: (rows, ...) x_t, in the pipeline's dtype.
        output: (rows, ...) what the denoiser said, guidance included.
        prediction: how ``output`` is to be read: ``epsilon``, ``v_prediction``, ``sample``, ``flow``.
        exploding: the sample space is variance exploding.
        layout: (P, K, M).
        decode: clean latents -> what rewards on images see.
        log_weights: (P, K) float64 carried so far.
        seed: of a control's own draws at this step.
        first_population: number of the first population, for the same.
        chunk_size: samples handed to a reward at a time.
        read_clean: (sample, output) -> clean states where they are tokens; None where they are x0-hat.
        draw_clean: (sample, output, n, generators) -> (rows, n, ...) clean draws; None: Gaussian around x0-hat.
        differentiable: () -> (x, output, rows): the output as a differentiable function of x, by another evaluation of
            the denoiser, for the whole batch, of which ``rows`` are these; None where that is not possible.
        branches: () -> predictions of the guidance branches for these rows; None where the denoiser's calls are not
            recorded.
        pictures: x0-hat -> images as a differentiable tensor; None where there is no such decoder.
        deviation: standard deviation of the coming Gaussian move; 0 where the scheduler moves by itself.
        levels: of all moves of the run, and the last; empty where nobody asks.
        start_deviation: standard deviation of the noise that the pipeline starts from.
        skipped: moves of the scheduler that were left out before the first, as image-to-image pipelines do.
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
    decode: Decode
    log_weights: Tensor
    seed: int = 0
    first_population: int = 0
    chunk_size: int | None = None
    read_clean: Callable[[Tensor, Tensor], Tensor] | None = None
    draw_clean: Callable[[Tensor, Tensor, int, list[Generator]], Tensor] | None = None
    differentiable: Callable[[], tuple[Tensor, Tensor, slice | Tensor]] | None = None
    branches: Callable[[], Branches] | None = None
    pictures: Callable[[Tensor], Tensor] | None = None
    deviation: float = 0.0
    levels: tuple[Level, ...] = ()
    start_deviation: float = 1.0
    skipped: int = 0

    @cached_property
    def clean(self) -> Tensor:
        """x0-hat (rows, ...), unclipped, float32 or float64; for tokens the likeliest clean sequence."""
        if self.read_clean is not None:
            return self.read_clean(self.sample, self.output)
        return self.clean_from(self.sample, self.output)

    def clean_from(self, sample: Tensor, output: Tensor) -> Tensor:
        """x0-hat of another (sample, output) at this noise level."""
        return clean_prediction(sample, output, self.level, self.prediction, exploding=self.exploding)

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

    def differentiable_images(self, clean: Tensor) -> Tensor:
        """x0-hat as images (rows, C, H, W) in [0, 1], differentiable.

        Raises:
            SteeringError: the pipeline has no decoder that is.
        """
        if self.pictures is None:
            raise SteeringError("gradient: this pipeline's decoding is not differentiable; judge on='latents'")
        return self.pictures(clean)

    @property
    def fraction(self) -> float:
        """Share of the moves already made, in [0, 1)."""
        return self.index / self.n_moves

    @cached_property
    def ess(self) -> Tensor:
        """(P,) effective sample size of the weights carried so far."""
        return effective_sample_size(self.log_weights)

    def posterior_variance(self, data_variance: float = 1.0) -> float:
        """Variance of x0 given x_t for Gaussian data: s^2 sigma^2 / (alpha^2 s^2 + sigma^2)."""
        noise = self.level.sigma**2
        return data_variance * noise / (self.level.alpha**2 * data_variance + noise)

    def draws(self, n: int, data_variance: float = 1.0) -> Tensor:
        """``n`` clean states (rows, n, ...) a row from the law of x0 given x_t, as the model or, for continuous
        states, a Gaussian around x0-hat sees it.

        A population's draws come from a stream of its own, so they are the same alone or in a batch.
        """
        populations = self.layout[0]
        root = split_seed(self.seed, self.index)
        generators = [generator_for(root, self.first_population + p) for p in range(populations)]
        rows = len(self.sample) // populations
        if self.draw_clean is not None:
            return self.draw_clean(self.sample, self.output, n, [g for g in generators for _ in range(rows)])
        shape = (rows, n, *self.clean.shape[1:])
        z = torch.cat([torch.randn(shape, generator=g, dtype=self.clean.dtype) for g in generators])
        deviation = math.sqrt(self.posterior_variance(data_variance))
        return self.clean[:, None] + deviation * z.to(self.clean.device)


@dataclass(frozen=True, eq=False)
class FinalContext:
    """The final states, before the last correction.

    Attributes:
        sample: (rows, ...) final states before decoding.
        decode: what turns them into images.
        layout: (P, K, M).
        log_weights: (P, K) float64 carried so far.
        applied: (rows,) float64 sum of the log-potentials that the control asking has applied to each row's path.
        chunk_size: samples handed to a reward at a time.
        shared: what several controls need once, such as decoded images.
    """

    sample: Tensor
    decode: Decode
    layout: tuple[int, int, int]
    log_weights: Tensor
    applied: Tensor
    chunk_size: int | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> Any:
        """The final states as the pipeline decodes them, decoded once for all controls."""
        if "images" not in self.shared:
            self.shared["images"] = self.decode(self.sample)
        return self.shared["images"]
