"""Experts whose every noise level is known: Gaussians and mixtures, with scores and densities."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..diffusion import Diffusion
from ..experts import Expert

__all__ = ["GaussianProduct", "MixtureLaw", "gaussian_expert", "gaussian_product"]


def gaussian_expert(
    diffusion: Diffusion,
    *,
    mean: float = 0.0,
    variance: float = 1.0,
    dimension: int = 1,
    reference: tuple[float, float] | None = None,
    known_density: bool = True,
) -> Expert:
    """N(``mean`` 1, ``variance`` I_d) along a path.

    Args:
        diffusion: the path.
        mean: of every coordinate.
        variance: of every coordinate.
        dimension: d.
        reference: (mean, standard deviation) that the expert claims; the truth if None.
        known_density: give it a log-density.
    """
    law = MixtureLaw(torch.full((1, dimension), mean, dtype=torch.float64), (1.0,), variance**0.5)
    claimed = reference or (mean, variance**0.5)
    return law.expert(diffusion, reference=claimed, known_density=known_density)


@dataclass(frozen=True, eq=False)
class MixtureLaw:
    """sum_k ``weights``_k N(``means``_k, ``std``_k^2 I_d).

    Attributes:
        means: (n, d) float64.
        weights: n, positive; normalised here.
        std: one, or n.
    """

    means: Tensor
    weights: tuple[float, ...]
    std: float | tuple[float, ...]

    @property
    def dimension(self) -> int:
        """d."""
        return self.means.shape[1]

    def _variances(self) -> Tensor:
        stds = self.std if isinstance(self.std, tuple) else (self.std,) * len(self.means)
        return torch.tensor(stds, dtype=torch.float64).square()

    def _log_weights(self) -> Tensor:
        return torch.tensor(self.weights, dtype=torch.float64).log().log_softmax(dim=0)

    def moments(self) -> tuple[Tensor, float]:
        """Mean (d,) and the average variance of a coordinate."""
        shares = self._log_weights().exp()
        mean = shares @ self.means
        spread = shares @ (self.means - mean).square().mean(dim=1) + shares @ self._variances()
        return mean, float(spread)

    def score_and_log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d) and (B,) of alpha x0 + sigma eps; alpha and sigma are (B,)."""
        variance = alpha[:, None].square() * self._variances() + sigma[:, None].square()
        difference = x[:, None] - alpha[:, None, None] * self.means
        squares = difference.square().sum(dim=2)
        log_parts = self._log_weights() - 0.5 * squares / variance
        log_parts = log_parts - 0.5 * self.dimension * torch.log(2 * math.pi * variance)
        log_density = log_parts.logsumexp(dim=1)
        shares = (log_parts - log_density[:, None]).exp()
        return -(shares[:, :, None] * difference / variance[:, :, None]).sum(dim=1), log_density

    def divergence(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Divergence (B,) of the score of alpha x0 + sigma eps."""
        variance = alpha[:, None].square() * self._variances() + sigma[:, None].square()
        pull = -(x[:, None] - alpha[:, None, None] * self.means) / variance[:, :, None]
        log_parts = self._log_weights() - 0.5 * pull.square().sum(dim=2) * variance
        shares = (log_parts - 0.5 * self.dimension * torch.log(variance)).softmax(dim=1)
        score = (shares[:, :, None] * pull).sum(dim=1)
        curvature = pull.square().sum(dim=2) - self.dimension / variance
        return (shares * curvature).sum(dim=1) - score.square().sum(dim=1)

    def expert(
        self,
        diffusion: Diffusion,
        *,
        reference: tuple[float | Tensor, float] | None = None,
        known_density: bool = True,
    ) -> Expert:
        """The law as an expert that predicts scores."""
        mean, variance = self.moments()
        claimed = reference or (mean, variance**0.5)

        def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.score_and_log_density(x, diffusion.alpha(t), diffusion.sigma(t))

        return Expert(
            lambda x, t: both(x, t)[0],
            diffusion,
            "score",
            mean=claimed[0],
            std=claimed[1],
            log_density=(lambda x, t: both(x, t)[1]) if known_density else None,
            divergence=lambda x, t: self.divergence(x, diffusion.alpha(t), diffusion.sigma(t)),
            shape=(self.dimension,),
        )

    def power(self, exponent: int, *, drop: float = 1e-13) -> tuple[MixtureLaw, float]:
        """The normalised law q^n for one common width, by expanding the power, and the log of the integral of q^n.

        Raises:
            ValueError: widths that differ.
        """
        if isinstance(self.std, tuple) and len(set(self.std)) > 1:
            raise ValueError("std: the power of a mixture is expanded for one common width only")
        n, variance = len(self.means), float(self._variances()[0])
        index = torch.tensor(list(itertools.combinations_with_replacement(range(n), exponent)))
        counts = torch.zeros(len(index), n).scatter_add(1, index, torch.ones(index.shape))
        multiplicity = math.lgamma(exponent + 1) - torch.lgamma(counts.double() + 1).sum(dim=1)
        chosen = self.means[index]
        mean = chosen.mean(dim=1)
        gap = chosen.square().sum(dim=(1, 2)) - exponent * mean.square().sum(dim=1)
        log_parts = multiplicity + self._log_weights()[index].sum(dim=1) - gap / (2 * variance)
        d = self.dimension
        log_integral = float(log_parts.logsumexp(dim=0)) + 0.5 * d * math.log(2 * math.pi * variance / exponent)
        log_integral -= 0.5 * d * exponent * math.log(2 * math.pi * variance)
        kept = log_parts > log_parts.max() + math.log(drop)
        law = MixtureLaw(mean[kept], tuple(log_parts[kept].softmax(0).tolist()), (variance / exponent) ** 0.5)
        return law, log_integral

    def sample(self, n: int, *, generator: Generator) -> Tensor:
        """(n, d) exact draws."""
        which = torch.multinomial(self._log_weights().exp(), n, replacement=True, generator=generator)
        z = torch.randn((n, self.dimension), generator=generator, dtype=torch.float64)
        return self.means[which] + self._variances().sqrt()[which, None] * z


@dataclass(frozen=True)
class GaussianProduct:
    """N(``mean``, ``variance``) proportional to a product of powers of Gaussians, with the log of its integral."""

    mean: float
    variance: float
    log_evidence: float


def gaussian_product(*parts: tuple[float, float, float], dimension: int = 1, linear: float = 0.0) -> GaussianProduct:
    """The product of N(mean, variance)^exponent over parts (exponent, mean, variance), times exp(linear x), a
    coordinate; ``log_evidence`` is that of all d."""
    precision = sum(a / v for a, _, v in parts)
    mean = (sum(a * m / v for a, m, v in parts) + linear) / precision
    log_z = 0.5 * math.log(2 * math.pi / precision) + 0.5 * precision * mean**2
    log_z -= sum(0.5 * a * (math.log(2 * math.pi * v) + m * m / v) for a, m, v in parts)
    return GaussianProduct(mean, 1.0 / precision, dimension * log_z)
