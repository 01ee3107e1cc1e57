"""Collective variables: differentiable functions of batched positions (B, N, 3) in nm."""

from .angle import Angle
from .base import AnalyticVariable, CollectiveVariable, VariableGradient
from .cell import Cell
from .contact_map import ContactMap, native_pairs
from .coordination import Coordination
from .distance import Distance
from .factory import VARIABLE_KINDS, build_variable, build_variables
from .frames import read_frames
from .function import CallableVariable, TorchScriptVariable
from .gyration import GyrationRadius
from .linear import Linear, periodic_features
from .path import NodeDistances, PathDistance, PathProgress, smoothness
from .rmsd import RMSD, Superposition
from .selections import UnknownAtomError, find_atom, select_atom, select_atoms
from .surface import Height, Lateral
from .switch import RationalSwitch
from .torsion import Torsion
from .variables import Linearisation, Variables

__all__ = [
    "AnalyticVariable",
    "Angle",
    "CallableVariable",
    "Cell",
    "CollectiveVariable",
    "ContactMap",
    "Coordination",
    "Distance",
    "GyrationRadius",
    "Height",
    "Lateral",
    "Linear",
    "Linearisation",
    "NodeDistances",
    "PathDistance",
    "PathProgress",
    "RMSD",
    "RationalSwitch",
    "Superposition",
    "TorchScriptVariable",
    "Torsion",
    "UnknownAtomError",
    "VARIABLE_KINDS",
    "VariableGradient",
    "Variables",
    "build_variable",
    "build_variables",
    "find_atom",
    "native_pairs",
    "periodic_features",
    "read_frames",
    "select_atom",
    "select_atoms",
    "smoothness",
]
