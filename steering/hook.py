"""The attachment: the live scheduler's class is swapped for a subclass of the same name, and back.

Of three ways tried in the field (a delegating proxy, patching ``step`` on the instance, swapping the class) only this
one keeps ``isinstance``, ``save_pretrained``, ``copy.deepcopy`` and signature inspection intact.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from .errors import SteeringError

__all__ = ["StepListener", "listening", "plain_class"]

_ATTACHMENT = "_feynkac_attachment"


class StepListener(Protocol):
    """What is told about the scheduler's life."""

    def on_run(self, scheduler: Any) -> None:
        """``set_timesteps`` has just been called: a run begins."""
        ...

    def on_step(self, scheduler: Any, base_step: Callable[..., Any], arguments: inspect.BoundArguments) -> Any:
        """Replace one call of ``step``: return what the base would return."""
        ...


class _Attachment:
    """Shared by a scheduler and the copies that a pipeline makes of it; empty once the block is left."""

    def __init__(self, listener: StepListener) -> None:
        self.listener: StepListener | None = listener

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Attachment":
        return self


def _listener(scheduler: Any) -> StepListener | None:
    attachment = vars(scheduler).get(_ATTACHMENT)
    return None if attachment is None else attachment.listener


_CLASSES: dict[type, type] = {}


def _binder(signature: inspect.Signature) -> Callable[..., inspect.BoundArguments]:
    """``signature.bind``, without its cost where a call is right and every argument has a name."""
    parameters = signature.parameters.values()
    names, known = tuple(signature.parameters), frozenset(signature.parameters)
    plain = all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
    needed = {p.name for p in parameters if p.default is p.empty}

    def bind(*args: Any, **kwargs: Any) -> inspect.BoundArguments:
        arguments = dict(zip(names, args, strict=False))
        right = plain and len(args) <= len(names) and known >= kwargs.keys() and not arguments.keys() & kwargs.keys()
        arguments |= kwargs
        if not right or not needed <= arguments.keys():
            return signature.bind(*args, **kwargs)
        return inspect.BoundArguments(signature, arguments)

    return bind


def _listening_class(base: Any) -> type:
    """The subclass of ``base`` that asks its listener; one a base class."""
    if base in _CLASSES:
        return _CLASSES[base]
    bound = _binder(inspect.signature(base.step))

    @functools.wraps(base.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        listener = _listener(self)
        if listener is None:
            return base.step(self, *args, **kwargs)
        return listener.on_step(self, base.step, bound(self, *args, **kwargs))

    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.set_timesteps(self, *args, **kwargs)
        listener = _listener(self)
        if listener is not None:
            listener.on_run(self)
        return result

    members = {"step": step, "set_timesteps": set_timesteps, "__module__": base.__module__, "__doc__": base.__doc__}
    subclass = type(base.__name__, (base,), members)
    subclass.__qualname__ = base.__qualname__
    _CLASSES[base] = subclass
    return subclass


def plain_class(scheduler: Any) -> Any:
    """The scheduler's own class, attached to or not."""
    cls = type(scheduler)
    return cls.__mro__[1] if cls in _CLASSES.values() else cls


@contextmanager
def listening(scheduler: Any, listener: StepListener) -> Iterator[None]:
    """Within the block every ``step`` and ``set_timesteps`` of ``scheduler`` goes through ``listener``.

    Restores the scheduler on the way out, also after an exception. A ``copy.deepcopy`` of the scheduler made inside
    the block (pipelines with two streams do that) has the same listener, and steps as its base class once the block
    is left.

    Raises:
        SteeringError: something is attached to this scheduler already, or it is no scheduler.
    """
    base = type(scheduler)
    if _ATTACHMENT in vars(scheduler):
        raise SteeringError(f"something is attached to this {base.__name__} already; attachments do not nest")
    if not (callable(getattr(base, "step", None)) and callable(getattr(base, "set_timesteps", None))):
        raise SteeringError(f"{base.__name__} is no scheduler: it lacks step or set_timesteps")
    attachment = _Attachment(listener)
    scheduler.__class__ = _listening_class(base)
    vars(scheduler)[_ATTACHMENT] = attachment
    try:
        yield
    finally:
        attachment.listener = None
        scheduler.__class__ = base
        vars(scheduler).pop(_ATTACHMENT, None)
