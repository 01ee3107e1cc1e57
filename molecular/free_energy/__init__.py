"""Free energies from weighted samples: weights, surfaces, differences of regions, errors of correlated samples.

Weights come from a bias (`log_weights_of_bias`), from several (`mbar`) or from a sampler; `free_energy_surface`,
`free_energy_difference` and `expectations` turn them into numbers; `block_groups` and `integrated_autocorrelation`
carry time correlation into their errors, and `convergence` says what speaks against believing them.
"""

from ._profile import ProfileHalves
from .autocorrelation import (
    Autocorrelation,
    ShortSeriesWarning,
    WeightedMean,
    influence,
    integrated_autocorrelation,
    weighted_mean,
)
from .axis import Axis
from .bias_difference import BiasDifference, difference_from_bias
from .blocks import BlockErrorCurve, block_error_curve, block_groups, block_length
from .convergence import ConvergenceReport, TimedDifference, convergence
from .crossings import Crossings, count_crossings
from .difference import FewEffectiveSamplesWarning, FreeEnergyDifference, free_energy_difference
from .expectations import Expectations, expectations
from .mbar import Mbar, MbarError, mbar, mbar_from_biases
from .mbar_surface import mbar_surface
from .region import Region
from .reweighting import log_weights_of_bias, tiwary_parrinello
from .surface import FreeEnergySurface, free_energy_surface

__all__ = [
    "free_energy_surface",
    "FreeEnergySurface",
    "Axis",
    "free_energy_difference",
    "FreeEnergyDifference",
    "Region",
    "FewEffectiveSamplesWarning",
    "log_weights_of_bias",
    "tiwary_parrinello",
    "mbar",
    "mbar_from_biases",
    "mbar_surface",
    "Mbar",
    "MbarError",
    "integrated_autocorrelation",
    "Autocorrelation",
    "weighted_mean",
    "WeightedMean",
    "influence",
    "ShortSeriesWarning",
    "block_groups",
    "block_length",
    "block_error_curve",
    "BlockErrorCurve",
    "difference_from_bias",
    "BiasDifference",
    "convergence",
    "ConvergenceReport",
    "TimedDifference",
    "ProfileHalves",
    "count_crossings",
    "Crossings",
    "expectations",
    "Expectations",
]
