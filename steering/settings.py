"""How a run is steered, as one record."""

from dataclasses import dataclass

from .moves import Transition
from .particles import Final

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """See :func:`feynkac.steering.attach`."""

    particles: int
    populations: int | None
    ess_threshold: float
    resampler: str
    seed: int
    final: Final
    transition: Transition
    eta: float
    exact: bool
    chunk_size: int | None = None
    first_population: int = 0
