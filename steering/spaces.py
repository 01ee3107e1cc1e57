"""Coordinates in which densities of samples are meant."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from ..fkc.mean_free import mean_free_basis

__all__ = ["Everything", "MeanFree", "Space", "effective_std"]


class Space(Protocol):
    """A subspace of the sample space with an orthonormal basis."""

    def inner(self, x: Tensor) -> Tensor:
        """Coordinates (rows, *inner) of samples (rows, *event), projected."""
        ...

    def outer(self, z: Tensor) -> Tensor:
        """Samples (rows, *event) with coordinates ``z`` (rows, *inner)."""
        ...


@dataclass(frozen=True)
class Everything:
    """The whole sample space."""

    def inner(self, x: Tensor) -> Tensor:
        """``x``."""
        return x

    def outer(self, z: Tensor) -> Tensor:
        """``z``."""
        return z


@dataclass(frozen=True)
class MeanFree:
    """Configurations (rows, N, d) of N particles whose mean is zero; coordinates (rows, N - 1, d).

    A model of relative positions knows nothing of the mean; noise moves it, and densities in all 3N coordinates would
    count it.

    Attributes:
        particles: N.
    """

    particles: int

    def __post_init__(self) -> None:
        if self.particles < 2:
            raise ValueError(f"particles: got {self.particles}, expected at least 2")

    def inner(self, x: Tensor) -> Tensor:
        """Orthonormal coordinates; the mean is dropped."""
        return torch.einsum("nk,rnd->rkd", mean_free_basis(self.particles).to(x), x)

    def outer(self, z: Tensor) -> Tensor:
        """Mean-free configurations."""
        return torch.einsum("nk,rkd->rnd", mean_free_basis(self.particles).to(z), z)


def effective_std(
    denoised: Callable[[Tensor, float], Tensor],
    samples: Tensor,
    ratios: list[float],
    *,
    space: Space | None = None,
    seed: int = 0,
) -> Callable[[float], float]:
    """The deviation of Gaussian data that a model would know as well as it knows these, at each noise level.

    Noise of variance h is added to clean samples, with both signs, and the model's squared error e a coordinate is
    measured; Gaussian data of variance s^2 has e = h s^2/(s^2 + h). Where some directions of the data are far stiffer
    than others (bonds and torsions), one Gaussian does not fit all levels, and moves of this spread have the least
    variance of weights.

    Args:
        denoised: (y (B, *event), ratio) -> E[x0 | y], y = x0 + ratio noise; asked twice a ratio.
        samples: (B, *event) clean, of the model or of its data.
        ratios: noise-to-signal ratios, at least two, rising.
        space: coordinates that are counted.
        seed: of the noise.

    Returns:
        Ratio -> deviation, linear in logarithms between ``ratios`` and constant beyond.

    Raises:
        ValueError: ratios that do not rise.
    """
    if len(ratios) < 2 or any(b <= a for a, b in itertools.pairwise(ratios)) or ratios[0] <= 0.0:
        raise ValueError(f"ratios: got {ratios}, expected two or more rising positive numbers")
    where = space or Everything()
    generator = Generator().manual_seed(seed)
    logs = []
    for ratio in ratios:
        noise = torch.randn(samples.shape, generator=generator, dtype=samples.dtype)
        e, gap = _errors(denoised, samples, ratio, noise, where)
        h = ratio * ratio
        logs.append(0.5 * math.log(e * h / max(gap, 1e-6 * h)))
    places = [math.log(ratio) for ratio in ratios]

    def std(ratio: float) -> float:
        x = min(max(math.log(ratio), places[0]), places[-1])
        i = max(j for j in range(len(places) - 1) if places[j] <= x)
        share = (x - places[i]) / (places[i + 1] - places[i])
        return math.exp(logs[i] + share * (logs[i + 1] - logs[i]))

    return std


def _errors(
    denoised: Callable[[Tensor, float], Tensor], samples: Tensor, ratio: float, noise: Tensor, space: Space
) -> tuple[float, float]:
    """The squared error e a coordinate, and h - e, which is far smaller at little noise: for E[noise^2] its exact value
    is taken, and the product of noise and data cancels between the signs."""
    e = gap = 0.0
    for step in (ratio * noise, -ratio * noise):
        with torch.no_grad():
            change = denoised(samples + step, ratio) - (samples + step)
        change, moved = space.inner(change.double()), space.inner(step.double())
        e += 0.5 * float((change + moved).square().mean())
        gap -= 0.5 * float((change * (change + 2.0 * moved)).mean())
    return e, gap
