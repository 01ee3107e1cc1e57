"""The config of a free-energy run: a molecule, its energy, a proposal, how many draws, and what to compute."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..config import AnalysisConfig, EnergyConfig, ExistingPath, Positive, RunName, Section, Seed, SystemConfig

__all__ = ["FreeEnergyConfig", "ProposalConfig"]


class ProposalConfig(Section):
    """Where proposed structures come from: a checkpoint folder, or a plugin with its options."""

    checkpoint: ExistingPath | None = None
    plugin: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> ProposalConfig:
        if (self.checkpoint is None) == (self.plugin is None):
            raise ValueError("needs either checkpoint: FOLDER or plugin: NAME, and not both")
        if self.checkpoint is not None and self.options:
            raise ValueError("options are for plugins; a checkpoint has none")
        return self


class SamplingConfig(Section):
    """How many draws, in chunks of which size, from which seed."""

    samples: Annotated[int, Field(ge=2)]
    chunk_size: Positive = 2000
    seed: Seed


class FreeEnergyConfig(Section):
    """`feynkac run`: draw from a proposal, weight by the energy, compute free energies."""

    job: Literal["free_energy"]
    name: RunName
    system: SystemConfig
    energy: EnergyConfig = EnergyConfig()
    proposal: ProposalConfig
    sampling: SamplingConfig
    analysis: AnalysisConfig
