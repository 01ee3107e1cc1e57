"""Batched dynamics: Langevin walkers, replica exchange in temperature, metadynamics of many walkers with one bias."""

from .biased_energy import BiasedEnergy, BiasTerms
from .ensemble import Ensemble, EnsembleSettings, sample_ensemble
from .langevin import Explosion, Langevin
from .metadynamics import Metadynamics
from .metadynamics_result import Collector, FillingRecords, MetadynamicsResult
from .metadynamics_run import Staged, follow, metadynamics, prepare
from .metadynamics_settings import MetadynamicsSettings
from .metadynamics_state import MetadynamicsState, Record
from .relax import melt, relax
from .replica_exchange import ReplicaExchange, ReplicaState, Sweep, geometric_temperatures
from .restraints import Restrained
from .walkers import LangevinState, WalkerExploded, WalkerRestartedWarning, WalkerRetiredWarning, WalkersExploded

__all__ = [
    "BiasTerms",
    "BiasedEnergy",
    "Collector",
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
    "WalkerRestartedWarning",
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
