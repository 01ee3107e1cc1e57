r"""Targets made of pretrained laws: :math:`\pi_h(y) \propto \prod_i q_{i,h}(y)^{a_i} \exp(\beta\, r(y))`.

Exponents and the reward's scale may move along the path: functions of the progress u, 0 at the noise and 1 at the data.
In the frame of :mod:`feynkac.fkc.experts`, with noise variance h falling by :math:`\delta` (:math:`\delta_i` on expert
i's own clock),

.. math::
    \text{drift} = \sum_i a_i \tfrac{\delta_i}{2} s_i + \tfrac{\kappa\delta}{2}(S + R), \qquad
    \Delta\log w = \Bigl(\sum_i a_i \tfrac{\delta_i}{2} s_i\Bigr)\cdot(S + R) - \sum_i a_i\tfrac{\delta_i}{2}|s_i|^2
    + r\,\Delta\beta + \sum_i \Delta a_i \log q_i,

S the sum of a_i s_i, R the gradient of beta r, kappa the noise multiplier (noise variance kappa delta). For every kappa
the Laplacians cancel (Skreta et al. 2025, propositions 3.1 to 3.4 and D.5, are special cases).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from ..divergence import field_and_divergence
from ..errors import PathCollapsed
from ..experts import Expert

__all__ = [
    "Annealed",
    "AnnealedProduct",
    "Exponent",
    "GaussianReference",
    "GeometricAverage",
    "Moments",
    "Product",
    "RewardTilt",
    "Target",
]

Exponent = float | Callable[[float], float]
"""A number, or a function of the progress u in [0, 1]."""

Moments = tuple[Tensor, Tensor]
"""Mean (P, 1, *event) and variance (P, 1) of the data, a pair for each population."""


@dataclass(frozen=True, eq=False)
class RewardTilt:
    """A reward in the exponent.

    Attributes:
        reward: y (B, *event) -> (B,), differentiable by autograd.
        scale: beta at the data; a number rises to it as the signal does, by s^2/(s^2 + h) for data of variance s^2, so
            that the tilt moves samples by no more at any level than at the last; a function of u says itself how.
        laplacian: how it is found where a control needs it, as ``Expert.divergence``.
    """

    reward: Callable[[Tensor], Tensor]
    scale: Exponent = 1.0
    laplacian: Literal["exact"] | int | None = None

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """r (B,) float64 and its gradient (B, *event)."""
        with torch.enable_grad():
            x = y.detach().requires_grad_()
            value = self.reward(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach().double(), gradient

    def gradient_and_laplacian(self, y: Tensor, signs: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
        """Gradient (B, *event) and Laplacian (B,) float64 of r."""

        def gradient(x: Tensor) -> Tensor:
            return torch.autograd.grad(self.reward(x).sum(), x, create_graph=True)[0]

        return field_and_divergence(gradient, y, self.laplacian, signs)


@dataclass(frozen=True, eq=False)
class GaussianReference:
    """The target if every expert were the Gaussian of its ``mean`` and ``std``, or of moments of a population.

    Attributes:
        mean: broadcasts to (P, K, *event).
        variance: of every coordinate, () or (P, 1) float64.
        means: of each expert.
        variances: v_i of each expert, data and noise.
        data_variances: of each expert.
        powers: exponents.
    """

    mean: Tensor
    variance: Tensor
    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]
    data_variances: tuple[Tensor, ...]
    powers: tuple[float, ...]

    def log_normalizer(self) -> float:
        """Log of the integral of the product of the experts' Gaussians, for one event."""
        dimension = self.mean.numel()
        total = 1.0 / self.variance
        log_integral = 0.5 * dimension * torch.log(2 * math.pi * self.variance) + 0.5 * total * self.mean.square().sum()
        for a, v, m in zip(self.powers, self.variances, self.means, strict=True):
            log_integral = log_integral - 0.5 * a * (dimension * torch.log(2 * math.pi * v) + m.square().sum() / v)
        return float(log_integral)


E = TypeVar("E")


@dataclass(frozen=True, eq=False)
class Target(Generic[E]):
    """A product of powers of experts, and a reward.

    Attributes:
        experts: at least one, of one kind: :class:`feynkac.fkc.Expert`, or masked ones.
        exponents: one each; negative ones divide.
        tilt: or None.
    """

    experts: tuple[E, ...]
    exponents: tuple[Exponent, ...]
    tilt: RewardTilt | None = None

    def __post_init__(self) -> None:
        if not self.experts or len(self.experts) != len(self.exponents):
            raise ValueError(
                f"exponents: got {len(self.exponents)} for {len(self.experts)} experts, expected one for each of at "
                "least one"
            )
        for u in (0.0, 0.5, 1.0):
            for i, a in enumerate(self.powers(u)):
                if not math.isfinite(a):
                    raise ValueError(f"exponents[{i}]: got {a} at progress {u}, expected a finite number")

    def powers(self, u: float) -> tuple[float, ...]:
        """The exponents at progress ``u``."""
        return tuple(float(a(u)) if callable(a) else float(a) for a in self.exponents)

    def reward_scale(self, u: float, signal: float | None = None) -> float:
        """beta at progress ``u``; 0 without a reward.

        Args:
            u: progress.
            signal: share of the data in the variance, by which a number rises; the progress if None.
        """
        if self.tilt is None:
            return 0.0
        if callable(self.tilt.scale):
            return float(self.tilt.scale(u))
        return float(self.tilt.scale) * (u if signal is None or u == 1.0 else signal)

    def tilted(
        self,
        reward: Callable[[Tensor], Tensor],
        scale: Exponent = 1.0,
        *,
        laplacian: Literal["exact"] | int | None = None,
    ) -> Target[E]:
        """The same experts with a reward; ``laplacian``: see :class:`RewardTilt`.

        Raises:
            ValueError: there is one already.
        """
        if self.tilt is not None:
            raise ValueError("tilted: the target has a reward already; add the rewards up into one")
        return Target(self.experts, self.exponents, RewardTilt(reward, scale, laplacian))

    @property
    def moving(self) -> bool:
        """Some exponent changes along the path."""
        return any(callable(a) for a in self.exponents)

    def reference(
        self: Target[Expert], h: float, u: float, shape: Sequence[int], moments: Moments | None = None
    ) -> GaussianReference:
        """The target's Gaussian reference at noise variance ``h``.

        Args:
            h: of the sampler.
            u: progress.
            shape: of an event.
            moments: of the data, the same for every expert; what the experts claim if None.

        Raises:
            PathCollapsed: its precision is not positive: the target cannot be normalised there.
        """
        powers = self.powers(u)
        if moments is None:
            means = [torch.as_tensor(e.mean, dtype=torch.float64).expand(tuple(shape)) for e in self.experts]
            data = [torch.tensor(e.std**2, dtype=torch.float64) for e in self.experts]
        else:
            means, data = [moments[0]] * len(powers), [moments[1]] * len(powers)
        variances = [v + e.variance(h) for v, e in zip(data, self.experts, strict=True)]
        zero = torch.zeros((), dtype=torch.float64)
        total = sum((a / v for a, v in zip(powers, variances, strict=True)), zero)
        if not bool((total > 0.0).all()):
            raise PathCollapsed(h, u, float(total.min()))
        if moments is None:
            mean = sum((a / v * m for a, v, m in zip(powers, variances, means, strict=True)), zero) / total
        else:
            mean = moments[0]
        return GaussianReference(mean, 1.0 / total, tuple(means), tuple(variances), tuple(data), powers)


class Annealed(Target[E]):
    """q^beta.

    Args:
        expert: q.
        exponent: beta.
    """

    def __init__(self, expert: E, exponent: Exponent) -> None:
        super().__init__((expert,), (exponent,))


class Product(Target[E]):
    """The product of all experts."""

    def __init__(self, *experts: E) -> None:
        super().__init__(experts, (1.0,) * len(experts))


class AnnealedProduct(Target[E]):
    """(The product of all experts)^beta.

    Args:
        experts: at least one.
        exponent: beta.
    """

    def __init__(self, experts: Sequence[E], exponent: Exponent) -> None:
        super().__init__(tuple(experts), (exponent,) * len(experts))


class GeometricAverage(Target[E]):
    """q_1^(1-w) q_2^w: classifier-free guidance with q_1 unconditional, q_2 conditional and w the guidance scale.

    Args:
        first: q_1.
        second: q_2.
        weight: w.
    """

    def __init__(self, first: E, second: E, weight: Exponent) -> None:
        if callable(weight):
            moving = weight
            super().__init__((first, second), (lambda u: 1.0 - moving(u), moving))
        else:
            super().__init__((first, second), (1.0 - weight, weight))
