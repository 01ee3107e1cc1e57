r"""MBAR: samples of several biases as one weighted sample of the unbiased law.

Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008).  Round k drew :math:`N_k` samples from
:math:`e^{-u_0(x) - u_k(x)}`; the physical part :math:`u_0` cancels, so only the reduced biases :math:`u_k = V_k / kT`
are needed, of *every* sample under *every* bias.  The equations are solved by pymbar.  Errors are those of the
estimating equations (a sandwich estimate by groups), so that correlated samples need not be thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...fkc.weights import effective_sample_size
from ._mbar_errors import MixtureErrors
from ._mbar_solver import MbarError, solve_mbar
from ._samples import check_kT
from .difference import FreeEnergyDifference, free_energy_difference

__all__ = ["Mbar", "MbarError", "mbar", "mbar_from_biases"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mbar:
    """Weights of all samples under the unbiased law, and free energies of the rounds.

    Free energies are reduced, in kT: f_k = -ln of the partition function of round k, relative to round 0.

    Attributes:
        log_weights: (n,) raw, -ln sum_k N_k exp(f_k - u_k(x)); -inf for samples without finite biases.
        free_energies: (K,); the first is 0.
        std_errors: (K,) of ``free_energies``; the first is 0.
        covariance: (K, K) of ``free_energies``.
        unbiased_free_energy: of the unbiased law relative to round 0.
        unbiased_std_error: its error.
        overlap: (S, S) matrix of the S rounds that have samples; row i holds the probabilities with which a sample
            of round i could have come from round j.
        overlap_scalar: 1 - its second eigenvalue: 0 when rounds fall apart into groups that share nothing, 1 when all
            are alike (Klimovich, Shirts and Mobley, J. Comput. Aided Mol. Des. 29, 397 (2015)).
        counts: (K,) samples used of each round.
        ess: Kish's effective number of samples of ``log_weights``, correlation not considered.
        n_dropped: samples without finite biases.
        errors: what errors of averages under the weights need.
    """

    log_weights: Tensor
    free_energies: Tensor
    std_errors: Tensor
    covariance: Tensor
    unbiased_free_energy: float
    unbiased_std_error: float
    overlap: Tensor
    overlap_scalar: float
    counts: Tensor
    ess: float
    n_dropped: int
    errors: MixtureErrors

    def difference(self, inside: Tensor, *, kT: float, outside: Tensor | None = None) -> FreeEnergyDifference:
        """`free_energy_difference` of the weights, with the errors of the f_k in its error bar.

        The function alone takes weights as given, and so misses that all hold the same estimated f_k: where regions are
        joined only by a chain of rounds, that is most of the error.

        Args:
            inside: (n,) bool.
            kT: kJ/mol.
            outside: (n,) bool; everything not inside when left out.

        Raises:
            ValueError: see `free_energy_difference`.
        """
        found = free_energy_difference(inside, self.log_weights, kT=kT, outside=outside, bootstrap=0)
        inside = inside.detach().cpu()
        sd = self.errors.contrast_std_error(inside, ~inside if outside is None else outside.detach().cpu())
        # d p = p (1 - p) d ln[p / (1 - p)]
        p = found.probability
        sd_p = p * (1 - p) * self.errors.contrast_std_error(inside, ~inside)
        return replace(found, std_error=sd, std_error_delta=sd, probability_std_error=sd_p)

    def difference_of_rounds(self, i: int, j: int) -> tuple[float, float]:
        """f_j - f_i in kT and its error."""
        variance = self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j]
        return float(self.free_energies[j] - self.free_energies[i]), math.sqrt(max(float(variance), 0.0))


def mbar(
    reduced_biases: Tensor,
    counts: Tensor | Sequence[int],
    *,
    groups: Tensor | None = None,
    inefficiency: Tensor | Sequence[float] | None = None,
) -> Mbar:
    """Weights of the unbiased law from samples of K rounds, each with its own bias.

    Correlated samples: all of them are used, as MBAR stays consistent; ``groups`` or ``inefficiency`` put the
    correlation into the errors (the usual subsampling reaches the same errors with fewer samples).

    Args:
        reduced_biases: (K, n) V_k(x_n) / kT, samples of round 0 first, then those of round 1, ...; columns that are not
            finite are dropped.
        counts: (K,) samples drawn in each round; zero is allowed, and their sum is n.
        groups: (n,) integer labels of walkers or blocks when samples are correlated; at least two a round.  The same
            label in two rounds is one walker that went on.
        inefficiency: (K,) statistical inefficiency g >= 1 of each round, instead of groups: variances grow by g.

    Raises:
        ValueError: for shapes or counts that do not fit, groups and inefficiency together, or fewer than two groups in
            a round.
        MbarError: when the equations cannot be solved.
        ImportError: without pymbar.

    Example:
        >>> x = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> x[1000:] += 1.0                                    # round 1 was tilted by -x
        >>> result = mbar(torch.stack([torch.zeros(2000, dtype=torch.float64), -x]), [1000, 1000])
        >>> abs(float(result.free_energies[1]) + 0.5) < 0.1
        True
    """
    u, size, kept = _check(reduced_biases, counts)
    n_rounds, n = u.shape
    used = u[:, kept]
    rounds = torch.repeat_interleave(torch.arange(n_rounds), size)[kept]
    size = torch.bincount(rounds, minlength=n_rounds)
    sampled = size > 0
    f = torch.zeros(n_rounds, dtype=torch.float64)
    f[sampled] = solve_mbar(used[sampled], size[sampled])
    f[~sampled] = -torch.logsumexp(-used[~sampled] + _log_weights(used, size, f), dim=1)
    log_used = _log_weights(used, size, f)
    unbiased = -float(torch.logsumexp(log_used, dim=0))
    shift = float(f[0])
    log_weights = torch.full((n,), -math.inf, dtype=torch.float64)
    log_weights[kept] = log_used
    errors = MixtureErrors.of(used, f, log_used, rounds, size, kept, groups, inefficiency)
    overlap = errors.overlap()
    return Mbar(
        log_weights=log_weights,
        free_energies=f - shift,
        std_errors=errors.covariance[:-1, :-1].diagonal().clamp_min(0).sqrt(),
        covariance=errors.covariance[:-1, :-1],
        unbiased_free_energy=unbiased - shift,
        unbiased_std_error=math.sqrt(max(float(errors.covariance[-1, -1]), 0.0)),
        overlap=overlap,
        overlap_scalar=_scalar(overlap),
        counts=size,
        ess=float(effective_sample_size(log_weights)),
        n_dropped=n - int(kept.sum()),
        errors=errors,
    )


def mbar_from_biases(
    biases: Sequence[Callable[[Tensor], Tensor]],
    values: Sequence[Tensor],
    kT: float,
    *,
    groups: Tensor | None = None,
    inefficiency: Tensor | Sequence[float] | None = None,
) -> Mbar:
    """`mbar` from the biases of the rounds and the values of the collective variables of their samples.

    Args:
        biases: K functions from values (B, d) to bias energies (B,).
        values: K tensors (n_k, d), samples of each round in the order of ``biases``; rows that are not finite are
            dropped.
        kT: in the unit of the biases.
        groups, inefficiency: see `mbar`.

    Raises:
        ValueError: for numbers of biases and rounds that differ, and see `mbar`.
    """
    check_kT(kT)
    if len(biases) != len(values) or not biases:
        raise ValueError(f"{len(biases)} biases for {len(values)} rounds of values")
    if any(part.ndim != 2 or part.shape[1] != values[0].shape[1] for part in values):
        raise ValueError(f"values must be (n_k, d), got {[tuple(part.shape) for part in values]}")
    pooled = torch.cat([part.detach().cpu().double() for part in values])
    finite = torch.isfinite(pooled).all(1)
    with torch.no_grad():
        rows = [bias(torch.where(finite[:, None], pooled, 0.0)).double().cpu() / kT for bias in biases]
    reduced = torch.where(finite, torch.stack(rows), math.nan)
    return mbar(reduced, [len(part) for part in values], groups=groups, inefficiency=inefficiency)


def _check(reduced_biases: Tensor, counts: Tensor | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    u = reduced_biases.detach().cpu().double()
    size = torch.as_tensor(counts).cpu()
    if u.ndim != 2 or size.shape != u.shape[:1] or size.is_floating_point():
        raise ValueError(f"reduced_biases must be (K, n) and counts K integers, got {tuple(u.shape)}, {size}")
    if bool((size < 0).any()) or int(size.sum()) != u.shape[1]:
        raise ValueError(f"counts must add up to n = {u.shape[1]}, got {size.tolist()}")
    kept = torch.isfinite(u).all(0)
    if int(kept.sum()) < 2:
        raise ValueError("fewer than two samples have finite biases")
    return u, size, kept


def _log_weights(u: Tensor, size: Tensor, f: Tensor) -> Tensor:
    """-ln of the mixture's density over that of the unbiased law, (n,)."""
    sampled = size > 0
    offsets = torch.log(size[sampled].double()) + f[sampled]
    return -torch.logsumexp(offsets[:, None] - u[sampled], dim=0)


def _scalar(overlap: Tensor) -> float:
    if overlap.shape[0] == 1:
        return 1.0
    return 1.0 - float(torch.linalg.eigvals(overlap).real.sort(descending=True).values[1])
