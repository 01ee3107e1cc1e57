"""Free-energy difference between two regions, or a region and the rest, from weighted samples."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch

from ...fkc.weights import effective_sample_size
from ._contrast import contrast_influence, group_std_error, log_ratio
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

    With the regions called A (inside) and B (outside) this is Delta F_AB = -kT ln(sum over A of w / sum over B of w).

    Attributes:
        value: Delta F in kT; +inf or -inf when one side is empty.
        std_error: in kT: by bootstrap when it was asked for, else by the delta method; NaN when a side is
            empty.
        std_error_delta: in kT, by the delta method.
        probability: P(inside).
        probability_std_error: its delta-method error.
        probability_outside: P(outside); 1 - P(inside) unless a second region was named.
        kT: kJ/mol.
        ess: effective sample size of all samples; ``ess_inside`` and ``ess_outside`` of either side.
        n_inside, n_outside: samples of either side with a positive weight.
        n_samples: all samples.
        bootstrap: number of replicates.
    """

    value: float
    std_error: float
    std_error_delta: float
    probability: float
    probability_std_error: float
    probability_outside: float
    kT: float
    ess: float
    ess_inside: float
    ess_outside: float
    n_inside: int
    n_outside: int
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
    outside: torch.Tensor | None = None,
    bootstrap: int = 200,
    seed: int | None = None,
    groups: torch.Tensor | None = None,
) -> FreeEnergyDifference:
    r"""Delta F between a region and the rest, or another region, with its error.

    With :math:`p = \sum_n \bar w_n 1_n` inside and q outside the value is :math:`\ln(q / p)` in kT.  Delta method for
    self-normalised importance sampling (Owen, Monte Carlo theory, methods and examples, 2013, eq. 9.8), summed over G
    independent groups g: :math:`\mathrm{var}(\Delta F) = \frac{G}{G - 1} \sum_g [\sum_{n \in g} \bar w_n (1^{out}_n / q
    - 1^{in}_n / p)]^2`; the bootstrap takes the same first-order step with the replicates' p and q.

    Args:
        inside: (n,) bool, whether a sample lies in the region.
        log_weights: (n,) raw log-weights, -inf for zero weight.
        kT: kJ/mol.
        outside: (n,) bool, the region to compare with; everything not inside when left out.
        bootstrap: number of replicates; 0 for the delta method alone.
        seed: of the bootstrap; needed unless ``bootstrap`` is 0.
        groups: (n,) integer labels of walkers or blocks when samples are correlated.

    Returns:
        The difference, its errors and the effective sample sizes.

    Raises:
        ValueError: for shapes that do not fit, regions that share samples, weights that cannot be normalised, or a
            missing seed.

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
    inside = _check_region("inside", inside, n)
    outside = ~inside if outside is None else _check_region("outside", outside, n)
    if bool((inside & outside).any()):
        raise ValueError(f"{int((inside & outside).sum())} samples lie both inside and outside: the regions overlap")
    group = check_groups(groups, n)
    p, q = float(weights[inside].sum()), float(weights[outside].sum())
    sd_delta = group_std_error(contrast_influence(weights, inside, outside), group) if p > 0 and q > 0 else math.nan
    sd = _bootstrap(weights, inside, outside, bootstrap, seed, group) if bootstrap else sd_delta
    result = FreeEnergyDifference(
        value=log_ratio(q, p),
        std_error=sd if p > 0 and q > 0 else math.nan,
        std_error_delta=sd_delta,
        probability=p,
        probability_std_error=group_std_error(weights * (inside.double() - p), group),
        probability_outside=q,
        kT=float(kT),
        ess=_ess(log_weights),
        ess_inside=_ess(log_weights[inside]),
        ess_outside=_ess(log_weights[outside]),
        n_inside=int((weights[inside] > 0).sum()),
        n_outside=int((weights[outside] > 0).sum()),
        n_samples=n,
        bootstrap=bootstrap,
    )
    _warn_if_few(result)
    return result


def _check_region(name: str, region: torch.Tensor, n: int) -> torch.Tensor:
    region = region.detach().cpu()
    if region.shape != (n,) or region.dtype != torch.bool:
        raise ValueError(f"{name} must be a boolean tensor ({n},), got {region.dtype} {tuple(region.shape)}")
    return region


def _ess(log_weights: torch.Tensor) -> float:
    return float(effective_sample_size(log_weights)) if log_weights.numel() else 0.0


def _bootstrap(
    weights: torch.Tensor,
    inside: torch.Tensor,
    outside: torch.Tensor,
    replicates: int,
    seed: int | None,
    group: torch.Tensor,
) -> float:
    if seed is None or replicates < 2:
        raise ValueError("the bootstrap needs a seed and at least 2 replicates (or bootstrap=0)")
    generator = torch.Generator().manual_seed(seed)
    columns = torch.stack([weights, weights * inside, weights * outside], dim=1)
    sums = torch.cat([counts @ columns for counts in bootstrap_counts(generator, group, replicates)])
    # 0 / 0, a replicate without any weight, becomes NaN and so does the error: it is not hidden.
    p, q = sums[:, 1] / sums[:, 0], sums[:, 2] / sums[:, 0]
    return float((q / columns[:, 2].sum() - p / columns[:, 1].sum()).std())


def _warn_if_few(result: FreeEnergyDifference) -> None:
    side, ess = min((("inside", result.ess_inside), ("outside", result.ess_outside)), key=lambda pair: pair[1])
    if ess < FEW_EFFECTIVE_SAMPLES:
        warnings.warn(
            f"only {ess:.1f} effective samples {side} the region (fewer than {FEW_EFFECTIVE_SAMPLES}): "
            "the free-energy difference and its error are unreliable",
            FewEffectiveSamplesWarning,
            stacklevel=3,
        )
