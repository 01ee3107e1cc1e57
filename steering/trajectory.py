"""What is known of the run under way."""

from dataclasses import dataclass

from torch import Tensor

from ..fkc import Streams
from .layout import Layout
from .moves import GaussianMove
from .particles import Particles
from .schedulers import Level, SchedulerRule

__all__ = ["Trajectory"]


@dataclass(eq=False)
class Trajectory:
    """What is known of the run under way.

    Attributes:
        layout: of the batch.
        rule: of the scheduler.
        levels: of each move from the first, and the level after the last.
        first: the scheduler's number of the first move: image-to-image begins in the middle.
        particles: weights and memories.
        streams: random streams of the populations.
        move: the Gaussian move, or None where the scheduler moves.
        cached: the denoiser has feature caches, which move with the particles.
        seed: of the streams.
        calls: of the scheduler's step so far.
        position: of the current move.
        rows: of the batch that went on in the current move; None if all stayed.
        final_rows: of the batch that are the outputs, once the last move is made.
    """

    layout: Layout
    rule: SchedulerRule
    levels: tuple[Level, ...]
    first: int
    particles: Particles
    streams: Streams
    move: GaussianMove | None
    cached: bool
    seed: int = 0
    calls: int = 0
    position: int = -1
    rows: Tensor | None = None
    final_rows: Tensor | None = None

    @property
    def n_moves(self) -> int:
        """How many moves there are."""
        return len(self.levels) - 1

    @property
    def around(self) -> tuple[Level, Level]:
        """Levels before and after the current move."""
        return self.levels[self.position], self.levels[self.position + 1]
