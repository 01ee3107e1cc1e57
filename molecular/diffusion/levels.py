"""Noise levels: the variance-preserving table, straight lines, and the forms that a prediction takes.

The table is log-uniform in the noise-to-signal ratio w = sigma / alpha: every step of a sampler that spaces its
timesteps evenly divides w by the same factor, so that stiff bonds and soft torsions are resolved alike.
"""

import math
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

__all__ = ["Level", "PredictionType", "flow_level", "log_uniform_betas", "predicted", "vp_level", "vp_ratios"]

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]

_SMALLEST = 1e-6  # of sigma: what a prediction of noise is divided by


class Level(NamedTuple):
    """x = alpha x0 + sigma eps, one level a row, (B, 1, 1) float64 each."""

    alpha: Tensor
    sigma: Tensor


def log_uniform_betas(lowest: float, highest: float, steps: int) -> list[float]:
    """DDPM's betas (Ho et al. 2020) of ratios w in geometric progression from ``lowest`` to ``highest``.

    Raises:
        ValueError: the ratios do not rise, or there are fewer than two steps.
    """
    if not 0.0 < lowest < highest < math.inf or steps < 2:
        raise ValueError(f"noise range: got {lowest} to {highest} in {steps} steps, expected 0 < lowest < highest, two")
    ratios = [lowest * (highest / lowest) ** (i / (steps - 1)) for i in range(steps)]
    kept = [1.0, *(1.0 / (1.0 + w * w) for w in ratios)]
    return [1.0 - after / before for before, after in pairwise(kept)]


def vp_ratios(betas: list[float]) -> Tensor:
    """w (T,) float64 of a table of betas, with the roundings of diffusers' schedulers (float32 products)."""
    kept = torch.cumprod(1.0 - torch.tensor(betas, dtype=torch.float32), dim=0).double()
    return ((1.0 - kept) / kept).sqrt()


def vp_level(ratios: Tensor, timestep: Tensor) -> Level:
    """alpha^2 + sigma^2 = 1; between two entries of the table w is interpolated, as Euler schedulers do."""
    t = timestep.double().clamp(0.0, len(ratios) - 1.0).reshape(-1, 1, 1)
    lower = t.floor().long().clamp(max=len(ratios) - 2)
    table = ratios.to(t.device)
    w = torch.lerp(table[lower], table[lower + 1], t - lower)
    alpha = (1.0 + w * w).rsqrt()
    return Level(alpha, alpha * w)


def flow_level(timestep: Tensor, train_timesteps: int) -> Level:
    """alpha = 1 - sigma, sigma = timestep / ``train_timesteps``: rectified flow."""
    sigma = (timestep.double() / train_timesteps).reshape(-1, 1, 1)
    return Level(1.0 - sigma, sigma)


def predicted(form: PredictionType, u: Tensor, output: Tensor, centre: Tensor, level: Level) -> Tensor:
    """The network's output F as a prediction of the asked form.

    With n = sqrt(alpha^2 + sigma^2), a = alpha / n, s = sigma / n and u = x / n without its centre, the clean
    prediction is D = a u + s F (Karras et al. 2022, table 1, data of unit variance). The noise is then
    eps = s u - a F, without a difference of large numbers at either end; the centre of mass of the data is 0, so that a
    centre in x is all noise.

    Args:
        form: what to return.
        u: (B, N, 3).
        output: F, (B, N, 3).
        centre: (B, 1, 3) the centre of x, over n.
        level: alpha and sigma.

    Raises:
        ValueError: an unknown form.
    """
    if form not in get_args(PredictionType):
        raise ValueError(f"prediction_type: got {form!r}, expected one of {', '.join(get_args(PredictionType))}")
    alpha, sigma = level
    size = (alpha.square() + sigma.square()).sqrt()
    signal, noise = (alpha / size).to(u), (sigma / size).to(u)
    clean = signal * u + noise * output
    if form == "sample":
        return clean
    epsilon = noise * u - signal * output + centre / noise.clamp(min=_SMALLEST)
    if form == "epsilon":
        return epsilon
    if form == "flow":
        return epsilon - clean
    return alpha.to(u) * epsilon - sigma.to(u) * clean
