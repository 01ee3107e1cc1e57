"""The attachment: the live scheduler's class is swapped for a subclass of the same name, and back.

Of three ways tried in the field (a delegating proxy, patching ``step`` on the instance, swapping the class) only this one keeps
``isinstance``, ``save_pretrained``, ``copy.deepcopy`` and signature inspection intact.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from .errors import SteeringError

__all__ = ["StepListener", "listening"]

_LISTENER = "_feynkac_listener"


class StepListener(Protocol):
    """What is told about the scheduler's life."""

    def on_run(self, scheduler: Any) -> None:
        """``set_timesteps`` has just been called: a run begins."""
        ...

    def on_step(self, scheduler: Any, base_step: Callable[..., Any], arguments: inspect.BoundArguments) -> Any:
        """Replace one call of ``step``: return what the base would return."""
        ...


@functools.lru_cache(maxsize=None)
def _listening_class(base: type) -> type:
    signature = inspect.signature(base.step)  # type: ignore[attr-defined]

    @functools.wraps(base.step)  # type: ignore[attr-defined]
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        return getattr(self, _LISTENER).on_step(self, base.step, bound)  # type: ignore[attr-defined]

    @functools.wraps(base.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]
        getattr(self, _LISTENER).on_run(self)
        return result

    members = {"step": step, "set_timesteps": set_timesteps, "__module__": base.__module__, "__doc__": base.__doc__}
    subclass = type(base.__name__, (base,), members)
    subclass.__qualname__ = base.__qualname__
    return subclass


@contextmanager
def listening(scheduler: Any, listener: StepListener) -> Iterator[None]:
    """Within the block every ``step`` and ``set_timesteps`` of ``scheduler`` goes through ``listener``.

    Restores the scheduler on the way out, also after an exception. The listener travels with ``copy.deepcopy`` of the scheduler only if
    it defines ``__deepcopy__`` returning itself.

    Raises:
        SteeringError: something is attached to this scheduler already.
    """
    base = type(scheduler)
    if _LISTENER in vars(scheduler):
        raise SteeringError(f"something is attached to this {base.__name__} already; attachments do not nest")
    scheduler.__class__ = _listening_class(base)
    vars(scheduler)[_LISTENER] = listener
    try:
        yield
    finally:
        scheduler.__class__ = base
        vars(scheduler).pop(_LISTENER, None)
