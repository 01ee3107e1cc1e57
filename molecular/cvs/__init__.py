"""Collective variables: differentiable functions of batched positions (B, N, 3) in nm."""

from .base import CollectiveVariable
from .distance import Distance
from .factory import VARIABLE_KINDS, UnknownAtomError, build_variable, find_atom
from .torsion import Torsion

__all__ = [
    "CollectiveVariable",
    "Torsion",
    "Distance",
    "build_variable",
    "find_atom",
    "VARIABLE_KINDS",
    "UnknownAtomError",
]
