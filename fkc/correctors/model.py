"""A target as a Feynman-Kac model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor

from ..cloud import Cloud
from ..experts import Expert
from ..model import FeynmanKacModel
from ..population import Population
from ..streams import normal
from .controls import Coefficients, Control, fixed_coefficients, least_squares
from .densities import gaussian_log_q, tracked_change
from .guides import Gauge, guides_between, moments_of
from .levels import Ends, Level, level_of
from .moves import Normal, Transition, ddim_transition
from .targets import Target

__all__ = ["CorrectedModel", "Weights"]

Weights = Literal["auto", "kernel", "rate", "none"]

_GAUGES = ("reference", "fitted", "velocities", "plain", "ddim")
_CONTROLS = ("none", "score", "reward", "least_squares")
_WEIGHTS = ("auto", "kernel", "rate", "none")
_CARRIED = ("log_q", "divergences", "reward", "reward_gradient", "reward_laplacian")


class CorrectedModel(FeynmanKacModel):
    """A target as a Feynman-Kac model.

    Args:
        target: what is sampled.
        levels: noise variances from noise to data; a rise is churn.
        shape: of an event, at least one axis.
        noise: kappa >= 0.
        gauge: the linear part of the moves, see :mod:`.guides`.
        control: a field along score and reward, see :mod:`.controls`.
        weights: ``"kernel"``, ``"rate"``, ``"none"``, or ``"auto"``: kernel weights where every expert knows its
            density and gauge and control do not look at the particles, else rates.
        dtype: of the particles.
        chunk_size: particles that an expert sees at a time.

    Raises:
        PathCollapsed: the target cannot be normalised at some level.
        ValueError: settings that contradict each other.
    """

    def __init__(
        self,
        target: Target[Expert],
        levels: Sequence[float],
        shape: Sequence[int],
        *,
        noise: float,
        gauge: Gauge = "reference",
        control: Control = "none",
        weights: Weights = "auto",
        dtype: torch.dtype = torch.float64,
        chunk_size: int | None = None,
    ) -> None:
        for name, value, known in (
            ("gauge", gauge, _GAUGES),
            ("control", control, _CONTROLS),
            ("weights", weights, _WEIGHTS),
        ):
            if value not in known:
                raise ValueError(f"{name}: got {value!r}, expected {', '.join(known)}")
        if not shape:
            raise ValueError("shape: got (), expected at least one axis")
        self.target, self.shape, self.kappa, self.dtype = target, tuple(shape), noise, dtype
        self.gauge, self.control, self.chunk_size = gauge, control, chunk_size
        self.known = all(expert.log_density is not None for expert in target.experts)
        self.adaptive = gauge == "fitted" or control == "least_squares"
        automatic: Weights = "kernel" if self.known and noise > 0.0 and not self.adaptive else "rate"
        self.weights: Weights = automatic if weights == "auto" else weights
        self.densities = self.weights == "kernel" or target.moving
        self.tracked = self.densities and not self.known
        self.divergences = (
            (control == "score" and self.weights == "rate")
            or control == "least_squares"
            or (self.tracked and noise != 1.0)
        )
        self.laplacian = target.tilt is not None and (
            control == "least_squares" or (control == "reward" and self.weights == "rate")
        )
        self._refuse(levels)
        n = len(levels) - 1
        self.levels = [level_of(target, h, i / n, self.shape) for i, h in enumerate(levels)]
        self._static: dict[int, Transition] = {}

    def _refuse(self, levels: Sequence[float]) -> None:
        if len(levels) < 2 or not min(levels) > 0.0 or not levels[0] > levels[-1]:
            raise ValueError(
                f"levels: got {len(levels)} of them from {levels[0] if levels else None} to "
                f"{levels[-1] if levels else None}, expected two or more noise variances > 0, noise first"
            )
        if any(a == b for a, b in itertools.pairwise(levels)):
            raise ValueError("levels: got two equal ones side by side, expected every move to change the noise")
        if self.weights == "kernel" and self.kappa == 0.0:
            raise ValueError("noise: got 0, a deterministic move has no kernel weight; use weights='rate'")
        if self.weights == "kernel" and self.adaptive:
            raise ValueError(
                "weights: got 'kernel', expected 'rate' with gauge='fitted' or control='least_squares': a backward "
                "kernel that looks at the population would make the kernel weights biased"
            )
        if self.weights == "kernel" and self.tracked and self.kappa != 1.0:
            raise ValueError(
                f"noise: got {self.kappa}, expected 1 for kernel weights from scores alone: their error at other noise "
                "falls too slowly with the steps; give the experts a log_density, or use weights='rate'"
            )
        if any(expert.clock is not None for expert in self.target.experts):
            self._refuse_clocks(rises=any(b > a for a, b in itertools.pairwise(levels)))
        total = min(sum(self.target.powers(u)) for u in (0.0, 0.5, 1.0))
        if (self.control == "score" and total == 0.0) or (self.gauge == "fitted" and total <= 0.0):
            raise ValueError(
                f"exponents: add up to {total:g}, expected more than 0 for gauge='fitted', not 0 for control='score'"
            )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size: got {self.chunk_size}, expected at least 1")
        if self.gauge == "ddim" and (self.control != "none" or self.kappa > 1.0):
            raise ValueError(
                f"gauge: 'ddim' has no control and its noise is eta^2, at most 1; got {self.control!r}, {self.kappa}"
            )
        if self.control == "reward" and self.target.tilt is None:
            raise ValueError("control: got 'reward' for a target without one; use target.tilted(reward, scale)")
        rises = any(b > a for a, b in itertools.pairwise(levels))
        if rises and self.target.tilt is not None and self.weights == "rate":
            raise ValueError("levels: a reward with churn needs kernel weights (the rate needs its Laplacian)")

    def _refuse_clocks(self, *, rises: bool) -> None:
        """Experts on other schedules leave Laplacians in what is free of them otherwise."""
        if self.tracked:
            raise ValueError(
                "clock: got an expert on another schedule whose density is not known, expected log_density with kernel "
                "weights or moving exponents: it is tracked on the sampler's own schedule only"
            )
        if rises and self.weights == "rate":
            raise ValueError("clock: got an expert on another schedule, with churn it needs weights='kernel'")

    # --- the model ---------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, object]:
        """What a checkpoint of this model can go on with."""
        return {
            "levels": [level.h for level in self.levels],
            "powers": [list(level.powers) for level in self.levels],
            "reward_scales": [level.reward_scale for level in self.levels],
            "settings": [self.kappa, self.gauge, self.control, self.weights, str(self.dtype), list(self.shape)],
        }

    @property
    def n_steps(self) -> int:
        """Moves."""
        return len(self.levels) - 1

    def initial(self, generators: Sequence[Generator], particles: int) -> tuple[Cloud, Tensor]:
        """Draws from the Gaussian reference of the noisiest level, weighted to the target there where it is known."""
        level = self.levels[0]
        reference = level.reference
        z = normal(generators, (particles, *self.shape), dtype=self.dtype)
        y = (reference.mean + reference.variance.sqrt() * z).to(self.dtype)
        ends = self.evaluated(generators, y, level, None)
        log_weight = torch.full(y.shape[:2], reference.log_normalizer(), dtype=torch.float64)
        if ends.reward is not None:
            log_weight = log_weight + level.reward_scale * ends.reward
        if self.known and self.weights != "none":
            known = replace(ends, log_q=self._log_q(ends, y.flatten(0, 1), None))
            log_weight = known.log_target() - Normal(reference.mean, reference.variance).log_density(y)
        shared = _shared(len(generators), self.shape) if self.adaptive else {}
        return cloud_of(ends, shared), log_weight

    def move(self, generators: Sequence[Generator], step: int, cloud: Cloud, population: Population) -> Cloud:
        """One level on."""
        before = ends_of(cloud, self.levels[step - 1])
        transition, shared = self._prepared(step, before, population)
        kernel = transition.forward(before)
        y = kernel.mean
        if self.kappa > 0.0 or transition.fall < 0.0:
            z = normal(generators, tuple(y.shape[1:]), dtype=self.dtype)
            y = y + kernel.variance.sqrt().reshape(-1, *[1] * (y.ndim - 1)).to(y) * z
        return cloud_of(self.evaluated(generators, y, self.levels[step], before), shared)

    def ascent(self, generators: Sequence[Generator], step: int, cloud: Cloud) -> Cloud:
        """A draw from the backward kernel of move ``step``: particles at level ``step`` go to level ``step`` - 1.

        Raises:
            ValueError: moves that look at the population, or that have no noise.
        """
        if self.adaptive or self.kappa == 0.0:
            raise ValueError("ascent: moves that look at the population, or without noise, have no backward kernel")
        after = ends_of(cloud, self.levels[step])
        kernel = self.transition(step).backward(after)
        z = normal(generators, tuple(after.y.shape[1:]), dtype=self.dtype)
        y = kernel.mean + kernel.variance.sqrt().to(z) * z
        return cloud_of(self.evaluated(generators, y, self.levels[step - 1], after), cloud.shared)

    def log_potential(self, step: int, previous: Cloud, cloud: Cloud) -> Tensor:
        """What the move weighs."""
        before, after = ends_of(previous, self.levels[step - 1]), ends_of(cloud, self.levels[step])
        if self.weights == "none":
            return torch.zeros(before.y.shape[:2], dtype=torch.float64)
        transition = self._recalled(step, cloud)
        weigh = transition.rate_weight if self.weights == "rate" else transition.kernel_weight
        return weigh(before, after)

    def finished(self, step: int, cloud: Cloud) -> Tensor:
        """After the last level."""
        return torch.full((cloud.n_populations,), step >= self.n_steps)

    # --- transitions -------------------------------------------------------------------------------------------------

    def transition(self, step: int) -> Transition:
        """The move to level ``step`` as far as it does not depend on the particles."""
        if step not in self._static:
            first, last = self.levels[step - 1], self.levels[step]
            gauge: Gauge = "reference" if self.gauge == "fitted" else self.gauge
            before, after = guides_between(gauge, self.target, first, last)
            if self.gauge == "ddim":
                self._static[step] = ddim_transition(first, last, before, after, self.kappa)
                return self._static[step]
            fixed = None if last.h > first.h else fixed_coefficients(self.control, first)
            self._static[step] = Transition(first, last, before, after, self.kappa, fixed)
        return self._static[step]

    def _prepared(self, step: int, ends: Ends, population: Population) -> tuple[Transition, dict[str, Tensor]]:
        """The move with what it takes from the particles, and that as values shared by a population."""
        transition = self.transition(step)
        if not self.adaptive:
            return transition, {}
        shared = _shared(len(ends.y), self.shape)
        if transition.fall > 0.0:
            if self.gauge == "fitted":
                mean, variance = moments_of(ends.y, population, transition.first)
                shared |= {"mean": mean[:, 0], "variance": variance[:, 0]}
                transition = self._fitted(transition, shared)
            if self.control == "least_squares":
                found = least_squares(
                    ends, transition.before, transition.bare_rate(ends), transition.fall, population.weights
                )
                thetas = (found.score, found.linear, found.reward)
                shared["control"] = torch.cat([shared["control"][:, :1] * 0 if t is None else t for t in thetas], dim=1)
                transition = replace(transition, control=found)
        return transition, shared

    def _recalled(self, step: int, cloud: Cloud) -> Transition:
        """The move that made ``cloud``."""
        transition = self.transition(step)
        if not self.adaptive or transition.fall <= 0.0:
            return transition
        if self.gauge == "fitted":
            transition = self._fitted(transition, cloud.shared)
        if self.control == "least_squares":
            theta = cloud.shared["control"]
            tilted = self.target.tilt is not None
            transition = replace(
                transition, control=Coefficients(theta[:, :1], theta[:, 1:2], theta[:, 2:] if tilted else None)
            )
        return transition

    def _fitted(self, transition: Transition, shared: Mapping[str, Tensor]) -> Transition:
        moments = (shared["mean"][:, None], shared["variance"][:, None])
        before, after = guides_between("fitted", self.target, transition.first, transition.last, moments)
        return replace(transition, before=before, after=after)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluated(self, generators: Sequence[Generator], y: Tensor, level: Level, before: Ends | None) -> Ends:
        """Particles (P, K, *event) with what the experts and the reward say of them.

        Args:
            generators: P, for estimates of divergences.
            y: particles.
            level: where.
            before: where they came from, to track densities; None at the noisiest level.
        """
        flat, grid = y.flatten(0, 1), y.shape[:2]
        signs = _signs(generators, y)
        scores, divergences = self._scores(flat, level, signs)
        ends = Ends(level, y, scores.reshape(*grid, *scores.shape[1:]).to(y.dtype))
        if divergences is not None:
            ends = replace(ends, divergences=divergences.reshape(*grid, -1))
        if self.densities:
            ends = replace(ends, log_q=self._log_q(ends, flat, before))
        tilt = self.target.tilt
        if tilt is not None:
            value, gradient = tilt.value_and_gradient(flat)
            ends = replace(ends, reward=value.reshape(grid), reward_gradient=gradient.reshape(y.shape).to(y.dtype))
            if self.laplacian:
                _, laplacian = tilt.gradient_and_laplacian(flat, signs)
                ends = replace(ends, reward_laplacian=laplacian.reshape(grid))
        return ends

    def _scores(self, flat: Tensor, level: Level, signs: Callable[[int], Tensor]) -> tuple[Tensor, Tensor | None]:
        """(B, E, *event) and (B, E)."""
        experts = self.target.experts
        size = self.chunk_size or len(flat)
        if not self.divergences:
            with torch.no_grad():
                said = [torch.cat([e.score(part, level.h) for part in torch.split(flat, size)]) for e in experts]
            return torch.stack(said, dim=1), None
        scores, divergences = [], []
        for expert in experts:
            pieces = []
            for start in range(0, len(flat), size):
                rows = slice(start, start + size)
                pieces.append(expert.score_and_divergence(flat[rows], level.h, partial(_rows_of, signs, rows)))
            scores.append(torch.cat([s for s, _ in pieces]))
            divergences.append(torch.cat([d for _, d in pieces]))
        return torch.stack(scores, dim=1), torch.stack(divergences, dim=1)

    def _log_q(self, ends: Ends, flat: Tensor, before: Ends | None) -> Tensor:
        if self.known:
            known = torch.stack([e.log_prob(flat, ends.level.h) for e in self.target.experts], dim=1)
            return known.reshape(*ends.y.shape[:2], -1)
        if before is None:
            return gaussian_log_q(ends.y, ends.level)
        assert before.log_q is not None
        return before.log_q + tracked_change(before, ends, self.kappa)


def cloud_of(ends: Ends, shared: Mapping[str, Tensor]) -> Cloud:
    """Particles and what was evaluated at them, as luggage."""
    carried = {"scores": ends.scores}
    carried |= {name: value for name in _CARRIED if (value := getattr(ends, name)) is not None}
    return Cloud(ends.y, carried, shared)


def ends_of(cloud: Cloud, level: Level) -> Ends:
    """The same, back."""
    return Ends(level, cloud.x, cloud.carried["scores"], *(cloud.carried.get(name) for name in _CARRIED))


def _shared(populations: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Values that a population shares, before anything is known of it."""
    return {
        "control": torch.zeros((populations, 3), dtype=torch.float64),
        "mean": torch.zeros((populations, *shape), dtype=torch.float64),
        "variance": torch.ones(populations, dtype=torch.float64),
    }


def _signs(generators: Sequence[Generator], y: Tensor) -> Callable[[int], Tensor]:
    """n -> (n, P K, *event) random signs, each population's from its own stream; the same whenever asked again."""
    drawn: dict[int, Tensor] = {}

    def draw(n: int) -> Tensor:
        if n not in drawn:
            per = [torch.randint(0, 2, (n, *y.shape[1:]), generator=g, device=g.device) for g in generators]
            drawn[n] = (2 * torch.stack(per, dim=1).flatten(1, 2) - 1).to(y)
        return drawn[n]

    return draw


def _rows_of(signs: Callable[[int], Tensor], rows: slice, n: int) -> Tensor:
    return signs(n)[:, rows]
