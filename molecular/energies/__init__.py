"""Energies of molecules: the protocol, OpenMM's own, and a batched evaluation of an OpenMM System's force field."""

from .batched import BatchedForceField
from .errors import ConstraintsWarning, EnergyInputError, UnsupportedForceError
from .native import NativeStatus, native_status
from .openmm_energy import OpenMMEnergy, PlatformSpeed, measure_platforms
from .protocol import Energy, EnergyForces

__all__ = [
    "BatchedForceField",
    "ConstraintsWarning",
    "Energy",
    "EnergyForces",
    "EnergyInputError",
    "NativeStatus",
    "OpenMMEnergy",
    "PlatformSpeed",
    "UnsupportedForceError",
    "measure_platforms",
    "native_status",
]
