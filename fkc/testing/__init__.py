"""Targets with exact answers, z-tests and conformance checks: public, for the authors of models, kernels and
proposals."""

from .chains import IsingChain, MaskedPathLaw, chain_product
from .conformance import (
    ConformanceError,
    check_batch_equals_singles,
    check_inputs_untouched,
    check_kernel,
    check_resampler,
    check_same_seed_same_output,
)
from .gaussians import Gaussian, GaussianPair
from .mueller_brown import MuellerBrown
from .wells import BarrierWell, DoubleWell, ManyWell
from .ztest import ZTest, calibration

__all__ = [
    "Gaussian",
    "GaussianPair",
    "DoubleWell",
    "BarrierWell",
    "ManyWell",
    "MuellerBrown",
    "IsingChain",
    "MaskedPathLaw",
    "chain_product",
    "ZTest",
    "calibration",
    "ConformanceError",
    "check_resampler",
    "check_kernel",
    "check_batch_equals_singles",
    "check_same_seed_same_output",
    "check_inputs_untouched",
]
