"""Clean predictions, noise and score from what a denoiser said, whatever it was trained to predict.

With x = alpha x0 + sigma eps in the scheduler's sample space:

    epsilon   x0 = (x - sigma o) / alpha
    v         x0 = alpha x - sigma o             (variance preserving; v = alpha eps - sigma x0, Salimans, Ho 2022)
              x0 = x/(sigma^2 + 1) - o sigma/sqrt(sigma^2 + 1)   (variance exploding, with scaled input)
    sample    x0 = o
    flow      x0 = x - sigma o                   (o = eps - x0; reversed: x + sigma o)

preconditioned, for EDM and consistency models, to skip x + scale (the above), and eps = (x - alpha x0)/sigma, score =
-eps/sigma. Low-precision tensors are upcast first: near pure noise a bfloat16 x0 is off by half the signal.
"""

import math

import torch
from torch import Tensor

from .schedulers.levels import Level

__all__ = ["clean_prediction", "noise_prediction", "score", "upcast"]


def upcast(tensor: Tensor) -> Tensor:
    """float32 at least: half precisions are raised, float32 and float64 are kept."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def clean_prediction(sample: Tensor, output: Tensor, level: Level, prediction: str, *, exploding: bool) -> Tensor:
    """x0-hat, unclipped, in float32 or float64.

    Args:
        sample: x_t.
        output: what the denoiser returned (after guidance), same shape.
        level: (alpha, sigma) of x_t.
        prediction: ``epsilon``, ``v_prediction``, ``sample``, ``flow`` or ``reversed_flow``.
        exploding: the sample space is variance exploding (alpha = 1 at every level).
    """
    x, o = upcast(sample), upcast(output)
    clean = _plain(x, o, level, prediction, exploding)
    return clean if level.skip == 0.0 and level.scale == 1.0 else level.skip * x + level.scale * clean


def _plain(x: Tensor, o: Tensor, level: Level, prediction: str, exploding: bool) -> Tensor:
    if prediction == "sample":
        return o
    if prediction == "flow":
        return x - level.sigma * o
    if prediction == "reversed_flow":
        return x + level.sigma * o
    if prediction == "epsilon":
        return (x - level.sigma * o) / level.alpha
    if exploding:
        variance = level.sigma**2 + 1.0
        return x / variance - o * (level.sigma / math.sqrt(variance))
    return level.alpha * x - level.sigma * o


def noise_prediction(sample: Tensor, clean: Tensor, level: Level) -> Tensor:
    """eps-hat = (x - alpha x0-hat) / sigma; zero at sigma = 0."""
    if level.sigma == 0.0:
        return torch.zeros_like(clean)
    return (upcast(sample) - level.alpha * clean) / level.sigma


def score(noise: Tensor, level: Level) -> Tensor:
    """Gradient of the log-density of x_t: -eps/sigma."""
    return -noise / level.sigma
