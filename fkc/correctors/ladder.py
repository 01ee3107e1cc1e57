r"""A ladder of noise levels: one chain at every rung, exchanged along paths of the corrected model's own moves.

Rungs a (noisier) and b have the laws :math:`\pi_a, \pi_b`. Between them the model has moves K and backward kernels L.
An exchange draws a path down from the state of a, and one up from the state of b,

.. math:: z_a = y_a,\; z_{k+1} \sim K_{k+1}(\cdot | z_k),\ y_b' = z_b; \qquad
          u_b = y_b,\; u_{k} \sim L_{k+1}(\cdot | u_{k+1}),\ y_a' = u_a,

and accepts (y_a', y_b') with probability :math:`\min(1, e^{W(z) - W(u)})`, W being the sum of the kernel weights

.. math:: W(z) = \log\frac{\pi_b(z_b)\prod L(z_k | z_{k+1})}{\pi_a(z_a)\prod K(z_{k+1} | z_k)},

each read along its path downwards. Why: where :math:`(y_a, y_b) \sim \pi_a\pi_b`, the pair of paths has the density
:math:`\Pi(z, u) = \pi_a(z_a)\prod K(z) \cdot \pi_b(u_b)\prod L(u)`. Exchanging the two paths is an involution
without a Jacobian, and :math:`\Pi(u, z)/\Pi(z, u) = e^{W(z) - W(u)}`: a Metropolis test that leaves :math:`\Pi`, and
so its marginal :math:`\pi_a\pi_b`, invariant, at any number of levels between the rungs and whatever the kernels are.
Normalising constants cancel. With scores only, W holds the tracked change of the log-densities along the path
(:mod:`.densities`), an odd function of its direction; only that change enters, so that no density has to be known at a
rung, and the law left invariant is right up to the tracker's error.

Even and odd pairs take turns (non-reversible: Okabe et al. 2001, Syed et al. 2022). The noisiest rung proposes
independent draws of the target's Gaussian reference; the others make Langevin moves.

References:
    He et al. (2025), CREPE, arXiv 2509.23265. Zhang et al. (2025), accelerated parallel tempering, arXiv 2502.10328.
    He et al. (2025), RNE, arXiv 2506.05668, for densities by kernel ratios. Ballard and Jarzynski (2009), PNAS 106,
    12224, for acceptance by work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..cloud import Cloud
from ..population import Population
from ..resampling import resample
from ..smc import init as smc_init
from ..smc import step as smc_step
from ..streams import Streams, uniform
from ..tempering import StepSizeTuning
from .langevin import langevin_moves, reference_step
from .model import CorrectedModel, cloud_of, ends_of
from .moves import Normal

__all__ = ["Exchange", "Ladder", "SweepInfo"]

_NOISE, _DATA = 1, 2
_MALA_ACCEPTANCE = 0.574


@dataclass(frozen=True, eq=False)
class Ladder:
    """What the next sweep needs.

    Attributes:
        rungs: R particles (P, K) and their luggage, noise first.
        step_size: h of the Langevin moves (R, P) float64.
        visited: which end of the ladder each chain's walker saw last (R, P, K) int64: 0 none, 1 the noise, 2 the data.
        sweep: sweeps made.
    """

    rungs: tuple[Cloud, ...]
    step_size: Tensor
    visited: Tensor
    sweep: int


@dataclass(frozen=True, eq=False)
class SweepInfo:
    """What one sweep did.

    Attributes:
        accepted: exchanges (R - 1, P) float64, accepted fraction; NaN for pairs whose turn it was not.
        moved: accepted fraction (R, P) float64: Langevin moves, and in row 0 the independent draws.
        arrivals: walkers that reached the data after the noise (P,) int64: round trips.
        invalid: exchanges and proposals whose ratio was NaN (P,) int64, all rejected.
    """

    accepted: Tensor
    moved: Tensor
    arrivals: Tensor
    invalid: Tensor


@dataclass(frozen=True)
class Exchange:
    """The sampler: ``init`` and ``step``.

    Attributes:
        model: with kernel weights.
        rungs: indices of levels, from 0 to the last.
        moves: Langevin steps a rung a sweep.
        step_size: where their size starts, see :func:`.langevin.reference_step`.
        tuned: sweeps during which it is adapted, each population's on its own.
    """

    model: CorrectedModel
    rungs: tuple[int, ...]
    moves: int
    step_size: float
    tuned: int

    @property
    def evaluations(self) -> tuple[int, int]:
        """Evaluations of every expert for each ladder: in a sweep of even pairs, and in one of odd pairs."""
        a_move = 1 if self.model.known else 2
        again = int(self.model.divergences and self.moves > 0)
        local = (len(self.rungs) - 1) * (self.moves * a_move + again) + 1
        gaps = [b - a for a, b in zip(self.rungs[:-1], self.rungs[1:], strict=True)]
        return local + 2 * sum(gaps[0::2]), local + 2 * sum(gaps[1::2])

    def init(self, streams: Streams, particles: int, start: Tensor | None = None) -> Ladder:
        """Chains where one sequential run of K particles takes them, or at ``start`` (R, P, K, *event)."""
        populations = len(streams.noise)
        if start is None:
            clouds = self._descent(streams, particles)
        else:
            levels = [self.model.levels[i] for i in self.rungs]
            clouds = [
                cloud_of(self.model.evaluated(streams.noise, y.to(self.model.dtype), level, None), {})
                for y, level in zip(start, levels, strict=True)
            ]
        sizes = [reference_step(self.model, i, self.step_size) for i in self.rungs]
        visited = torch.zeros((len(self.rungs), populations, particles), dtype=torch.int64)
        return Ladder(
            tuple(clouds), torch.tensor(sizes, dtype=torch.float64)[:, None].repeat(1, populations), visited, 0
        )

    def step(self, streams: Streams, ladder: Ladder) -> tuple[Ladder, SweepInfo]:
        """Draws at the noise, Langevin moves at the other rungs, exchanges of every second pair."""
        rungs = list(ladder.rungs)
        rungs[0], fresh = self._redrawn(streams, rungs[0])
        moved, invalid = [fresh.double().mean(dim=1)], torch.zeros(len(fresh), dtype=torch.int64)
        for r in range(1, len(rungs)):
            rungs[r], kept, bad = langevin_moves(
                self.model, streams.noise, self.rungs[r], rungs[r], ladder.step_size[r], self.moves
            )
            moved.append(kept.mean(dim=1))
            invalid = invalid + bad
        fractions = torch.stack(moved)
        step_size = self._adapted(ladder, fractions)
        visited = ladder.visited.clone()
        visited[0] = torch.where(fresh, _NOISE, visited[0])
        accepted = torch.full((len(rungs) - 1, len(fresh)), torch.nan, dtype=torch.float64)
        for r in range(ladder.sweep % 2, len(rungs) - 1, 2):
            rungs[r], rungs[r + 1], swapped, bad = exchanged(
                self.model, streams, rungs[r], rungs[r + 1], self.rungs[r], self.rungs[r + 1]
            )
            visited[r], visited[r + 1] = (
                torch.where(swapped, visited[r + 1], visited[r]),
                torch.where(swapped, visited[r], visited[r + 1]),
            )
            accepted[r] = swapped.double().mean(dim=1)
            invalid = invalid + bad
        arrivals = (visited[-1] == _NOISE).sum(dim=1)
        visited[-1] = _DATA
        return Ladder(tuple(rungs), step_size, visited, ladder.sweep + 1), SweepInfo(
            accepted, fractions, arrivals, invalid
        )

    def _descent(self, streams: Streams, particles: int) -> list[Cloud]:
        """Equally weighted particles at every rung of one sequential run, whose K particles are the K ladders."""
        state, found = smc_init(self.model, streams, particles), []
        for index in range(self.model.n_steps + 1):
            if index > 0:
                state, _ = smc_step(self.model, state, streams)
            if index in self.rungs:
                weights = state.population.log_weights
                weights = torch.where(state.population.collapsed[:, None], 0.0, weights)
                found.append(state.cloud.permuted(resample(weights, "systematic", streams.resampling)))
        return found

    def _redrawn(self, streams: Streams, cloud: Cloud) -> tuple[Cloud, Tensor]:
        """Independent draws of the reference, with a Metropolis test, and which were accepted (P, K)."""
        proposal, _ = self.model.initial(streams.noise, cloud.n_particles)
        log_ratio = self._log_importance(proposal) - self._log_importance(cloud)
        accepted = uniform(streams.resampling, log_ratio.shape[1:]).log() < log_ratio
        return _where(accepted, proposal, cloud), accepted

    def _log_importance(self, cloud: Cloud) -> Tensor:
        """log pi - log N (P, K) at the noisiest level, up to a constant; for scores only the experts' laws there are
        the Gaussians that they claim, and what is left is the reward."""
        ends = ends_of(cloud, self.model.levels[0])
        reference = ends.level.reference
        if self.model.known:
            return ends.log_target() - Normal(reference.mean, reference.variance).log_density(ends.y)
        nothing = torch.zeros(ends.y.shape[:2], dtype=torch.float64)
        return nothing if ends.reward is None else ends.level.reward_scale * ends.reward

    def _adapted(self, ladder: Ladder, moved: Tensor) -> Tensor:
        if ladder.sweep >= self.tuned or self.moves == 0:
            return ladder.step_size
        tuning = StepSizeTuning(_MALA_ACCEPTANCE, 2.0 / (1.0 + ladder.sweep) ** 0.5)
        return torch.cat([ladder.step_size[:1], tuning.tuned(ladder.step_size[1:], moved[1:])])


def exchanged(
    model: CorrectedModel, streams: Streams, upper: Cloud, lower: Cloud, first: int, last: int
) -> tuple[Cloud, Cloud, Tensor, Tensor]:
    """One exchange between the levels ``first`` and ``last``.

    Returns:
        The particles of both, which were exchanged (P, K) bool, and NaN ratios (P,) int64.
    """
    below, down = _down(model, streams.noise, upper, first, last)
    above, up = _up(model, streams.noise, lower, first, last)
    log_ratio = down - up
    accepted = uniform(streams.resampling, log_ratio.shape[1:]).log() < log_ratio
    nan = log_ratio.isnan().sum(dim=1)
    return _where(accepted, above, upper), _where(accepted, below, lower), accepted, nan


def _down(
    model: CorrectedModel, generators: Sequence[Generator], cloud: Cloud, first: int, last: int
) -> tuple[Cloud, Tensor]:
    """The end of a path of moves, and its weight (P, K)."""
    nobody = Population.uniform(cloud.n_populations, cloud.n_particles)
    total = torch.zeros(cloud.x.shape[:2], dtype=torch.float64)
    for step in range(first + 1, last + 1):
        moved = model.move(generators, step, cloud, nobody)
        total = total + model.log_potential(step, cloud, moved)
        cloud = moved
    return cloud, total


def _up(
    model: CorrectedModel, generators: Sequence[Generator], cloud: Cloud, first: int, last: int
) -> tuple[Cloud, Tensor]:
    """The end of a path of backward kernels, and the weight (P, K) of the path read downwards."""
    total = torch.zeros(cloud.x.shape[:2], dtype=torch.float64)
    for step in range(last, first, -1):
        raised = model.ascent(generators, step, cloud)
        total = total + model.log_potential(step, raised, cloud)
        cloud = raised
    return cloud, total


def _where(mask: Tensor, new: Cloud, old: Cloud) -> Cloud:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(*mask.shape, *[1] * (a.ndim - 2)), a, b)

    carried = {name: pick(new.carried[name], value) for name, value in old.carried.items()}
    return replace(old, x=pick(new.x, old.x), carried=carried)
