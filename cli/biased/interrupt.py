"""Ctrl-C between two records of a run: the first one is obeyed when the record is done, a second one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupt", "interrupt_between_records"]


class Interrupt:
    """Whether the run was asked to stop.

    Args:
        asked: called when it is, from the handler of the signal.
    """

    def __init__(self, asked: Callable[[], None]) -> None:
        self.pending = False
        self._asked = asked

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT.

        Raises:
            KeyboardInterrupt: the second time.
        """
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True
        self._asked()


@contextmanager
def interrupt_between_records(asked: Callable[[], None]) -> Iterator[Interrupt]:
    """Inside, the first Ctrl-C only sets ``pending``, and calls ``asked``; a second one is a KeyboardInterrupt.

    Outside the main thread, and where Ctrl-C is not Python's own (ignored in the background, say), nothing changes.
    """
    found = Interrupt(asked)
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield found
        return
    signal.signal(signal.SIGINT, found.take)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)
