"""Free-energy difference between a region and the rest, from weighted samples."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch

from ...fkc.weights import effective_sample_size
from ._samples import check_kT, normalized_weights
from .bootstrap import bootstrap_counts, check_groups

__all__ = ["FewEffectiveSamplesWarning", "FreeEnergyDifference", "free_energy_difference"]

FEW_EFFECTIVE_SAMPLES = 30
"""Below this many effective samples in a region first-order errors are no longer to be trusted."""


class FewEffectiveSamplesWarning(UserWarning):
    """A region holds so few effective samples that its error bar is a guess."""


@dataclass(frozen=True, kw_only=True)
class FreeEnergyDifference:
    """Delta F = F(inside) - F(outside) = kT ln[P(outside) / P(inside)], positive when the region is rare.

    Attributes:
        value: Delta F in kT; +inf or -inf when one side is empty.
        std_error: in kT: by bootstrap when it was asked for, else by the delta method; NaN when a side is
            empty.
        std_error_delta: in kT, by the delta method.
        probability: P(inside).
        probability_std_error: its delta-method error.
        kT: kJ/mol.
        ess: effective sample size of all samples; ``ess_inside`` and ``ess_outside`` of either side.
        n_inside: samples inside with a positive weight.
        n_samples: all samples.
        bootstrap: number of replicates.
    """

    value: float
    std_error: float
    std_error_delta: float
    probability: float
    probability_std_error: float
    kT: float
    ess: float
    ess_inside: float
    ess_outside: float
    n_inside: int
    n_samples: int
    bootstrap: int

    @property
    def value_kJ_mol(self) -> float:
        """Delta F in kJ/mol."""
        return self.value * self.kT

    @property
    def std_error_kJ_mol(self) -> float:
        """Error of Delta F in kJ/mol."""
        return self.std_error * self.kT


def free_energy_difference(
    inside: torch.Tensor,
    log_weights: torch.Tensor,
    *,
    kT: float,
    bootstrap: int = 200,
    seed: int | None = None,
    groups: torch.Tensor | None = None,
) -> FreeEnergyDifference:
    r"""Delta F between a region and the rest, with its error.

    With :math:`p = \sum_n \bar w_n 1_n` the value is :math:`\ln[(1 - p) / p]` in kT.  Delta method for
    self-normalised importance sampling (Owen, Monte Carlo theory, methods and examples, 2013, eq. 9.8),
    summed over G independent groups g: :math:`\mathrm{var}(p) = \frac{G}{G - 1} \sum_g [\sum_{n \in g} \bar
    w_n (1_n - p)]^2`, and :math:`\mathrm{sd}(\Delta F) = \mathrm{sd}(p) / (p (1 - p))`; the bootstrap uses
    the same first-order step with the replicates' sd of p.

    Args:
        inside: (n,) bool, whether a sample lies in the region.
        log_weights: (n,) raw log-weights, -inf for zero weight.
        kT: kJ/mol.
        bootstrap: number of replicates; 0 for the delta method alone.
        seed: of the bootstrap; needed unless ``bootstrap`` is 0.
        groups: (n,) integer labels of walkers or blocks when samples are correlated.

    Returns:
        The difference, its errors and the effective sample sizes.

    Raises:
        ValueError: for shapes that do not fit, weights that cannot be normalised, or a missing seed.

    Warns:
        FewEffectiveSamplesWarning: when either side holds fewer than 30 effective samples.

    Example:
        >>> inside = torch.arange(1000) < 200
        >>> result = free_energy_difference(inside, torch.zeros(1000), kT=2.494, bootstrap=0)
        >>> round(result.value, 4)
        1.3863
    """
    check_kT(kT)
    weights = normalized_weights(log_weights)
    log_weights = log_weights.detach().cpu()
    n = weights.numel()
    inside = inside.detach().cpu()
    if inside.shape != (n,) or inside.dtype != torch.bool:
        raise ValueError(f"inside must be a boolean tensor ({n},), got {inside.dtype} {tuple(inside.shape)}")
    group = check_groups(groups, n)
    p, q = float(weights[inside].sum()), float(weights[~inside].sum())
    sd_delta = _delta_method(weights, inside, p, group)
    sd = _bootstrap(weights, inside, bootstrap, seed, group) if bootstrap else sd_delta
    slope = 1.0 / (p * q) if p > 0 and q > 0 else math.nan
    result = FreeEnergyDifference(
        value=_log_ratio(q, p),
        std_error=sd * slope,
        std_error_delta=sd_delta * slope,
        probability=p,
        probability_std_error=sd_delta,
        kT=float(kT),
        ess=_ess(log_weights),
        ess_inside=_ess(log_weights[inside]),
        ess_outside=_ess(log_weights[~inside]),
        n_inside=int((weights[inside] > 0).sum()),
        n_samples=n,
        bootstrap=bootstrap,
    )
    _warn_if_few(result)
    return result


def _log_ratio(q: float, p: float) -> float:
    if p == 0:
        return math.inf
    return math.log(q / p) if q > 0 else -math.inf


def _ess(log_weights: torch.Tensor) -> float:
    return float(effective_sample_size(log_weights)) if log_weights.numel() else 0.0


def _delta_method(weights: torch.Tensor, inside: torch.Tensor, p: float, group: torch.Tensor) -> float:
    n_groups = int(group.max()) + 1
    influence = torch.zeros(n_groups, dtype=torch.float64)
    influence.index_add_(0, group, weights * (inside.double() - p))
    return math.sqrt(n_groups / (n_groups - 1) * float((influence * influence).sum()))


def _bootstrap(
    weights: torch.Tensor, inside: torch.Tensor, replicates: int, seed: int | None, group: torch.Tensor
) -> float:
    if seed is None or replicates < 2:
        raise ValueError("the bootstrap needs a seed and at least 2 replicates (or bootstrap=0)")
    generator = torch.Generator().manual_seed(seed)
    both = torch.stack([weights, weights * inside], dim=1)
    sums = torch.cat([counts @ both for counts in bootstrap_counts(generator, group, replicates)])
    # 0 / 0, a replicate without any weight, becomes NaN and so does the error: it is not hidden.
    return float((sums[:, 1] / sums[:, 0]).std())


def _warn_if_few(result: FreeEnergyDifference) -> None:
    side, ess = min((("inside", result.ess_inside), ("outside", result.ess_outside)), key=lambda pair: pair[1])
    if ess < FEW_EFFECTIVE_SAMPLES:
        warnings.warn(
            f"only {ess:.1f} effective samples {side} the region (fewer than {FEW_EFFECTIVE_SAMPLES}): "
            "the free-energy difference and its error are unreliable",
            FewEffectiveSamplesWarning,
            stacklevel=3,
        )
