"""Decoding by the pipeline's own ending: the reference, for every pipeline.

A shallow copy of the pipeline runs one step with a denoiser that answers zeros and a scheduler whose step returns the
clean latents in question. What follows the loop (unpacking, scaling, blending, decoding, postprocessing) is the
pipeline's own code. The original pipeline, its generators and its scheduler are left as they are, also in the middle
of a run.
"""

import copy
import functools
import inspect
import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser.find import argument_names, named_denoisers, plain_module
from ..denoiser.rows import Call
from ..denoiser.silence import Zeros, zeros_for
from ..errors import SteeringError
from ..hook import plain_class
from .call import PipelineCall, running_call

__all__ = ["TailDecoder", "running_tiles", "tiles_of"]

_DROPPED = ("timesteps", "sigmas", "callback", "callback_steps", "denoising_end", "return_dict")
_TILED = ("DiTPipeline",)
_DROPPED_CALLBACKS = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")


def tiles_of(pipe: Any, call: PipelineCall | None = None) -> int:
    """How often the rows are repeated in what ``step`` sees: DiT passes [cond, uncond] through its scheduler."""
    guided = call is None or float(call.get("guidance_scale", 4.0)) > 1.0
    return 2 if type(pipe).__name__ in _TILED and guided else 1


def running_tiles(pipe: Any) -> int:
    """:func:`tiles_of` in the call of ``pipe`` that is running now."""
    return tiles_of(pipe, running_call(pipe)) if type(pipe).__name__ in _TILED else 1


class TailDecoder:
    """Clean latents (n, ...) -> what the pipeline returns for them.

    Args:
        pipe: the pipeline.
        call: arguments of the call whose ending is run; by default those of the call that is running, or of the last
            one seen.
        chunk_size: samples decoded at a time.
        output: ``"pil"``: a list of images (of lists of frames); ``"pt"``: (n, C, H, W) in [0, 1] (frames before C).
    """

    def __init__(
        self, pipe: Any, *, call: dict[str, Any] | None = None, chunk_size: int | None = None, output: str = "pil"
    ) -> None:
        self.pipe, self.chunk_size, self.output = pipe, chunk_size, output
        self.calls = 0
        self._call = None if call is None else PipelineCall.of(call)
        self._shrinks = "Inpaint" not in type(pipe).__name__  # those blend every slot with its own background
        self._running = pipe

    def begin(self) -> None:
        """Note the running call's arguments and generators; best at the beginning of a run, before noise is drawn."""
        self._call = running_call(self._running, self._call) or self._call

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Any:
        """Decode.

        Raises:
            SteeringError: no call is known whose ending could be run.
        """
        self.begin()
        chunks = (
            [latents] if self.chunk_size is None or not self._shrinks else list(torch.split(latents, self.chunk_size))
        )
        parts = [self._decode(chunk) for chunk in chunks]
        for part, chunk in zip(parts, chunks, strict=True):
            if len(part) != len(chunk):
                raise SteeringError(
                    f"{type(self.pipe).__name__}: its ending made {len(part)} images of {len(chunk)} latents"
                )
        self.calls += len(latents)
        return torch.cat(parts) if self.output == "pt" else [image for part in parts for image in part]

    def _decode(self, latents: Tensor) -> Any:
        call = self._call
        if call is None:
            raise SteeringError(
                f"{type(self.pipe).__name__}: its own ending can be run inside a call, or with the call's arguments "
                "given: decoder_for(pipe, call={...})"
            )
        arguments = _one_step(self.pipe, call.replayed()) | {"output_type": self.output}
        return _without_denoising(self.pipe, _repeated(latents, tiles_of(self.pipe, call)))(**arguments)[0]


def _repeated(latents: Tensor, tiles: int) -> Tensor:
    return latents if tiles == 1 else torch.cat([latents] * tiles)


def _one_step(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call with the fewest steps: one after the cut that ``strength`` makes (Runge-Kutta starts need four)."""
    kept = {name: value for name, value in arguments.items() if name not in (*_DROPPED, *_DROPPED_CALLBACKS)}
    parameters = inspect.signature(type(pipe).__call__).parameters
    if "num_inference_steps" in parameters:
        strength = kept.get("strength", getattr(parameters.get("strength"), "default", 1.0))
        fewest = 4 if pipe.scheduler.config.get("skip_prk_steps") is False else 1
        kept["num_inference_steps"] = math.ceil(fewest / float(strength))
    return kept


def _without_denoising(pipe: Any, latents: Tensor) -> Any:
    tail = copy.copy(pipe)
    for name, module in named_denoisers(pipe).items():
        object.__setattr__(tail, name, _silent(module))
    object.__setattr__(tail, "scheduler", _returning(pipe.scheduler, latents))
    object.__setattr__(tail, "maybe_free_model_hooks", lambda: None)  # nested: the run around it still needs them
    object.__setattr__(tail, "_progress_bar_config", {"disable": True})
    return tail


def _silent(module: nn.Module) -> nn.Module:
    """A copy that shares everything but answers zeros, without hooks."""
    module = plain_module(module)
    names = argument_names(module)
    silent = copy.copy(module)
    vars(silent).update(
        _forward_hooks=OrderedDict(),
        _forward_pre_hooks=OrderedDict(),
        _forward_hooks_with_kwargs=OrderedDict(),
        _forward_hooks_always_called=OrderedDict(),
        _forward_pre_hooks_with_kwargs=OrderedDict(),
    )

    def forward(*args: Any, **kwargs: Any) -> Zeros:
        return zeros_for(module, Call(names, args, kwargs))

    vars(silent)["forward"] = forward
    return silent


class _Returned(tuple[Tensor, Tensor]):
    """Every member of every scheduler's output is the same latents."""

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0]


@functools.cache
def _returning_class(base: Any) -> type:
    """A subclass whose step returns the latents that are set on the instance."""

    @functools.wraps(base.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> _Returned:
        bound = inspect.signature(base.step).bind(self, *args, **kwargs)
        latents = vars(self)["_feynkac_latents"].to(bound.arguments["sample"])
        return _Returned((latents, latents))

    return type(base.__name__, (base,), {"step": step, "__module__": base.__module__})


def _returning(scheduler: Any, latents: Tensor) -> Any:
    base = plain_class(scheduler)
    plain = copy.copy(scheduler)
    vars(plain).pop("_feynkac_attachment", None)
    plain.__class__ = _returning_class(base)
    vars(plain)["_feynkac_latents"] = latents
    return plain
