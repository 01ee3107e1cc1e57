"""Samplers whose laws are known exactly, for tests of steering: ours, and those of plugin authors.

Continuous: :func:`affine_law` (Gaussian data through a diffusers scheduler), :func:`kernel_law` and
:func:`kernel_quadrature` (our own step). Discrete: :class:`EnumeratedMaskedModel`. The denoisers turn real pipelines
into these samplers; they need diffusers.
"""

from typing import TYPE_CHECKING, Any

from .affine import AffineChain, AffineStep, QuadraticReward, TiltedLaw, affine_law, flow_levels, kernel_law
from .enumerated import EnumeratedMaskedModel, EnumeratedTilt, pair_energy, twos_and_ends
from .quadrature import DiscretizedLaw, kernel_quadrature, mixture_posterior_mean
from .selection import (
    best_of_n_law,
    entropy,
    greedy_value_law,
    kl_divergence,
    soft_value_pair_law,
    total_variation,
)

if TYPE_CHECKING:
    from .denoisers import AnalyticDenoiser, GaussianDenoiser, MixtureDenoiser
    from .masked_denoiser import EnumeratedDenoiser

__all__ = [
    "AffineChain",
    "AffineStep",
    "QuadraticReward",
    "TiltedLaw",
    "affine_law",
    "flow_levels",
    "kernel_law",
    "DiscretizedLaw",
    "kernel_quadrature",
    "mixture_posterior_mean",
    "AnalyticDenoiser",
    "GaussianDenoiser",
    "MixtureDenoiser",
    "EnumeratedMaskedModel",
    "EnumeratedTilt",
    "EnumeratedDenoiser",
    "pair_energy",
    "twos_and_ends",
    "best_of_n_law",
    "entropy",
    "greedy_value_law",
    "kl_divergence",
    "soft_value_pair_law",
    "total_variation",
]


def __getattr__(name: str) -> Any:
    """The denoisers import diffusers, so they are imported when first asked for."""
    if name in ("AnalyticDenoiser", "GaussianDenoiser", "MixtureDenoiser"):
        from . import denoisers

        return getattr(denoisers, name)
    if name == "EnumeratedDenoiser":
        from .masked_denoiser import EnumeratedDenoiser

        return EnumeratedDenoiser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
