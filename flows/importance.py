"""Importance sampling: draws of a proposal, weighted towards exp(-U/kT), with everything needed to judge them.

    log w_i = -U(x_i)/kT - log q(x_i),    Z = E_q[w],    <f> = sum_i W_i f(x_i),  W_i = w_i / sum_j w_j.

Weights are raw: never clipped, floored or dropped. Pareto-smoothed and truncated weights stand beside them. A draw
without a finite energy or density has weight zero; such draws are counted, and warned of once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..fkc.checkpoint import exists, load_state, save_state
from ..fkc.errors import CheckpointError, NonFiniteWeightWarning, ParetoWarning, PopulationCollapsed
from ..fkc.pareto import ParetoSmoothed, Truncated, pareto_smooth, truncate
from ..fkc.resampling import Scheme, resample
from ..fkc.streams import generator_for
from ..fkc.weights import effective_sample_size, log_evidence_std_error, log_mean_exp, normalize
from .proposal import Proposal, ProposalFacts

__all__ = ["Draws", "EnergyFunction", "ImportanceResult", "importance_sample"]

Progress = Callable[[int, int, float, int], None]


class EnergyFunction(Protocol):
    """Positions (B, N, 3) nm -> energies (B,) kJ/mol, with ``kT`` in kJ/mol."""

    @property
    def kT(self) -> float:
        """Thermal energy, kJ/mol."""
        ...

    def __call__(self, positions: Tensor, /) -> Tensor:
        """Energies (B,) kJ/mol."""
        ...


@dataclass(frozen=True, eq=False)
class Draws:
    """Some draws on the CPU: x (n, ...), log_q and energies (n,) float64 (kJ/mol), and the energy calls made."""

    x: Tensor
    log_q: Tensor
    energies: Tensor
    n_energy_calls: int


@dataclass(frozen=True, eq=False)
class ImportanceResult:
    """Weighted draws of a proposal.

    Attributes:
        x: (n, ...) draws, in the order they were made.
        log_q: (n,) float64, log-density of the proposal.
        energies: (n,) float64, kJ/mol, as the energy gave them.
        kT: thermal energy of the target, kJ/mol.
        n_energy_calls: single-configuration evaluations.
        facts: what log_q is a density of; the evidence is in that base measure.
    """

    x: Tensor
    log_q: Tensor
    energies: Tensor
    kT: float
    n_energy_calls: int
    facts: ProposalFacts

    @cached_property
    def log_weights(self) -> Tensor:
        """(n,) float64 raw log-weights; -inf where energy or log_q is not finite."""
        return _log_weights(self.log_q, self.energies, self.kT)

    @property
    def n_nonfinite(self) -> int:
        """Draws of weight zero because their energy or log_q was not finite."""
        return int((~(self.log_q.isfinite() & self.energies.isfinite())).sum())

    @property
    def log_evidence(self) -> float:
        """log of the unbiased estimate of Z; known up to a constant if the facts say log_q is not normalised."""
        return float(log_mean_exp(self.log_weights))

    @property
    def log_evidence_std_error(self) -> float:
        """Standard error of :attr:`log_evidence`, by the delta method."""
        return float(log_evidence_std_error(self.log_weights))

    @property
    def ess(self) -> float:
        """Effective sample size of the raw weights, in draws."""
        return float(effective_sample_size(self.log_weights))

    @property
    def ess_fraction(self) -> float:
        """Effective sample size over n."""
        return self.ess / len(self.log_q)

    @cached_property
    def pareto(self) -> ParetoSmoothed:
        """Pareto-smoothed log-weights and k-hat, beside the raw ones."""
        return pareto_smooth(self.log_weights)

    @cached_property
    def truncated(self) -> Truncated:
        """Log-weights truncated at mean(w) sqrt(n), beside the raw ones, and how many that touched."""
        return truncate(self.log_weights)

    def mean(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Weighted mean of f(x) (n, ...): shape (...), float64. Where the weight is zero, f may be NaN."""
        weights, values = self._weighted(f)
        return _average(weights, values)

    def std_error(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """Standard error of :meth:`mean` by the delta method: sqrt(sum_i W_i^2 (f_i - mean)^2)."""
        weights, values = self._weighted(f)
        deviation = values - _average(weights, values)
        return _average(weights.square(), deviation.square()).sqrt()

    def resampled(self, n: int, generator: torch.Generator, *, scheme: str | Scheme = "systematic") -> Tensor:
        """n equally weighted draws (n, ...), by the resampling schemes of :mod:`feynkac.fkc.resampling`.

        Args:
            n: how many. Other than the number of draws, whole rounds are resampled and n of them picked at random.
            generator: of the resampling.
            scheme: its name.
        """
        total = len(self.log_weights)
        rounds = self.log_weights.expand(math.ceil(n / total), total)
        ancestors = resample(rounds, scheme, generator).flatten()
        if n % total:
            order = torch.randperm(len(ancestors), generator=generator, device=generator.device)
            ancestors = ancestors[order[:n].to(ancestors.device)]
        return self.x[ancestors]

    def _weighted(self, f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        alive = self.log_weights > -math.inf
        return normalize(self.log_weights[alive]), f(self.x)[alive].to(torch.float64)


def importance_sample(
    proposal: Proposal,
    energy: EnergyFunction,
    n: int,
    *,
    seed: int,
    chunk_size: int = 2048,
    kT: float | None = None,
    checkpoint: Path | str | None = None,
    progress: Progress | None = None,
) -> ImportanceResult:
    """Draw from ``proposal`` and weight the draws towards exp(-U/kT).

    Chunk c draws from a generator of its own, derived from (seed, c): the result depends on seed, n and chunk size,
    not on where a run stopped.

    Args:
        proposal: draws x and log q(x); its facts say what the evidence is relative to.
        energy: x (B, ...) -> (B,) kJ/mol, with ``kT``. If it counts ``n_calls``, that count is reported.
        n: number of draws.
        seed: of the draws.
        chunk_size: draws made and evaluated at a time.
        kT: of the target, kJ/mol; that of the energy if None.
        checkpoint: folder in which every chunk is kept as it is finished; a second call goes on from there and ends
            with the same bits as an uninterrupted one.
        progress: called after each chunk with (draws done, n, effective sample size so far, energy calls so far).

    Raises:
        CheckpointError: the folder holds a run with another seed, n, chunk size, temperature or proposal (named), or a
            damaged file.
        PopulationCollapsed: no draw has a finite energy and density.
        ValueError: n or chunk_size below one, or an energy or density of the wrong shape.

    Warns:
        NonFiniteWeightWarning: draws of weight zero, with their number.
        ParetoWarning: k-hat above 0.7.

    Example:
        >>> result = importance_sample(flow, energy, 20_000, seed=1)            # doctest: +SKIP
        >>> result.ess_fraction, result.log_evidence, result.pareto.khat       # doctest: +SKIP
    """
    if n < 1 or chunk_size < 1:
        raise ValueError(f"n and chunk_size must be at least one, got {n} and {chunk_size}")
    facts = proposal.facts
    thermal = energy.kT if kT is None else kT
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        _claim(folder, _plan(proposal, facts, n, seed, chunk_size, thermal))
    parts: list[Draws] = []
    for chunk in _chunks(proposal, energy, n, seed, chunk_size, folder):
        parts.append(chunk)
        if progress is not None:
            so_far = torch.cat([_log_weights(p.log_q, p.energies, thermal) for p in parts])
            calls = sum(p.n_energy_calls for p in parts)
            progress(len(so_far), n, float(effective_sample_size(so_far)), calls)
    x, log_q, energies = (torch.cat([getattr(p, name) for p in parts]) for name in ("x", "log_q", "energies"))
    result = ImportanceResult(x, log_q, energies, thermal, sum(p.n_energy_calls for p in parts), facts)
    _judge(result)
    return result


def _chunks(
    proposal: Proposal, energy: EnergyFunction, n: int, seed: int, chunk_size: int, folder: Path | None
) -> Iterator[Draws]:
    """The chunks in order, read from ``folder`` where they are, made and written where they are not."""
    for index, start in enumerate(range(0, n, chunk_size)):
        place = None if folder is None else folder / f"chunk-{index:06d}"
        if place is not None and exists(place):
            tensors, meta = load_state(place)
            yield Draws(tensors["x"], tensors["log_q"], tensors["energies"], int(meta["n_energy_calls"]))
            continue
        draws = _draw(proposal, energy, min(chunk_size, n - start), generator_for(seed, index))
        if place is not None:
            tensors = {"x": draws.x, "log_q": draws.log_q, "energies": draws.energies}
            save_state(place, tensors, {"n_energy_calls": draws.n_energy_calls})
        yield draws


@torch.no_grad()
def _draw(proposal: Proposal, energy: EnergyFunction, size: int, generator: torch.Generator) -> Draws:
    x, log_q = proposal.sample_and_log_prob(size, generator=generator)
    before = getattr(energy, "n_calls", None)
    energies = energy(x)
    calls = size if before is None else int(getattr(energy, "n_calls", 0)) - int(before)
    for name, values in (("log q", log_q), ("energy", energies)):
        if tuple(values.shape) != (size,):
            raise ValueError(f"{name} of {size} draws must have shape ({size},), got {tuple(values.shape)}")
    return Draws(x.detach().cpu(), log_q.detach().cpu().double(), energies.detach().cpu().double(), calls)


def _average(weights: Tensor, values: Tensor) -> Tensor:
    total: Tensor = torch.tensordot(weights, values, dims=1)
    return total


def _log_weights(log_q: Tensor, energies: Tensor, thermal: float) -> Tensor:
    raw = -energies / thermal - log_q
    return torch.where(log_q.isfinite() & energies.isfinite(), raw, -math.inf)


def _judge(result: ImportanceResult) -> None:
    n, bad = len(result.log_q), result.n_nonfinite
    if bad == n:
        raise PopulationCollapsed([0], 0, n, result)
    if bad:
        warnings.warn(
            f"{bad} of {n} draws have no finite energy or density and count with weight zero",
            NonFiniteWeightWarning,
            stacklevel=3,
        )
    if result.pareto.khat > 0.7:
        warnings.warn(
            f"Pareto k-hat of the weights is {result.pareto.khat:.2f} (ESS {result.ess:.0f} of {n}): above 0.7 "
            "estimates cannot be relied on; use a better proposal",
            ParetoWarning,
            stacklevel=3,
        )


def _plan(
    proposal: Proposal, facts: ProposalFacts, n: int, seed: int, chunk_size: int, thermal: float
) -> dict[str, Any]:
    declared = {f.name: getattr(facts, f.name) for f in fields(facts)}
    declared["invariances"] = list(facts.invariances)
    return {
        "n": n,
        "seed": seed,
        "chunk_size": chunk_size,
        "kT": thermal,
        "event_shape": list(proposal.event_shape),
        "proposal": declared,
    }


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Mark the folder with what is being run, or check that it is the run begun there."""
    place = folder / "plan"
    if not exists(place):
        save_state(place, {}, plan)
        return
    _, found = load_state(place)
    for key, wanted in plan.items():
        if found.get(key) != wanted:
            raise CheckpointError(
                f"{folder} holds a run with {key} = {found.get(key)}, not {wanted}: cannot go on from it"
            )
