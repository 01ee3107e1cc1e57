r"""Gaussian paths :math:`x_t = \alpha(t) x_0 + \sigma(t)\varepsilon`, t from 0 (data) to 1 (noise).

Everything below works in the frame :math:`y = x/\alpha`, where every path is variance exploding: :math:`y = x_0 +
\sqrt h \varepsilon` with :math:`h = (\sigma/\alpha)^2`, no drift, and one clock h for variance-preserving,
variance-exploding, EDM and flow-matching models alike.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Diffusion"]

Curve = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A Gaussian path.

    Attributes:
        alpha: t (...,) float64 -> alpha, positive for t < 1.
        sigma: t -> sigma, rising from (almost) 0.
        t_max: largest time that is used; below 1 where alpha(1) = 0.
        t_min: smallest time that is used.
        inverse: sigma/alpha -> t in closed form; found by search if None.
    """

    alpha: Curve
    sigma: Curve
    t_max: float = 1.0
    t_min: float = 0.0
    inverse: Callable[[float], float] | None = None

    @classmethod
    def ve(cls, sigma_min: float = 0.01, sigma_max: float = 80.0) -> Diffusion:
        """Variance exploding: alpha = 1, sigma geometric in t (Song et al. 2021, eq. 30).

        Raises:
            ValueError: not 0 < sigma_min < sigma_max.
        """
        _refuse_range("sigma", sigma_min, sigma_max)
        ratio = math.log(sigma_max / sigma_min)
        return cls(
            torch.ones_like,
            lambda t: sigma_min * torch.exp(ratio * t),
            inverse=lambda noise: math.log(noise / sigma_min) / ratio,
        )

    @classmethod
    def edm(cls, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Diffusion:
        """Variance exploding with sigma^(1/rho) linear in t (Karras et al. 2022, eq. 5)."""
        _refuse_range("sigma", sigma_min, sigma_max)
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        return cls(
            torch.ones_like,
            lambda t: (low + (high - low) * t) ** rho,
            inverse=lambda noise: float(noise ** (1 / rho) - low) / (high - low),
        )

    @classmethod
    def vp(cls, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-4) -> Diffusion:
        """Variance preserving with a linear rate (Song et al. 2021, eq. 33): alpha^2 + sigma^2 = 1."""
        _refuse_range("beta", beta_min, beta_max)

        def integral(t: Tensor) -> Tensor:
            return beta_min * t + 0.5 * (beta_max - beta_min) * t.square()

        def inverse(noise: float) -> float:
            """The positive root of integral(t) = log(1 + noise^2), in the form that loses no digits."""
            wanted, slope = math.log1p(noise * noise), beta_max - beta_min
            return 2.0 * wanted / (beta_min + math.sqrt(beta_min**2 + 2.0 * slope * wanted))

        return cls(
            lambda t: torch.exp(-0.5 * integral(t)),
            lambda t: (-torch.expm1(-integral(t))).sqrt(),
            t_min=t_min,
            inverse=inverse,
        )

    @classmethod
    def flow(cls, t_min: float = 1e-3, t_max: float = 0.999) -> Diffusion:
        """Flow matching on straight lines (Lipman et al. 2023): alpha = 1 - t, sigma = t."""
        return cls(
            lambda t: 1.0 - t, lambda t: t, t_max=t_max, t_min=t_min, inverse=lambda noise: noise / (1.0 + noise)
        )

    @classmethod
    def table(cls, alphas: Sequence[float], sigmas: Sequence[float]) -> Diffusion:
        """A path known at equally spaced times, from data to noise, linear in log(sigma/alpha) and log alpha between
        (such as the noise table of a diffusers scheduler).

        Raises:
            ValueError: fewer than two entries, or sigma/alpha that does not rise.
        """
        a, s = torch.tensor(alphas, dtype=torch.float64), torch.tensor(sigmas, dtype=torch.float64)
        ratio = (s / a).log()
        if len(a) < 2 or len(a) != len(s) or not bool((ratio[1:] > ratio[:-1]).all()):
            raise ValueError("table: expected two or more alphas and sigmas with rising sigma/alpha")

        def between(values: Tensor) -> Curve:
            def curve(t: Tensor) -> Tensor:
                place = t.clamp(0, 1) * (len(values) - 1)
                below = place.floor().long().clamp(max=len(values) - 2)
                return torch.lerp(values[below], values[below + 1], place - below)

            return curve

        log_alpha, log_ratio = between(a.log()), between(ratio)
        entries = ratio.tolist()

        def inverse(noise: float) -> float:
            value = math.log(noise)
            above = min(max(bisect.bisect_left(entries, value), 1), len(entries) - 1)
            share = (value - entries[above - 1]) / (entries[above] - entries[above - 1])
            return float(above - 1 + share) / (len(entries) - 1)

        return cls(lambda t: log_alpha(t).exp(), lambda t: (log_alpha(t) + log_ratio(t)).exp(), inverse=inverse)

    def noise(self, t: float | Tensor) -> Tensor:
        """Noise-to-signal ratio sigma/alpha = sqrt(h), float64."""
        time = torch.as_tensor(t, dtype=torch.float64)
        return self.sigma(time) / self.alpha(time)

    def time(self, noise: float) -> float:
        """The t at which sigma/alpha has this value: in closed form, or by 8 sections into 256 parts.

        Raises:
            ValueError: outside what the path reaches between ``t_min`` and ``t_max``.
        """
        low, high = self.t_min, self.t_max
        bounds = self._bounds
        if not bounds[0] * (1 - 1e-9) <= noise <= bounds[1] * (1 + 1e-9):
            raise ValueError(f"noise: got {noise:g}, expected sigma/alpha between {bounds[0]:g} and {bounds[1]:g}")
        if self.inverse is not None:
            return min(max(float(self.inverse(noise)), low), high)
        shares = torch.linspace(0.0, 1.0, 257, dtype=torch.float64)
        for _ in range(8):
            places = low + (high - low) * shares
            above = min(max(int((self.noise(places) < noise).sum()), 1), 256)
            low, high = places[above - 1 : above + 1].tolist()
        return 0.5 * (low + high)

    @functools.cached_property
    def _bounds(self) -> tuple[float, float]:
        """sigma/alpha at both ends."""
        return float(self.noise(self.t_min)), float(self.noise(self.t_max))

    def rates(self, t: float) -> tuple[float, float]:
        """(f, g^2) of the noising equation dx = f x dt + g dW: d log alpha/dt, and d sigma^2/dt - 2 f sigma^2."""
        time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (f,) = torch.autograd.grad(self.alpha(time).log() + 0.0 * time, time)
            (variance,) = torch.autograd.grad(self.sigma(time).square(), time)
        return float(f), float(variance) - 2.0 * float(f) * float(self.sigma(time.detach())) ** 2

    def levels(self, steps: int, *, rho: float | None = None) -> tuple[float, ...]:
        """``steps`` + 1 noise-to-signal ratios from noise to data.

        Args:
            steps: moves.
            rho: equally spaced in ratio^(1/rho); None: in log ratio.

        Raises:
            ValueError: fewer than one step.
        """
        if steps < 1:
            raise ValueError(f"steps: got {steps}, expected at least 1")
        top, bottom = float(self.noise(self.t_max)), float(self.noise(self.t_min))
        shares = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        if rho is None:
            values = torch.exp(math.log(top) + (math.log(bottom) - math.log(top)) * shares)
        else:
            values = (top ** (1 / rho) + (bottom ** (1 / rho) - top ** (1 / rho)) * shares) ** rho
        return tuple(values.tolist())


def _refuse_range(name: str, low: float, high: float) -> None:
    if not 0.0 < low < high:
        raise ValueError(f"{name}: got {low} and {high}, expected 0 < min < max")
