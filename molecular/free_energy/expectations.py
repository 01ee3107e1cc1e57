"""Several expectations from one weighted sample, with control variates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...fkc.control_variates import regress_controls
from ._samples import normalized_weights

__all__ = ["Expectations", "expectations"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Expectations:
    """Means of m functions under the target, and their joint error.

    Attributes:
        values: (m,).
        covariance: (m, m) of ``values``.
        std_errors: (m,).
        plain_values: (m,) without controls; ``plain_std_errors`` their errors.
        variance_reduction: (m,) variance without controls over variance with them; 1 without controls.
        n_controls: independent controls that were used.
        n_groups: independent groups behind the errors.
    """

    values: Tensor
    covariance: Tensor
    std_errors: Tensor
    plain_values: Tensor
    plain_std_errors: Tensor
    variance_reduction: Tensor
    n_controls: int
    n_groups: int


def expectations(
    functions: Tensor,
    log_weights: Tensor,
    *,
    controls: Tensor | None = None,
    sampling_controls: Tensor | None = None,
    groups: Tensor | None = None,
    folds: int = 1,
) -> Expectations:
    r"""Self-normalised means :math:`\sum_i \bar w_i f_i` with everything of known mean zero regressed out.

    To first order a weighted mean is a plain mean of influences :math:`n \bar w_i (f_i - \bar f)`.  They are regressed
    on the controls (Owen and Zhou, J. Am. Stat. Assoc. 95, 135 (2000)): :math:`n \bar w_i c_i` for a control of mean
    zero under the target, :math:`c_i` for one of mean zero under the law that was sampled, such as a density of the
    mixture over the mixture's density, minus one.  The regression uses the same samples: its bias is of order c/G in
    units of the variance removed, below the error bar for G >> c groups; ``folds`` > 1 fits on other samples than it
    corrects.

    Args:
        functions: (n, m) or (n,) values of the functions; ignored where the weight is zero.
        log_weights: (n,) raw log-weights.
        controls: (n, c) of mean zero under the target.
        sampling_controls: (n, c') of mean zero under the law the samples came from, samples of weight zero included.
        groups: (n,) integer labels of walkers or blocks when samples are correlated.
        folds: parts for cross-fitting; 1 for none.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, or no more groups than controls.
        WeightError: for weights that cannot be normalised.

    Example:
        >>> x = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = expectations(x.exp(), torch.zeros(5000), controls=torch.stack([x, x**2 - 1], dim=1))
        >>> bool(found.variance_reduction > 5)
        True
    """
    weights = normalized_weights(log_weights)
    n = weights.numel()
    f = _columns("functions", functions, weights)
    target = weights.new_zeros(n, 0) if controls is None else _columns("controls", controls, weights)
    sampled = weights.new_zeros(n, 0)
    if sampling_controls is not None:
        sampled = _columns("sampling_controls", sampling_controls, torch.ones_like(weights))
    scaled = n * weights[:, None]
    plain = weights @ f
    found = regress_controls(
        scaled * (f - plain), torch.cat([scaled * target, sampled], dim=1), groups=groups, folds=folds
    )
    return Expectations(
        values=plain + found.means,
        covariance=found.covariance,
        std_errors=found.std_errors,
        plain_values=plain,
        plain_std_errors=found.plain_std_errors,
        variance_reduction=found.variance_reduction,
        n_controls=found.rank,
        n_groups=found.n_units,
    )


def _columns(name: str, values: Tensor, weights: Tensor) -> Tensor:
    """(n, columns) float64, zero where the weight is zero."""
    columns = values.detach().cpu().double()
    columns = columns[:, None] if columns.ndim == 1 else columns
    if columns.ndim != 2 or len(columns) != len(weights):
        raise ValueError(f"{name} must be ({len(weights)}, m), got {tuple(values.shape)}")
    columns = torch.where(weights[:, None] > 0, columns, 0.0)
    if not bool(torch.isfinite(columns).all()):
        raise ValueError(f"{name} of samples with a positive weight must be finite")
    return columns
