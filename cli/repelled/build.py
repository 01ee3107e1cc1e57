"""From a repelled config to the pipeline, its call, the plane and the bias."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...fkc.bias import BiasVariable, GridAxis, RepulsionBias
from ...fkc.streams import generator_for
from ...steering import Control, every
from ...steering.asking import BATCH_ARGUMENTS
from ...steering.projection import Projection
from ...steering.repulsion import Repulsion
from ..errors import UserError, first_line, named_errors
from ..paths import resolve
from ..steer.build import PipelineCalls, check_folder, check_scheduler, load_model, one_thread_for_tiny_models
from ..steer.job import steer_inputs
from ..steer.rewards import build_controls, build_rewards
from ..steer.samples import output_samples
from ..steer.units import Condition, conditions
from .config import RepelledConfig

__all__ = ["Plane", "Sampler", "repelled_inputs"]

_MARGIN = 0.4
"""Of the spread of the model's draws, by which the bias's grid goes beyond them."""

_ARGUMENTS = {"prompt": "prompt", "label": "class_labels"}
"""Kind of condition -> the pipeline's argument."""

_PLANE = 2**29  # streams that no batch has
_CHUNK = 256


def repelled_inputs(config: RepelledConfig) -> dict[str, Path]:
    """Files whose contents a resumed run must find unchanged."""
    return steer_inputs(config.as_steering()) | {"classifier": resolve(config.features.classifier, Path())}


@dataclass(frozen=True, eq=False)
class Plane:
    """Two features of images.

    Attributes:
        matrix: (m, 2) of the embedding's projection.
        mean: (m,).
        values: (n, 2) of the model's draws that it was fitted to.
        classes: (n,) that the classifier sees in them.
    """

    matrix: Tensor
    mean: Tensor
    values: Tensor
    classes: Tensor

    def state(self) -> dict[str, Tensor]:
        """Everything, by name."""
        return {name: getattr(self, name) for name in ("matrix", "mean", "values", "classes")}

    @property
    def widths(self) -> tuple[float, float]:
        """Standard deviations of the draws along the axes."""
        first, second = self.values.std(dim=0).tolist()
        return first, second


@dataclass(frozen=True, eq=False)
class Sampler:
    """What a config stands for.

    Attributes:
        config: settled.
        pipe: the pipeline.
        classifier: of its images.
        call: arguments of the pipeline; generator, condition and number of samples left out.
        condition: prompt, label or neither.
    """

    config: RepelledConfig
    pipe: Any
    classifier: Any
    call: dict[str, Any]
    condition: Condition

    @classmethod
    def build(cls, config: RepelledConfig) -> Sampler:
        """Load pipeline and classifier, make the rewards once, check that all fit.

        Raises:
            UserError: something cannot be used; the message names it.
        """
        check_folder(config.model)
        steering = config.as_steering()
        (condition,) = conditions(steering)
        build_controls(steering, build_rewards(steering, condition))
        classifier = _classifier(config.features.classifier)
        pipe = load_model(config.model)
        one_thread_for_tiny_models(pipe)
        settled = {"scheduler": type(pipe.scheduler).__name__, "device": str(pipe.device)}
        config = config.model_copy(
            update={
                "model": config.model.model_copy(update=settled),
                "steering": config.steering.resolved(),
            }
        )
        check_scheduler(pipe, config.as_steering())
        return cls(config, pipe, classifier, _call(pipe, config, condition), condition)

    # --- features -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embedding(self, images: Any) -> Tensor:
        """(rows, m) of the classifier, of images as the pipeline returns them."""
        found: Tensor = self.classifier.features(self._pixels(images))
        return found

    @torch.no_grad()
    def classes(self, images: Any) -> Tensor:
        """(rows,) most probable classes."""
        found: Tensor = self.classifier.predict(self._pixels(images))
        return found

    def _pixels(self, images: Any) -> Tensor:
        grey = self.classifier.config.in_channels == 1
        arrays = [np.asarray(image.convert("L" if grey else "RGB"), dtype=np.float32) for image in images]
        planes = torch.from_numpy(np.stack(arrays)) / 127.5 - 1.0
        return planes[:, None] if grey else planes.movedim(-1, 1)

    def fit_plane(self) -> Plane:
        """Draw from the model and find the plane of its draws.

        Raises:
            UserError: the pipeline refuses its call; the classifier cannot read the images, or sees one class only.
        """
        section, images = self.config.features, []
        for chunk, start in enumerate(range(0, section.draws, _CHUNK)):
            count = min(_CHUNK, section.draws - start)
            generator = generator_for(self.config.sampling.seed, _PLANE + chunk)
            asked = self._conditions(count) or {"batch_size": count}
            try:
                output = self.pipe(**self.call, **asked, generator=generator)
            except (ValueError, TypeError) as error:
                name = type(self.pipe).__name__
                raise UserError(f"call: {name} refuses its call: {first_line(error)}") from error
            images += output_samples(output)
        with named_errors("features"):
            embedded, classes = self.embedding(images), self.classes(images)
            if section.projection == "pca":
                found = Projection.pca(self.embedding, embedded, 2)
            else:
                found = Projection.discriminant(self.embedding, embedded, classes, 2)
        return Plane(found.matrix, found.mean, found.project(embedded), classes)

    # --- control ------------------------------------------------------------------------------------------------------

    def bias(self, plane: Plane) -> RepulsionBias:
        """Without hills."""
        section = self.config.bias
        names = ("axis_1", "axis_2")
        variables = [BiasVariable(n, section.sigma * w) for n, w in zip(names, plane.widths, strict=True)]
        low, high = plane.values.amin(dim=0), plane.values.amax(dim=0)
        margin = _MARGIN * (high - low)
        ends = zip(variables, (low - margin).tolist(), (high + margin).tolist(), strict=True)
        grid = [GridAxis.fine_enough(variable, a, b) for variable, a, b in ends]
        if section.rule == "opes":
            assert section.barrier is not None  # checked in the config
            return RepulsionBias.opes(
                variables, kT=1.0, barrier=section.barrier, bias_factor=section.bias_factor, grid=grid
            )
        assert section.bias_factor is not None
        assert section.height is not None
        return RepulsionBias.well_tempered(
            variables, kT=1.0, bias_factor=section.bias_factor, height=section.height, grid=grid
        )

    def repulsion(self, plane: Plane, bias: RepulsionBias) -> Repulsion:
        """The control."""
        steering = self.config.steering
        assert steering.potential is not None  # settled
        features = Projection(self.embedding, plane.matrix, plane.mean)
        when = every(1, start=self.config.bias.start)
        return Repulsion(bias, features, potential=steering.potential, when=when, chunk_size=steering.chunk_size)

    def controls(self) -> list[Control]:
        """Of the rewards."""
        steering = self.config.as_steering()
        return build_controls(steering, build_rewards(steering, conditions(steering)[0]))

    def options(self) -> dict[str, Any]:
        """Of :func:`feynkac.steering.steer`: how the populations are run, and the call."""
        s, populations = self.config.steering, self.config.sampling.populations
        settings = {
            "particles": s.particles,
            "populations": populations,
            "ess_threshold": s.ess_threshold,
            "resampler": s.resampler,
            "transition": s.transition,
            "chunk_size": s.chunk_size,
        }
        return settings | self.call | self._conditions(populations)

    def _conditions(self, count: int) -> dict[str, Any]:
        """The condition ``count`` times; empty without one."""
        name = _ARGUMENTS.get(self.condition.kind)
        return {} if name is None else {name: [self.condition.value] * count}


def _call(pipe: Any, config: RepelledConfig, condition: Condition) -> dict[str, Any]:
    """The pipeline's arguments but for condition and number of samples."""
    calls = PipelineCalls.of(pipe)
    found = calls.arguments(config.as_steering(), condition, 1)
    if condition.kind == "none" and "batch_size" not in found:
        raise UserError(f"model.folder: {calls.name} takes no batch_size; expected a pipeline of labels or prompts")
    left_out = {*BATCH_ARGUMENTS, *_ARGUMENTS.values()}
    return {name: value for name, value in found.items() if name not in left_out}


def _classifier(text: str) -> Any:
    with named_errors(f"features.classifier = {text!r}"):
        from ...steering.pixel_classifier import PixelClassifier

        return PixelClassifier.from_pretrained(str(resolve(text, Path())), local_files_only=True).eval()
