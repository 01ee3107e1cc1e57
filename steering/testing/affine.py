r"""Exact laws of samplers of Gaussian data: every step of DDIM(eta), DDPM, Euler, ancestral or our own kernel is
affine,

.. math:: x' = a x + b + c z,

so the law of x0 after a *finite* number of steps is Gaussian with known mean and variance, and so is its tilt by
:math:`r(x) = \beta x - \kappa (x - y)^2/2`. That law, not the law of the data, is what a steered sampler must be
compared with: 20 DDIM(eta = 1) steps on N(0.5, 0.64) have variance 0.438.

Every coordinate is independent: for D pixels and a reward that sums over them, log Z, E[r] and KL are D times these.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernel import step_deviation
from ..schedulers.levels import Level, rule_for

__all__ = ["AffineChain", "AffineStep", "QuadraticReward", "TiltedLaw", "affine_law", "flow_levels", "kernel_law"]


@dataclass(frozen=True)
class AffineStep:
    """x' = ``a`` x + ``b`` + ``c`` z with z standard normal, c >= 0."""

    a: float
    b: float
    c: float


@dataclass(frozen=True)
class QuadraticReward:
    """r(x) = ``beta`` x - ``kappa`` (x - ``y``)^2 / 2, elementwise."""

    beta: float = 0.0
    kappa: float = 0.0
    y: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Rewards (B,) float64 of samples (B, ...): the sum over a sample's elements."""
        values = x.double().reshape(len(x), -1)
        return (self.beta * values - 0.5 * self.kappa * (values - self.y).square()).sum(dim=1)


@dataclass(frozen=True)
class TiltedLaw:
    """N(``mean``, ``variance``) = base exp(scale r) / Z, with ``log_evidence`` = log Z, ``reward`` = E*[r] and ``kl``
    to the base."""

    mean: float
    variance: float
    log_evidence: float
    reward: float
    kl: float


@dataclass(frozen=True)
class AffineChain:
    """A sampler whose every step is affine.

    Attributes:
        steps: T of them.
        initial_variance: of the zero-mean Gaussian it starts from.
    """

    steps: tuple[AffineStep, ...]
    initial_variance: float = 1.0

    def marginal(self, index: int) -> tuple[float, float]:
        """Mean and variance of the state before step ``index`` (T: of x0)."""
        mean, variance = 0.0, self.initial_variance
        for step in self.steps[:index]:
            mean, variance = step.a * mean + step.b, step.a**2 * variance + step.c**2
        return mean, variance

    @property
    def mean(self) -> float:
        """Of x0."""
        return self.marginal(len(self.steps))[0]

    @property
    def variance(self) -> float:
        """Of x0."""
        return self.marginal(len(self.steps))[1]

    def posterior(self, index: int) -> tuple[float, float, float]:
        """(A, B, w): given the state x before step ``index``, x0 ~ N(A x + B, w)."""
        a, b, w = 1.0, 0.0, 0.0
        for step in reversed(self.steps[index:]):
            w, b, a = w + (a * step.c) ** 2, b + a * step.b, a * step.a
        return a, b, w

    def tilted(self, reward: QuadraticReward, scale: float) -> TiltedLaw:
        """The law of x0 tilted by exp(scale r)."""
        mean, variance = self.mean, self.variance
        return _tilt(mean, variance, reward, scale)

    def log_value(self, index: int, x: Tensor, reward: QuadraticReward, scale: float) -> Tensor:
        """Exact log E[exp(scale r(x0)) | state ``x`` before step ``index``], elementwise in ``x``, float64."""
        a, b, w = self.posterior(index)
        m = a * x.double() + b
        denominator = 1.0 + scale * reward.kappa * w
        linear = scale * reward.beta
        # log E exp(linear x0 - k (x0 - y)^2 / 2) for x0 ~ N(m, w), with k = scale kappa
        shifted = m + w * linear - reward.y
        return (
            -0.5 * math.log(denominator)
            - scale * reward.kappa * shifted.square() / (2.0 * denominator)
            + linear * m
            + 0.5 * w * linear**2
        )

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """``(n,)`` float64 draws of x0 by running the chain."""
        x = math.sqrt(self.initial_variance) * torch.randn(n, generator=generator, dtype=torch.float64)
        for step in self.steps:
            x = step.a * x + step.b + step.c * torch.randn(n, generator=generator, dtype=torch.float64)
        return x


def _tilt(mean: float, variance: float, reward: QuadraticReward, scale: float) -> TiltedLaw:
    k, linear = scale * reward.kappa, scale * reward.beta
    tilted_variance = 1.0 / (1.0 / variance + k)
    tilted_mean = tilted_variance * (mean / variance + k * reward.y + linear)
    log_z = (
        -0.5 * math.log1p(k * variance)
        + tilted_mean**2 / (2.0 * tilted_variance)
        - mean**2 / (2.0 * variance)
        - 0.5 * k * reward.y**2
    )
    expected = reward.beta * tilted_mean - 0.5 * reward.kappa * ((tilted_mean - reward.y) ** 2 + tilted_variance)
    return TiltedLaw(tilted_mean, tilted_variance, log_z, expected, scale * expected - log_z)


def kernel_law(levels: Sequence[Level], *, mean: float, std: float, eta: float) -> AffineChain:
    """Law of :func:`feynkac.steering.kernel.gaussian_step` on data N(``mean``, ``std``^2), closed form throughout.

    Args:
        levels: of every step, and the one after the last.
        mean, std: of the data.
        eta: of the step.
    """
    steps = [
        _gaussian_data_step(level, following, mean, std, step_deviation(level, following, eta))
        for level, following in itertools.pairwise(levels)
    ]
    return AffineChain(tuple(steps), _initial_variance(levels[0]))


def flow_levels(num_steps: int) -> tuple[Level, ...]:
    """Flow-matching levels on the uniform grid s = 1, 1 - 1/T, ..., 0."""
    return tuple(Level(k / num_steps, 1.0 - k / num_steps) for k in range(num_steps + 1))


def _initial_variance(level: Level) -> float:
    """Samplers start from N(0, sigma^2) on exploding and flow levels, from N(0, 1) on variance-preserving ones."""
    preserving = math.isclose(level.alpha**2 + level.sigma**2, 1.0, rel_tol=1e-6)
    return 1.0 if preserving else level.sigma**2


def _gaussian_data_step(level: Level, following: Level, mean: float, std: float, noise: float) -> AffineStep:
    gain = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
    a0, b0 = gain, mean * (1.0 - gain * level.alpha)  # x0-hat = a0 x + b0
    a1, b1 = (1.0 - level.alpha * a0) / level.sigma, -level.alpha * b0 / level.sigma  # eps-hat
    along = math.sqrt(max(0.0, following.sigma**2 - noise**2))
    return AffineStep(following.alpha * a0 + along * a1, following.alpha * b0 + along * b1, noise)


def affine_law(
    scheduler: Any, *, mean: float, std: float, num_inference_steps: int | None = None, **step: Any
) -> AffineChain:
    """Law of a diffusers scheduler on data N(``mean``, ``std``^2), read off the scheduler itself.

    A copy of the scheduler is stepped with the exact denoiser at a few states; three of them give a, b and c, the
    others check that the step is affine.

    Args:
        scheduler: of a registered class with one stage a move and no memory.
        mean, std: of the data.
        num_inference_steps: T; None keeps the grid that the caller's own ``set_timesteps`` has just laid.
        step: further arguments of ``scheduler.step`` (such as ``eta``).

    Raises:
        ValueError: the step is not affine (clipping), remembers, or takes two calls.
    """
    rule = rule_for(scheduler)
    if rule.stages != 1:
        raise ValueError(f"scheduler: {type(scheduler).__name__} takes {rule.stages} calls a move, expected one")
    own = copy.deepcopy(scheduler)
    if num_inference_steps is not None:
        own.set_timesteps(num_inference_steps)
    levels, prediction = rule.levels(own), rule.prediction(own)
    steps = tuple(
        _read(own, t, level, prediction, rule.family in ("ve", "edm"), mean, std, step)
        for t, level in zip(own.timesteps, levels[:-1], strict=True)
    )
    return AffineChain(steps, float(getattr(own, "init_noise_sigma", 1.0)) ** 2)


def _read(
    scheduler: Any,
    t: Tensor,
    level: Level,
    prediction: str,
    exploding: bool,
    mean: float,
    std: float,
    step: dict[str, Any],
) -> AffineStep:
    x = torch.tensor([0.0, 1.0, 0.0, -2.0, 3.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    gain = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
    clean = mean + gain * (x - level.alpha * mean)
    noise = (x - level.alpha * clean) / level.sigma
    output = _output(clean, noise, level, prediction, exploding)
    generator, twin = (torch.Generator().manual_seed(20) for _ in range(2))
    result = scheduler.step(output, t, x, generator=generator, return_dict=False, **step)[0].double().reshape(-1)
    if any(_holds_rows(value, len(x)) for value in vars(scheduler).values()):
        raise ValueError(
            f"scheduler: {type(scheduler).__name__} remembers earlier steps; its step is not a map of x alone"
        )
    drew = not torch.equal(generator.get_state(), twin.get_state())
    z = torch.randn(x.shape, generator=twin, dtype=output.dtype).reshape(-1) if drew else torch.zeros(len(x)).double()
    c = float((result[0] - result[2]) / (z[0] - z[2])) if drew else 0.0
    b = float(result[0] - c * z[0])
    a = float(result[1] - b - c * z[1])
    residual = float((a * x.reshape(-1) + b + c * z - result).abs().max())
    if residual > 1e-5 * (1.0 + float(result.abs().max())):
        raise ValueError(
            f"{type(scheduler).__name__} at t = {float(t):g}: the step is not affine (residual {residual:.2g}); "
            "clipping must be off and the solver must not remember earlier steps"
        )
    return AffineStep(a, b, abs(c))


def _holds_rows(value: Any, rows: int) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_rows(entry, rows) for entry in value)
    return isinstance(value, Tensor) and value.ndim == 4 and len(value) == rows


def _output(clean: Tensor, noise: Tensor, level: Level, prediction: str, exploding: bool) -> Tensor:
    if prediction == "v_prediction":
        scale = math.hypot(level.alpha, level.sigma) if exploding else 1.0
        return (level.alpha * noise - level.sigma * clean) / scale
    return {"epsilon": noise, "sample": clean, "flow": noise - clean}[prediction]
