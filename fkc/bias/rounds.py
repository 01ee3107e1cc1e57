r"""Batch after batch: draw under the bias, deposit, draw under the next one; and what all batches say together.

Round k draws weighted samples of :math:`p\, e^{-V_k/kT} / Z_k`, whatever it is that draws. Their weights are undone by
:math:`e^{V_k/kT}` with the bias that acted on them, and two estimators join the rounds:

* ``sequential``: the undone weights as they are. Each round's are unbiased given the rounds before it, so that their
  mean is, too (the errors are martingale differences).
* ``mixture``: a sample of round k with weight w of the biased law weighs

  .. math:: \frac{w / Z_k}{\sum_j a_j e^{-V_j/kT} / Z_j},

  a_j the rounds' shares of the samples (the balance heuristic: Veach, Guibas 1995, Proc. SIGGRAPH, 419). For given
  biases this is unbiased with any numbers in the place of the Z_j, as every round has weights of its own; the best are
  its own estimates of them, to which it is iterated. So errors of the Z_j are of second order. With a first round
  without a bias no weight is above w / (Z_k a_0), however strong later biases are. Dividing a round's weights by their
  own sum instead, as for samples of unknown evidence, would bias every round by 1/n, which more rounds never average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from ..errors import WeightError
from ..weights import effective_sample_size, log_mean_exp, normalize
from .base import RepulsionBias
from .variables import check_values

__all__ = ["Draw", "Drawn", "PooledRounds", "Round", "bias_rounds", "occupied_cells", "pool_rounds"]

T = TypeVar("T")
Pooling = Literal["mixture", "sequential"]
OfSamples = Tensor | Callable[[Tensor], Tensor]

_TOLERANCE, _ITERATIONS = 1e-10, 2_000
"""Of the log-normalizers."""


@dataclass(frozen=True, eq=False)
class Drawn(Generic[T]):
    """Samples of one round.

    Attributes:
        values: (n, d) of the variables; rows that are not finite weigh nothing.
        log_weights: (n,) of the biased law; the mean of their exponentials estimates its integral, Z_k.
        payload: whatever else belongs to them.
        groups: (n,) int64, the same for samples that are not independent, such as a population's; None: all are.
        picked: (m,) int64 rows that were resampled by weight and deposit, equally; None: all do, by their weights.
    """

    values: Tensor
    log_weights: Tensor
    payload: T
    groups: Tensor | None = None
    picked: Tensor | None = None

    def left_on(self, bias: RepulsionBias, *, time: float) -> RepulsionBias:
        """The bias after these samples."""
        if self.picked is not None:
            return bias.deposited(self.values[self.picked], time=time)
        return bias.deposited(self.values, self.log_weights, time=time)


Draw = Callable[[RepulsionBias, int], Drawn[T]]
"""(the bias that acts, index of the round) -> its samples."""


@dataclass(frozen=True, eq=False)
class Round(Generic[T]):
    """One round.

    Attributes:
        index: 0 for the first.
        bias: that acted on the samples, by which their weights are undone.
        drawn: the samples.
        following: the bias after them; the same object where nothing was deposited.
    """

    index: int
    bias: RepulsionBias
    drawn: Drawn[T]
    following: RepulsionBias

    @property
    def log_weights(self) -> Tensor:
        """(n,) float64 of the law without the bias; the mean of their exponentials is unbiased for its integral."""
        return self.bias.reweight(self.drawn.values, self.drawn.log_weights)


def bias_rounds(
    draw: Draw[T], bias: RepulsionBias, *, filling: int, frozen: int = 0, first: int = 0
) -> Iterator[Round[T]]:
    """Rounds in order: ``filling`` that each deposit their samples, then ``frozen`` that deposit nothing.

    A deposit weighs every sample by its weight under the biased law of its round, or takes resampled ones.

    Args:
        draw: makes the samples of a round.
        bias: that acts on the first round made here.
        filling: rounds that deposit.
        frozen: rounds under the last bias.
        first: index of the first round made here: those before it are there already, ``bias`` is what they left.

    Raises:
        ValueError: counts that leave nothing to do.
    """
    if filling < 0 or frozen < 0 or filling + frozen < 1 or not 0 <= first <= filling + frozen:
        raise ValueError(f"rounds: got {filling} filling and {frozen} frozen ones from number {first}")
    for index in range(first, filling + frozen):
        drawn = draw(bias, index)
        following = drawn.left_on(bias, time=float(index)) if index < filling else bias
        yield Round(index, bias, drawn, following)
        bias = following


# --- all rounds together ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PooledRounds:
    """The samples of R rounds as one weighted sample of the law without a bias.

    Attributes:
        values: (N, d), round after round.
        log_weights: (N,) float64, raw.
        round_index: (N,) int64.
        groups: (N,) int64, of independent groups; those of different rounds differ.
        log_normalizers: (R,) log Z_k of the rounds: of each by itself, or by all samples.
    """

    values: Tensor
    log_weights: Tensor
    round_index: Tensor
    groups: Tensor
    log_normalizers: Tensor

    @property
    def ess(self) -> float:
        """Kish's effective sample size; that samples of one group depend on each other is not considered."""
        return float(effective_sample_size(self.log_weights))

    @property
    def log_evidence(self) -> float:
        """Log of the integral of the law without the bias; before the logarithm unbiased for ``"sequential"``, with a
        bias of order 1/N for ``"mixture"``."""
        return float(log_mean_exp(self.log_weights))

    def mean(self, function_values: OfSamples) -> Tensor:
        """Weighted mean (...) float64 of f: its values at the samples (N, ...), or a function from ``values`` (N, d) to
        them; ValueError if it has not N rows. Where the weight is zero f may be NaN."""
        return self._moments(function_values)[0]

    def std_error(self, function_values: OfSamples) -> Tensor:
        """Standard error (...) of :meth:`mean`, by the delta method over the groups; inf for a single group."""
        return self._moments(function_values)[1]

    def _moments(self, function_values: OfSamples) -> tuple[Tensor, Tensor]:
        found = torch.as_tensor(function_values(self.values) if callable(function_values) else function_values)
        if found.shape[:1] != self.log_weights.shape:
            raise ValueError(f"function_values: got {tuple(found.shape)} for {len(self.log_weights)} samples")
        alive = self.log_weights > -math.inf
        values = found[alive].double()
        weights = normalize(self.log_weights[alive]).reshape(-1, *[1] * (values.ndim - 1))
        mean = (weights * values).sum(dim=0)
        labels, place = torch.unique(self.groups, return_inverse=True)
        if (count := len(labels)) < 2:
            return mean, torch.full_like(mean, math.inf)
        sums = torch.zeros((count, *values.shape[1:]), dtype=torch.float64)
        sums = sums.index_add(0, place[alive], weights * (values - mean))
        return mean, (sums.square().sum(dim=0) * count / (count - 1)).sqrt()


def pool_rounds(rounds: Sequence[Round[T]], how: Pooling = "mixture") -> PooledRounds:
    """All samples of all rounds, filling ones included, weighted for the law without the bias.

    Args:
        rounds: as :func:`bias_rounds` made them.
        how: see the head of this module.

    Raises:
        ValueError: no rounds, biases of different kT, or another word for ``how``.
        WeightError: no sample has a weight, or (``"mixture"``) normalizers that do not settle.
    """
    if how not in ("mixture", "sequential"):
        raise ValueError(f"how: got {how!r}, expected 'mixture' or 'sequential'")
    if not rounds or len({one.bias.kT for one in rounds}) > 1:
        raise ValueError("rounds: expected at least one, all of one kT")
    values = torch.cat([check_values(one.drawn.values.detach().cpu(), one.bias.dimension) for one in rounds])
    sizes = torch.tensor([len(one.drawn.log_weights) for one in rounds])
    index = torch.repeat_interleave(torch.arange(len(rounds)), sizes)
    biased = [one.drawn.log_weights.detach().cpu().double() for one in rounds]
    finite = torch.isfinite(values).all(dim=1)
    log_weights = torch.where(finite, torch.cat(biased), -math.inf)
    if not bool((log_weights > -math.inf).any()):
        raise WeightError("rounds: no sample has a weight")
    if how == "sequential":
        undone = torch.cat([one.log_weights for one in rounds])
        return PooledRounds(values, undone, index, _groups(rounds), torch.stack([log_mean_exp(b) for b in biased]))
    inside = torch.where(finite[:, None], values, 0.0)
    reduced = torch.stack([one.bias(inside) / one.bias.kT for one in rounds])
    log_weights, log_normalizers = _mixture(reduced, log_weights, index)
    return PooledRounds(values, log_weights, index, _groups(rounds), log_normalizers)


def occupied_cells(values: Tensor, widths: Sequence[float]) -> int:
    """How many boxes of the given widths hold a sample (n, d); samples without finite values are in none."""
    finite = values[torch.isfinite(values).all(dim=1)].double()
    if not len(finite):
        return 0
    return len(torch.unique(torch.floor(finite / torch.tensor(list(widths), dtype=torch.float64)), dim=0))


def _groups(rounds: Sequence[Round[T]]) -> Tensor:
    labels, before = [], 0
    for one in rounds:
        own = one.drawn.groups
        found = torch.arange(len(one.drawn.log_weights)) if own is None else torch.unique(own, return_inverse=True)[1]
        labels.append(found + before)
        before += int(found.max()) + 1 if len(found) else 0
    return torch.cat(labels)


def _mixture(reduced: Tensor, log_weights: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Log-weights (N,) over the mixture of the rounds, and log Z_k (R,).

    Steps are halved: where every sample stands in a round as often as its law says, a whole one would do.

    Args:
        reduced: (R, N) V_j / kT of every sample under every bias.
        log_weights: (N,) of each sample under the biased law of its round; their mean estimates its integral.
        index: (N,) its round.
    """
    log_shares = torch.bincount(index, minlength=len(reduced)).double().div(len(index)).log()[:, None]

    def weighted(log_z: Tensor) -> Tensor:
        return log_weights - log_z[index] - torch.logsumexp(log_shares - log_z[:, None] - reduced, dim=0)

    log_z = torch.zeros(len(reduced), dtype=torch.float64) + log_mean_exp(log_weights)
    for _ in range(_ITERATIONS):
        moved = log_mean_exp(weighted(log_z) - reduced) - log_z
        log_z = log_z + 0.5 * moved
        if float(moved.abs().max()) < _TOLERANCE:
            return weighted(log_z), log_z
    raise WeightError("rounds: they share so little that their normalizers do not settle: pool them 'sequential'")
