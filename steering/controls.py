"""What a control is, and when it acts."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .context import FinalContext, StepContext

__all__ = ["Control", "Memory", "Planned", "Target", "Weighed", "When", "due", "every", "near", "never_due"]

Memory = dict[str, Tensor]
"""What a control remembers of each row: (rows, ...) tensors, permuted with the particles, never re-evaluated."""

When = Callable[[StepContext], bool] | Collection[int] | None
"""At which moves: a predicate, the indices of moves, or None for every move."""


@dataclass(frozen=True, eq=False)
class Planned:
    """A Gaussian move that a control makes in place of the stochastic step: N(``mean``, ``deviation``^2).

    Attributes:
        mean: (rows, ...) like the sample.
        deviation: of every element; 0 for a deterministic move.
    """

    mean: Tensor
    deviation: float


@dataclass(frozen=True, eq=False)
class Weighed:
    """A control's verdict on a step.

    Attributes:
        log_potential: (rows,) float64, what the rows' log-weights gain.
        memory: of the control, afterwards.
        reward: (rows,) float64 as measured, for the record; None if there is none.
        gradient: (rows, ...) like the sample: the move's mean is shifted by its variance times this, and the weights
            are corrected for it exactly; None for the plain move.
        denoiser_rows: rows that other denoisers than the pipeline's own evaluated.
        planned: the coming move, of which one control may dispose; None: that of the pipeline's prediction.
    """

    log_potential: Tensor
    memory: Memory
    reward: Tensor | None = None
    gradient: Tensor | None = None
    planned: Planned | None = None
    denoiser_rows: int = 0


@dataclass(frozen=True, eq=False)
class Target:
    """A control's verdict on the final states.

    Attributes:
        log_tilt: (rows,) float64, log of the tilt.
        reward: (rows,) float64, what is reported.
        scale: (P,) float64 that multiplied the reward, where that makes sense.
        notes: what a reader of the numbers should know.
    """

    log_tilt: Tensor
    reward: Tensor
    scale: Tensor | None = None
    notes: tuple[str, ...] = ()


class Control(Protocol):
    """A target for the particles: exp(sum of potentials) on the way, exactly exp(``log_tilt``) at the end.

    Potentials only choose intermediate values. The last correction, log_tilt minus all log-potentials applied so
    far, is made by the controller, so that no control can get its target wrong.
    """

    @property
    def name(self) -> str:
        """For reports."""
        ...

    @property
    def candidates(self) -> int:
        """Most children M that a particle's step draws (1: none to choose from)."""
        ...

    def begin(self, rows: int) -> Memory:
        """Memory before the first step."""
        ...

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """Potential of the rows at this step; None where the control is not due."""
        ...

    def target(self, final: FinalContext, memory: Memory) -> Target:
        """The tilt on the final states."""
        ...


def due(when: When, context: StepContext) -> bool:
    """Does ``when`` name this step?"""
    if when is None:
        return True
    if callable(when):
        return bool(when(context))
    return context.index in when


def never_due(control: Control) -> bool:
    """An empty collection of moves: the control judges the end alone."""
    when = getattr(control, "when", None)
    return isinstance(when, Collection) and len(when) == 0


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


def near(*fractions: float) -> Callable[[StepContext], bool]:
    """The move at (or first after) each of the given fractions of the trajectory.

    Raises:
        ValueError: a fraction outside [0, 1).
    """
    if not fractions or not all(0.0 <= f < 1.0 for f in fractions):
        raise ValueError(f"near: got {fractions}, expected fractions in [0, 1)")

    def predicate(context: StepContext) -> bool:
        before = (context.index - 1) / context.n_moves
        return any(before < f <= context.fraction for f in fractions)

    return predicate
