"""Free energies from weighted samples: surfaces along collective variables, differences of regions."""

from .axis import Axis
from .difference import FewEffectiveSamplesWarning, FreeEnergyDifference, free_energy_difference
from .region import Region
from .surface import FreeEnergySurface, free_energy_surface

__all__ = [
    "free_energy_surface",
    "FreeEnergySurface",
    "Axis",
    "free_energy_difference",
    "FreeEnergyDifference",
    "Region",
    "FewEffectiveSamplesWarning",
]
