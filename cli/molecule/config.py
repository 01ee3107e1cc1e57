"""The config of a run that takes a molecule's diffusion model from its temperature to another."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..config import AnalysisConfig, ExistingPath, Positive, RunName, Section, Seed, SystemConfig
from ..quantities import Temperature
from ..steer.config import ResamplingScheme

__all__ = ["AnnealedSamplingConfig", "ModelDrawsConfig", "MoleculeConfig"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ModelDrawsConfig(Section):
    """Plain draws of the model: the law at its own temperature, and what the spread of the moves is calibrated on."""

    draws: Annotated[int, Field(ge=16)] = 2000
    steps: Positive = 300


class AnnealedSamplingConfig(Section):
    """How many populations of how many particles, and their moves.

    ``compare``: the same moves once more without weights and without resampling.
    """

    particles: Annotated[int, Field(ge=2)]
    populations: Positive = 4
    steps: Annotated[int, Field(ge=2)]
    resampler: ResamplingScheme = "systematic"
    ess_threshold: Share = 0.5
    chunk_size: Positive | None = None
    compare: bool = True
    seed: Seed


class MoleculeConfig(Section):
    """`feynkac run`: a model of one temperature sampled at that of ``system``, with and without its true energy.

    ``reference``: JSON of numbers from elsewhere that are printed beside.
    """

    job: Literal["annealed_molecule"]
    name: RunName
    pipeline: ExistingPath
    model_temperature: Temperature
    system: SystemConfig
    model: ModelDrawsConfig = ModelDrawsConfig()
    sampling: AnnealedSamplingConfig
    analysis: AnalysisConfig
    reference: ExistingPath | None = None

    @model_validator(mode="after")
    def _colder(self) -> MoleculeConfig:
        if self.system.constraints != "none":
            raise ValueError("system.constraints must be none: the model moves every bond")
        if self.exponent < 1.0:
            raise ValueError(
                f"system.temperature ({self.system.temperature:g} K) must not be above model_temperature "
                f"({self.model_temperature:g} K): a model knows little of what is rare in it"
            )
        return self

    @property
    def exponent(self) -> float:
        """Of the model's law: exp(-E/kT_model) to this power is exp(-E/kT)."""
        return self.model_temperature / self.system.temperature
