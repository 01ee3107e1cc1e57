"""Log-weights of the unbiased law from recorded bias energies.

Samples of a bias that no longer changes have weights exp(V/kT), exactly; ``bias.reweight(values)`` computes them from
values.  Samples taken while the bias grew have weights exp((V_t - c(t))/kT), which hold when the walkers are in
equilibrium with the bias at every moment (Tiwary and Parrinello, J. Phys. Chem. B 119, 736 (2015)).  The exact way to
use several biases is `mbar`.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ...fkc.bias.well_tempered import tiwary_parrinello
from ...fkc.errors import NonFiniteWeightWarning
from ._samples import check_kT

__all__ = ["log_weights_of_bias", "tiwary_parrinello"]


def log_weights_of_bias(bias_energy: Tensor, *, kT: float, rct: Tensor | float | None = None) -> Tensor:
    """Log-weights V/kT, or (V_t - c(t))/kT with c(t), for samples whose bias energy was recorded.

    Args:
        bias_energy: (T,) or (T, B) V at the samples, a row a time, in the unit of kT; a sample whose bias is NaN (its
            variables were not finite) gets weight zero, with a warning.
        kT: thermal energy.
        rct: c(t), a number or (T,), in the unit of kT; None for a bias that did not change.

    Returns:
        float64, the shape of ``bias_energy``, raw.

    Raises:
        ValueError: for a kT that is not positive, shapes that do not fit, an infinite bias or c(t) that is not finite.

    Warns:
        NonFiniteWeightWarning: for samples whose bias is NaN, with their number.

    Example:
        >>> log_weights_of_bias(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), kT=2.0, rct=torch.tensor([0.0, 1.0])).tolist()
        [[0.5, 1.0], [1.0, 1.5]]
    """
    check_kT(kT)
    energy = bias_energy.detach().cpu().double()
    if bool(torch.isinf(energy).any()):
        raise ValueError("the bias energy of some samples is infinite")
    shift = torch.zeros((), dtype=torch.float64)
    if rct is not None:
        shift = torch.as_tensor(rct, dtype=torch.float64).detach().cpu()
        if shift.ndim > 1 or (shift.ndim == 1 and (energy.ndim == 0 or shift.shape[0] != energy.shape[0])):
            raise ValueError(f"rct must be a number or one a time, got {tuple(shift.shape)} for {tuple(energy.shape)}")
        if not bool(torch.isfinite(shift).all()):
            raise ValueError("rct must be finite")
        shift = shift.reshape(shift.shape + (1,) * (energy.ndim - 1)) if shift.ndim else shift
    unknown = torch.isnan(energy)
    if bool(unknown.any()):
        warnings.warn(
            f"the bias energy of {int(unknown.sum())} of {energy.numel()} samples is NaN: their weights are zero",
            NonFiniteWeightWarning,
            stacklevel=2,
        )
    return ((energy - shift) / kT).masked_fill(unknown, -math.inf)
