"""Runs of zoo pipelines with a denoiser tap, and what the scheduler's step is given in them."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from feynkac.steering.hook import listening

from . import zoo_parts as parts
from .zoo import Row, media

__all__ = ["Watching", "result", "run", "worst"]

_PIXELS = ("ddpm", "ddim", "dit", "consistency")  # no latents to return


class Watching:
    """A listener that shows every step's arguments to a function, and steps as the base does."""

    def __init__(self, see: Callable[[int, dict[str, Any]], None]) -> None:
        self.see, self.steps = see, 0

    def on_run(self, scheduler: Any) -> None:
        """Nothing to do."""

    def on_step(self, scheduler: Any, base_step: Any, bound: inspect.BoundArguments) -> Any:
        self.see(self.steps, dict(bound.arguments))
        self.steps += 1
        return base_step(*bound.args, **bound.kwargs)


def result(case: Row, pipe: Any, particles: int = 3, steps: int = 3, **more: Any) -> Tensor:
    """What the pipeline makes, before decoding where it can be asked for that."""
    if case.name.startswith("modular"):
        more = {"output": "latents", **more}
    else:
        more = {"output_type": "np" if case.name in _PIXELS else "latent", **more}
    value = parts.seeded(lambda: media(pipe(**case.call(particles, steps, **more))))
    if isinstance(value, list) and isinstance(value[0], Tensor):
        value = torch.stack(value)
    return torch.as_tensor(value)


def run(case: Row, pipe: Any, see: Callable[[int, dict[str, Any]], None], *args: int, **more: Any) -> Tensor:
    """The same, with a function that sees every step."""
    with listening(pipe.scheduler, Watching(see)):
        return result(case, pipe, *args, **more)


def worst(value: Tensor, truth: Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return float((value - truth).abs().max() / truth.abs().max())
