"""The config of a repelled run: a pipeline, the plane it is repelled in, the bias, and the batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..config import ExistingPath, Positive, RunName, Section, Seed
from ..steer.config import CallConfig, ModelConfig, RewardConfig, SteerConfig, SteeringConfig

__all__ = ["BatchesConfig", "BiasConfig", "FeaturesConfig", "RepelledConfig"]

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FeaturesConfig(Section):
    """A plane of a classifier's embedding, fitted to draws of the model itself.

    discriminant: the plane that parts the classes best. pca: that of the largest variance.
    """

    classifier: ExistingPath
    projection: Literal["discriminant", "pca"] = "discriminant"
    draws: Annotated[int, Field(ge=50)] = 512


class BiasConfig(Section):
    """How the bias grows; energies in kT, widths in standard deviations of the model's own draws along each axis.

    well_tempered: ``height`` (what one batch adds) and ``bias_factor``. opes: ``barrier``, and perhaps ``bias_factor``.
    ``start``: share of the trajectory after which x0-hat is judged on the way; before it says little of the features.
    """

    rule: Literal["well_tempered", "opes"] = "well_tempered"
    sigma: PositiveFloat = 0.3
    bias_factor: Annotated[float, Field(gt=1)] | None = None
    height: PositiveFloat | None = None
    barrier: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    start: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @model_validator(mode="after")
    def _rule_fits(self) -> BiasConfig:
        tempered = self.rule == "well_tempered"
        needed = ("bias_factor", "height") if tempered else ("barrier",)
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"rule {self.rule} needs {missing[0]}")
        other = "barrier" if tempered else "height"
        if getattr(self, other) is not None:
            raise ValueError(f"rule {self.rule} takes no {other}")
        return self


class BatchesConfig(Section):
    """``batches`` that deposit, ``frozen`` more under the last bias, each of ``populations`` times the particles."""

    batches: Positive
    frozen: Annotated[int, Field(ge=0)] = 0
    populations: Annotated[int, Field(ge=2)] = 4
    seed: Seed


class RepelledConfig(Section):
    """`feynkac run`: a pipeline's samples spread over a plane of features, weighted back to its own law.

    ``rewards`` steer beside the bias; the law that weights are undone to is then theirs. ``compare``: as many samples
    without the bias.
    """

    job: Literal["repelled"]
    name: RunName
    model: ModelConfig
    call: CallConfig = CallConfig()
    features: FeaturesConfig
    bias: BiasConfig
    rewards: tuple[RewardConfig, ...] = ()
    steering: SteeringConfig = SteeringConfig(particles=32)
    sampling: BatchesConfig
    compare: bool = True

    @model_validator(mode="after")
    def _fits(self) -> RepelledConfig:
        if self.steering.method != "fk" or self.steering.final != "weighted":
            raise ValueError("steering: a repelled run has method fk and final weighted")
        if len(self.call.prompts) > 1 or len(self.call.labels) > 1:
            raise ValueError("call: one prompt or label; a bias belongs to one law")
        return self

    def as_steering(self) -> SteerConfig:
        """The same model, call and rewards as a config of `feynkac steer`, whose checks and builders serve here too."""
        # sections are validated already; of rewards there may be none, as the bias steers
        return SteerConfig.model_construct(
            job="steer",
            name=self.name,
            model=self.model,
            call=self.call,
            rewards=self.rewards,
            steering=self.steering.resolved(),
        )
