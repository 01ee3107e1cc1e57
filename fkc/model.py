"""Feynman-Kac models: initial law, Markov kernel, log potential.

A model with kernels M_t and potentials G_t defines the weighted path law ``M_0(x_0) G_0(x_0) prod_t M_t(x_t |
x_{t-1}) G_t(x_{t-1}, x_t)``; its total mass is the evidence. Annealing, guidance and tempering are models,
never new loops.

References:
    Del Moral (2004), "Feynman-Kac Formulae", chapter 2. Chopin and Papaspiliopoulos (2020), chapter 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from .cloud import Cloud
from .population import Population

__all__ = ["FeynmanKacModel", "FunctionModel"]


class FeynmanKacModel(Protocol):
    """What :func:`feynkac.fkc.smc` runs. Nothing here may change its arguments."""

    @property
    def n_steps(self) -> int:
        """Number of moves after the initial draw; an upper bound for a model that ends by itself."""
        ...

    def initial(self, generators: Sequence[Generator], particles: int) -> tuple[Cloud, Tensor]:
        """Draws ``x_0`` and its log-weight ``(P, K)``; population p draws from ``generators[p]`` alone."""
        ...

    def move(self, generators: Sequence[Generator], step: int, cloud: Cloud, population: Population) -> Cloud:
        """Draws ``x_t`` given ``x_{t-1}`` (after resampling), t = ``step`` = 1, 2, ...

        ``population`` holds the weights carried by the particles of ``cloud``: a schedule may look at them.
        """
        ...

    def log_potential(self, step: int, previous: Cloud, cloud: Cloud) -> Tensor:
        """``log G_t(x_{t-1}, x_t)``, ``(P, K)``: ``-inf`` kills a particle, ``+inf`` is an error."""
        ...

    def finished(self, step: int, cloud: Cloud) -> Tensor:
        """``(P,)`` bool after step ``step`` (0 = the initial draw): populations that take no further step."""
        ...


@dataclass(frozen=True)
class FunctionModel:
    """A model written as three functions of plain tensors.

    Attributes:
        sample: (generators, K) -> ``x_0`` ``(P, K, *event)``.
        kernel: (generators, t, ``x_{t-1}``) -> ``x_t``.
        log_g: (t, ``x_{t-1}`` or None at t = 0, ``x_t``) -> ``(P, K)``.
        n_steps: number of moves.

    Example:
        >>> model = FunctionModel(
        ...     sample=lambda g, k: normal(g, (k,)),
        ...     kernel=lambda g, t, x: 0.9 * x + normal(g, x.shape[1:]),
        ...     log_g=lambda t, before, x: -0.5 * (x - observations[t]) ** 2,
        ...     n_steps=20,
        ... )
    """

    sample: Callable[[Sequence[Generator], int], Tensor]
    kernel: Callable[[Sequence[Generator], int, Tensor], Tensor]
    log_g: Callable[[int, Tensor | None, Tensor], Tensor]
    n_steps: int

    def initial(self, generators: Sequence[Generator], particles: int) -> tuple[Cloud, Tensor]:
        """See :class:`FeynmanKacModel`."""
        x = self.sample(generators, particles)
        return Cloud(x), self.log_g(0, None, x)

    def move(self, generators: Sequence[Generator], step: int, cloud: Cloud, population: Population) -> Cloud:
        """See :class:`FeynmanKacModel`."""
        return Cloud(self.kernel(generators, step, cloud.x))

    def log_potential(self, step: int, previous: Cloud, cloud: Cloud) -> Tensor:
        """See :class:`FeynmanKacModel`."""
        return self.log_g(step, previous.x, cloud.x)

    def finished(self, step: int, cloud: Cloud) -> Tensor:
        """See :class:`FeynmanKacModel`."""
        return torch.full((cloud.n_populations,), step >= self.n_steps, device=cloud.x.device)
