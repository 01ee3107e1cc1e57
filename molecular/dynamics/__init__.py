"""Batched dynamics: Langevin walkers, replica exchange in temperature, metadynamics of many walkers with one bias."""

from .biased_energy import BiasedEnergy, BiasTerms
from .ensemble import Ensemble, EnsembleSettings, sample_ensemble
from .langevin import Explosion, Langevin
from .metadynamics import Metadynamics
from .metadynamics_result import FillingRecords, MetadynamicsResult
from .metadynamics_run import MetadynamicsSettings, Staged, follow, metadynamics, prepare
from .metadynamics_state import MetadynamicsState, Record
from .relax import melt, relax
from .replica_exchange import ReplicaExchange, ReplicaState, Sweep, geometric_temperatures
from .restraints import Restrained
from .walkers import LangevinState, WalkerExploded, WalkerRetiredWarning, WalkersExploded

__all__ = [
    "BiasTerms",
    "BiasedEnergy",
    "Ensemble",
    "EnsembleSettings",
    "Explosion",
    "FillingRecords",
    "Langevin",
    "LangevinState",
    "Metadynamics",
    "MetadynamicsResult",
    "MetadynamicsSettings",
    "MetadynamicsState",
    "Record",
    "ReplicaExchange",
    "ReplicaState",
    "Restrained",
    "Staged",
    "Sweep",
    "WalkerExploded",
    "WalkerRetiredWarning",
    "WalkersExploded",
    "follow",
    "geometric_temperatures",
    "melt",
    "metadynamics",
    "prepare",
    "relax",
    "sample_ensemble",
]
