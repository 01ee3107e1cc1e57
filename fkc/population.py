"""A population of weighted particles: its log-weights, its evidence, its family tree."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from .errors import NonFiniteWeightWarning, PopulationCollapsed, WeightError
from .resampling import Scheme, get_scheme, resample
from .weights import as_log_weights, effective_sample_size, log_mean_exp, row_sum

__all__ = ["Population"]


@dataclass(frozen=True, eq=False)
class Population:
    r"""An immutable record of P populations of K log-weights.

    The evidence of population p after any number of reweightings and resamplings is

    .. math:: \log\hat Z_p = \text{log\_base}_p + \log\frac1K\sum_i \exp(\text{log\_weights}_{pi}),

    where a resampling moves the mean weight into ``log_base`` and sets the weights to one. Weights carried
    without a resampling stay in the second term, so the evidence always includes them. :math:`E[\hat Z] = Z`
    exactly.

    Attributes:
        log_weights: ``(P, K)`` float64, unnormalised, carried between resamplings.
        log_base: ``(P,)`` float64, log-evidence at each population's last resampling.
        roots: ``(P, K)`` int64, which initial particle (Eve) each particle descends from.
        log_coalescence: ``(P,)`` float64, ``-sum log(1 - c)`` over the resamplings; see
            :mod:`feynkac.fkc.genealogy`.
        n_resamplings: ``(P,)`` int64.
        n_reweightings: ``(P,)`` int64.
        n_nan: ``(P,)`` int64, NaN increments met so far; each one killed its particle.
    """

    log_weights: Tensor
    log_base: Tensor
    roots: Tensor
    log_coalescence: Tensor
    n_resamplings: Tensor
    n_reweightings: Tensor
    n_nan: Tensor

    def __post_init__(self) -> None:
        if self.log_weights.ndim != 2 or self.log_weights.dtype != torch.float64:
            raise WeightError(
                f"log_weights must be (P, K) float64, got {tuple(self.log_weights.shape)} {self.log_weights.dtype}"
            )

    @classmethod
    def uniform(cls, populations: int, particles: int, *, device: torch.device | str = "cpu") -> Population:
        """P populations of K particles of weight one and evidence one.

        Raises:
            ValueError: fewer than one population or particle.
        """
        if populations < 1 or particles < 1:
            raise ValueError(f"need at least one population and one particle, got {populations} x {particles}")
        zeros = torch.zeros(populations, dtype=torch.float64, device=device)
        counts = torch.zeros(populations, dtype=torch.int64, device=device)
        roots = torch.arange(particles, device=device).expand(populations, particles).clone()
        weights = torch.zeros((populations, particles), dtype=torch.float64, device=device)
        return cls(weights, zeros, roots, zeros.clone(), counts, counts.clone(), counts.clone())

    @classmethod
    def from_log_weights(cls, log_weights: Tensor) -> Population:
        """A population that starts with these log-weights ``(P, K)``, or ``(K,)`` for one population.

        Raises:
            WeightError: NaN or ``+inf`` among them.
        """
        values = as_log_weights(log_weights if log_weights.ndim == 2 else log_weights[None]).clone()
        return replace(cls.uniform(*values.shape, device=values.device), log_weights=values)

    @property
    def n_populations(self) -> int:
        """P."""
        return self.log_weights.shape[0]

    @property
    def n_particles(self) -> int:
        """K."""
        return self.log_weights.shape[1]

    @property
    def log_evidence(self) -> Tensor:
        """Log of the evidence estimate, ``(P,)`` float64, the weights still carried included."""
        return self.log_base + log_mean_exp(self.log_weights)

    @property
    def ess(self) -> Tensor:
        """Effective sample size ``(P,)``, in particles: 1..K, or 0 for a collapsed population."""
        return effective_sample_size(self.log_weights)

    @property
    def weights(self) -> Tensor:
        """Normalised weights ``(P, K)``; a collapsed population has zeros."""
        top = self.log_weights.amax(dim=-1, keepdim=True)
        weights = (self.log_weights - torch.where(top.isfinite(), top, 0.0)).exp()
        total = weights.cumsum(dim=-1)[:, -1:]
        return weights / torch.where(total > 0, total, 1.0)

    @property
    def collapsed(self) -> Tensor:
        """``(P,)`` bool: no particle alive."""
        return self.log_weights.amax(dim=-1) == -math.inf

    @property
    def n_dead(self) -> Tensor:
        """Particles of weight zero now, ``(P,)`` int64."""
        return (self.log_weights == -math.inf).sum(dim=-1)

    def reweighted(self, log_increment: Tensor, *, on_collapse: Literal["raise", "keep"] = "raise") -> Population:
        """Multiplies the weights by ``exp(log_increment)``.

        Args:
            log_increment: ``(P, K)`` (anything that broadcasts to it). ``-inf`` kills a particle. NaN kills
                it too, is counted in ``n_nan`` and warned of once in the life of a population record.
                Whatever comes for a particle that is already dead is ignored.
            on_collapse: ``"raise"``, or ``"keep"`` to return a record whose collapsed populations have
                evidence zero.

        Raises:
            WeightError: ``+inf``: an infinite weight is an error of the potential.
            PopulationCollapsed: every particle of a population is dead after the step and
                ``on_collapse="raise"``.
        """
        increment = log_increment.to(self.log_weights).expand_as(self.log_weights)
        alive = self.log_weights > -math.inf
        self._refuse_infinite(alive & (increment == math.inf))
        nan = alive & increment.isnan()
        if bool(nan.any()) and not bool(self.n_nan.any()):
            warnings.warn(
                f"step {int(self.n_reweightings.max())}: {int(nan.sum())} log-weight increments are NaN; "
                "those particles count as dead",
                NonFiniteWeightWarning,
                stacklevel=2,
            )
        updated = torch.where(alive & ~nan, self.log_weights + increment, -math.inf)
        result = replace(
            self,
            log_weights=updated,
            n_reweightings=self.n_reweightings + 1,
            n_nan=self.n_nan + nan.sum(dim=-1),
        )
        if on_collapse == "raise":
            result._refuse_collapse()
        return result

    def resampled(
        self,
        generator: Generator | Sequence[Generator],
        *,
        scheme: str | Scheme = "systematic",
        threshold: float = 0.5,
    ) -> tuple[Population, Tensor | None]:
        """Resamples each population whose own ESS is below ``threshold * K``; the others keep particles and
        weights.

        Args:
            generator: one generator, or P of them, of which only those of the populations that resample are
                drawn from.
            scheme: see :func:`feynkac.fkc.resample`.
            threshold: fraction of K; 0 never resamples, above 1 always does.

        Returns:
            The new record and the ancestors ``(P, K)`` int64 (the identity for populations that did not
            resample), or None if no population did. Apply the ancestors to everything a particle carries.
        """
        due = (self.ess < threshold * self.n_particles) & ~self.collapsed
        rows = due.nonzero().reshape(-1)
        if rows.numel() == 0:
            return self, None
        chosen = get_scheme(scheme)
        generators = generator if isinstance(generator, Generator) else [generator[r] for r in rows.tolist()]
        identity = torch.arange(self.n_particles, device=rows.device)
        ancestors = identity.expand(self.n_populations, self.n_particles).clone()
        ancestors[rows] = resample(self.log_weights[rows], chosen, generators)
        lost_pairs = _lost_pairs(self.weights, chosen)
        result = replace(
            self,
            log_weights=torch.where(due[:, None], 0.0, self.log_weights),
            log_base=torch.where(due, self.log_evidence, self.log_base),
            roots=self.roots.gather(-1, ancestors),
            log_coalescence=self.log_coalescence - torch.where(due, torch.log1p(-lost_pairs), 0.0),
            n_resamplings=self.n_resamplings + due,
        )
        return result, ancestors

    def select(self, rows: Tensor) -> Population:
        """The record of some of the populations; ``rows`` int64."""
        return Population(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def updated(self, rows: Tensor, part: Population) -> Population:
        """This record with the populations ``rows`` replaced by those of ``part``."""
        return Population(
            **{f.name: getattr(self, f.name).index_copy(0, rows, getattr(part, f.name)) for f in fields(self)}
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the record holds, as tensors with P rows (copies)."""
        return {f.name: getattr(self, f.name).clone() for f in fields(self)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> Population:
        """Inverse of :meth:`state_dict`.

        Raises:
            KeyError: an entry is missing.
        """
        return cls(**{f.name: state[f.name].clone() for f in fields(cls)})

    def _refuse_infinite(self, infinite: Tensor) -> None:
        if bool(infinite.any()):
            rows = infinite.any(dim=-1).nonzero().reshape(-1).tolist()
            raise WeightError(
                f"step {int(self.n_reweightings.max())}: {int(infinite.sum())} log-weight increments are "
                f"+inf in population(s) {rows}; a potential must be finite or zero"
            )

    def _refuse_collapse(self) -> None:
        collapsed = self.collapsed
        if bool(collapsed.any()):
            rows = collapsed.nonzero().reshape(-1).tolist()
            raise PopulationCollapsed(rows, int(self.n_reweightings.max()) - 1, self.n_particles)


def _lost_pairs(weights: Tensor, scheme: Scheme) -> Tensor:
    """Share of pairs with two parents that the noise of the copy numbers costs, ``(P,)``; 1/K for
    multinomial."""
    k = weights.shape[-1]
    distinct = 1 - row_sum(weights.square())
    lost = scheme.copy_variance(weights) / (k**2 * distinct.clamp_min(torch.finfo(torch.float64).tiny))
    return torch.where(distinct > 0, lost, 0.0).clamp(0.0, 1.0 - 1e-12)
