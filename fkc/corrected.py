r"""Feynman-Kac correctors: anneal, multiply, average and tilt pretrained laws, with the weights that make it exact.

    samples = sample_corrected(Annealed(expert, 2.0), particles=1000, steps=200, seed=0, shape=(2,))
    samples.log_weights, samples.log_evidence, samples.mean(lambda x: x)

Particles start from the noise, follow a move of :mod:`.steps` from level to level, and carry its weights through the
one loop of :mod:`.smc`.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from .cloud import Cloud
from .errors import UnstableNoise
from .experts import Expert
from .model import FeynmanKacModel
from .population import Population
from .resampling import resample
from .smc import Checkpoint, SMCResult, smc
from .steps import Ends, Level, Proposal, kernel_weight, noising, plain, rate_weight, reference_step
from .streams import generator_for, normal
from .targets import Target

__all__ = ["CorrectedModel", "Gauge", "WeightedSamples", "Weights", "noise_bound", "sample_corrected"]

Gauge = Literal["reference", "plain"]
Weights = Literal["auto", "kernel", "rate", "none"]


def noise_bound(target: Target, gauge: Gauge, steps: int = 64) -> float:
    """What the noise multiplier must exceed for the truth to be attracting.

    For Gaussian experts of equal variance and A the sum of exponents, weighted particles return to the target iff
    kappa > 1 - 1/A under the plain gauge, and iff kappa > 0 under the reference gauge, where the weights of a
    Gaussian are constant. 0 where A <= 1.
    """
    largest = max(sum(target.powers(i / steps)) for i in range(steps + 1))
    return 0.0 if gauge == "reference" or largest <= 1.0 else 1.0 - 1.0 / largest


class CorrectedModel(FeynmanKacModel):
    """A target as a Feynman-Kac model.

    Args:
        target: what is sampled.
        levels: noise variances from noise to data; a rise is churn.
        shape: of an event, at least one axis.
        noise: kappa >= 0.
        gauge: ``"reference"``: moves that are exact for the Gaussian reference; ``"plain"``: Euler moves.
        weights: ``"kernel"``, ``"rate"``, ``"none"``, or ``"auto"``: kernel weights where every expert knows its
            density, else rates.
        dtype: of the particles.
        chunk_size: particles that an expert sees at a time.

    Raises:
        PathCollapsed: the target cannot be normalised at some level.
        ValueError: settings that contradict each other.
    """

    def __init__(
        self,
        target: Target,
        levels: Sequence[float],
        shape: Sequence[int],
        *,
        noise: float,
        gauge: Gauge = "reference",
        weights: Weights = "auto",
        dtype: torch.dtype = torch.float64,
        chunk_size: int | None = None,
    ) -> None:
        if gauge not in ("reference", "plain") or weights not in ("auto", "kernel", "rate", "none"):
            raise ValueError(
                f"gauge, weights: got {gauge!r}, {weights!r}; expected reference or plain; auto, kernel, ..."
            )
        if not shape:
            raise ValueError("shape: got (), expected at least one axis")
        self.target, self.shape, self.kappa, self.gauge, self.dtype = target, tuple(shape), noise, gauge, dtype
        self.chunk_size = chunk_size
        exact = all(expert.log_density is not None for expert in target.experts)
        self.weights: Weights = ("kernel" if exact and noise > 0.0 else "rate") if weights == "auto" else weights
        self.exact_densities = exact
        self.tracked = (target.moving or self.weights == "kernel") and not exact
        self._refuse(levels)
        n = len(levels) - 1
        self.levels = [self._level(h, i / n) for i, h in enumerate(levels)]

    def _refuse(self, levels: Sequence[float]) -> None:
        if len(levels) < 2 or min(levels) < 0.0:
            raise ValueError(f"levels: got {len(levels)} of them, expected two or more noise variances >= 0")
        if self.weights == "kernel" and self.kappa == 0.0:
            raise ValueError("noise: got 0, a deterministic move has no kernel weight; use weights='rate'")
        rises = any(b > a for a, b in itertools.pairwise(levels))
        if rises and self.target.tilt is not None and self.weights == "rate":
            raise ValueError("levels: a reward with churn needs kernel weights (the rate needs its Laplacian)")
        if self.tracked and self.kappa != 1.0:
            raise ValueError(
                f"noise: got {self.kappa}, expected 1: only there are the experts' log-densities tracked along the "
                "path without a divergence; give the experts a log_density, or keep the exponents fixed and use rates"
            )

    def _level(self, h: float, u: float) -> Level:
        target = self.target
        variances = tuple(expert.variance(h) for expert in target.experts)
        reference = target.reference(h, u, self.shape)
        return Level(h, u, variances, target.powers(u), target.reward_scale(u), reference)

    # --- the model ---------------------------------------------------------------------------------------------------

    @property
    def n_steps(self) -> int:
        """Moves."""
        return len(self.levels) - 1

    def initial(self, generators: Sequence[Generator], particles: int) -> tuple[Cloud, Tensor]:
        """Draws from the Gaussian reference of the noisiest level, weighted to the target there where it is known."""
        level = self.levels[0]
        reference = level.reference
        z = normal(generators, (particles, *self.shape), dtype=self.dtype)
        y = (reference.mean + math.sqrt(reference.variance) * z).to(self.dtype)
        cloud = self._evaluated(y, level, None)
        log_weight = torch.full(y.shape[:2], reference.log_normalizer, dtype=torch.float64)
        if self.exact_densities and self.weights == "kernel":
            ends = self._ends(cloud, level)
            powers = torch.tensor(level.powers, dtype=torch.float64)
            log_target = torch.einsum("e,pke->pk", powers, ends.log_q) + level.reward_scale * ends.reward
            dimension = math.prod(self.shape)
            squares = z.double().flatten(2).square().sum(dim=2)
            log_weight = log_target + 0.5 * (squares + dimension * math.log(2 * math.pi * reference.variance))
        return cloud, log_weight

    def move(self, generators: Sequence[Generator], step: int, cloud: Cloud, population: Population) -> Cloud:
        """One level on."""
        following = self.levels[step]
        proposal = self._proposal(self._ends(cloud, self.levels[step - 1]), following)
        y = proposal.mean
        if proposal.variance > 0.0:
            z = normal(generators, tuple(y.shape[1:]), dtype=self.dtype)
            y = y + math.sqrt(proposal.variance) * z
        return self._evaluated(y, following, (cloud, self.levels[step - 1]))

    def log_potential(self, step: int, previous: Cloud, cloud: Cloud) -> Tensor:
        """What the move weighs."""
        before, after = self._ends(previous, self.levels[step - 1]), self._ends(cloud, self.levels[step])
        if self.weights == "none":
            return torch.zeros(before.y.shape[:2], dtype=torch.float64)
        proposal = self._proposal(before, after.level)
        if self.weights == "rate":
            return rate_weight(before, after, proposal)
        return kernel_weight(before, after, proposal, self.kappa)

    def finished(self, step: int, cloud: Cloud) -> Tensor:
        """After the last level."""
        return torch.full((cloud.n_populations,), step >= self.n_steps)

    # --- pieces ------------------------------------------------------------------------------------------------------

    def _proposal(self, ends: Ends, following: Level) -> Proposal:
        if following.h > ends.level.h:
            return noising(ends, following)
        make = reference_step if self.gauge == "reference" else plain
        return make(ends, following, self.kappa)

    def _evaluated(self, y: Tensor, level: Level, before: tuple[Cloud, Level] | None) -> Cloud:
        """The experts at new particles."""
        flat = y.flatten(0, 1)
        size = self.chunk_size or len(flat)
        scores = torch.stack(
            [torch.cat([e.score(part, level.h) for part in torch.split(flat, size)]) for e in self.target.experts],
            dim=1,
        )
        carried = {"scores": scores.reshape(*y.shape[:2], *scores.shape[1:]).to(y.dtype)}
        carried["log_q"] = self._log_q(y, level, carried["scores"], before)
        if self.target.tilt is not None:
            value, gradient = self.target.tilt.value_and_gradient(flat)
            carried["reward"] = value.reshape(y.shape[:2])
            carried["gradient"] = gradient.reshape(y.shape)
        return Cloud(y, carried)

    def _log_q(self, y: Tensor, level: Level, scores: Tensor, before: tuple[Cloud, Level] | None) -> Tensor:
        experts = self.target.experts
        if self.exact_densities and (self.weights == "kernel" or self.target.moving):
            flat = y.flatten(0, 1)
            known = torch.stack([e.log_prob(flat, level.h) for e in experts], dim=1)
            return known.reshape(*y.shape[:2], len(experts))
        if not self.tracked:
            return torch.zeros((*y.shape[:2], len(experts)), dtype=torch.float64)
        if before is None:
            return torch.stack([_gaussian(y, level, i) for i in range(len(experts))], dim=2)
        cloud, last = before
        changed: Tensor = cloud.carried["log_q"] + _tracked(cloud, last, y, level)
        return changed

    def _ends(self, cloud: Cloud, level: Level) -> Ends:
        zeros = torch.zeros(cloud.x.shape[:2], dtype=torch.float64)
        return Ends(
            level,
            cloud.x,
            cloud.carried["scores"],
            cloud.carried["log_q"],
            cloud.carried.get("reward", zeros),
            cloud.carried.get("gradient", torch.zeros_like(cloud.x)),
        )


def _gaussian(y: Tensor, level: Level, i: int) -> Tensor:
    mean, variance = level.reference.means[i], level.reference.variances[i]
    squares = (y.double() - mean).flatten(2).square().sum(dim=2)
    return -0.5 * (squares / variance + y[0, 0].numel() * math.log(2 * math.pi * variance))


def _tracked(cloud: Cloud, last: Level, y: Tensor, level: Level) -> Tensor:
    r"""Change of the experts' log-densities along a move with kappa = 1: :math:`s\cdot dy - |s|^2 \delta/2`, which is
    Ito's formula without a Laplacian; scores from both ends (the Stratonovich form has the divergence instead)."""
    changes = []
    for i, (before, after) in enumerate(zip(last.variances, level.variances, strict=True)):
        s = cloud.carried["scores"][:, :, i].double()
        step = (y - cloud.x).double()
        change = (s * step).flatten(2).sum(dim=2) - 0.5 * (before - after) * s.flatten(2).square().sum(dim=2)
        changes.append(change)
    return torch.stack(changes, dim=2)


@dataclass(frozen=True, eq=False)
class WeightedSamples:
    """Samples of a target with their weights.

    Attributes:
        result: of :func:`feynkac.fkc.smc`.
        seed: of all streams.
        levels: noise variances, noise first; ``x`` is at the last one.
    """

    result: SMCResult
    seed: int
    levels: tuple[float, ...]

    @property
    def x(self) -> Tensor:
        """(P, K, *event)."""
        return self.result.x

    @property
    def population(self) -> Population:
        """Weights and family tree."""
        return self.result.population

    @property
    def log_weights(self) -> Tensor:
        """(P, K) float64."""
        return self.result.log_weights

    @property
    def log_evidence(self) -> Tensor:
        """(P,) log of the integral of the target at the last level."""
        return self.result.log_evidence

    @property
    def log_evidence_std_error(self) -> Tensor:
        """(P,) from the family tree of the one run."""
        return self.result.log_evidence_std_error

    @property
    def ess(self) -> Tensor:
        """(P,)."""
        return self.result.ess

    def mean(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Weighted mean (P, ...) of ``function(x)`` (P, K, ...)."""
        return self.result.mean(function)

    def std_error(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Standard error of :meth:`mean` (P, ...), from the family tree."""
        return self.result.std_error(function)

    def resampled(self, n: int | None = None, *, seed: int | None = None) -> Tensor:
        """Equally weighted draws (P, n, *event), systematic; n = K if None."""
        k = self.x.shape[1]
        count = k if n is None else n
        weights = torch.nn.functional.pad(self.log_weights, (0, max(count - k, 0)), value=-torch.inf)
        root = self.seed if seed is None else seed
        generators = [generator_for(root, _AFTERWARDS + p) for p in range(len(weights))]
        ancestors = resample(weights, "systematic", generators)
        if count < k:
            chosen = [torch.randperm(k, generator=g)[:count] for g in generators]
            ancestors = torch.stack([row[some] for row, some in zip(ancestors, chosen, strict=True)])
        return torch.stack([x[row] for x, row in zip(self.x, ancestors, strict=True)])


_AFTERWARDS = 2**30  # an index that no population has


def sample_corrected(
    target: Target,
    *,
    particles: int,
    populations: int = 1,
    steps: int = 200,
    noise: float | None = None,
    gauge: Gauge = "reference",
    weights: Weights = "auto",
    churn: float = 0.0,
    levels: Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    seed: int | None = None,
    resampler: str = "systematic",
    ess_threshold: float = 0.5,
    force: bool = False,
    dtype: torch.dtype = torch.float64,
    chunk_size: int | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
) -> WeightedSamples:
    """Weighted samples of a product of powers of pretrained laws, and its normalising constant.

    Args:
        target: ``Annealed``, ``Product``, ``GeometricAverage``, ``AnnealedProduct`` or any :class:`Target`, possibly
            ``.tilted`` by a reward.
        particles: K.
        populations: P, independent.
        steps: moves from the noisiest level to the last.
        noise: kappa, the multiplier of the noise variance; None: 2 where the exponents add to more than one, else 1
            (and 1 where the experts' log-densities have to be tracked).
        gauge: see :class:`CorrectedModel`.
        weights: see :class:`CorrectedModel`; ``"none"`` gives the law without correction.
        churn: every move is preceded by a rise of the noise level by this fraction of the coming fall; its weight is
            counted.
        levels: standard deviations sigma/alpha of the noise, noise first; None: those of the first expert's path.
        shape: of an event; that of the first expert if None.
        seed: of everything; None draws one, see ``WeightedSamples.seed``.
        resampler: scheme.
        ess_threshold: resample below this fraction of K.
        force: take a noise multiplier at which the truth is not attracting.
        dtype: of the particles.
        chunk_size: particles that an expert sees at a time.
        checkpoint: see :func:`feynkac.fkc.smc`.
        resume: see :func:`feynkac.fkc.smc`.

    Raises:
        UnstableNoise: see ``force``.
        PathCollapsed: the target cannot be normalised at some level.
        ValueError: settings that contradict each other.
    """
    first: Expert = target.experts[0]
    event = tuple(shape) if shape is not None else first.shape
    if event is None:
        raise ValueError("shape: is not known from the experts; give it")
    sigmas = tuple(levels) if levels is not None else first.diffusion.levels(steps)
    variances = _with_churn([s * s for s in sigmas], churn)
    kappa = _default_noise(target) if noise is None else noise
    if not (math.isfinite(kappa) and kappa >= 0.0):
        raise ValueError(f"noise: got {kappa}, expected a finite number >= 0")
    target.check_path(variances, event)
    bound = noise_bound(target, gauge)
    if kappa <= bound and bound > 0.0 and weights != "none" and not force:
        raise UnstableNoise(kappa, bound, 'use more noise or gauge="reference"')
    model = CorrectedModel(
        target, variances, event, noise=kappa, gauge=gauge, weights=weights, dtype=dtype, chunk_size=chunk_size
    )
    chosen = secrets.randbits(62) if seed is None else seed
    result = smc(
        model,
        particles=particles,
        seed=chosen,
        populations=populations,
        resampler=resampler,
        ess_threshold=ess_threshold,
        checkpoint=checkpoint,
        resume=resume,
        on_collapse="keep",
    )
    return WeightedSamples(result, chosen, tuple(variances))


def _default_noise(target: Target) -> float:
    known = all(expert.log_density is not None for expert in target.experts)
    if target.moving and not known:
        return 1.0
    return 2.0 if max(sum(target.powers(u)) for u in (0.0, 0.5, 1.0)) > 1.0 else 1.0


def _with_churn(variances: list[float], churn: float) -> list[float]:
    if churn < 0.0:
        raise ValueError(f"churn: got {churn}, expected at least 0")
    if churn == 0.0:
        return variances
    path = variances[:1]
    for i, (now, following) in enumerate(itertools.pairwise(variances)):
        if i > 0:  # above the noisiest level nothing is known
            path.append(min(now + churn * (now - following), variances[0]))
        path.append(following)
    return path
