r"""Feynman-Kac correctors: anneal, multiply, average and tilt pretrained laws, with the weights that make it exact.

    samples = sample_corrected(Annealed(expert, 2.0), particles=1000, steps=200, seed=0, shape=(2,))
    samples.log_weights, samples.log_evidence, samples.mean(lambda x: x)

Particles start from the noise, follow the moves of :mod:`.moves` from level to level, and carry their weights through
the one loop of :mod:`feynkac.fkc.smc`.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..collectors import Collector
from ..errors import UnstableNoise
from ..experts import Expert
from ..population import Population
from ..resampling import resample
from ..smc import Checkpoint, SMCResult, smc
from ..streams import generator_for
from .controls import Control
from .guides import Gauge
from .model import CorrectedModel, Weights
from .stability import noise_bound
from .targets import Target

__all__ = ["WeightedSamples", "corrected_model", "sample_corrected"]


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

    def __repr__(self) -> str:
        populations, particles = self.log_weights.shape
        return (
            f"WeightedSamples({populations} populations of {particles}, event {tuple(self.x.shape[2:])}, "
            f"ESS {float(self.ess.mean()):.1f}, log evidence {float(self.log_evidence.mean()):.4g})"
        )

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


def corrected_model(
    target: Target[Expert],
    *,
    steps: int = 200,
    noise: float | None = None,
    gauge: Gauge = "reference",
    control: Control = "none",
    weights: Weights = "auto",
    churn: float = 0.0,
    levels: Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    force: bool = False,
    dtype: torch.dtype = torch.float64,
    chunk_size: int | None = None,
) -> CorrectedModel:
    """The Feynman-Kac model that :func:`sample_corrected` runs, all settings checked; arguments as there.

    Raises:
        UnstableNoise: see ``force``.
        PathCollapsed: the target cannot be normalised at some level.
        ValueError: settings that contradict each other.
    """
    if not isinstance(target, Target):
        raise TypeError(f"target: got {type(target).__name__}, expected Annealed(expert, ...) or another Target")
    first: Expert = target.experts[0]
    if not isinstance(first, Expert):
        raise TypeError(f"experts[0]: got {type(first).__name__}, expected Expert")
    event = tuple(shape) if shape is not None else first.shape
    if event is None:
        raise ValueError("shape: is not known from the experts; give it")
    sigmas = tuple(levels) if levels is not None else first.diffusion.levels(steps)
    if len(sigmas) < 2 or not min(sigmas) > 0.0:
        raise ValueError(f"levels: got {len(sigmas)} of them, expected two or more positive standard deviations")
    variances = _with_churn([s * s for s in sigmas], churn)
    kappa = _default_noise(target, weights) if noise is None else noise
    if not (math.isfinite(kappa) and kappa >= 0.0):
        raise ValueError(f"noise: got {kappa}, expected a finite number >= 0")
    model = CorrectedModel(
        target,
        variances,
        event,
        noise=kappa,
        gauge=gauge,
        control=control,
        weights=weights,
        dtype=dtype,
        chunk_size=chunk_size,
    )
    bound = noise_bound(model)
    amplifies = max(sum(level.powers) for level in model.levels) > 1.0
    if kappa <= bound and (bound > 0.0 or amplifies) and weights != "none" and not force:
        raise UnstableNoise(kappa, bound, 'use more noise or gauge="reference"')
    return model


def sample_corrected(
    target: Target[Expert],
    *,
    particles: int,
    populations: int = 1,
    steps: int = 200,
    noise: float | None = None,
    gauge: Gauge = "reference",
    control: Control = "none",
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
    collectors: Sequence[Collector] = (),
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    on_collapse: Literal["raise", "keep"] = "raise",
) -> WeightedSamples:
    """Weighted samples of a product of powers of pretrained laws, and its normalising constant.

    Args:
        target: ``Annealed``, ``Product``, ``GeometricAverage``, ``AnnealedProduct`` or any :class:`Target`, possibly
            ``.tilted`` by a reward.
        particles: K.
        populations: P, independent.
        steps: moves from the noisiest level to the last.
        noise: kappa, the multiplier of the noise variance; None: 2 where the exponents add to more than one, else 1
            (and 1 where the experts' log-densities have to be tracked, which is cheapest there).
        gauge: the linear part of every move: ``"reference"``, exact for the Gaussian of the experts' ``mean`` and
            ``std``; ``"fitted"``, for moments fitted to each population on the way; ``"velocities"``, the sum of the
            experts' own velocities; ``"plain"``, Euler's; ``"ddim"``, the step of a DDIM, DDPM or ancestral scheduler
            with the combined prediction and eta^2 = ``noise``.
        control: a field added to the drift and counted in the weight: ``"none"``; ``"score"``, constant weights for any
            Gaussian; ``"reward"``, the reward's whole gradient; ``"least_squares"``, the mixture of both and a line
            that makes each increment's variance smallest. Rates then need divergences, see ``Expert.divergence``.
        weights: ``"kernel"``, ``"rate"``, ``"none"`` (the law without correction), or ``"auto"``: kernel weights where
            every expert knows its density and the moves do not look at the population, else rates.
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
        collectors: what to record at every level, see :func:`feynkac.fkc.smc`.
        checkpoint: see :func:`feynkac.fkc.smc`.
        resume: see :func:`feynkac.fkc.smc`.
        on_collapse: see :func:`feynkac.fkc.smc`.

    Raises:
        PopulationCollapsed: see ``on_collapse``.
        UnstableNoise: see ``force``.
        PathCollapsed: the target cannot be normalised at some level.
        ValueError: settings that contradict each other.
    """
    model = corrected_model(
        target,
        steps=steps,
        noise=noise,
        gauge=gauge,
        control=control,
        weights=weights,
        churn=churn,
        levels=levels,
        shape=shape,
        force=force,
        dtype=dtype,
        chunk_size=chunk_size,
    )
    chosen = secrets.randbits(62) if seed is None else seed
    result = smc(
        model,
        particles=particles,
        seed=chosen,
        populations=populations,
        resampler=resampler,
        ess_threshold=ess_threshold,
        collectors=collectors,
        checkpoint=checkpoint,
        resume=resume,
        on_collapse=on_collapse,
    )
    return WeightedSamples(result, chosen, tuple(level.h for level in model.levels))


def _default_noise(target: Target[Expert], weights: Weights = "auto") -> float:
    known = all(expert.log_density is not None for expert in target.experts)
    if not known and (target.moving or weights == "kernel"):
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
