"""Several expectations from one sample: adaptive mixture importance sampling with control variates.

In rounds, fixed numbers of draws are taken from every component; all of them are weighted by the target over the
mixture that they form together; the mixture of the next round is the one whose estimated variance is least. The
components are control variates too: with them, for many draws, the variance is no larger than that of any component
alone on its share of the draws, and zero where the integrand is a combination of the components.

References:
    Owen and Zhou (2000), JASA 95, 135. He and Owen (2014), arXiv 1411.3954. Cornuet, Marin, Mira and Robert
    (2012), Scand. J. Statist. 39, 798.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor

from .errors import NonFiniteWeightWarning, ParetoWarning, PopulationCollapsed, WeightError
from .mixture_adaptation import Objective, optimal_mixture
from .mixture_estimates import MixtureResult
from .mixture_sample import Function, MixtureSample, evaluate_functions
from .mixture_unbiased import FOLDS
from .streams import generator_for
from .weights import normalize

__all__ = ["MixtureComponent", "sample_mixture"]

_LEVERAGE = 0.2  # at 0.25 the mean squared z-value of a hard case was 1.3, at 0.33 it was 1.9
_FEWEST = 2 * FOLDS  # draws of a component in a round: every half of it needs a spread


class MixtureComponent(Protocol):
    """A law with a normalised density that can be drawn from: a proposal, the target itself, a tilted or biased one.

    Every draw has a finite log-density under its own component.
    """

    def sample(self, n: int, *, generator: Generator) -> Tensor:
        """(n, ...) independent draws, from ``generator`` alone."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """(n,) normalised log-density of (n, ...); ``-inf`` outside the support."""
        ...


def sample_mixture(
    components: Sequence[MixtureComponent],
    log_target: Callable[[Tensor], Tensor],
    functions: Mapping[str, Function],
    *,
    draws: int,
    rounds: int,
    seed: int,
    objective: Objective = "max",
    evidence_objective: bool = False,
    defensive: float = 0.1,
    controls: bool = True,
    initial: Sequence[float] | None = None,
    log_evidence: float | None = None,
    device: torch.device | str = "cpu",
) -> MixtureResult:
    """Draws one sample from an adapted mixture and estimates several expectations under the target.

    The objective is the largest (or the sum) of the variances of the estimates, each relative to the square of the mean
    of ``|f|``. A function that no draw has met yet takes no part. Only earlier rounds decide a round's mixture.

    Args:
        components: J laws; together they must cover the target wherever it is positive.
        log_target: (n, ...) -> (n,), known up to a constant; ``-inf`` is weight zero, and so is NaN.
        functions: names and functions (n, ...) -> (n,); may be empty, then only the evidence is estimated.
        draws: in each round, even, at least four for each component.
        rounds: R; the first is not adapted.
        seed: of the run; each round has its own stream.
        objective: ``max`` or ``sum``.
        evidence_objective: the evidence is one of the estimates that the objective looks at; always without functions.
        defensive: share of the draws that is spread evenly: no weight falls below ``defensive / J``.
        controls: use the components as control variates, in the estimates and in the objective.
        initial: (J,) positive weights of the first round; equal if None.
        log_evidence: log of the target's integral if known: expectations are then not self-normalised.
        device: of the generator.

    Returns:
        The sample, estimates with their joint covariance, evidence, diagnostics.

    Raises:
        ValueError: settings out of range, or functions of wrong shape or not finite.
        WeightError: an infinite weight, or a component that contradicts its own draws.
        PopulationCollapsed: every weight is zero.

    Warns:
        NonFiniteWeightWarning: log-targets that are NaN, with their number.
        ParetoWarning: k-hat above 0.7, with the names; a leverage above 0.2.

    Example:
        >>> found = sample_mixture(
        ...     [Gaussian(1), Gaussian(1, 4.0)],
        ...     Gaussian(1, normalized=False).log_prob,
        ...     {"tail": lambda x: (x[:, 0] > 4).double(), "square": lambda x: x[:, 0] ** 2},
        ...     draws=4000, rounds=3, seed=1,
        ... )
        >>> found.estimate["tail"], found.log_evidence, found.mixtures
    """
    weights = _checked(len(components), draws, rounds, defensive, initial)
    floors = torch.full_like(weights, defensive / len(components))
    sample, values, mixtures, n_nan = None, torch.empty(0, len(functions), dtype=torch.float64), [], 0
    for index in range(rounds):
        if sample is not None:
            terms = _objective_terms(sample, values, log_evidence is not None, evidence_objective or not functions)
            if terms.shape[1]:
                weights = optimal_mixture(
                    terms, sample.ratios, objective=objective, floors=floors, start=weights, controls=controls
                )
        counts = _allocation(weights, draws)
        part, found_nan = _round(components, log_target, counts, index, generator_for(seed, index, device=device))
        mixtures.append(counts.to(torch.float64) / draws)
        n_nan += found_nan
        values = torch.cat([values, evaluate_functions(functions, part.x, part.log_target > -math.inf)])
        sample = part if sample is None else sample.cat(part)
    assert sample is not None  # there is at least one round
    if n_nan:
        message = f"{n_nan} of {len(values)} log-targets are NaN; those draws count as dead"
        warnings.warn(message, NonFiniteWeightWarning, stacklevel=2)
    if not bool((sample.log_target > -math.inf).any()):
        raise PopulationCollapsed([0], rounds, len(values))
    result = MixtureResult(sample, tuple(functions), values, torch.stack(mixtures), controls, log_evidence, n_nan)
    _warn_of_tails(result)
    return result


def _round(
    components: Sequence[MixtureComponent],
    log_target: Callable[[Tensor], Tensor],
    counts: Tensor,
    index: int,
    generator: Generator,
) -> tuple[MixtureSample, int]:
    """One round's draws, and how many of their log-targets are NaN."""
    x = torch.cat([c.sample(n, generator=generator) for c, n in zip(components, counts.tolist(), strict=True)])
    own = torch.arange(len(components)).repeat_interleave(counts)
    with torch.no_grad():
        columns = [_vector(c.log_prob(x), len(x), f"components[{j}].log_prob") for j, c in enumerate(components)]
        target = _vector(log_target(x), len(x), "log_target")
    densities = torch.stack(columns, dim=1)
    wrong = ~densities[torch.arange(len(x)), own].isfinite() | ~(densities < math.inf).all(dim=1)
    if bool(wrong.any()):
        raise WeightError(
            f"{int(wrong.sum())} of {len(x)} draws have a log-density that is NaN, +inf, or -inf under their own "
            f"component (components {sorted(set(own[wrong].tolist()))})"
        )
    if bool((target == math.inf).any()):
        raise WeightError(f"log_target is +inf at {int((target == math.inf).sum())} draws")
    nan = target.isnan()
    return MixtureSample(x, own, torch.full_like(own, index), densities, torch.where(nan, -math.inf, target)), int(
        nan.sum()
    )


def _objective_terms(sample: MixtureSample, values: Tensor, known: bool, evidence: bool) -> Tensor:
    """(n, F) integrands over the mixture, in units of the mean of |f|; F = 0 if nothing is known of any."""
    if not bool((sample.log_target > -math.inf).any()):
        return values[:, :0]
    weights = normalize(sample.log_weights)
    scale = weights @ values.abs()
    seen = scale > 0
    centre = torch.zeros_like(scale) if known else weights @ values
    terms = ((values - centre) / torch.where(seen, scale, 1.0))[:, seen]
    if evidence:
        terms = torch.cat([terms, torch.ones_like(terms[:, :1] if terms.shape[1] else weights[:, None])], dim=1)
    return terms * (len(weights) * weights)[:, None]


def _allocation(weights: Tensor, draws: int) -> Tensor:
    """(J,) int64 of sum ``draws``, multiples of the number of folds, each at least four: largest remainders."""
    fewest, size = _FEWEST // FOLDS, draws // FOLDS
    extra = (weights * size - fewest).clamp_min(0)
    extra = extra * ((size - fewest * len(weights)) / extra.sum().clamp_min(torch.finfo(extra.dtype).tiny))
    counts = extra.floor().to(torch.int64)
    left = size - fewest * len(weights) - int(counts.sum())
    counts[(extra - counts).argsort(descending=True, stable=True)[:left]] += 1
    return FOLDS * (counts + fewest)


def _warn_of_tails(result: MixtureResult) -> None:
    found = [("weights", result.weights_khat), *zip(result.names, result.khat.tolist(), strict=True)]
    heavy = ", ".join(f"{name} {k:.2f}" for name, k in found if k > 0.7)
    if heavy:
        message = f"Pareto k-hat above 0.7: {heavy}; these means and error bars cannot be relied on"
        warnings.warn(message, ParetoWarning, stacklevel=3)
    if result.max_leverage > _LEVERAGE:
        message = (
            f"a single draw has a leverage of {result.max_leverage:.2f} in the regression on the components: error "
            "bars are too small; take more draws, or a larger defensive share"
        )
        warnings.warn(message, ParetoWarning, stacklevel=3)


def _vector(values: Tensor, n: int, name: str) -> Tensor:
    if values.shape != (n,):
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected ({n},)")
    return values.detach().to("cpu", torch.float64)


def _checked(n: int, draws: int, rounds: int, defensive: float, initial: Sequence[float] | None) -> Tensor:
    """Weights (J,) of the first round."""
    if n < 1 or rounds < 1:
        raise ValueError(f"need at least one component and one round, got {n} and {rounds}")
    if draws % FOLDS or draws < _FEWEST * n or draws <= n + 1:
        raise ValueError(f"draws: got {draws}, expected an even number of at least {_FEWEST * n} for {n} components")
    if not 0 < defensive <= 1:
        raise ValueError(f"defensive: got {defensive}, expected a share above 0 and at most 1")
    weights = torch.tensor([1.0] * n if initial is None else list(initial), dtype=torch.float64)
    if weights.shape != (n,) or not bool(((weights > 0) & weights.isfinite()).all()):
        raise ValueError(f"initial: got {initial}, expected {n} positive weights")
    return weights / weights.sum()
