"""The one stochastic step: a Gaussian transition that keeps the marginals, between any two noise levels.

    x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z,    s^2 = eta^2 sigma'^2 (1 - (alpha sigma' / (alpha' sigma))^2)

with primes for the next level. On a variance-preserving grid it is DDIM(eta) (Song, Meng, Ermon 2021, eq. 12 and 16);
on a variance-exploding one with eta = 1 the ancestral Euler step; on flow matching, eta = 0 is the Euler ODE and eta
= 1 its ancestral version. diffusers' ``stochastic_sampling=True`` instead draws fresh noise at full strength (s =
sigma') and does not keep the marginals.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from .schedulers.levels import Level

__all__ = ["GaussianStep", "gaussian_step", "log_ratio", "step_deviation"]


@dataclass(frozen=True)
class GaussianStep:
    """A transition N(mean, std^2): ``mean`` like the sample, ``std`` a number (0 for a deterministic step)."""

    mean: Tensor
    std: float


def step_deviation(level: Level, following: Level, eta: float) -> float:
    """The step's standard deviation s.

    Raises:
        ValueError: eta outside [0, 1], or a step that raises the noise.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta: got {eta}, expected a number between 0 and 1")
    if following.sigma == 0.0:
        return 0.0
    ratio = (level.alpha * following.sigma) / (following.alpha * level.sigma)
    if ratio > 1.0 + 1e-9:
        raise ValueError(f"the step from {level} to {following} raises the noise; the kernel only lowers it")
    return eta * following.sigma * math.sqrt(max(0.0, 1.0 - ratio * ratio))


def gaussian_step(clean: Tensor, noise: Tensor, level: Level, following: Level, eta: float) -> GaussianStep:
    """The transition from ``level`` to ``following`` given x0-hat and eps-hat."""
    std = step_deviation(level, following, eta)
    along = math.sqrt(max(0.0, following.sigma**2 - std**2))
    return GaussianStep(following.alpha * clean + along * noise, std)


def log_ratio(shift: Tensor, z: Tensor, std: float) -> Tensor:
    """log p(x'|x) - log q(x'|x), (B,) float64, for x' = mean_p + shift + std z drawn from q.

    The difference form, -(z . d + |d|^2 / 2) with d = shift / std, keeps its digits where the difference of two
    squared norms would lose all of them.
    """
    d = (shift / std).double().flatten(1)
    return -((z.double().flatten(1) * d).sum(dim=1) + 0.5 * d.square().sum(dim=1))
