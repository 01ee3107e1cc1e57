"""The members' arguments, and what cannot run in lock-step."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...fkc.streams import generator_for, split_seed
from ..errors import SteeringError

__all__ = ["arguments_of", "refuse_caches"]

_SEEDS = 2**31 - 1  # an index that no population has: members share no stream with an attachment of the same seed
_BATCH_ARGUMENT = re.compile(r"num_\w+_per_(prompt|label)|batch_size")


def arguments_of(
    pipe: Any,
    rows: int,
    generators: Sequence[torch.Generator] | None,
    seed: int | None,
    calls: Sequence[dict[str, Any]] | None,
    call: dict[str, Any],
) -> list[dict[str, Any]]:
    """Every member's keyword arguments."""
    if rows < 1:
        raise ValueError(f"rows: got {rows}, expected at least 1")
    if (generators is None) == (seed is None):
        raise ValueError("generators, seed: give one of them; without, each call would give other samples")
    if generators is None:
        root = split_seed(0 if seed is None else seed, _SEEDS, 1)
        generators = [generator_for(root, row) for row in range(rows)]
    if len({id(g) for g in generators}) != rows or len(generators) != rows:
        raise ValueError(f"generators: got {len(generators)} for {rows} rows, expected one a row, all different")
    if calls is not None and len(calls) != rows:
        raise ValueError(f"calls: got {len(calls)} for {rows} rows, expected one a row")
    merged = [call | own for own in (calls or [{}] * rows)]
    for one in merged:
        _refuse_batches(one)
    _refuse_without_generator(pipe)
    return [one | {"generator": g} for one, g in zip(merged, generators, strict=True)]


def _refuse_batches(call: dict[str, Any]) -> None:
    if "generator" in call:
        raise SteeringError("generator: hand over one a row as generators=")
    for name, value in call.items():
        several = _BATCH_ARGUMENT.fullmatch(name) and value not in (None, 1)
        listed = name in ("prompt", "negative_prompt", "class_labels") and isinstance(value, list) and len(value) != 1
        if several or listed:
            raise SteeringError(f"{name}: every call makes one sample in lock-step, got {value!r}; set rows, or calls")


def _refuse_without_generator(pipe: Any) -> None:
    parameters = inspect.signature(type(pipe).__call__).parameters.values()
    if not any(p.name == "generator" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        raise SteeringError(
            f"{type(pipe).__name__} takes no generator: its calls would draw from torch's global one, and a row's "
            "sample would depend on the others"
        )


def refuse_caches(pipe: Any) -> None:
    """Feature caches keep one sample's activations on the denoiser that all calls share.

    Raises:
        SteeringError: one is on.
    """
    for name, component in getattr(pipe, "components", {}).items():
        if not isinstance(component, nn.Module):
            continue
        hooks = {hook for module in component.modules() for hook in _stateful_hooks(module)}
        if hooks or getattr(component, "is_cache_enabled", False):
            raise SteeringError(
                f"{name}: its feature cache is on ({', '.join(sorted(hooks)) or 'is_cache_enabled'}), which would mix "
                f"the samples of calls in lock-step; switch it off: pipe.{name}.disable_cache()"
            )


def _stateful_hooks(module: nn.Module) -> list[str]:
    hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    return [
        name
        for name, hook in hooks.items()
        if getattr(hook, "_is_stateful", False) and type(hook).__module__.startswith("diffusers.")
    ]
