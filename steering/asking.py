"""How a pipeline is asked for several samples of each prompt.

Some pipelines take a number a prompt, some a batch size, some take the number and then force it to one; those are
given every prompt several times.
"""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Generator, Tensor

from ..fkc.streams import generator_for, split_seed
from .errors import SteeringError

__all__ = ["BATCH_ARGUMENTS", "batched_call", "populations_of", "start_generators", "single_calls"]

BATCH_ARGUMENTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_images_per_label", "batch_size")
"""Arguments that set the number of samples, by the names that diffusers' pipelines use."""

_REPEATED = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "class_labels", "image")
_MAIN = ("prompt", "prompt_embeds", "class_labels", "image_embeddings")
_FORCED = re.compile(r"^\s+num_(images|videos)_per_prompt = 1$", re.MULTILINE)
_INITIAL = 2**31 - 2  # an index that no population has: initial noise shares no stream with moves and resampling


def populations_of(call: dict[str, Any]) -> int:
    """How many prompts (or labels) a call names: P."""
    for name in _MAIN:
        value = call.get(name)
        if isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.ndim > 0):
            return len(value)
        if value is not None:
            return 1
    return 1


def batched_call(pipe: Any, samples: int, populations: int, call: dict[str, Any]) -> dict[str, Any]:
    """The call with what asks ``pipe`` for ``samples`` of each of ``populations`` prompts, a prompt's side by side.

    Raises:
        SteeringError: nothing is known that would; or the call sets the number itself.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    for name in BATCH_ARGUMENTS:
        if name in call:
            raise SteeringError(f"{name}: is set from particles and candidates; leave it out, or use attach")
    known = [name for name in BATCH_ARGUMENTS if name in accepted]
    if known and not (known[0].endswith("_prompt") and _forces_one(type(pipe).__call__)):
        return {**call, known[0]: samples * (populations if known[0] == "batch_size" else 1)}
    if not any(name in call for name in _REPEATED):
        raise SteeringError(
            f"{type(pipe).__name__} takes none of {', '.join(BATCH_ARGUMENTS)}, and the call has no prompt to repeat; "
            "use attach and call the pipeline with enough rows"
        )
    return {name: _repeated(value, samples) if name in _REPEATED else value for name, value in call.items()}


def single_calls(samples: int, populations: int, call: dict[str, Any]) -> list[dict[str, Any]]:
    """What differs from row to row of P prompts when every row is a call of its own."""
    listed = {name: value for name, value in call.items() if name in _REPEATED and isinstance(value, list | tuple)}
    return [{name: value[p] for name, value in listed.items()} for p in range(populations) for _ in range(samples)]


def start_generators(pipe: Any, samples: int, populations: int, seed: int, *, first: int = 0) -> list[Generator] | None:
    """Generators of the initial noise, one a row, each prompt's (numbered from ``first``) of its own; None if the
    pipeline takes none."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    if "generator" not in parameters:
        return None
    root = split_seed(seed, _INITIAL)
    return [
        generator_for(split_seed(root, p), row) for p in range(first, first + populations) for row in range(samples)
    ]


def _repeated(value: Any, samples: int) -> Any:
    if value is None:
        return None
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [one for one in values for _ in range(samples)]


@functools.cache
def _forces_one(call: Callable[..., Any]) -> bool:
    """The pipeline's call sets the number a prompt to one, whatever it was given."""
    try:
        source = inspect.getsource(inspect.unwrap(call))
    except (OSError, TypeError):
        return False
    return bool(_FORCED.search(source))
