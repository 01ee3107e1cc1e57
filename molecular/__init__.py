"""Molecules: energies in batch, collective variables, biased dynamics, free energies with error bars, files.

The names most often needed are here; the rest is in the folders `energies`, `cvs`, `dynamics`, `free_energy`, `io`.

Example:
    >>> from feynkac.molecular import BatchedForceField, RepulsionBias, metadynamics, free_energy_difference
"""

from ..fkc.bias import BiasVariable, GridAxis, RepulsionBias
from .cvs import (
    RMSD,
    Angle,
    CallableVariable,
    CollectiveVariable,
    ContactMap,
    Coordination,
    Distance,
    GyrationRadius,
    Height,
    Lateral,
    Linear,
    PathDistance,
    PathProgress,
    TorchScriptVariable,
    Torsion,
    Variables,
    build_variable,
)
from .dynamics import (
    BiasedEnergy,
    Langevin,
    Metadynamics,
    MetadynamicsSettings,
    ReplicaExchange,
    Restrained,
    metadynamics,
)
from .energies import BatchedForceField, Energy, OpenMMEnergy
from .free_energy import (
    Axis,
    Region,
    convergence,
    expectations,
    free_energy_difference,
    free_energy_surface,
    mbar,
    mbar_from_biases,
)
from .systems import load_system

__all__ = [
    # energies
    "Energy",
    "OpenMMEnergy",
    "BatchedForceField",
    "load_system",
    # collective variables
    "CollectiveVariable",
    "Variables",
    "build_variable",
    "Torsion",
    "Distance",
    "Angle",
    "Coordination",
    "GyrationRadius",
    "RMSD",
    "PathProgress",
    "PathDistance",
    "Linear",
    "ContactMap",
    "Height",
    "Lateral",
    "TorchScriptVariable",
    "CallableVariable",
    # bias
    "RepulsionBias",
    "BiasVariable",
    "GridAxis",
    # dynamics
    "BiasedEnergy",
    "Langevin",
    "Metadynamics",
    "MetadynamicsSettings",
    "Restrained",
    "ReplicaExchange",
    "metadynamics",
    # estimators
    "Axis",
    "Region",
    "free_energy_surface",
    "free_energy_difference",
    "mbar",
    "mbar_from_biases",
    "convergence",
    "expectations",
]
