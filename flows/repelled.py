r"""Importance sampling in batches under a growing bias: exp(-(U + V(xi))/kT) from a proposal, and exp(-U/kT) again.

A batch's draws x of the proposal q carry log w = -(U + V_k(xi(x)))/kT - log q(x). They leave a deposit, each by this
weight (or by equal weights, after resampling), and the next batch is weighted with the bias that follows. A proposal
does not move for a bias, so that the undone weights, log w + V_k/kT, are those of
:func:`feynkac.flows.importance_sample`; what the bias adds are draws of the biased law, spread over the variables as
the proposal allows, and the bias itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from ..fkc.bias import RepulsionBias
from ..fkc.bias.rounds import Drawn, PooledRounds, Round, bias_rounds, pool_rounds
from ..fkc.errors import NonFiniteWeightWarning, PopulationCollapsed
from ..fkc.resampling import Scheme, resample
from ..fkc.streams import generator_for, split_seed
from .importance import EnergyFunction, ImportanceResult, importance_sample
from .proposal import Proposal

__all__ = ["RepelledProposal", "importance_sample_repelled"]

Deposit = Literal["weighted", "resampled"]

_RESAMPLING = 2**31 - 1  # an index that no chunk has


@dataclass(frozen=True, eq=False)
class RepelledProposal:
    """Batches of weighted draws.

    Attributes:
        rounds: in order; the payload of each is its :class:`feynkac.flows.ImportanceResult`, without a bias.
    """

    rounds: tuple[Round[ImportanceResult], ...]

    @property
    def bias(self) -> RepulsionBias:
        """The last one."""
        return self.rounds[-1].following

    @property
    def x(self) -> Tensor:
        """(N, ...) draws of all batches."""
        return torch.cat([one.drawn.payload.x for one in self.rounds])

    @property
    def values(self) -> Tensor:
        """(N, d) of the variables."""
        return torch.cat([one.drawn.values for one in self.rounds])

    @property
    def biased_log_weights(self) -> Tensor:
        """(N,) of the biased law of each draw's batch."""
        return torch.cat([one.drawn.log_weights for one in self.rounds])

    @property
    def log_weights(self) -> Tensor:
        """(N,) of exp(-U/kT), undone by the bias that acted on each."""
        return torch.cat([one.log_weights for one in self.rounds])

    def pooled(self) -> PooledRounds:
        """All draws as one weighted sample of exp(-U/kT): batches of one proposal join as they are."""
        return pool_rounds(self.rounds, "sequential")

    def resampled(self, n: int, generator: Generator, *, scheme: str | Scheme = "systematic") -> tuple[Tensor, Tensor]:
        """Draws (n, ...) of the last batch's biased law, and the log-weights (n,) that bring them back to exp(-U/kT).

        Raises:
            ValueError: n above the number of draws of the batch.
        """
        last = self.rounds[-1]
        count = len(last.drawn.log_weights)
        if not 1 <= n <= count:
            raise ValueError(f"n: got {n}, expected 1 to {count}")
        rows = resample(last.drawn.log_weights[None], scheme, generator)[0]
        rows = rows[torch.randperm(count, generator=generator)[:n]]
        return last.drawn.payload.x[rows], last.bias.reweight(last.drawn.values[rows])


def importance_sample_repelled(
    proposal: Proposal,
    energy: EnergyFunction,
    bias: RepulsionBias,
    variables: Callable[[Tensor], Tensor],
    n: int,
    *,
    batches: int,
    frozen_batches: int = 0,
    seed: int,
    deposit: Deposit = "weighted",
    chunk_size: int = 2048,
) -> RepelledProposal:
    """Draw in batches, weight each with the bias that those before it left.

    Args:
        proposal: draws x and log q(x).
        energy: x (B, ...) -> (B,) kJ/mol, with ``kT``.
        bias: to begin with, usually empty; its kT is that of the energy.
        variables: x (B, ...) -> values (B, d), or (B,) for one variable. Draws whose values are not finite weigh zero.
        n: draws of a batch.
        batches: that deposit.
        frozen_batches: more batches, under the last bias.
        seed: of the draws; each batch has streams of its own.
        deposit: ``"weighted"``: every draw leaves a kernel by its weight; ``"resampled"``: equal kernels of draws that
            were resampled by weight.
        chunk_size: draws made and evaluated at a time.

    Raises:
        ValueError: another kT, or a word for ``deposit`` that is none.
        PopulationCollapsed: no draw of a batch has a weight.

    Warns:
        NonFiniteWeightWarning, ParetoWarning: as :func:`feynkac.flows.importance_sample`, of weights without the bias.
    """
    if deposit not in ("weighted", "resampled"):
        raise ValueError(f"deposit: got {deposit!r}, expected 'weighted' or 'resampled'")
    if not math.isclose(bias.kT, energy.kT, rel_tol=1e-6):
        raise ValueError(f"bias: its kT is {bias.kT:g}, that of the energy {energy.kT:g}")

    def draw(acting: RepulsionBias, index: int) -> Drawn[ImportanceResult]:
        root = split_seed(seed, index)
        found = importance_sample(proposal, energy, n, seed=root, chunk_size=chunk_size)
        values = _values(variables, found.x, acting.dimension)
        finite = torch.isfinite(values).all(dim=1)
        energies = acting(torch.where(finite[:, None], values, 0.0)) / acting.kT
        log_weights = torch.where(finite, found.log_weights - energies, -math.inf)
        if not bool((log_weights > -math.inf).any()):
            raise PopulationCollapsed([0], index, n, found)
        if not bool(finite.all()):
            warnings.warn(
                f"batch {index}: {int((~finite).sum())} of {n} draws have no finite variables, and weight zero",
                NonFiniteWeightWarning,
                stacklevel=4,
            )
        picked = None
        if deposit == "resampled":
            picked = resample(log_weights[None], "systematic", generator_for(root, _RESAMPLING))[0]
        return Drawn(values, log_weights, found, picked=picked)

    return RepelledProposal(tuple(bias_rounds(draw, bias, filling=batches, frozen=frozen_batches)))


def _values(variables: Callable[[Tensor], Tensor], x: Tensor, dimension: int) -> Tensor:
    with torch.no_grad():
        values = variables(x).detach().cpu().double()
    return values[:, None] if dimension == 1 and values.ndim == 1 else values
