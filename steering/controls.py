"""What a control is, and when it acts."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .context import StepContext

__all__ = ["Control", "Memory", "Weighed", "When", "due", "every"]

Memory = dict[str, Tensor]
"""What a control remembers of each row: (rows, ...) tensors, permuted with the particles, never re-evaluated."""

When = Callable[[StepContext], bool] | Collection[int] | None
"""At which moves: a predicate, the indices of moves, or None for every move."""


@dataclass(frozen=True, eq=False)
class Weighed:
    """A control's verdict on a step: ``log_potential`` (rows,) float64, and its memory afterwards."""

    log_potential: Tensor
    memory: Memory


class Control(Protocol):
    """A target for the particles: exp(sum of potentials) on the way, exactly exp(``log_target``) at the end.

    Potentials only choose intermediate values. The last correction, log_target minus all log-potentials applied so
    far, is made by the controller, so that no control can get its target wrong.
    """

    @property
    def name(self) -> str:
        """For reports."""
        ...

    @property
    def candidates(self) -> int:
        """Children M that each particle's step draws (1: none to choose from)."""
        ...

    def begin(self, rows: int) -> Memory:
        """Memory before the first step."""
        ...

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """Potential of the rows at this step; None where the control is not due."""
        ...

    def log_target(self, final: Tensor, decode: Callable[[Tensor], Any]) -> Tensor:
        """Log of the tilt (rows,) float64 on the final states."""
        ...


def due(when: When, context: StepContext) -> bool:
    """Does ``when`` name this step?"""
    if when is None:
        return True
    if callable(when):
        return bool(when(context))
    return context.index in when


def every(stride: int, *, start: float = 0.0, stop: float = 1.0) -> Callable[[StepContext], bool]:
    """Every ``stride``-th move between two fractions of the trajectory.

    Raises:
        ValueError: stride below one, or fractions out of order.
    """
    if stride < 1 or not 0.0 <= start < stop <= 1.0:
        raise ValueError(
            f"every: got stride {stride}, start {start}, stop {stop}; expected stride >= 1, 0 <= start < stop <= 1"
        )

    def predicate(context: StepContext) -> bool:
        return start <= context.fraction < stop and context.index % stride == 0

    return predicate
