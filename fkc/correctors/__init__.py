"""Correctors: targets made of pretrained laws, moves from noise to data, and the weights that make them exact."""

from .controls import Control
from .exchange import ExchangedSamples, LowAcceptanceWarning, sample_exchanged
from .guides import Gauge
from .langevin import RefinedModel
from .model import CorrectedModel, Weights
from .sampling import WeightedSamples, corrected_model, sample_corrected
from .stability import noise_bound
from .targets import (
    Annealed,
    AnnealedProduct,
    Exponent,
    GaussianReference,
    GeometricAverage,
    Product,
    RewardTilt,
    Target,
)

__all__ = [
    "Annealed",
    "AnnealedProduct",
    "Control",
    "CorrectedModel",
    "ExchangedSamples",
    "Exponent",
    "Gauge",
    "GaussianReference",
    "GeometricAverage",
    "LowAcceptanceWarning",
    "Product",
    "RefinedModel",
    "RewardTilt",
    "Target",
    "WeightedSamples",
    "Weights",
    "corrected_model",
    "noise_bound",
    "sample_corrected",
    "sample_exchanged",
]
