"""The config of `feynkac train` for a diffusion pipeline of a molecule: dynamics, the denoiser, and its fit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..config import EnergyConfig, Positive, RunName, Section, Seed, SystemConfig
from .flow_config import DynamicsConfig

__all__ = ["DenoiserConfig", "DiffusionFitConfig", "DiffusionTrainConfig", "QualityConfig"]

PositiveFloat = Annotated[float, Field(gt=0)]
AtomIndex = Annotated[int, Field(ge=0)]
Torsion = Annotated[tuple[AtomIndex, ...], Field(min_length=4, max_length=4)]


class DenoiserConfig(Section):
    """Size of the network, and the noise-to-signal ratios of its table (of data of unit variance)."""

    width: Positive = 384
    blocks: Positive = 2
    passes: Positive = 2
    embedding: Annotated[int, Field(ge=2)] = 64
    lowest_noise: PositiveFloat = 0.002
    highest_noise: PositiveFloat = 30.0
    train_timesteps: Annotated[int, Field(ge=2)] = 1000
    seed: Seed = 0

    @model_validator(mode="after")
    def _noise_rises(self) -> DenoiserConfig:
        if self.lowest_noise >= self.highest_noise:
            raise ValueError(f"lowest_noise ({self.lowest_noise}) must lie below highest_noise ({self.highest_noise})")
        return self


class DiffusionFitConfig(Section):
    """Optimiser, the range of noise that it sees, and how many ladders are held out for its reports.

    ``frames`` is the number of training frames kept, evenly over the production run; ``forces`` sharpens the targets at
    low noise.
    """

    frames: Positive
    held_out_ladders: Positive
    forces: bool = True
    steps: Positive
    batch_size: Positive = 1024
    learning_rate: PositiveFloat = 2e-3
    warmup: Annotated[int, Field(ge=0)] = 200
    lowest: PositiveFloat = 0.0015
    highest: PositiveFloat = 40.0
    centre: PositiveFloat = 0.45
    spread: PositiveFloat = 0.9
    share_uniform: Annotated[float, Field(ge=0, le=1)] = 0.25
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: PositiveFloat = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    evaluate_every: Positive = 500
    fast: bool = True
    seed: Seed

    @model_validator(mode="after")
    def _range(self) -> DiffusionFitConfig:
        if not self.lowest <= self.centre <= self.highest:
            raise ValueError(f"expected lowest <= centre <= highest, got {self.lowest}, {self.centre}, {self.highest}")
        return self


class QualityConfig(Section):
    """Draws that judge the model: how many, with which numbers of steps, and the torsions that are compared."""

    samples: Annotated[int, Field(ge=2)] = 4096
    steps: tuple[Positive, ...] = (100,)
    torsions: dict[str, Torsion] = Field(default_factory=dict)
    seed: Seed = 0


class DiffusionTrainConfig(Section):
    """`feynkac train`: run dynamics, fit a denoiser to the frames, write a pipeline that diffusers loads."""

    job: Literal["train_diffusion"]
    name: RunName
    system: SystemConfig
    energy: EnergyConfig = EnergyConfig()
    dynamics: DynamicsConfig
    denoiser: DenoiserConfig = DenoiserConfig()
    fitting: DiffusionFitConfig
    quality: QualityConfig = QualityConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> DiffusionTrainConfig:
        if self.fitting.held_out_ladders >= self.dynamics.ladders:
            raise ValueError(
                f"fitting.held_out_ladders ({self.fitting.held_out_ladders}) must be fewer than "
                f"dynamics.ladders ({self.dynamics.ladders})"
            )
        if self.dynamics.highest_temperature <= self.system.temperature:
            raise ValueError("dynamics.highest_temperature must lie above system.temperature")
        return self
