"""Calls that run in threads of their own, one at a time: each from one pause to its next.

torch is not made faster by threads, and a model serves one particle at a time; threads are wanted here only because a
pipeline's call cannot be left in the middle otherwise. Turns are handed out in a fixed order, so that a run is as
reproducible as a loop.
"""

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch

__all__ = ["Ended", "Failed", "Finished", "Paused", "Report", "Strand"]


class Ended(BaseException):
    """Unwinds a call that does not go on. No ``Exception``, so that no handler inside the pipeline keeps it."""


@dataclass(frozen=True, eq=False)
class Paused:
    """The call waits, and says for what."""

    at: Any


@dataclass(frozen=True, eq=False)
class Finished:
    """The call has returned."""

    value: Any


@dataclass(frozen=True, eq=False)
class Failed:
    """The call has raised."""

    error: BaseException


Report = Paused | Finished | Failed
_END = object()


class Strand:
    """One call that advances only while :meth:`resume` waits for it.

    Torch's thread-local settings (gradients, inference mode, autocast, default device, CUDA device and stream) and
    the context variables of the thread that makes the strand hold inside it.

    Args:
        call: handed this strand, so that what it calls can pause it.
        name: of the thread.
    """

    def __init__(self, call: Callable[["Strand"], Any], name: str) -> None:
        self._call, self._enter = call, _ambient()
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._outbox: SimpleQueue[Report] = SimpleQueue()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name=name, daemon=True)

    def resume(self, message: Any = None) -> Report:
        """Let the call run to its next pause or to its end; ``message`` is what :meth:`pause` returns in it."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._inbox.put(message)
        return self._outbox.get()

    def pause(self, at: Any) -> Any:
        """Inside the call: wait for the next turn.

        Raises:
            Ended: there will be none.
        """
        self._outbox.put(Paused(at))
        message = self._inbox.get()
        if message is _END:
            raise Ended
        return message

    @property
    def inside(self) -> bool:
        """Does the caller run in this strand?"""
        return threading.current_thread() is self._thread

    def end(self) -> None:
        """Unwind the call at its pause (at its next one, if it is running) and wait until its thread is gone."""
        if self._thread.ident is not None:
            self._inbox.put(_END)
            self._thread.join()

    def _run(self) -> None:
        report: Report
        try:
            with self._enter():
                report = Finished(self._call(self))
        except BaseException as error:  # handed to the thread that waits for this one
            report = Failed(error)
        self._outbox.put(report)


def _ambient() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """The torch settings of this thread, as a context that another thread can enter."""
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    cached = torch.is_autocast_cache_enabled()
    autocast = {t: torch.get_autocast_dtype(t) for t in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(t)}
    device = torch.get_default_device()
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    stream = torch.cuda.current_stream() if cuda else None

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if device.type != "cpu":
                stack.enter_context(device)
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))  # the stream's device too
            if inference:
                stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.set_grad_enabled(gradients))
            for kind, dtype in autocast.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=cached))
            yield

    return entered
