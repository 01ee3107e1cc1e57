r"""Weights of a mixture that minimise the variance of several importance-sampling estimates at once.

For the integral of t against densities :math:`q_1 \dots q_J` with control variates, the variance of one draw is

.. math:: V(\alpha) = \min_\beta \int \frac{(t - \sum_j \beta_j q_j)^2}{\sum_j \alpha_j q_j} dx,

jointly convex in weights and coefficients (He and Owen 2014). It is estimated from draws at hand and
minimised by turns: coefficients by least squares, weights by majorisation. With :math:`\pi_j = \alpha_j q_j /
q_\alpha`, Cauchy and Schwarz give :math:`1 / q_{\alpha'} \le \sum_j \pi_j^2 / (\alpha'_j q_j)`, hence
:math:`V(\alpha') \le \sum_j B_j / \alpha'_j` with equality at :math:`\alpha`; the bound's minimum over weights above a
floor is :math:`\max(\text{floor}_j, c \sqrt{B_j})`. A sum of variances never rises, and no step size is needed.

References:
    He and Owen (2014), "Optimal mixture weights in multiple importance sampling", arXiv 1411.3954.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .control_variates import least_squares

__all__ = ["Objective", "floored_allocation", "mixture_variances", "optimal_mixture"]

Objective = Literal["max", "sum"]

_STEPS = 300
_TOLERANCE = 1e-4  # change of a weight
_RELATIVE_ZERO = 1e-20  # a variance this far below the squared integrand is rounding


def mixture_variances(
    weights: Tensor, integrands: Tensor, ratios: Tensor, *, controls: bool = True
) -> tuple[Tensor, Tensor]:
    """Variance of one draw for each integrand, and the coefficients of the bound ``sum_j B_j / weights_j``.

    Args:
        weights: (J,) of the mixture that is judged.
        integrands: (n, F) ``t / q`` at draws of q.
        ratios: (n, J) ``q_j / q`` there.
        controls: with the densities as control variates, at their best coefficients.

    Returns:
        (F,) variances and (F, J) coefficients B; without ``controls`` second moments instead of variances.
    """
    mixture = ratios @ weights
    root = mixture.sqrt()[:, None]
    left = integrands
    if controls:
        left = integrands - ratios @ least_squares(ratios / root, integrands / root).coefficients
    squares = left.square() / mixture[:, None]
    bounds = (squares / mixture[:, None]).T @ ratios * weights.square() / len(ratios)
    return squares.mean(dim=0), bounds


def optimal_mixture(
    integrands: Tensor,
    ratios: Tensor,
    *,
    objective: Objective,
    floors: Tensor,
    start: Tensor,
    controls: bool = True,
) -> Tensor:
    """Mixture weights (J,) of least ``max`` or ``sum`` of the variances of the integrands.

    ``max`` is the saddle point with weights on the integrands, raised where the variance is above the others'; the best
    mixture met is returned.

    Args:
        integrands: (n, F), each in the unit in which its error is measured.
        ratios: (n, J), see :func:`mixture_variances`.
        objective: ``max`` or ``sum``.
        floors: (J,) least weights, of sum below one.
        start: (J,) positive weights to start from.
        controls: minimise the variance with control variates.
    """
    share = integrands.new_full((integrands.shape[1],), 1 / max(1, integrands.shape[1]))
    zero = _RELATIVE_ZERO * float(integrands.square().mean(dim=0).sum())
    weights = best = start
    least = torch.inf
    for _ in range(_STEPS):
        variances, bounds = mixture_variances(weights, integrands, ratios, controls=controls)
        value = float(variances.max() if objective == "max" else variances.sum())
        if value < least:
            least, best = value, weights
        if not value > zero:
            break
        if objective == "max":
            share = share * (variances / value).sqrt()
            share = share / share.sum()
        before, weights = weights, floored_allocation((share @ bounds).sqrt(), floors)
        if float((weights - before).abs().max()) < _TOLERANCE:
            break
    return best


def floored_allocation(sizes: Tensor, floors: Tensor) -> Tensor:
    """``max(floors, c sizes)`` of sum one: the minimum of ``sum sizes^2 / weights`` above the floors.

    Args:
        sizes: (J,) not negative; all zero gives the floors scaled to one.
        floors: (J,) positive, of sum at most one.
    """
    if not bool((sizes > 0).any()):
        return floors / floors.sum()
    # components in the order in which they leave the floor as c grows; the first k of them are free
    order = (sizes / floors).argsort(descending=True, stable=True)
    held = 1 - (floors.sum() - floors[order].cumsum(0))
    scale = held / sizes[order].cumsum(0)
    return torch.maximum(floors, sizes * scale.min())
