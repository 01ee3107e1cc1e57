"""Gaussian targets and proposals, for which everything is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

__all__ = ["Gaussian", "GaussianPair"]


@dataclass(frozen=True)
class Gaussian:
    """``N(mean 1, scale^2 I_d)``, times ``exp(log_normalizer)`` where it is not normalised.

    Attributes:
        dimension: d.
        mean: of every coordinate.
        scale: standard deviation of every coordinate.
        normalized: False leaves out the constant, so that the density at the mean is one.
    """

    dimension: int
    mean: float = 0.0
    scale: float = 1.0
    normalized: bool = True

    @property
    def log_normalizer(self) -> float:
        """Log of the integral of ``exp(log_prob)``: 0, or ``(d/2) log(2 pi scale^2)``."""
        return 0.0 if self.normalized else self.dimension / 2 * math.log(2 * math.pi * self.scale**2)

    def log_prob(self, x: Tensor) -> Tensor:
        """``(B, d)`` -> ``(B,)``."""
        constant = self.dimension / 2 * math.log(2 * math.pi * self.scale**2) if self.normalized else 0.0
        return -((x - self.mean) / self.scale).square().sum(dim=-1) / 2 - constant

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` and ``(B, d)``."""
        return self.log_prob(x), (self.mean - x) / self.scale**2

    def sample(self, n: int, *, generator: Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """``(n, d)`` exact draws."""
        noise = torch.randn((n, self.dimension), generator=generator, dtype=dtype, device=generator.device)
        return self.mean + self.scale * noise

    def sample_and_log_prob(self, n: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
        """``(n, d)`` and ``(n,)``: a Gaussian is a proposal."""
        x = self.sample(n, generator=generator)
        return x, self.log_prob(x)


@dataclass(frozen=True)
class GaussianPair:
    r"""Proposal ``N(0, sq^2 I_d)`` for the target ``N(mu 1, sp^2 I_d)``.

    .. math:: \frac{ESS}{N} \to \Bigl[\frac{s_p \sqrt D}{s_q^2} e^{-\mu^2/D}\Bigr]^d,
       \quad D = 2 s_q^2 - s_p^2,

    and 0 for :math:`D \le 0`, where the weights have no variance.

    Attributes:
        dimension: d.
        sq: proposal standard deviation.
        sp: target standard deviation.
        mu: shift of every coordinate.
    """

    dimension: int
    sq: float
    sp: float
    mu: float

    @property
    def proposal(self) -> Gaussian:
        """Normalised."""
        return Gaussian(self.dimension, 0.0, self.sq)

    @property
    def target(self) -> Gaussian:
        """Not normalised: its evidence is ``(d/2) log(2 pi sp^2)``."""
        return Gaussian(self.dimension, self.mu, self.sp, normalized=False)

    @property
    def ess_fraction(self) -> float:
        """Limit of ESS / N for many draws."""
        d = 2 * self.sq**2 - self.sp**2
        if d <= 0:
            return 0.0
        factor = self.sp * math.sqrt(d) / self.sq**2 * math.exp(-(self.mu**2) / d)
        return float(factor**self.dimension)

    @property
    def khat(self) -> float:
        r"""Tail index of the weights: :math:`1 - s_q^2/s_p^2` for wide targets, 0 or less (bounded)
        otherwise."""
        return max(0.0, 1 - self.sq**2 / self.sp**2)

    def log_weights(self, n: int, *, generator: Generator) -> Tensor:
        """``(n,)`` raw log-weights of n proposals."""
        x, log_q = self.proposal.sample_and_log_prob(n, generator=generator)
        return self.target.log_prob(x) - log_q
