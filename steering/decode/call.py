"""What the pipeline was called with, read off the running call itself, so that its own ending can be run again.

diffusers pipelines decorate ``__call__`` with ``torch.no_grad()``, whose wrapper keeps the arguments as they were
passed, while the call's own variables are overwritten on the way (prompts become embeddings). So the stack is walked
from the scheduler's step up to the wrapper, and nothing of the pipeline or its class is touched.
"""

import inspect
import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from ..errors import SteeringError

__all__ = ["PipelineCall", "running_call"]

_RESOLVED = (
    "height",
    "width",
    "num_frames",
    "orig_height",
    "orig_width",
    "use_resolution_binning",
    "decode_chunk_size",
)


@dataclass(frozen=True, eq=False)
class PipelineCall:
    """One call of a pipeline.

    Attributes:
        arguments: by name, as passed.
        resolved: sizes that the pipeline worked out by itself (height, width, num_frames, ...), as far as it has.
        states: state of every generator among the arguments when this record was made.
        key: identity of the call: equal for two records of the same one.
    """

    arguments: dict[str, Any]
    resolved: dict[str, Any] = field(default_factory=dict)
    states: tuple[torch.Tensor, ...] = ()
    key: Any = None

    @classmethod
    def of(cls, arguments: dict[str, Any], resolved: dict[str, Any] | None = None, key: Any = None) -> "PipelineCall":
        """Record arguments together with the states of their generators."""
        states = tuple(g.get_state() for g in _generators(arguments))
        return cls(dict(arguments), dict(resolved or {}), states, key)

    def replayed(self) -> dict[str, Any]:
        """The arguments with copies of the generators, set back to the recorded states; the originals are not
        advanced."""
        copies = []
        for generator, state in zip(_generators(self.arguments), self.states, strict=True):
            copy = torch.Generator(device=generator.device)
            copy.set_state(state)
            copies.append(copy)
        arguments = dict(self.arguments)
        if copies:
            arguments["generator"] = copies if isinstance(arguments["generator"], (list, tuple)) else copies[0]
        return arguments

    def get(self, name: str, default: Any = None) -> Any:
        """A size as resolved, else as passed, else the default."""
        value = self.resolved.get(name)
        value = self.arguments.get(name) if value is None else value
        return default if value is None else value


def _generators(arguments: dict[str, Any]) -> list[torch.Generator]:
    generator = arguments.get("generator")
    if generator is None:
        return []
    return list(generator) if isinstance(generator, (list, tuple)) else [generator]


def running_call(pipe: Any, known: PipelineCall | None = None) -> PipelineCall | None:
    """The call of ``pipe`` that is running now, ``known`` if it is that one, or None outside of any.

    Raises:
        SteeringError: the pipeline's ``__call__`` does not keep its arguments.
    """
    frame = _frame_of(pipe)
    if frame is None:
        return None
    kept = _kept_arguments(frame, pipe)
    if known is not None and known.key is kept:
        return known
    return _record(pipe, frame, kept)


def _frame_of(pipe: Any) -> FrameType | None:
    code = inspect.unwrap(type(pipe).__call__).__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code and _is(frame.f_locals.get(code.co_varnames[0]), pipe):
            return frame
        frame = frame.f_back
    return None


def _is(running: Any, pipe: Any) -> bool:
    """The pipeline itself, or the copy of it that makes one of the calls in lock-step."""
    return running is pipe or getattr(running, "_feynkac_original", None) is pipe


def _kept_arguments(frame: FrameType, pipe: Any) -> dict[str, Any]:
    """The wrapper's own dictionary of keyword arguments: there is one a call, so that it also identifies the call."""
    above = frame.f_back
    if above is not None:
        args, kwargs = above.f_locals.get("args"), above.f_locals.get("kwargs")
        if isinstance(args, tuple) and isinstance(kwargs, dict) and args and _is(args[0], pipe):
            return kwargs
    raise SteeringError(
        f"{type(pipe).__name__}.__call__ is not decorated with torch.no_grad(), so that its arguments are not kept; "
        "hand them over: decoder_for(pipe, call={...})"
    )


def _record(pipe: Any, frame: FrameType, kept: dict[str, Any]) -> PipelineCall:
    above = frame.f_back
    assert above is not None  # _kept_arguments has just read it
    signature = inspect.signature(type(pipe).__call__)
    bound = signature.bind(*above.f_locals["args"], **kept)
    arguments: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        else:
            arguments[name] = value
    resolved = {name: frame.f_locals[name] for name in _RESOLVED if name in frame.f_locals}
    return PipelineCall.of(arguments, resolved, kept)
