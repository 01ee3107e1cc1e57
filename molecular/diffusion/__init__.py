"""A molecule as a diffusers pipeline: an equivariant denoiser, its training, and sampling under any scheduler."""

from .geometry import Invariants, bonded_quadruples
from .levels import Level, PredictionType, log_uniform_betas
from .network import DenoiserOutput, MoleculeDenoiser, new_denoiser
from .pipeline import MoleculePipeline, MoleculePipelineOutput, molecule_scheduler
from .topology import MoleculeMismatch, MoleculeTopology
from .training import FitProgress, FitSettings, fit_denoiser

__all__ = [
    "DenoiserOutput",
    "FitProgress",
    "FitSettings",
    "Invariants",
    "Level",
    "MoleculeDenoiser",
    "MoleculeMismatch",
    "MoleculePipeline",
    "MoleculePipelineOutput",
    "MoleculeTopology",
    "PredictionType",
    "bonded_quadruples",
    "fit_denoiser",
    "log_uniform_betas",
    "molecule_scheduler",
    "new_denoiser",
]
