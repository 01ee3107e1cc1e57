"""The members' schedulers: they look like the real one and meet where it would step.

The solver's history lives in the real scheduler only, one row a member, so that an attachment weighs, resamples and
re-indexes as for a batched call. A member's scheduler is a copy as the plain base class, without the attachment; its
attributes are those of the real one after every meeting (by reference: ``KDPM2`` reads its stage off its history), and
what a pipeline changes on it in between (``set_begin_index``, ``scale_model_input``, a counter set back) is taken over
by the real one at the next meeting, once.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..hook import plain_class
from .rows import agreed, same
from .threads import Strand

__all__ = ["Meeting", "Seat", "Share", "Streams", "Work", "agree_on_state", "hand_over_state", "member_scheduler"]

_SEAT = "_feynkac_seat"
_PRIVATE = (_SEAT, "_feynkac_attachment")


@dataclass(frozen=True, eq=False)
class Meeting:
    """A member waits at ``method`` of its scheduler, called with ``bound``."""

    seat: "Seat"
    method: str
    bound: inspect.BoundArguments


@dataclass(frozen=True, eq=False)
class Work:
    """Message to the member that leads a meeting: do this in your thread."""

    do: Callable[[], Any]


@dataclass(frozen=True, eq=False)
class Share:
    """Message to a member: this is what your call of the scheduler returns."""

    value: Any


@dataclass(eq=False)
class Streams:
    """The real schedulers of a run: the pipeline's, then the copies that the pipeline makes of it (a second modality),
    in the order in which each member makes them."""

    real: list[Any]

    def copy_of(self, seat: "Seat") -> int:
        """Index of the stream that belongs to the next copy a member makes."""
        seat.copies.append(len(seat.copies) + 1)
        index: int = seat.copies[-1]
        if index == len(self.real):
            self.real.append(copy.deepcopy(self.real[seat.stream]))
        return index


@dataclass(eq=False)
class Seat:
    """A member's place at one stream's meetings.

    Attributes:
        strand: the member's thread.
        streams: of the run.
        stream: which of them.
        known: the real scheduler's attributes when they were last handed over.
        copies: shared by a member's seats: one entry a copy that it has made.
    """

    strand: Strand
    streams: Streams
    stream: int
    known: dict[str, Any]
    copies: list[int] = field(default_factory=list)
    scheduler: Any = None

    @property
    def real(self) -> Any:
        """The real scheduler."""
        return self.streams.real[self.stream]

    def meet(self, method: str, bound: inspect.BoundArguments) -> Any:
        """Wait for the others; lead, if asked to; return this member's share."""
        message = self.strand.pause(Meeting(self, method, bound))
        if isinstance(message, Work):
            message = self.strand.pause(message.do())
        return message.value

    def __deepcopy__(self, memo: dict[int, Any]) -> "Seat":
        if not self.strand.inside:  # copied from outside, after the run or by a reward: no member's
            return self
        stream = self.streams.copy_of(self)
        return Seat(self.strand, self.streams, stream, _attributes(self.streams.real[stream]), self.copies)


@functools.cache
def _member_class(base: Any) -> type:
    """A subclass of ``base``, of the same name, whose ``step`` and ``set_timesteps`` are meetings."""

    def meeting(name: str) -> Callable[..., Any]:
        method = getattr(base, name)
        signature = inspect.signature(method)

        @functools.wraps(method)
        def meets(self: Any, *args: Any, **kwargs: Any) -> Any:
            seat: Seat | None = vars(self).get(_SEAT)
            if seat is None or not seat.strand.inside:
                return method(self, *args, **kwargs)
            seat.scheduler = self
            return seat.meet(name, signature.bind(self, *args, **kwargs))

        return meets

    members: dict[str, Any] = {name: meeting(name) for name in ("step", "set_timesteps")}
    subclass = type(base.__name__, (base,), members | {"__module__": base.__module__, "__doc__": base.__doc__})
    subclass.__qualname__ = base.__qualname__
    return subclass


def member_scheduler(strand: Strand, streams: Streams) -> Any:
    """A scheduler for one member of the first stream."""
    real = streams.real[0]
    member = copy.copy(real)
    vars(member).pop("_feynkac_attachment", None)
    member.__class__ = _member_class(plain_class(real))
    seat = Seat(strand, streams, 0, _attributes(real), scheduler=member)
    vars(member)[_SEAT] = seat
    return member


def agree_on_state(seats: Sequence[Seat]) -> None:
    """The real scheduler takes over what its members changed since they last met.

    Raises:
        SteeringError: not all of them made the same change.
    """
    real = seats[0].real
    names = {name: None for seat in seats for name in _changed(seat)}
    for name in names:
        value = agreed(f"scheduler.{name}", [vars(seat.scheduler).get(name) for seat in seats])
        if not same(vars(real).get(name), value):
            object.__setattr__(real, name, value)


def hand_over_state(seat: Seat) -> None:
    """The member's scheduler takes over the real one's counters, time steps and everything else."""
    seat.known = _attributes(seat.real)
    vars(seat.scheduler).update(seat.known)


def _attributes(scheduler: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(scheduler).items() if name not in _PRIVATE}


def _changed(seat: Seat) -> dict[str, Any]:
    missing = object()
    now = _attributes(seat.scheduler)
    return {name: value for name, value in now.items() if not same(seat.known.get(name, missing), value)}
