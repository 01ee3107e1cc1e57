"""Batched dynamics: Langevin walkers and replica exchange in temperature."""

from .ensemble import Ensemble, EnsembleSettings, sample_ensemble
from .langevin import Langevin, LangevinState, WalkerExploded
from .replica_exchange import ReplicaExchange, ReplicaState, Sweep, geometric_temperatures

__all__ = [
    "Ensemble",
    "EnsembleSettings",
    "Langevin",
    "LangevinState",
    "ReplicaExchange",
    "ReplicaState",
    "Sweep",
    "WalkerExploded",
    "geometric_temperatures",
    "sample_ensemble",
]
