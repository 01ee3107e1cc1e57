"""Small pipelines and listeners for the tests of lock-step runs."""

import copy
import inspect
from typing import Any

import diffusers as d
import torch

from feynkac.steering.gather import gather_arguments, gather_history

__all__ = ["Permuting", "Toy"]


class Permuting:
    """Turns the rows round at every step: arguments and the solver's history.

    Args:
        moves_history: False is the mistake that tests must notice.
    """

    def __init__(self, *, moves_history: bool = True) -> None:
        self.moves_history = moves_history
        self.runs = self.steps = 0

    def on_run(self, scheduler: Any) -> None:
        self.runs += 1

    def on_step(self, scheduler: Any, base_step: Any, bound: inspect.BoundArguments) -> Any:
        self.steps += 1
        sample = bound.arguments["sample"]
        rows = torch.arange(len(sample)).roll(1)
        if self.moves_history:
            gather_history(scheduler, rows, sample.ndim)
        call = inspect.BoundArguments(bound.signature, bound.arguments.copy())
        call.arguments.update(gather_arguments(dict(bound.arguments), rows))
        return base_step(*call.args, **call.kwargs)


class Toy(d.DiffusionPipeline):
    """A pipeline whose latents (C, H, W) have no particle axis: it cannot batch.

    Args:
        unet: of the latents, with a batch axis.
        scheduler: of diffusers.
        leading: hand ``latents[None]`` to ``step`` instead of latents without a particle axis.
        sound: a second stream with a scheduler copied inside the call, at half the latents' height.
        peeks: step once for the clean prediction, set the counter back, and step again.
        fails_at: raise there, in the call whose first latent is positive.
    """

    shape = (2, 1, 1)

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        *,
        leading: bool = False,
        sound: bool = False,
        peeks: bool = False,
        fails_at: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.leading, self.sound, self.peeks, self.fails_at = leading, sound, peeks, fails_at

    @torch.no_grad()
    def __call__(
        self, generator: torch.Generator, num_inference_steps: int = 20, marker: float = 0.0
    ) -> tuple[torch.Tensor, ...]:
        self.scheduler.set_timesteps(num_inference_steps)
        streams = [(self.scheduler, torch.randn(self.shape, generator=generator))]
        if self.sound:
            self.scheduler.set_begin_index(0)  # not yet known to the real one when it is copied
            streams.append((copy.deepcopy(self.scheduler), torch.randn((2, 3, 1), generator=generator)))
        scales = self.scheduler.init_noise_sigma
        latents = [x * scales for _, x in streams]
        failing = bool(latents[0].flatten()[0] > 0)
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            if self.fails_at == i and failing:
                raise RuntimeError("the denoiser is out of order")
            for s, (scheduler, _) in enumerate(streams):
                latents[s] = self._stepped(scheduler, latents[s], t, generator)
        self.maybe_free_model_hooks()
        return tuple(latents)

    def _stepped(self, scheduler: Any, x: torch.Tensor, t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        extra = {"eta": 1.0, "generator": generator} if "eta" in inspect.signature(scheduler.step).parameters else {}
        output = self.unet(scheduler.scale_model_input(x[None], t), t).sample[0]
        if self.peeks:
            x0 = scheduler.step(output, t, x).pred_original_sample
            scheduler._step_index -= 1
            output = output + 0.1 * x0
        if self.leading:
            return scheduler.step(output[None], t, x[None], return_dict=False, **extra)[0].squeeze(0)
        return scheduler.step(output, t, x, **extra).prev_sample
