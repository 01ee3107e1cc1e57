"""One row of the zoo: a pipeline, its way of making K particles, its quirks."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from . import zoo_parts as parts

__all__ = ["GUIDANCE", "NEGATIVE", "PROMPT", "Row", "generators", "media"]

PROMPT = "a red fox on the snow"
NEGATIVE = "the sea"
GUIDANCE = 4.0

ManyBy = Literal[
    "batch_size", "class_labels", "prompt", "num_images_per_prompt", "num_videos_per_prompt", "image_embeddings"
]


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    """One generator a particle."""
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(count)]


@dataclass(frozen=True, eq=False)
class Row:
    """A pipeline and how it is called.

    Attributes:
        name: short name of the row.
        make: () -> pipeline, weights from the global generator.
        arguments: of the call, besides particles, steps and generator.
        many_by: the argument that sets the number of particles K.
        tiles: ``step`` sees ``tiles * K`` rows.
        stochastic: the pipeline's own step adds noise.
        passes_generator: the pipeline hands its generator to ``step``.
        native_x0: ``step`` returns ``pred_original_sample``.
        media: what the output holds.
        rows_are_bound: background noise is tied to the slot, not to the particle (4-channel inpainting).
        branches: coefficients of the denoiser's branches in the model output, in the order the pipeline runs them.
    """

    name: str
    make: Callable[[], Any]
    arguments: dict[str, Any]
    many_by: ManyBy = "num_images_per_prompt"
    tiles: int = 1
    stochastic: bool = False
    passes_generator: bool = True
    native_x0: bool = True
    media: Literal["images", "videos"] = "images"
    rows_are_bound: bool = False
    branches: tuple[float, ...] = (1.0 - GUIDANCE, GUIDANCE)

    def build(self) -> Any:
        """A fresh pipeline; the same weights every time, no progress bar."""
        pipe = parts.seeded(self.make)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, particles: int = 3, steps: int = 4, *, seed: int = 0, **more: Any) -> dict[str, Any]:
        """Keyword arguments of a call with one generator a particle."""
        call = dict(self.arguments) | {"num_inference_steps": steps, "generator": generators(particles, seed)}
        if self.many_by == "prompt":
            for name in ("prompt", "negative_prompt", "image"):
                if name in call:
                    call[name] = [call[name]] * particles
        elif self.many_by == "class_labels":
            call["class_labels"] = [7] * particles
        elif self.many_by == "image_embeddings":
            call["image_embeddings"] = call["image_embeddings"].expand(particles, -1, -1, -1)
        else:
            call[self.many_by] = particles
        return call | more

    @functools.cached_property
    def pipe(self) -> Any:
        """A shared pipeline, for tests that leave it as they found it."""
        return self.build()


def media(output: Any) -> Any:
    """The images or frames of a pipeline's output, whatever its output class."""
    if isinstance(output, (list, torch.Tensor)) or hasattr(
        output, "shape"
    ):  # modular pipelines return the value itself
        return output
    return output.images if hasattr(output, "images") else output.frames
