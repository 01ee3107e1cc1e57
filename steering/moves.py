"""How particles move: the scheduler's own step, or the Gaussian step that keeps the marginals."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..fkc import Streams
from .controls import Planned
from .errors import SteeringError
from .kernel import gaussian_step, log_ratio, step_deviation
from .layout import Layout
from .predictions import clean_prediction, noise_prediction
from .schedulers import Level, SchedulerRule

__all__ = ["GaussianMove", "Step", "Transition", "native_move", "previous_sample", "row_generators"]

Transition = Literal["native", "stochastic", "auto"]


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a scheduler's ``step``.

    Attributes:
        scheduler: the live one.
        base_step: of its own class.
        bound: the call as it was made.
        arguments: by name, without ``self``.
    """

    scheduler: Any
    base_step: Callable[..., Any]
    bound: inspect.BoundArguments
    arguments: dict[str, Any]

    @classmethod
    def of(cls, scheduler: Any, base_step: Callable[..., Any], bound: inspect.BoundArguments) -> "Step":
        """The call as the pipeline made it."""
        return cls(scheduler, base_step, bound, {k: v for k, v in bound.arguments.items() if k != "self"})

    @property
    def takes_generator(self) -> bool:
        """The scheduler's step has an argument for it."""
        return "generator" in self.bound.signature.parameters

    def with_arguments(self, arguments: dict[str, Any]) -> "Step":
        """The same call with other arguments."""
        return Step(self.scheduler, self.base_step, self.bound, arguments)

    def made(self) -> Any:
        """Run the base's step."""
        if all(parameter.kind in _BY_NAME for parameter in self.bound.signature.parameters.values()):
            return self.base_step(self.scheduler, **self.arguments)
        call = inspect.BoundArguments(self.bound.signature, self.bound.arguments.copy())
        call.arguments.update(self.arguments)
        return self.base_step(*call.args, **call.kwargs)


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def row_generators(streams: Streams, layout: Layout) -> list[torch.Generator]:
    """A generator for every row: that of its population, so that a population's noise is its own."""
    per = layout.particles * layout.candidates
    return [generator for generator in streams.noise for _ in range(per)] * layout.tiles


def native_move(step: Step, streams: Streams, layout: Layout) -> Any:
    """The scheduler's own step; the rows' own generators where it takes one and the pipeline passed none."""
    if step.takes_generator and step.arguments.get("generator") is None:
        generators = row_generators(streams, layout)
        return step.with_arguments({**step.arguments, "generator": generators}).made()
    return step.made()


@dataclass(frozen=True)
class GaussianMove:
    """The Gaussian step of :mod:`.kernel` in the scheduler's place.

    Attributes:
        rule: of the scheduler.
        eta: noise, 0 to 1.
    """

    rule: SchedulerRule
    eta: float

    def refuse(self, scheduler: Any) -> None:
        """Raises SteeringError where the step is not defined."""
        if self.rule.stages > 1 or not self.rule.posterior_mean:
            raise SteeringError(
                f"{type(scheduler).__name__}: the stochastic step needs one evaluation a move and a clean prediction "
                "that is a posterior mean; use another scheduler, such as pipe.scheduler = "
                "EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)"
            )

    def deviation(self, level: Level, following: Level) -> float:
        """Standard deviation of the move."""
        return step_deviation(level, following, self.eta)

    def __call__(
        self,
        step: Step,
        levels: tuple[Level, Level],
        generators: list[torch.Generator],
        gradient: Tensor | None,
        planned: Planned | None = None,
    ) -> tuple[Any, Tensor | None]:
        """Move from the first of ``levels`` to the second.

        Args:
            step: the call in whose place the move is made.
            levels: before and after.
            generators: one a row, where the pipeline passes none.
            gradient: (rows of one tile, ...): the mean is shifted by the variance times this.
            planned: mean (rows of one tile, ...) and deviation in place of the stochastic step's.

        Returns:
            What the base's step would return, with other previous samples; and log p/q of the rows, if shifted.
        """
        sample, output = step.arguments["sample"], step.arguments["model_output"]
        aside = dict(step.arguments)
        if step.takes_generator:  # the base only advances its counters; its noise is unused
            aside["generator"] = torch.Generator().manual_seed(0)
        result = step.with_arguments(aside).made()
        if planned is None:
            moved, std = self._kernel(step.scheduler, sample, output, levels)
        else:
            tiles = len(sample) // len(planned.mean)
            moved, std = torch.cat([planned.mean] * tiles) if tiles > 1 else planned.mean, planned.deviation
        ratio = None
        if std > 0.0:
            z = _noise(moved, step.arguments.get("generator") or generators)
            moved = moved + std * z
            if gradient is not None:
                shift = std**2 * gradient.to(moved)
                rows = len(gradient)
                moved = torch.cat([moved[:rows] + shift, moved[rows:]]) if len(moved) > rows else moved + shift
                ratio = log_ratio(shift, z[:rows], std).cpu()
        return _with_previous(result, moved), ratio

    def _kernel(
        self, scheduler: Any, sample: Tensor, output: Tensor, levels: tuple[Level, Level]
    ) -> tuple[Tensor, float]:
        """Mean and standard deviation of the stochastic step."""
        level, following = levels
        exploding = self.rule.family in ("ve", "edm")
        if output.ndim == sample.ndim and output.shape[1] == 2 * sample.shape[1]:
            output = torch.split(output, sample.shape[1], dim=1)[0]  # the learned-variance half is no prediction
        clean = clean_prediction(sample, output, level, self.rule.prediction(scheduler), exploding=exploding)
        gaussian = gaussian_step(clean, noise_prediction(sample, clean, level), level, following, self.eta)
        return gaussian.mean, gaussian.std


def _noise(like: Tensor, generator: Any) -> Tensor:
    from diffusers.utils.torch_utils import randn_tensor

    noise: Tensor = randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return noise


def previous_sample(output: Any) -> Tensor:
    """x' of what ``step`` returned, a tuple or an output object."""
    previous: Tensor = output[0] if isinstance(output, tuple) else output.prev_sample
    return previous


def _with_previous(output: Any, moved: Tensor) -> Any:
    """The base's own form of output, with another previous sample in the base's dtype."""
    moved = moved.to(previous_sample(output).dtype)
    if type(output) is tuple:
        return (moved, *output[1:])
    output["prev_sample"] = moved
    return output
