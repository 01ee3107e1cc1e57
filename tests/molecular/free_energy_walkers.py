"""Walkers in a double well flattened by a bias, with exact stationary law, and autoregressive chains."""

import math

import torch

BIASED_SHARE = 0.75
"""V = -0.75 U: the biased law is the unbiased one to the power 1/4, bias factor 4."""


def double_well(x: torch.Tensor) -> torch.Tensor:
    """Asymmetric double well in kT; minima near -1 and 1, barrier about 5."""
    return 5.0 * (x * x - 1) ** 2 + 0.8 * x


def exact_difference(low: float = 0.0, high: float = 0.0) -> float:
    """ln P(x < low) / P(x > high) by the trapezoid rule."""
    x = torch.linspace(-4, 4, 160001, dtype=torch.float64)
    p = torch.exp(-double_well(x))
    return math.log(float(p[x < low].sum() / p[x > high].sum()))


def biased_walkers(generator: torch.Generator, steps: int, walkers: int, share: float = BIASED_SHARE) -> torch.Tensor:
    """Metropolis walkers (steps, walkers) of U + V = (1 - share) U, after a burn-in from both wells."""
    x = 2.4 * torch.rand(walkers, generator=generator, dtype=torch.float64) - 1.2
    energy = (1 - share) * double_well(x)
    kept = torch.empty(steps, walkers, dtype=torch.float64)
    for t in range(-300, steps):
        y = x + 0.5 * torch.randn(walkers, generator=generator, dtype=torch.float64)
        proposed = (1 - share) * double_well(y)
        log_u = torch.rand(walkers, generator=generator, dtype=torch.float64).log()
        accepted = log_u < energy - proposed
        x, energy = torch.where(accepted, y, x), torch.where(accepted, proposed, energy)
        if t >= 0:
            kept[t] = x
    return kept


def log_weights(x: torch.Tensor, *, share: float = BIASED_SHARE) -> torch.Tensor:
    """V / kT."""
    return -share * double_well(x)


def autoregressive(generator: torch.Generator, rho: float, steps: int, walkers: int) -> torch.Tensor:
    """(steps, walkers) standard normal, correlation rho ** lag: tau = (1 + rho) / (1 - rho) / 2."""
    noise = torch.randn(steps, walkers, generator=generator, dtype=torch.float64)
    x = noise.clone()
    for t in range(1, steps):
        x[t] = rho * x[t - 1] + math.sqrt(1 - rho * rho) * noise[t]
    return x
