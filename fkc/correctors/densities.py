r"""Log-densities of experts along a path: known, or tracked from the scores.

An expert's law at h and at h' < h are tied by its own denoising kernel and the noising kernel,

.. math:: \log q_{h'}(y') - \log q_h(y) = \log p(y' | y) - \log N(y; y', \delta),

for any pair of points. With the Gaussian p of the expert's score and the posterior variance of its claimed data
variance this is exact for that Gaussian at any step, and in the limit of small steps for any law where the moves have
noise kappa = 1 (Ito's formula without a Laplacian). For other noise it gains

.. math:: \tfrac{(\kappa - 1)\delta}2 \Bigl(\nabla\cdot s + \frac d v\Bigr),

v the claimed variance at h: nothing for the claimed Gaussian, and what Ito's formula asks for any other law.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .levels import Ends, Level
from .moves import Normal

__all__ = ["gaussian_log_q", "tracked_change"]


def gaussian_log_q(y: Tensor, level: Level) -> Tensor:
    """(P, K, E) float64: the experts' claimed Gaussians, which their noisiest laws are."""
    reference = level.reference
    return torch.stack(
        [Normal(m.expand_as(y), v).log_density(y) for m, v in zip(reference.means, reference.variances, strict=True)],
        dim=2,
    )


def tracked_change(before: Ends, after: Ends, kappa: float) -> Tensor:
    """log q_h'(y') - log q_h(y) (P, K, E) float64 of a move with noise multiplier ``kappa``; divergences at both ends
    are needed unless it is 1. The experts' clocks are the sampler's."""
    fall = before.level.h - after.level.h
    up, down = (before, after) if fall > 0.0 else (after, before)
    delta, dimension = abs(fall), before.y[0, 0].numel()
    pairs = zip(down.level.reference.variances, up.level.reference.variances, strict=True)
    ratios = torch.tensor([float(lower) / float(upper) for lower, upper in pairs], dtype=torch.float64)
    step = (down.y - up.y).double()[:, :, None]
    noised = step.flatten(3).square().sum(dim=3)
    denoised = (step - delta * up.scores.double()).flatten(3).square().sum(dim=3)
    change = 0.5 * ((noised - denoised / ratios) / delta - dimension * ratios.log())
    if fall < 0.0:
        return -change
    if kappa != 1.0:
        excess = 0.5 * sum((_excess(ends) for ends in (before, after)), torch.zeros(()))
        change = change + 0.5 * (kappa - 1.0) * delta * excess
    return change


def _excess(ends: Ends) -> Tensor:
    """div s_i + d/v_i (P, K, E) float64."""
    assert ends.divergences is not None  # the model asks for them
    variances = torch.stack(ends.level.reference.variances)
    return ends.divergences + ends.y[0, 0].numel() / variances
