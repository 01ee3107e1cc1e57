"""The config of `feynkac train`: dynamics that make the frames, the flow, and the phases of its training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..config import EnergyConfig, Positive, RunName, Section, Seed, SystemConfig
from ..quantities import Mass, Rate, Temperature, Time

__all__ = ["DynamicsConfig", "FlowConfig", "PhaseConfig", "TrainConfig", "TrainingConfig"]

Factor = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class DynamicsConfig(Section):
    """Replica exchange in temperature: independent ladders, whose lowest temperature is the system's."""

    highest_temperature: Temperature
    replicas: Annotated[int, Field(ge=2)]
    ladders: Annotated[int, Field(ge=2)]
    melt: Time
    burn_in: Time
    production: Time
    exchange_steps: Positive = 25
    time_step: Time
    friction: Rate
    mass: Mass = 12.0
    seed: Seed


class FlowConfig(Section):
    """Size of the autoregressive spline flow on internal coordinates."""

    hidden: Positive = 80
    bins: Annotated[int, Field(ge=2)] = 8
    circular_bins: Annotated[int, Field(ge=2)] = 20
    harmonics: Positive = 3
    seed: Seed = 0


class PhaseConfig(Section):
    """One stretch of training; the factors weigh the terms of the loss."""

    steps: Positive
    learning_rate: PositiveFloat
    batch_size: Positive = 1024
    warmup: Annotated[int, Field(ge=0)] = 100
    likelihood: Factor = 1.0
    data_regression: Factor = 0.0
    draw_regression: Factor = 0.0
    huber: PositiveFloat = 3.0
    weight_decay: Factor = 0.0
    clip_norm: PositiveFloat = 5.0

    @model_validator(mode="after")
    def _some_term(self) -> PhaseConfig:
        if not (self.likelihood or self.data_regression or self.draw_regression):
            raise ValueError("needs likelihood, data_regression or draw_regression above zero")
        return self


class TrainingConfig(Section):
    """Phases one after the other, and the ladders held out to choose the best parameters."""

    phases: Annotated[tuple[PhaseConfig, ...], Field(min_length=1)]
    held_out_ladders: Positive
    evaluate_every: Positive = 250
    ess_draws: Annotated[int, Field(ge=0)] = 2048
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    seed: Seed


class TrainConfig(Section):
    """`feynkac train`: run dynamics, fit a flow to the frames, write a checkpoint that `feynkac run` can use."""

    job: Literal["train"]
    name: RunName
    system: SystemConfig
    energy: EnergyConfig = EnergyConfig()
    dynamics: DynamicsConfig
    flow: FlowConfig = FlowConfig()
    training: TrainingConfig

    @model_validator(mode="after")
    def _parts_fit(self) -> TrainConfig:
        if self.training.held_out_ladders >= self.dynamics.ladders:
            raise ValueError(
                f"training.held_out_ladders ({self.training.held_out_ladders}) must be fewer than "
                f"dynamics.ladders ({self.dynamics.ladders})"
            )
        if self.dynamics.highest_temperature <= self.system.temperature:
            raise ValueError("dynamics.highest_temperature must lie above system.temperature")
        return self
