"""Feynman-Kac correctors for masked (absorbing-state) diffusion over tokens."""

from .experts import MaskedExpert
from .model import MaskedModel
from .reveal import Reveal
from .sampling import sample_corrected_masked

__all__ = ["MaskedExpert", "MaskedModel", "Reveal", "sample_corrected_masked"]
