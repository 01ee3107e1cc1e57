r"""Standard errors from ONE run, read off the family tree of its particles.

Two particles that descend from the same initial particle (Eve) are dependent, two that do not are nearly
independent; how unevenly the final weight is spread over the Eves therefore measures the variance of the run.
With final normalised weights W (carried weights included), Eve indices E and resamplings p = 1..n,

.. math:: \widehat{\mathrm{var}}(\hat Z)/\hat Z^2
   = 1 - \frac{1}{1 - 1/K} \prod_{p=1}^{n} \frac{1}{1 - c_p} \Bigl(1 - \sum_e \bigl(\sum_{i: E_i = e}
   W_i\bigr)^2\Bigr).

c_p is the share of pairs of slots that lose their two distinct parents through the noise in the copy numbers
N, :math:`c_p = \sum_i \mathrm{Var}(N_i) / (K^2 (1 - \sum_i W_i^2))` with the weights W at that resampling.
With multinomial resampling c_p = 1/K and this is the estimator of Lee and Whiteley, unbiased for the variance
of the evidence (after multiplication by :math:`\hat Z^2`), n counting the resamplings that took place. The
low-variance schemes lose fewer pairs. For them the form follows from splitting :math:`E\sum_i N_i^2` into the
squared means, which belong to the variance of the run, and the copy noise, which cancels between negatively
correlated copies; it assumes that a particle's future does not depend on the fractional part of its K W.
Without resampling (n = 0) the formula is the ordinary standard error of a mean of independent weights.

Both errors are estimated from as many families as there are distinct roots: with a few tens they are good to some ten
per cent, with a handful they are too small too often. Look at :func:`distinct_roots` before quoting them, and prefer
the spread of several populations in long runs.

References:
    Chan and Lai (2013), Ann. Statist. 41, 2877, section 2. Lee and Whiteley (2018), Biometrika 105, 609,
    section 3. Du and Guyader (2021), Ann. Appl. Probab. 31, 1021 (adaptive resampling times).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .population import Population
from .weights import row_sum

__all__ = ["distinct_roots", "evidence_std_error", "mean_std_error", "root_sums"]


def root_sums(population: Population, values: Tensor) -> Tensor:
    """Sums of ``values`` over the particles of each Eve: ``(P, K, ...)`` -> ``(P, K, ...)``, indexed by
    Eve."""
    roots = population.roots.reshape(population.roots.shape + (1,) * (values.ndim - 2)).expand_as(values)
    return torch.zeros_like(values).scatter_add_(1, roots, values)


def distinct_roots(population: Population) -> Tensor:
    """How many initial particles still have a descendant, ``(P,)`` int64."""
    return (root_sums(population, torch.ones_like(population.log_weights)) > 0).sum(dim=-1)


def evidence_std_error(population: Population) -> Tensor:
    """Standard error of ``population.log_evidence`` from the single run, ``(P,)`` float64.

    The estimate of the variance can fall below that of the last weighting alone (it may even be negative)
    when hardly any tree is left; the latter, a lower bound, is then returned. With a single common root
    nothing can be estimated and the answer is ``inf``, as it is for a collapsed population: use more
    particles, or several populations.

    Raises:
        ValueError: fewer than two particles.
    """
    k = population.n_particles
    if k < 2:
        raise ValueError("a standard error needs at least two particles")
    weights = population.weights
    shared = row_sum(root_sums(population, weights).square())
    pairs = (population.log_coalescence.exp() * (1 - shared)) * (k / (k - 1))
    last_weighting = (k * row_sum(weights.square()) - 1).clamp_min(0) / (k - 1)
    variance = torch.maximum(1 - pairs, last_weighting)
    unknown = population.collapsed | (distinct_roots(population) < 2)
    return torch.where(unknown, torch.inf, variance.sqrt())


def mean_std_error(population: Population, values: Tensor) -> Tensor:
    r"""Standard error of the weighted mean of ``values`` from the single run.

    .. math:: \sqrt{\sum_e \bigl(\sum_{i: E_i = e} W_i (f_i - \bar f)\bigr)^2 / (1 - \sum_e S_e^2)},
       \quad S_e = \sum_{i: E_i = e} W_i

    The denominator is the small-sample correction of a variance (n independent equal families: 1 - 1/n). With
    a single common root the answer is ``inf``.

    Args:
        population: weights and Eve indices.
        values: ``(P, K, ...)``.

    Returns:
        ``(P, ...)`` float64, in the unit of ``values``.
    """
    f = values.to(torch.float64)
    weights = population.weights.reshape(population.weights.shape + (1,) * (f.ndim - 2))
    mean = (weights * f).sum(dim=1, keepdim=True)
    squares = root_sums(population, weights * (f - mean)).square().sum(dim=1)
    families = 1 - row_sum(root_sums(population, population.weights).square())
    known = (distinct_roots(population) > 1) & (families > 0)
    families, known = (t.reshape(-1, *(1,) * (squares.ndim - 1)) for t in (families, known))
    return torch.where(known, (squares / torch.where(known, families, 1.0)).sqrt(), torch.inf)
