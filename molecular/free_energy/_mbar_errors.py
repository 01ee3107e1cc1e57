r"""First-order errors of MBAR: of free energies, and of averages under its weights.

MBAR is the root of :math:`\sum_n p_{k}(x_n) = N_k`, p being the probability that x came from round k.  A sample's
influence on f is therefore :math:`-H^{+} p(x)`, :math:`H = \mathrm{diag}(N) - \sum_n p p^T`; its influence on anything
computed from the weights is the direct one plus that through f.  Rounds have fixed sizes, so influences are centred
within each round before they are summed by group (Geyer, "Estimating normalizing constants and reweighting mixtures",
Tech. Rep. 568, University of Minnesota (1994); Kong et al., J. R. Stat. Soc. B 65, 585 (2003)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fkc.weights import normalize
from .bootstrap import check_groups

__all__ = ["MixtureErrors"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureErrors:
    """What errors under MBAR weights are computed from; of the m samples with finite biases and the S sampled rounds.

    Attributes:
        kept: (n,) bool, which samples are among the m.
        weights: (m,) of the unbiased law, sum 1.
        shares: (m, S) probability that a sample came from each sampled round.
        response: (S, S) minus the generalised inverse of H; a sample's influence on f is ``shares @ response``.
        rounds: (m,) index of the round.
        groups: (m,) index of the independent group.
        inefficiency: (m,) variance of a sample's contribution over that of an independent one.
        covariance: (K + 1, K + 1) of free energies relative to round 0, the unbiased law last.
        sampled_counts: (S,) samples of the sampled rounds.
    """

    kept: Tensor
    weights: Tensor
    shares: Tensor
    response: Tensor
    rounds: Tensor
    groups: Tensor
    inefficiency: Tensor
    covariance: Tensor
    sampled_counts: Tensor

    @classmethod
    def of(
        cls,
        u: Tensor,
        f: Tensor,
        log_weights: Tensor,
        rounds: Tensor,
        counts: Tensor,
        kept: Tensor,
        groups: Tensor | None,
        inefficiency: Tensor | Sequence[float] | None,
    ) -> MixtureErrors:
        """From a solution: u (K, m), f (K,), log_weights (m,), rounds (m,), counts (K,), kept (n,).

        Raises:
            ValueError: groups and inefficiency together, either of a wrong shape, or a round with one group only.
        """
        if groups is not None and inefficiency is not None:
            raise ValueError("give groups or inefficiency: both describe the same correlation")
        index = check_groups(groups[kept] if groups is not None and groups.shape == kept.shape else groups, u.shape[1])
        sampled = counts > 0
        log_shares = torch.log(counts[sampled].double())[:, None] + f[sampled, None] - u[sampled] + log_weights
        shares = log_shares.exp().T.contiguous()
        hessian = torch.diag(counts[sampled].double()) - shares.T @ shares
        # The constant vector is the gauge: H annihilates it, and no difference of free energies sees it.
        response = -torch.linalg.pinv(hessian, hermitian=True, rtol=1e-12)
        bare = cls(
            kept=kept,
            weights=normalize(log_weights),
            shares=shares,
            response=response,
            rounds=rounds,
            groups=index,
            inefficiency=_inefficiency(inefficiency, len(counts))[rounds],
            covariance=torch.zeros(0),
            sampled_counts=counts[sampled],
        )
        # Normalised weights of every round and of the unbiased law; their free energies are -ln of sums.
        states = torch.softmax(log_weights - u, dim=1)
        columns = torch.cat([states.T, bare.weights[:, None]], dim=1)
        influence = bare.through_rounds(columns, sign=-1.0)
        covariance = bare.variance(influence - influence[:, :1])
        return cls(**{**bare.__dict__, "covariance": covariance})

    def through_rounds(self, columns: Tensor, *, sign: float = 1.0) -> Tensor:
        """Influence (m, c) on sign * ln(sum of w y), of columns (m, c) of w y scaled to sum 1: direct and through f."""
        total: Tensor = sign * (columns - self.shares @ (self.response @ (self.shares.T @ columns)))
        return total

    def variance(self, influence: Tensor) -> Tensor:
        """Covariance (c, c) of sums of influences (m, c): centred by round, summed by group."""
        n_rounds = int(self.rounds.max()) + 1
        size = torch.bincount(self.rounds, minlength=n_rounds).clamp_min(1).double()
        means = _sums(influence, self.rounds, n_rounds) / size[:, None]
        lone = self._groups_per_round(n_rounds)
        scale = torch.sqrt(lone / (lone - 1))
        centred = (influence - means[self.rounds]) * (scale[self.rounds] * self.inefficiency.sqrt())[:, None]
        summed = _sums(centred, self.groups, int(self.groups.max()) + 1)
        return summed.T @ summed

    def contrast_std_error(self, inside: Tensor, outside: Tensor) -> float:
        """Error of ln[sum w outside / sum w inside], regions (n,) bool of all samples; NaN if one is empty."""
        inside, outside = inside[self.kept].double(), outside[self.kept].double()
        p, q = float(self.weights @ inside), float(self.weights @ outside)
        if not (p > 0 and q > 0):
            return math.nan
        column = self.weights * (outside / q - inside / p)
        return math.sqrt(float(self.variance(self.through_rounds(column[:, None]))))

    def overlap(self) -> Tensor:
        """Overlap matrix of the sampled rounds (S, S), rows of sum 1."""
        return (self.shares.T @ self.shares) / self.sampled_counts[:, None]

    def _groups_per_round(self, n_rounds: int) -> Tensor:
        """(R,) number of groups with samples in each round; infinite for a round without samples."""
        pairs = torch.unique(torch.stack([self.rounds, self.groups]), dim=1)[0]
        found = torch.bincount(pairs, minlength=n_rounds).double()
        if bool((found == 1).any()):
            alone = (found == 1).nonzero().reshape(-1).tolist()
            raise ValueError(f"an error bar needs at least two groups in every round; round(s) {alone} have one")
        return torch.where(found == 0, 2.0, found)


def _inefficiency(inefficiency: Tensor | Sequence[float] | None, n_rounds: int) -> Tensor:
    if inefficiency is None:
        return torch.ones(n_rounds, dtype=torch.float64)
    g = torch.as_tensor(inefficiency, dtype=torch.float64).cpu()
    if g.shape != (n_rounds,) or not bool((torch.isfinite(g) & (g >= 1)).all()):
        raise ValueError(f"inefficiency must hold {n_rounds} numbers of at least 1, got {g.tolist()}")
    return g


def _sums(values: Tensor, index: Tensor, size: int) -> Tensor:
    return values.new_zeros(size, values.shape[1]).index_add_(0, index, values)
