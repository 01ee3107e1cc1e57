r"""What a stratified sample from a mixture of known densities says about a target: means, evidence, errors.

Draws of all rounds together stand for the mixture of all components with weights ``N_j / N``, the shares they really
had (balance heuristic; deterministic mixture over the rounds). With that density q

.. math:: \int f p \approx \frac1N \sum_i \frac{f p}{q}(x_i) - \beta \cdot \Bigl(\frac{q_j}{q}(x_i) - 1\Bigr)_j,

whose controls average to zero exactly. At the least-squares coefficients residuals average to zero within every
component, so the same coefficients are best for stratified draws too.

References:
    Veach and Guibas (1995), SIGGRAPH 95, 419 (balance heuristic). Owen and Zhou (2000), JASA 95, 135
    (components as control variates). Cornuet, Marin, Mira and Robert (2012), Scand. J. Statist. 39, 798
    (mixture over the rounds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .control_variates import ControlledMeans, regress_controls
from .errors import WeightError
from .mixture_sample import Function, MixtureSample, evaluate_functions, with_one
from .mixture_unbiased import UnbiasedIntegrals, unbiased_integrals
from .pareto import pareto_smooth
from .weights import effective_sample_size

__all__ = ["MixtureEstimate", "MixtureResult"]


@dataclass(frozen=True, eq=False)
class MixtureEstimate:
    """Expectations of m functions under the target, from one sample.

    Attributes:
        names: m names.
        means: (m,) float64.
        covariance: (m, m) of ``means``, sampling errors only.
    """

    names: tuple[str, ...]
    means: Tensor
    covariance: Tensor

    @property
    def std_errors(self) -> Tensor:
        """(m,)."""
        return self.covariance.diagonal().clamp_min(0).sqrt()

    def __getitem__(self, name: str) -> tuple[float, float]:
        """Mean and standard error of one function."""
        index = self.names.index(name)
        return float(self.means[index]), float(self.std_errors[index])


@dataclass(frozen=True, eq=False)
class MixtureResult:
    """A sample from a mixture, functions on it, and what they average to.

    Attributes:
        sample: draws and densities of all rounds.
        names: m names of functions.
        values: (N, m) float64; 0 where the weight is zero.
        mixtures: (R, J) weights of the components in each round.
        use_controls: whether components are control variates in ``estimate`` and ``log_evidence``.
        known_log_evidence: log of the target's integral where the caller knows it.
        n_nan: draws whose log-target is NaN, of weight zero.
    """

    sample: MixtureSample
    names: tuple[str, ...]
    values: Tensor
    mixtures: Tensor
    use_controls: bool
    known_log_evidence: float | None
    n_nan: int

    def with_functions(self, functions: Mapping[str, Function]) -> MixtureResult:
        """The same sample with other functions; the mixture was not adapted to these.

        Raises:
            ValueError: see :func:`evaluate_functions`.
        """
        values = evaluate_functions(functions, self.sample.x, self.sample.log_target > -torch.inf)
        return replace(self, names=tuple(functions), values=values)

    @property
    def estimate(self) -> MixtureEstimate:
        """Expectations: normalised if the evidence is known, else self-normalised."""
        if self.known_log_evidence is not None:
            return self.normalised(self.known_log_evidence)
        return self._ratios(self._integrals.means, self._integrals.covariance)

    @property
    def plain_estimate(self) -> MixtureEstimate:
        """The same without control variates."""
        if self.known_log_evidence is not None:
            return self._scaled(self.known_log_evidence, self._integrals.plain_means, self._integrals.plain_covariance)
        return self._ratios(self._integrals.plain_means, self._integrals.plain_covariance)

    def normalised(self, log_evidence: float) -> MixtureEstimate:
        """Expectations with the evidence known: integrals of ``f p`` divided by it."""
        return self._scaled(log_evidence, self._integrals.means, self._integrals.covariance)

    @property
    def variance_reduction(self) -> Tensor:
        """(m,) estimated variance without control variates over that with them."""
        return self.plain_estimate.covariance.diagonal() / self.estimate.covariance.diagonal()

    @property
    def log_evidence(self) -> float:
        """Log of the target's integral, estimated (also where it is known)."""
        return math.log(self._positive(float(self._integrals.means[-1]))) + self._shift

    @property
    def log_evidence_std_error(self) -> float:
        """Standard error of ``log_evidence``, by the delta method."""
        return float(self._integrals.std_errors[-1]) / self._positive(float(self._integrals.means[-1]))

    @property
    def ess(self) -> float:
        """Kish's effective sample size of the weights, in draws."""
        return float(effective_sample_size(self.sample.log_weights))

    @property
    def function_ess(self) -> Tensor:
        """(m,) the same of ``|f|`` times the weights: how many draws a function's mean rests on."""
        return effective_sample_size(self._log_terms)

    @cached_property
    def weights_khat(self) -> float:
        """Pareto k-hat of the weights."""
        return _khat(self.sample.log_weights)

    @cached_property
    def khat(self) -> Tensor:
        """(m,) Pareto k-hat of ``|f|`` times the weights; ``inf`` where fewer than five draws count."""
        return torch.tensor([_khat(row) for row in self._log_terms], dtype=torch.float64)

    @property
    def max_leverage(self) -> float:
        """Of one draw in the regression; above some 0.2 a component has too few draws for its coefficient."""
        return self._integrals.max_leverage

    @property
    def n_zero(self) -> int:
        """Draws of weight zero."""
        return int((self.sample.log_target == -torch.inf).sum())

    def unbiased(self) -> UnbiasedIntegrals:
        """Integrals without any bias: the mean of the rounds' own estimates, coefficients cross-fitted.

        Less precise than ``estimate`` where early mixtures were poor; see :mod:`feynkac.fkc.mixture_unbiased`.
        """
        return unbiased_integrals(self.sample, self.names, self.values, self.mixtures, self.use_controls)

    @cached_property
    def _shift(self) -> float:
        return float(self.sample.log_weights.max())

    @cached_property
    def _integrals(self) -> ControlledMeans:
        """Of the m functions and of 1 against the target over ``exp(shift)``."""
        controls = self.sample.controls if self.use_controls else self.sample.controls[:, :0]
        terms = with_one(self.values) * (self.sample.log_weights - self._shift).exp()[:, None]
        return regress_controls(terms, controls, strata=self.sample.component)

    def _ratios(self, means: Tensor, covariance: Tensor) -> MixtureEstimate:
        evidence = self._positive(float(means[-1]))
        found = means[:-1] / evidence
        slope = torch.cat([torch.eye(len(found), dtype=found.dtype), -found[:, None]], dim=1) / evidence
        return MixtureEstimate(self.names, found, slope @ covariance @ slope.T)

    def _scaled(self, log_evidence: float, means: Tensor, covariance: Tensor) -> MixtureEstimate:
        factor = math.exp(self._shift - log_evidence)
        return MixtureEstimate(self.names, means[:-1] * factor, covariance[:-1, :-1] * factor**2)

    @staticmethod
    def _positive(evidence: float) -> float:
        if not evidence > 0:
            raise WeightError(
                "the estimate of the evidence with control variates is not positive: take more draws, "
                "or estimate without controls"
            )
        return evidence

    @property
    def _log_terms(self) -> Tensor:
        return self.values.T.abs().log() + self.sample.log_weights


def _khat(log_terms: Tensor) -> float:
    """k-hat; terms that agree to nine digits are equal."""
    if not bool((log_terms > -torch.inf).any()):
        return math.inf
    return pareto_smooth(log_terms.round(decimals=9)).khat
