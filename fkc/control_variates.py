r"""Regression on control variates: means with what is known to average to zero taken out.

A control c has mean zero under the law that the weighted draws stand for. For any coefficients b,
:math:`\sum_i W_i (f_i - b \cdot c_i)` has the same limit as :math:`\sum_i W_i f_i`; the coefficients used here minimise
its estimated variance. Draws may come in correlated groups (walkers, blocks), and in strata whose sizes were fixed
beforehand.

References:
    Owen and Zhou (2000), JASA 95, 135. MacKinnon and White (1985), J. Econometrics 29, 305 (the
    leverage correction of the error, HC3, here for sums over groups).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import WeightError

__all__ = ["ControlledMeans", "LeastSquares", "least_squares", "regress_controls"]

_RANK_TOLERANCE = 1e-9  # singular values below this share of the largest are rounding errors of a dependent column


@dataclass(frozen=True, eq=False)
class ControlledMeans:
    """Means of m functions with and without controls.

    Attributes:
        means: (m,) with controls.
        covariance: (m, m) of ``means``.
        plain_means: (m,) without.
        plain_covariance: (m, m) of ``plain_means``.
        coefficients: (k, m); the average over the folds where there are several.
        rank: number of independent controls.
        max_leverage: largest share of one group in fixing its own prediction. Above some 0.2 a coefficient rests on a
            handful of groups, and error bars come out too small.
        n_units: G, independent groups (draws, where none are grouped).
    """

    means: Tensor
    covariance: Tensor
    plain_means: Tensor
    plain_covariance: Tensor
    coefficients: Tensor
    rank: int
    max_leverage: float
    n_units: int

    @property
    def std_errors(self) -> Tensor:
        """(m,) of ``means``."""
        return self.covariance.diagonal().sqrt()

    @property
    def plain_std_errors(self) -> Tensor:
        """(m,) of ``plain_means``."""
        return self.plain_covariance.diagonal().sqrt()

    @property
    def variance_reduction(self) -> Tensor:
        """(m,) variance without controls over that with them; NaN for a constant."""
        return self.plain_covariance.diagonal() / self.covariance.diagonal()


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """A solution of least norm.

    Attributes:
        coefficients: (k, m).
        leverages: (n,) diagonal of the projection on the columns.
        rank: of the columns.
    """

    coefficients: Tensor
    leverages: Tensor
    rank: int


def least_squares(columns: Tensor, values: Tensor) -> LeastSquares:
    """Minimises ``|values - columns b|^2``; dependent columns share their coefficient.

    Args:
        columns: (n, k) float64.
        values: (n, m) float64.
    """
    if min(columns.shape) == 0:
        return LeastSquares(values.new_zeros(columns.shape[1], values.shape[1]), values.new_zeros(len(values)), 0)
    norms = columns.norm(dim=0)
    norms = torch.where(norms > 0, norms, 1.0)
    basis, triangle = torch.linalg.qr(columns / norms)
    left, singular, right = torch.linalg.svd(triangle, full_matrices=False)
    kept = singular > _RANK_TOLERANCE * singular[0].clamp_min(_RANK_TOLERANCE)
    directions = basis @ left[:, kept]
    solution = right[kept].T @ ((directions.T @ values) / singular[kept, None])
    return LeastSquares(solution / norms[:, None], directions.square().sum(dim=1), int(kept.sum()))


def regress_controls(
    values: Tensor,
    controls: Tensor,
    *,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
    strata: Tensor | None = None,
    folds: int = 1,
) -> ControlledMeans:
    r"""Weighted means of functions, with controls of mean zero regressed out.

    With sums over groups :math:`y_g = \sum_{i \in g} W_i (f_i - \bar f)`, :math:`x_g = \sum_{i \in g} W_i
    (c_i - \bar c)` the coefficients are the least-squares fit of y on x: they minimise the estimated variance of the
    weighted mean, and are plain least squares with an intercept where weights are equal and draws independent. The
    error is the spread of the residuals over :math:`1 - h_g` (leverage), within strata.

    ``folds=1`` fits and averages on the same draws, with a bias of order 1 / G. With more folds each draw is corrected
    with coefficients from the other folds; the estimate is then unbiased if the draws are independent and equally
    weighted and the size of every stratum is a multiple of ``folds``.

    Args:
        values: (n, m) functions of the draws; (n,) is one function.
        controls: (n, k) whose mean under the weighted law is zero.
        weights: (n,) non-negative, any normalisation; equal if None.
        groups: (n,) integer labels of correlated draws; independent draws if None.
        strata: (n,) integer labels of draws whose number in each stratum was fixed beforehand; their pooled mean is
            the estimate. A group lies in one stratum.
        folds: 1, or the number of parts for cross-fitting.

    Returns:
        Means, covariances, coefficients.

    Raises:
        ValueError: shapes that do not match, entries that are not finite, a group in two strata, fewer than two
            groups in a stratum, or no more groups than controls.
        WeightError: a negative or non-finite weight, or none positive.

    Example:
        >>> x = torch.randn(1000, generator=generator_for(1, 0), dtype=torch.float64)
        >>> found = regress_controls(x.exp(), torch.stack([x, x**2 - 1], dim=1))
        >>> found.means, found.std_errors, found.variance_reduction     # exp(1/2), a factor of 12
    """
    f = (values[:, None] if values.ndim == 1 else values).to(torch.float64)
    c = controls.to(torch.float64)
    _check(f, c, folds)
    w = _normalised(weights, f)
    unit, stratum = _units(groups, strata, len(f))
    if len(stratum) <= c.shape[1] + 1:
        raise ValueError(f"regression needs more independent groups than controls, got {len(stratum)} and {c.shape[1]}")

    plain = w @ f
    centred = _sums(w[:, None] * (f - plain), unit, len(stratum))
    columns = _sums(w[:, None] * (c - w @ c), unit, len(stratum))
    fit = least_squares(columns, centred)
    if folds == 1:
        means, coefficients = plain - (w @ c) @ fit.coefficients, fit.coefficients
        # a group that fixes a coefficient alone has a leverage of one and says nothing of its own error
        freedom = (1 - fit.leverages).clamp_min(1 / len(stratum))
        residuals = (centred - columns @ coefficients) / freedom[:, None]
    else:
        corrected, coefficients = _cross_fitted(f, c, w, unit, _folds(stratum, folds))
        means = w @ corrected
        residuals = _sums(w[:, None] * (corrected - means), unit, len(stratum))
    covariance, plain_covariance = _spread(residuals, stratum), _spread(centred, stratum)
    top = float(fit.leverages.max())
    return ControlledMeans(means, covariance, plain, plain_covariance, coefficients, fit.rank, top, len(stratum))


def _cross_fitted(f: Tensor, c: Tensor, w: Tensor, unit: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
    """Values (n, m) less the controls, each with coefficients of the other folds; and their average."""
    corrected, fits = f.clone(), []
    for k in range(int(fold.max()) + 1):
        own = fold[unit] == k
        others = torch.where(own, 0.0, w)
        others = others / others.sum()
        x = _sums(others[:, None] * (c - others @ c), unit, len(fold))
        y = _sums(others[:, None] * (f - others @ f), unit, len(fold))
        fits.append(least_squares(x, y).coefficients)
        corrected[own] -= c[own] @ fits[-1]
    return corrected, torch.stack(fits).mean(dim=0)


def _folds(stratum: Tensor, folds: int) -> Tensor:
    """(G,) fold of each unit: units of a stratum are dealt out in turn."""
    order = stratum.argsort(stable=True)
    counts = stratum.bincount()
    first = counts.cumsum(0) - counts
    fold = torch.empty_like(stratum)
    fold[order] = (torch.arange(len(stratum)) - first[stratum[order]]) % folds
    return fold


def _spread(residuals: Tensor, stratum: Tensor) -> Tensor:
    """(m, m) covariance of the sum of (G, m) independent residuals, their means within strata taken out."""
    counts = stratum.bincount().to(residuals.dtype)
    if bool((counts < 2).any()):
        raise ValueError("an error bar needs at least two independent groups in every stratum")
    means = _sums(residuals, stratum, len(counts)) / counts[:, None]
    scaled = (residuals - means[stratum]) * (counts / (counts - 1)).sqrt()[stratum, None]
    return scaled.T @ scaled


def _sums(values: Tensor, index: Tensor, size: int) -> Tensor:
    return values.new_zeros(size, values.shape[1]).index_add_(0, index, values)


def _units(groups: Tensor | None, strata: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
    """Unit (n,) of each draw and stratum (G,) of each unit, both from 0 without gaps."""
    for name, labels in (("groups", groups), ("strata", strata)):
        if labels is not None and (labels.shape != (n,) or labels.is_floating_point()):
            raise ValueError(f"{name} must hold {n} integers, got {labels.dtype} {tuple(labels.shape)}")
    unit = torch.arange(n) if groups is None else torch.unique(groups, return_inverse=True)[1]
    size = int(unit.max()) + 1
    if strata is None:
        return unit, torch.zeros(size, dtype=torch.int64)
    of_draw = torch.unique(strata, return_inverse=True)[1]
    stratum = torch.zeros(size, dtype=torch.int64).index_copy_(0, unit, of_draw)
    if not torch.equal(stratum[unit], of_draw):
        raise ValueError("a group of correlated draws lies in two strata")
    return unit, stratum


def _normalised(weights: Tensor | None, values: Tensor) -> Tensor:
    if weights is None:
        return torch.full((len(values),), 1 / len(values), dtype=torch.float64)
    w = weights.to(torch.float64)
    if w.shape != (len(values),):
        raise ValueError(f"weights must have shape ({len(values)},), got {tuple(w.shape)}")
    if not bool(((w >= 0) & w.isfinite()).all()) or not bool((w > 0).any()):
        raise WeightError("weights must be finite and not negative, and one of them positive")
    w = w / w.max()
    return w / w.sum()


def _check(values: Tensor, controls: Tensor, folds: int) -> None:
    if values.ndim != 2 or controls.ndim != 2 or len(values) != len(controls) or len(values) < 2:
        raise ValueError(
            "values (n, m) and controls (n, k) need the same n, at least 2, "
            f"got {tuple(values.shape)} and {tuple(controls.shape)}"
        )
    if folds < 1 or folds > len(values):
        raise ValueError(f"folds must be between 1 and the number of draws, got {folds}")
    if not bool(values.isfinite().all()) or not bool(controls.isfinite().all()):
        raise ValueError("values and controls must be finite")
