r"""Proposals that follow the gradient of a value, with exact weights.

The Gaussian move N(m, s^2) becomes N(m + s^2 g, s^2) with g the gradient of the value at x_t, and the log-weight gains
the logarithm of the old density over the new at the point drawn: whatever g is, the target stays (twisted diffusion
sampler, Wu et al. 2023, eq. 11).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .context import StepContext
from .errors import SteeringError

__all__ = ["Gradient"]


@dataclass(frozen=True, eq=False)
class Variable:
    """``value``, a leaf of the graph, of which ``rows`` belong to the rows that are judged."""

    value: Tensor
    rows: slice | Tensor


@dataclass(frozen=True)
class Gradient:
    """How a reward's gradient moves the proposal.

    Attributes:
        strength: factor of the shift.
        through: ``"prediction"``: of the reward at x0-hat alone, carried to x_t by the gain of Gaussian data,
            alpha v / (alpha^2 v + sigma^2); no more denoiser calls. ``"denoiser"``: through the denoiser too, one more
            evaluation a step.
        limit: largest root mean square of the shift over a sample's elements, in standard deviations of the move;
            None for no limit.
        data_variance: v, for ``"prediction"``.
    """

    strength: float = 1.0
    through: Literal["prediction", "denoiser"] = "prediction"
    limit: float | None = 1.0
    data_variance: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise ValueError(f"strength: got {self.strength}, expected a finite number")
        if self.through not in ("prediction", "denoiser"):
            raise ValueError(f"through: got {self.through!r}, expected 'prediction' or 'denoiser'")
        if self.limit is not None and not self.limit > 0.0:
            raise ValueError(f"limit: got {self.limit}, expected a positive number or None")
        if not self.data_variance > 0.0:
            raise ValueError(f"data_variance: got {self.data_variance}, expected a positive number")

    def inputs(self, context: StepContext) -> tuple["Variable", Tensor]:
        """What the value is differentiated by, and x0-hat (rows, ...) as a function of it.

        Raises:
            SteeringError: the denoiser's calls were not recorded.
        """
        if self.through == "prediction":
            clean = context.clean.detach().clone().requires_grad_()
            return Variable(clean, slice(None)), clean
        if context.differentiable is None:
            raise SteeringError("gradient: the denoiser of this pipeline cannot be differentiated; use 'prediction'")
        x, output, rows = context.differentiable()
        return Variable(x, rows), context.clean_from(x[rows], output[rows])

    def direction(self, context: StepContext, log_value: Tensor, variable: "Variable", deviation: float) -> Tensor:
        """Gradient (rows, ...) float32 or float64 of the log-values (rows,) at x_t, scaled and limited."""
        if not log_value.requires_grad:
            raise SteeringError("gradient: the reward is not differentiable (it returned numbers without a graph)")
        with torch.enable_grad():
            total = torch.where(log_value.isfinite(), log_value, 0.0).sum()
        (gradient,) = torch.autograd.grad(total, variable.value)
        gradient = torch.nan_to_num(gradient[variable.rows], nan=0.0, posinf=0.0, neginf=0.0)
        if self.through == "prediction":
            alpha, sigma = context.level.alpha, context.level.sigma
            gradient = gradient * (alpha * self.data_variance / (alpha**2 * self.data_variance + sigma**2))
        gradient = self.strength * gradient
        if self.limit is not None:
            rms = deviation * gradient.flatten(1).square().mean(dim=1).sqrt()
            factor = (self.limit / rms.clamp_min(torch.finfo(rms.dtype).tiny)).clamp(max=1.0)
            gradient = gradient * factor.reshape(-1, *[1] * (gradient.ndim - 1))
        return gradient.detach()
