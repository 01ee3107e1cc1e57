"""The config of `feynkac train value`: a pipeline, a reward, rollouts, and the network fitted to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ...steering.asking import BATCH_ARGUMENTS
from ..config import ExistingPath, Positive, RunName, Section, Seed, absolute_paths

__all__ = ["FittingConfig", "PipelineConfig", "RewardConfig", "RolloutsConfig", "ValueConfig"]

PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
_OWN = ("generator", *BATCH_ARGUMENTS)


class PipelineConfig(Section):
    """A diffusers pipeline in a local folder, and how it is called; ``eta`` and steps as it will be steered."""

    folder: ExistingPath
    call: dict[str, Any] = Field(default_factory=dict)
    transition: Literal["native", "stochastic"] = "native"
    kernel_eta: Annotated[float, Field(ge=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _no_counts(self) -> PipelineConfig:
        for name in _OWN:
            if name in self.call:
                raise ValueError(f"call.{name} is set by the rollouts; leave it out")
        return self


class RewardConfig(Section):
    """A reward by name, its options (paths among them may be ``data:...``), and what it is given to judge."""

    name: str
    options: Annotated[dict[str, Any], BeforeValidator(absolute_paths)] = Field(default_factory=dict)
    samples: Literal["images", "latents", "tokens"] = "images"


class RolloutsConfig(Section):
    """Unsteered trajectories: how many, which of their moves are seen, and whether r(x0-hat) is judged beside."""

    count: Annotated[int, Field(ge=2)]
    batch_size: Positive = 64
    every: Positive = 1
    baseline: bool = True
    seed: Seed


class FittingConfig(Section):
    """The network and its training."""

    loss: Literal["exp", "mean"] = "exp"
    denoised: bool = True
    width: Positive = 64
    blocks: Positive = 2
    steps: Positive
    learning_rate: PositiveFloat = 2e-3
    batch_size: Positive = 256
    held_out: Fraction = 0.1
    evaluate_every: Positive = 100
    warmup: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    clip: PositiveFloat = 10.0
    seed: Seed


class ValueConfig(Section):
    """`feynkac train value`: rollouts of a pipeline, and the soft value of a reward regressed on them.

    ``temperature`` is alpha, in units of the reward: 1/scale of FK steering.
    """

    job: Literal["train_value"]
    name: RunName
    pipeline: PipelineConfig
    reward: RewardConfig
    temperature: PositiveFloat
    rollouts: RolloutsConfig
    fitting: FittingConfig

    @model_validator(mode="after")
    def _some_held_out(self) -> ValueConfig:
        held_out = max(1, round(self.fitting.held_out * self.rollouts.count))
        if held_out >= self.rollouts.count:
            raise ValueError(
                f"fitting.held_out ({self.fitting.held_out}) leaves none of {self.rollouts.count} rollouts"
            )
        return self
