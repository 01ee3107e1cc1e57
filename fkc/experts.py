r"""Experts: models of q_t, whatever they predict, brought to one frame.

In the frame y = x/alpha with noise variance h an expert is its clean prediction D(y) = E[x0 | y]; its score is (D -
y)/h. From x = alpha x0 + sigma eps:

    noise       D = (x - sigma eps)/alpha
    v           D = (alpha x - sigma v)/(alpha^2 + sigma^2)   (v = alpha eps - sigma x0)
    denoised    D
    score       D = (x + sigma^2 s)/alpha
    velocity    D = (sigma' x - sigma u)/(sigma' alpha - sigma alpha')   (u = dx/dt along the path)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from .diffusion import Diffusion
from .divergence import field_and_divergence

__all__ = ["Expert", "Prediction"]

Prediction = Literal["score", "noise", "epsilon", "denoised", "x0", "v", "velocity"]

_ALIASES = {"epsilon": "noise", "x0": "denoised"}


@dataclass(frozen=True, eq=False)
class Expert:
    """A model of one law.

    Attributes:
        predict: (x (B, *event), t (B,) float64) -> prediction (B, *event); may be a network.
        diffusion: the path that it was made for.
        kind: what it predicts: ``score``, ``noise`` (or ``epsilon``), ``denoised`` (or ``x0``), ``v``, ``velocity``.
        mean: of the data, a number or a tensor that broadcasts to an event; a guess is enough, see ``std``.
        std: of the data; the Gaussian with these moments is a reference: it shapes proposals and lowers the variance
            of weights. With ``log_density`` the weights are right whatever it is; without, the first draw is taken for
            the noisiest law, which is right where the noise is far above it.
        log_density: (x (B, *event), t (B,)) -> log q_t (B,), where it is known; makes kernel weights exact at any
            number of steps.
        divergence: of the score, where a move or a weight needs it: (x, t) -> (B,) in closed form; ``"exact"``: by one
            backward pass a coordinate; a number: Hutchinson's estimate from so many random signs; None: exact up to
            32 coordinates, one probe above.
        clock: noise variance h of the sampler -> that of this expert, for experts on other schedules; equal if None.
        shape: of an event, if known.
    """

    predict: Callable[[Tensor, Tensor], Tensor]
    diffusion: Diffusion
    kind: Prediction = "score"
    mean: float | Tensor = 0.0
    std: float = 1.0
    log_density: Callable[[Tensor, Tensor], Tensor] | None = None
    divergence: Callable[[Tensor, Tensor], Tensor] | Literal["exact"] | int | None = None
    clock: Callable[[float], float] | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", _ALIASES.get(self.kind, self.kind))
        if self.kind not in ("score", "noise", "denoised", "v", "velocity"):
            raise ValueError(f"kind: got {self.kind!r}, expected score, noise, denoised, v or velocity")
        if not self.std > 0.0:
            raise ValueError(f"std: got {self.std}, expected a positive number")
        if isinstance(self.divergence, int) and self.divergence < 1:
            raise ValueError(f"divergence: got {self.divergence} probes, expected at least 1")
        object.__setattr__(self, "_place", lru_cache(maxsize=None)(self._located))

    def variance(self, h: float) -> float:
        """This expert's noise variance when the sampler's is ``h``."""
        return h if self.clock is None else self.clock(h)

    def place(self, h: float) -> tuple[float, float, float]:
        """(t, alpha, sigma) of this expert's path when the sampler's noise variance is ``h``."""
        found: tuple[float, float, float] = self._place(h)  # type: ignore[attr-defined]
        return found

    def _located(self, h: float) -> tuple[float, float, float]:
        t = self.diffusion.time(self.variance(h) ** 0.5)
        time = torch.tensor(t, dtype=torch.float64)
        return t, float(self.diffusion.alpha(time)), float(self.diffusion.sigma(time))

    def denoised(self, y: Tensor, h: float) -> Tensor:
        """E[x0 | y] (B, *event) at the sampler's noise variance ``h``."""
        t, alpha, sigma = self.place(h)
        x = alpha * y
        said = self.predict(x, torch.full((len(y),), t, dtype=torch.float64, device=y.device))
        if said.shape != x.shape:
            raise ValueError(
                f"predict: got shape {tuple(said.shape)} for samples of {tuple(x.shape)}, expected the same"
            )
        if x.requires_grad and not said.requires_grad:
            raise ValueError(
                "predict: its result has no gradient, which a divergence needs: let it run with gradients, or give the "
                "expert a divergence in closed form"
            )
        clean: Tensor
        if self.kind == "denoised":
            clean = said
        elif self.kind == "noise":
            clean = (x - sigma * said) / alpha
        elif self.kind == "score":
            clean = (x + sigma**2 * said) / alpha
        elif self.kind == "v":
            clean = (alpha * x - sigma * said) / (alpha * alpha + sigma * sigma)
        else:
            slope_alpha, slope_sigma = self._slopes(t)
            clean = (slope_sigma * x - sigma * said) / (slope_sigma * alpha - sigma * slope_alpha)
        return clean

    def score(self, y: Tensor, h: float) -> Tensor:
        """Gradient (B, *event) of log q in the frame y."""
        return (self.denoised(y, h) - y) / self.variance(h)

    def score_and_divergence(self, y: Tensor, h: float, signs: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
        """The score (B, *event) and its divergence (B,) float64 in the frame y.

        Args:
            y: (B, *event).
            h: noise variance of the sampler.
            signs: n -> (n, B, *event) random signs, for estimates.
        """
        if callable(self.divergence):
            t, alpha, _ = self.place(h)
            times = torch.full((len(y),), t, dtype=torch.float64, device=y.device)
            return self.score(y, h), alpha**2 * self.divergence(alpha * y, times).double()
        return field_and_divergence(lambda point: self.score(point, h), y, self.divergence, signs)

    def log_prob(self, y: Tensor, h: float) -> Tensor:
        """log q (B,) float64 in the frame y.

        Raises:
            ValueError: the expert has no ``log_density``.
        """
        if self.log_density is None:
            raise ValueError("log_density: this expert has none")
        t, alpha, _ = self.place(h)
        times = torch.full((len(y),), t, dtype=torch.float64, device=y.device)
        scale = torch.tensor(alpha, dtype=torch.float64).log() * y[0].numel()
        return self.log_density(alpha * y, times).double() + scale

    def _slopes(self, t: float) -> tuple[float, float]:
        time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            slopes = [
                torch.autograd.grad(curve(time) + 0.0 * time, time)[0]
                for curve in (self.diffusion.alpha, self.diffusion.sigma)
            ]
        return float(slopes[0]), float(slopes[1])
