"""A population of weighted particles: its log-weights, its evidence, its family tree."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Generator, Tensor

from .errors import NonFiniteWeightWarning, PopulationCollapsed, WeightError
from .resampling import Scheme, draw_ancestors, get_scheme
from .weights import Summary, as_log_weights, row_sum

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
        return self.log_base + self._summary.log_mean

    @property
    def ess(self) -> Tensor:
        """Effective sample size ``(P,)``, in particles: 1..K, or 0 for a collapsed population."""
        return self._summary.ess

    @property
    def weights(self) -> Tensor:
        """Normalised weights ``(P, K)``; a collapsed population has zeros."""
        return self._summary.weights

    @property
    def collapsed(self) -> Tensor:
        """``(P,)`` bool: no particle alive."""
        return self._summary.total == 0.0

    @cached_property
    def _summary(self) -> Summary:
        return Summary.of(self.log_weights)

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
        updated, n_nan = self.log_weights + increment, self.n_nan
        if not bool((updated < math.inf).all()):  # NaN or infinite somewhere
            updated, n_nan = self._contained(increment)
        result = Population(
            updated,
            self.log_base,
            self.roots,
            self.log_coalescence,
            self.n_resamplings,
            self.n_reweightings + 1,
            n_nan,
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
        n_due = int(due.sum())
        if n_due == 0:
            return self, None
        if n_due == self.n_populations:
            return self._all_resampled(generator, get_scheme(scheme))
        rows = due.nonzero().reshape(-1)
        generators = generator if isinstance(generator, Generator) else [generator[r] for r in rows.tolist()]
        part, drawn = self.select(rows)._all_resampled(generators, get_scheme(scheme))
        ancestors = torch.arange(self.n_particles, device=rows.device).repeat(self.n_populations, 1)
        ancestors[rows] = drawn
        return self.updated(rows, part), ancestors

    def _all_resampled(self, generator: Generator | Sequence[Generator], scheme: Scheme) -> tuple[Population, Tensor]:
        """Every population resamples."""
        ancestors = draw_ancestors(self._summary.relative, scheme, generator)
        lost_pairs = _lost_pairs(self.weights, scheme)
        result = Population(
            torch.zeros_like(self.log_weights),
            self.log_evidence,
            self.roots.gather(-1, ancestors),
            self.log_coalescence - torch.log1p(-lost_pairs),
            self.n_resamplings + 1,
            self.n_reweightings,
            self.n_nan,
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

    def _contained(self, increment: Tensor) -> tuple[Tensor, Tensor]:
        """New log-weights where some increments are not numbers, and how many of those there were so far."""
        alive = self.log_weights > -math.inf
        self._refuse_infinite(alive & (increment == math.inf))
        nan = alive & increment.isnan()
        if bool(nan.any()) and not bool(self.n_nan.any()):
            warnings.warn(
                f"step {int(self.n_reweightings.max())}: {int(nan.sum())} log-weight increments are NaN; "
                "those particles count as dead",
                NonFiniteWeightWarning,
                stacklevel=3,
            )
        updated = torch.where(alive & ~nan, self.log_weights + increment, -math.inf)
        return updated, self.n_nan + nan.sum(dim=-1)

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
    lost = scheme.copy_variance(weights) / (k**2 * distinct.clamp_min(_ONE_WEIGHT))
    return lost.clamp(0.0, 1.0 - 1e-12)


_ONE_WEIGHT = 1e-12  # share of pairs below which a single weight is all there is, up to rounding
