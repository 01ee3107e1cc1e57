"""A sampler of two streams, built as the pipelines that make video and sound are: one scheduler, and a copy of it made
inside the call."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from feynkac.steering.gather import gather_arguments, gather_history

__all__ = ["SOUND", "VIDEO", "JointMoving", "joint_run"]

VIDEO = (4, 3, 2, 2)
SOUND = (4, 6, 5)


class JointMoving:
    """Permutes the rows of the given streams before one call; a stream is known by its number of axes."""

    def __init__(
        self, ancestors: dict[int, Sequence[int]], streams: Sequence[int] = (4, 3), history: bool = True
    ) -> None:
        self.ancestors, self.streams, self.history = ancestors, streams, history
        self.calls = dict.fromkeys((4, 3), 0)
        self.schedulers: set[int] = set()

    def on_run(self, scheduler: Any) -> None:
        """Nothing is kept."""

    def on_step(self, scheduler: Any, base_step: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        """Both streams come here, the copy of the scheduler with its own calls."""
        arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
        ndim = arguments["sample"].ndim
        rows = self.ancestors.get(self.calls[ndim])
        if rows is not None and ndim in self.streams:
            arguments = gather_arguments(arguments, torch.tensor(rows))
            if self.history:
                gather_history(scheduler, torch.tensor(rows), ndim)
        self.calls[ndim] += 1
        self.schedulers.add(id(scheduler))
        return base_step(scheduler, **arguments)


def _denoise(video: Tensor, sound: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Each stream's output depends on both: what a stream loses of the other shows."""
    heard = sound.mean(dim=(1, 2))[:, None, None, None]
    seen = video.mean(dim=(1, 2, 3))[:, None, None]
    s = t / 1000
    return torch.tanh(video * (1 + s) + 2 * heard), torch.tanh(sound * (2 - s) - 3 * seen)


def joint_run(scheduler: Any, steps: int = 8, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Trajectories of both streams, a state a step.

    The copy is made after ``set_timesteps``, and each stream steps with its own scheduler, the first stream first.
    """
    generator = torch.Generator().manual_seed(seed)
    video, sound = torch.randn(VIDEO, generator=generator), torch.randn(SOUND, generator=generator)
    scheduler.set_timesteps(steps)
    second = copy.deepcopy(scheduler)
    videos, sounds = [], []
    for t in scheduler.timesteps:
        out = _denoise(video, sound, t)
        video = scheduler.step(out[0], t, video, return_dict=False)[0]
        sound = second.step(out[1], t, sound, return_dict=False)[0]
        videos.append(video)
        sounds.append(sound)
    return videos, sounds
