r"""Exact law of a sampler of one-dimensional data that is not Gaussian, by quadrature on a grid.

The density is pushed through the steps,

.. math:: p'(x') = \int p(x)\, N(x'; m(x), s^2)\, dx,

with the trapezoid rule, whose error for densities that vanish at both ends falls faster than any power of the spacing
once the spacing is below the kernel's width. The last step is deterministic and is applied to the grid points
instead.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernel import gaussian_step
from ..schedulers.levels import Level

__all__ = ["DiscretizedLaw", "kernel_quadrature", "mixture_posterior_mean"]

_ROWS = 500  # of the transition matrix at a time: bounds memory, not the result


@dataclass(frozen=True, eq=False)
class DiscretizedLaw:
    """Points (n,) and probabilities (n,) float64 that integrate smooth functions against the law of x0."""

    points: Tensor
    probabilities: Tensor

    def mean(self, f: Callable[[Tensor], Tensor]) -> float:
        """E[f(x0)], f elementwise."""
        return float((self.probabilities * f(self.points)).sum())

    def tilted(self, reward: Callable[[Tensor], Tensor], scale: float) -> "tuple[DiscretizedLaw, float]":
        """The law tilted by exp(scale r), r elementwise, and log Z."""
        log_weights = self.probabilities.log() + scale * reward(self.points)
        log_z = float(log_weights.logsumexp(dim=0))
        return DiscretizedLaw(self.points, (log_weights - log_z).exp()), log_z


def mixture_posterior_mean(
    weights: Sequence[float], means: Sequence[float], stds: Sequence[float]
) -> Callable[[Tensor, Level], Tensor]:
    """E[x0 | x] of a Gaussian mixture as a function of x (n,) and the level; independent of
    :class:`MixtureDenoiser`."""

    def posterior_mean(x: Tensor, level: Level) -> Tensor:
        log_densities, averages = [], []
        for weight, mean, std in zip(weights, means, stds, strict=True):
            variance = level.alpha**2 * std**2 + level.sigma**2
            shift = x - level.alpha * mean
            log_densities.append(math.log(weight / variance**0.5) - shift**2 / (2.0 * variance))
            averages.append(mean + level.alpha * std**2 / variance * shift)
        log_total = torch.stack(log_densities).logsumexp(dim=0)
        terms = [average * (log - log_total).exp() for average, log in zip(averages, log_densities, strict=True)]
        return torch.stack(terms).sum(dim=0)

    return posterior_mean


def kernel_quadrature(
    levels: Sequence[Level],
    posterior_mean: Callable[[Tensor, Level], Tensor],
    *,
    eta: float,
    half_width: float = 7.0,
    n_points: int = 8001,
) -> DiscretizedLaw:
    """Law of x0 of :func:`feynkac.steering.kernel.gaussian_step` started from N(0, 1).

    Args:
        levels: of every step and after the last, variance preserving, the last of them clean.
        posterior_mean: (x (n,), level) -> x0-hat (n,).
        eta: positive: all steps but the last must be stochastic.
        half_width: of the grid around zero.
        n_points: of the grid.

    Raises:
        ValueError: a step before the last adds no noise, or noise narrower than the grid can resolve.
    """
    grid = torch.linspace(-half_width, half_width, n_points, dtype=torch.float64)
    spacing = float(grid[1] - grid[0])
    density = (-0.5 * grid.square()).exp() / (2.0 * torch.pi) ** 0.5
    for level, following in itertools.pairwise(levels[:-1]):
        mean, std = _move(grid, level, following, posterior_mean, eta)
        if std < spacing:
            raise ValueError(
                f"n_points: the step to {following} has deviation {std:.3g}, below the grid's spacing {spacing:.3g}"
            )
        density = _push(density, mean, std, grid, spacing)
    points, std = _move(grid, levels[-2], levels[-1], posterior_mean, eta)
    if std != 0.0:
        raise ValueError(f"levels: expected the last step to end on clean data, got {levels[-1]}")
    return DiscretizedLaw(points, density * spacing)


def _move(
    x: Tensor, level: Level, following: Level, posterior_mean: Callable[[Tensor, Level], Tensor], eta: float
) -> tuple[Tensor, float]:
    clean = posterior_mean(x, level)
    step = gaussian_step(clean, (x - level.alpha * clean) / level.sigma, level, following, eta)
    return step.mean, step.std


def _push(density: Tensor, mean: Tensor, std: float, grid: Tensor, spacing: float) -> Tensor:
    factor = spacing / (std * (2.0 * torch.pi) ** 0.5)
    parts = [
        (-0.5 * ((targets[:, None] - mean) / std).square()).exp() @ density * factor
        for targets in torch.split(grid, _ROWS)
    ]
    return torch.cat(parts)
