"""Repulsion: tilt a sampler away from where samples have been, along one to three features of theirs, and undo it.

    repulsion = Repulsion(bias, features, on="latents")
    output, run = steer(pipe, repulsion, particles=64, seed=0, ...)     # samples of p exp(-V(xi(x0)) / kT), weighted
    log_weights = repulsion.reweight(run)                               # of p again
    repulsion = repulsion.deposited(run)                                # with the bias that comes next

V is a :class:`feynkac.fkc.bias.RepulsionBias`. On the way exp(-V(xi(x0-hat))/kT) chooses among particles; the last
correction makes the target exact for the final samples, as for every control.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..fkc.bias import RepulsionBias
from ..fkc.bias.rounds import Drawn
from .context import FinalContext, StepContext
from .controls import Memory, Target, Weighed, When, due
from .errors import SteeringError
from .fk import FKSteering
from .gradient import Gradient
from .repulsion_energy import BiasEnergy, Features
from .run import Run
from .tilt import Potential, Space
from .values import Draws

__all__ = ["Features", "Repulsion"]


@dataclass(frozen=True, eq=False)
class Repulsion:
    """Tilt to p(x0) exp(-V(xi(x0)) / kT) / Z.

    Attributes:
        bias: V, of d variables. One without hills asks nothing on the way.
        features: xi; such as a :class:`feynkac.steering.projection.Projection` of an embedding. Differentiable for
            ``gradient``.
        on: what features are given: ``"images"``, decoded as the pipeline does: a list of PIL images (for videos: of
            lists of frames), whatever the call's ``output_type``, and for the ``gradient`` a tensor (rows, C, H, W)
            of nominally [0, 1] with a graph (features then meet both); with ``decode=`` in the call what it returns;
            ``"latents"``: x0-hat itself, a tensor; ``"tokens"``: a tensor of them.
        potential, when, value, lag, gradient, chunk_size: as for :class:`feynkac.steering.FKSteering`, of which this is
            the case of reward -V(xi)/kT at scale 1.
    """

    bias: RepulsionBias
    features: Features
    on: Space = "images"
    potential: Potential = "difference"
    when: When = None
    value: Literal["denoised"] | Draws = "denoised"
    lag: Literal[0, 1] = 0
    gradient: Gradient | None = None
    chunk_size: int | None = None
    _energy: BiasEnergy = field(init=False, repr=False)
    _steering: FKSteering = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.bias, RepulsionBias):
            raise ValueError(f"bias: got {type(self.bias).__name__}, expected a RepulsionBias")
        if not callable(self.features):
            raise ValueError(f"features: got {type(self.features).__name__}, expected a callable of samples")
        energy = BiasEnergy(self.bias, self.features)
        steering = FKSteering(
            energy,
            scale=1.0,
            potential=self.potential,
            when=self.when,
            value=self.value,
            on=self.on,
            lag=self.lag,
            gradient=self.gradient,
            chunk_size=self.chunk_size,
        )
        object.__setattr__(self, "_energy", energy)
        object.__setattr__(self, "_steering", steering)

    # --- a control ----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Names of the variables."""
        return self._energy.name

    @property
    def candidates(self) -> int:
        """One: particles are judged, not chosen among siblings."""
        return 1

    @property
    def reward_calls(self) -> int:
        """Samples whose features were asked for so far."""
        return self._steering.reward_calls

    def begin(self, rows: int) -> Memory:
        """No feature seen, value zero."""
        return self._steering.begin(rows)

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """Log-potential of x0-hat; 0 for a bias that is the same everywhere, and features are not asked for."""
        if self.bias.counts.hills:
            return self._steering.weigh(context, memory)
        if not due(self.when, context):
            return None
        return Weighed(torch.zeros(len(context.sample), dtype=torch.float64), memory)

    def target(self, final: FinalContext, memory: Memory) -> Target:
        """-V(xi(x0)) / kT; what xi was is kept for :meth:`values`."""
        with self._energy.recorded() as tape:
            judged = self._steering.target(final, memory)
        self._energy.keep(final.sample, judged.reward, tape)
        return judged

    # --- after a run --------------------------------------------------------------------------------------------------

    def values(self, run: Run) -> Tensor:
        """Features (P, K, d) float64 of the final samples, in the order of ``run.log_weights``, as they were measured
        when the samples were weighted; NaN rows where there were none.

        Raises:
            SteeringError: this control did not measure these samples.
        """
        name, energies = self._of(run)
        found = self._energy.recalled(run.samples(), energies.reshape(-1))
        if found is None:
            raise SteeringError(f"{name}: the run's samples were not measured by this control, but by another one")
        return found.reshape(*energies.shape, self.bias.dimension)

    def log_weights(self, run: Run) -> Tensor:
        """(P, K) float64 log-weights of the biased law, what resampling moved into the evidence included: the mean of
        their exponentials is an unbiased estimate of its integral, in each population and so over all."""
        population = run.population
        self._of(run)
        assert population is not None  # seen by _of
        return population.log_weights + population.log_base[:, None]

    def reweight(self, run: Run) -> Tensor:
        """(P, K) float64 log-weights of the law without the bias: that of the pipeline, or of the other controls.

        They are the weights of the biased law times exp(V/kT), V as it acted; the mean of their exponentials over a
        population is an unbiased estimate of the evidence without the bias, which is 1 where nothing else steers.

        Raises:
            SteeringError: the run has no exact weights, or has not reached its end.
        """
        _, energies = self._of(run)
        return torch.where(energies > -math.inf, self.log_weights(run) - energies, -math.inf)

    def deposited(self, run: Run, *, time: float = 0.0) -> Repulsion:
        """With the bias that the run's samples leave behind, each by its weight under the biased law.

        Args:
            run: of this control, complete.
            time: of the batch, for files.
        """
        values = self.values(run).flatten(0, 1)
        return self.with_bias(self.bias.deposited(values, self.log_weights(run).flatten(), time=time))

    def drawn(self, run: Run) -> Drawn[Run]:
        """The run as a round of :mod:`feynkac.fkc.bias.rounds`; a population is a group."""
        weights = self.log_weights(run)
        groups = torch.arange(len(weights)).repeat_interleave(weights.shape[1])
        return Drawn(self.values(run).flatten(0, 1), weights.flatten(), run, groups)

    def with_bias(self, bias: RepulsionBias) -> Repulsion:
        """The same control with another bias."""
        return replace(self, bias=bias)

    def _of(self, run: Run) -> tuple[str, Tensor]:
        """Name under which the run knows this control, and -V/kT (P, K) of its samples."""
        if not run.finished:
            raise SteeringError("the run has not reached its end")
        if not run.exact:
            raise SteeringError(f"the run has no exact weights: {'; '.join(run.notes)}")
        mine = [name for name in run.rewards_by_control if name == self.name or name.startswith(f"{self.name} (")]
        if not mine:
            raise SteeringError(f"{self.name}: was not attached to this run; controls: {list(run.rewards_by_control)}")
        if len(mine) == 1:
            return mine[0], run.rewards_by_control[mine[0]]
        samples = run.samples()
        for name in mine:  # several of the same variables: the one whose record holds these energies
            if self._energy.recalled(samples, run.rewards_by_control[name].reshape(-1)) is not None:
                return name, run.rewards_by_control[name]
        raise SteeringError(f"{self.name}: the run's samples were not measured by this control")
