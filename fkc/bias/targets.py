r"""The bias on targets of the core: a density or a product of experts becomes :math:`p(x)\, e^{-V(\xi(x))/kT}`.

biased_target = biased(target, bias, variables)
samples = sample_corrected(biased_target, particles=1000, steps=200, seed=0)
log_weights = undone(samples.x, samples.log_weights, bias, variables)              # of the law without the bias
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from ..correctors.targets import Target
from ..density import LogDensity
from ..experts import Expert
from .base import RepulsionBias

__all__ = ["BiasReward", "BiasedDensity", "Variables", "biased", "undone"]

Variables = Callable[[Tensor], Tensor]
"""x (B, *event) -> values (B, d), or (B,) for one variable; differentiable where scores are asked for."""


@dataclass(frozen=True, eq=False)
class BiasReward:
    """-V(xi(x)) / kT (B,) float64 of x (B, *event), on its device; differentiable once; NaN where xi is."""

    bias: RepulsionBias
    variables: Variables

    def __call__(self, x: Tensor) -> Tensor:
        """See the class."""
        return (-self.bias(_values(self.bias, self.variables, x)) / self.bias.kT).to(x.device)


@dataclass(frozen=True, eq=False)
class BiasedDensity:
    """p(x) exp(-V(xi(x)) / kT), a :class:`feynkac.fkc.LogDensity`.

    NaN values of the variables make it NaN: the loop counts such particles, warns of them and gives them weight zero.

    Attributes:
        density: log p.
        bias: V.
        variables: xi.
    """

    density: LogDensity
    bias: RepulsionBias
    variables: Variables

    def log_prob(self, x: Tensor) -> Tensor:
        """``(B,)``."""
        with torch.no_grad():
            return self.density.log_prob(x) + BiasReward(self.bias, self.variables)(x)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` and ``(B, *event)``."""
        log_prob, score = self.density.log_prob_and_score(x)
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            reward = BiasReward(self.bias, self.variables)(leaf)
            (slope,) = torch.autograd.grad(reward.sum(), leaf)
        return log_prob + reward.detach(), score + slope.to(score)


@overload
def biased(target: Target[Expert], bias: RepulsionBias, variables: Variables) -> Target[Expert]: ...
@overload
def biased(target: LogDensity, bias: RepulsionBias, variables: Variables) -> BiasedDensity: ...


def biased(
    target: Target[Expert] | LogDensity, bias: RepulsionBias, variables: Variables
) -> Target[Expert] | BiasedDensity:
    """The target times exp(-V(xi(x)) / kT), of the kind that was given.

    Args:
        target: a log-density, for kernels, tempering and SMC; or a target of correctors, which gets a reward. Controls
            that need the reward's Laplacian do not work with a bias, which has one derivative.
        bias: V.
        variables: xi.

    Raises:
        ValueError: a target of correctors that has a reward already.
    """
    if isinstance(target, Target):
        return target.tilted(BiasReward(bias, variables))
    return BiasedDensity(target, bias, variables)


def undone(x: Tensor, log_weights: Tensor, bias: RepulsionBias, variables: Variables) -> Tensor:
    """Log-weights (P, K) of the target without the bias, for samples x (P, K, *event) of the one with it.

    Add the evidence that resamplings have moved out of the weights where populations are compared.
    """
    with torch.no_grad():
        values = _values(bias, variables, x.flatten(0, 1))
    return bias.reweight(values, log_weights.reshape(-1).cpu()).reshape(log_weights.shape)


def _values(bias: RepulsionBias, variables: Variables, x: Tensor) -> Tensor:
    return variables(x).double().cpu().reshape(len(x), bias.dimension)
