r"""Resampling: ancestors drawn in proportion to the weights, for many populations at once.

A scheme is a deterministic function of weights ``(P, K)`` and uniform numbers, so that a
population's ancestors depend on its own weights and its own stream only. No scheme loops over particles in
Python. ``N_i`` is the number of copies of particle i; every scheme has :math:`E[N_i] = K W_i`.

========== ===================================== ==============================
scheme     copies                                order of the ancestors
========== ===================================== ==============================
multinomial ``N ~ Multinomial(K, W)``            independent draws
stratified within one of K W_i + (-2, 2)         ascending
systematic floor or ceil of K W_i                ascending
residual   at least floor of K W_i               ascending
ssp        floor or ceil of K W_i                ascending
========== ===================================== ==============================

References:
    Douc, Cappe and Moulines (2005), "Comparison of resampling schemes for particle filtering".
    Srinivasan (2001), "Distributions on level-sets with applications to approximation algorithms", section 2.
    Gerber, Chopin and Whiteley (2019), "Negative association, ordering and convergence of resampling
    methods", Ann. Statist. 47, 2236, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .errors import PopulationCollapsed, WeightError
from .streams import uniform
from .weights import as_log_weights, row_sum

__all__ = ["SCHEMES", "Scheme", "copies", "draw_ancestors", "get_scheme", "resample"]


@dataclass(frozen=True)
class Scheme:
    """A resampling scheme.

    Attributes:
        name: what messages and checkpoints call it.
        n_uniforms: K -> how many uniform numbers a population needs.
        ancestors: (weights (P, K), not necessarily normalised; uniforms (P, n)) -> ancestors (P, K) int64.
        copy_variance: normalised weights (P, K) -> ``sum_i Var(N_i)`` (P,), which the genealogical standard error
            needs.
    """

    name: str
    n_uniforms: Callable[[int], int]
    ancestors: Callable[[Tensor, Tensor], Tensor]
    copy_variance: Callable[[Tensor], Tensor]


def resample(log_weights: Tensor, scheme: str | Scheme, generator: Generator | Sequence[Generator]) -> Tensor:
    """Draws K ancestors for each of P populations.

    Args:
        log_weights: ``(P, K)``, or ``(K,)`` for one population; unnormalised, ``-inf`` allowed.
        scheme: ``"multinomial"``, ``"stratified"``, ``"systematic"``, ``"residual"``, ``"ssp"`` or a
            :class:`Scheme`.
        generator: one generator for all, or P of them (a population then depends on its own alone).

    Returns:
        ancestors: int64, the shape of ``log_weights``; entries in ``[0, K)``. A dead particle is never an
            ancestor.

    Raises:
        PopulationCollapsed: a population has only dead particles.
        WeightError: NaN or ``+inf`` among the weights, or a wrong shape.
        ValueError: unknown scheme, or a wrong number of generators.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> resample(torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]), "systematic", g)
        tensor([[0, 0, 2, 2]])
    """
    if log_weights.ndim == 1:
        return resample(log_weights[None], scheme, generator)[0]
    if log_weights.ndim != 2:
        raise WeightError(f"log-weights must be (P, K) or (K,), got shape {tuple(log_weights.shape)}")
    chosen = get_scheme(scheme)
    values = as_log_weights(log_weights)
    n_particles = values.shape[1]
    top = values.amax(dim=-1, keepdim=True)
    if bool((top == -torch.inf).any()):
        raise PopulationCollapsed((top[:, 0] == -torch.inf).nonzero().reshape(-1).tolist(), 0, n_particles)
    return draw_ancestors((values - top).exp_(), chosen, generator)


def draw_ancestors(weights: Tensor, scheme: Scheme, generator: Generator | Sequence[Generator]) -> Tensor:
    """Ancestors (P, K) for weights (P, K) that are known to be sound: finite, not negative, not all zero in a row."""
    n_populations, n_particles = weights.shape
    draws = _uniforms(generator, n_populations, scheme.n_uniforms(n_particles)).to(weights.device)
    return scheme.ancestors(weights, draws)


def get_scheme(scheme: str | Scheme) -> Scheme:
    """Looks a scheme up by name; a :class:`Scheme` passes through.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if isinstance(scheme, Scheme):
        return scheme
    if scheme not in SCHEMES:
        raise ValueError(f"unknown resampling scheme {scheme!r}; known: {', '.join(SCHEMES)}")
    return SCHEMES[scheme]


def copies(ancestors: Tensor) -> Tensor:
    """Number of copies ``N_i`` of each particle, ``(P, K)`` int64, from ancestors ``(P, K)``."""
    return torch.zeros_like(ancestors).scatter_add_(-1, ancestors, torch.ones_like(ancestors))


def _uniforms(generator: Generator | Sequence[Generator], n_populations: int, n: int) -> Tensor:
    if isinstance(generator, Generator):
        device = generator.device
        return torch.rand((n_populations, n), generator=generator, dtype=torch.float64, device=device)
    if len(generator) != n_populations:
        raise ValueError(f"{len(generator)} generators for {n_populations} populations")
    return uniform(generator, (n,))


def _cumulative(weights: Tensor) -> Tensor:
    """Running sums of each row in float64, ascending, with the last one exactly 1 (so no index can reach
    K)."""
    sums = weights.cumsum(dim=-1)
    if sums.device.type != "cpu":  # a parallel scan may fall by one unit in the last place
        sums = sums.cummax(dim=-1).values
    return sums.div_(sums[..., -1:].clone())


def _expected(weights: Tensor) -> Tensor:
    """Mean copy numbers K W."""
    return weights * (weights.shape[-1] / row_sum(weights))[..., None]


def _from_first_beyond(ends: Tensor) -> Tensor:
    """Ancestors from ``ends[i]`` = number of copies of particles 0..i: slot j goes to the first i with
    ends[i] > j."""
    n_populations, n_particles = ends.shape
    histogram = ends.new_zeros((n_populations, n_particles + 1))
    histogram.scatter_add_(-1, ends, ends.new_ones((1, 1)).expand_as(ends))
    return histogram[:, :-1].cumsum_(dim=-1)


def _multinomial(weights: Tensor, uniforms: Tensor) -> Tensor:
    return torch.searchsorted(_cumulative(weights), uniforms, right=True)


def _systematic(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Slot j sits at ``(j + u) / K``, so ``ceil(c_i - u)`` slots lie below ``c_i = K sum_{l<=i} W_l``: linear work,
    no search.

    u is kept K units in the last place away from one, so that ``K - u`` cannot be rounded to ``K - 1`` and the
    last slot lost; that changes the law by less than 1e-9 up to four million particles. In-place arithmetic: at a
    million particles the time goes into fresh memory, not into sums.
    """
    n_particles = weights.shape[-1]
    below = _cumulative(weights).mul_(n_particles)
    below.sub_(uniforms.clamp_max(1 - n_particles * 2.0**-52)).ceil_()
    return _from_first_beyond(below.to(torch.int64))


def _stratified(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Slot j sits at ``(j + u_j) / K``, so ``floor(c_i) + [u_floor(c_i) < c_i - floor(c_i)]`` slots lie below
    ``c_i``."""
    n_particles = weights.shape[-1]
    scaled = _cumulative(weights).mul_(n_particles)
    below = scaled.to(torch.int64)
    offsets = uniforms.gather(-1, below.clamp_max(n_particles - 1))
    return _from_first_beyond(below.add_(offsets < scaled.frac_()))


def _residual(weights: Tensor, uniforms: Tensor) -> Tensor:
    n_particles = weights.shape[-1]
    expected = _expected(weights)
    counts = expected.floor()
    fraction = expected - counts
    missing = n_particles - counts.sum(dim=-1, keepdim=True)
    fraction = torch.where(missing > 0, fraction, torch.ones_like(fraction))
    drawn = torch.searchsorted(_cumulative(fraction), uniforms, right=True)
    used = torch.arange(n_particles, device=weights.device) < missing
    total = counts.to(torch.int64).scatter_add_(-1, drawn, used.to(torch.int64))
    return _from_first_beyond(total.cumsum(dim=-1))


def _ssp(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Srinivasan's sampling process, run as a knock-out tournament of ceil(log2 K) rounds, all pairs of a
    round at once.

    The fractional parts ``f_i`` of ``K W_i`` meet in pairs. A pair (a, b) settles one of the two at 0 (if a +
    b < 1) or at 1 (otherwise) and the other goes on with what is left, a + b or a + b - 1; who is settled is
    drawn so that both expectations stay. Every particle ends at floor or ceil and the sum is kept exactly.
    Srinivasan (2001, section 2) pairs along any binary tree; the sequential order of Gerber et al. (2019,
    algorithm 1) is one choice of the tree and this balanced tree is another, so this is the exact process and
    not an approximation of it.
    """
    n_populations, n_particles = weights.shape
    expected = _expected(weights)
    counts = expected.floor()
    size = uniforms.shape[-1]
    value = torch.nn.functional.pad(expected - counts, (0, size - n_particles))
    index = torch.arange(size, device=weights.device).expand(n_populations, size)
    extra = torch.zeros((n_populations, size), dtype=torch.int64, device=weights.device)
    offset = 0
    while value.shape[-1] > 1:
        n_pairs = value.shape[-1] // 2
        first, second = value[:, 0::2], value[:, 1::2]
        draw = uniforms[:, offset : offset + n_pairs]
        offset += n_pairs
        total = first + second
        overflows = total >= 1
        first_goes_on = torch.where(overflows, draw * (2 - total) >= 1 - second, draw * total < first)
        settled = torch.where(first_goes_on, index[:, 1::2], index[:, 0::2])
        extra.scatter_(-1, settled, overflows.to(torch.int64))
        index = torch.where(first_goes_on, index[:, 0::2], index[:, 1::2])
        value = torch.where(overflows, total - 1, total)
    extra.scatter_(-1, index, value.round().to(torch.int64))  # the rest is 0 or 1 up to rounding
    total_copies = counts.to(torch.int64) + extra[:, :n_particles]
    return _from_first_beyond(total_copies.cumsum(dim=-1))


def _power_of_two(n_particles: int) -> int:
    return 1 << max(n_particles - 1, 0).bit_length()


def _multinomial_variance(weights: Tensor) -> Tensor:
    return weights.shape[-1] * (weights * (1 - weights)).sum(dim=-1)


def _fraction_variance(weights: Tensor) -> Tensor:
    """A count that is floor or ceil of its mean has variance f (1 - f)."""
    fraction = (weights * weights.shape[-1]).frac()
    return (fraction - fraction.square()).sum(dim=-1)


def _residual_variance(weights: Tensor) -> Tensor:
    expected = weights * weights.shape[-1]
    fraction = expected - expected.floor()
    missing = fraction.sum(dim=-1, keepdim=True)
    return (fraction * (1 - fraction / missing.clamp_min(1))).sum(dim=-1)


def _stratified_variance(weights: Tensor) -> Tensor:
    """A particle covers some strata wholly and at most two in part; its count is a sum of two Bernoulli
    numbers."""
    ends = _cumulative(weights) * weights.shape[-1]
    starts = torch.nn.functional.pad(ends[:, :-1], (1, 0))
    same = ends.floor() == starts.floor()
    head = torch.where(same, ends - starts, starts.ceil() - starts)
    tail = torch.where(same, torch.zeros_like(ends), ends - ends.floor())
    return (head * (1 - head) + tail * (1 - tail)).sum(dim=-1)


SCHEMES: dict[str, Scheme] = {
    "multinomial": Scheme("multinomial", lambda k: k, _multinomial, _multinomial_variance),
    "stratified": Scheme("stratified", lambda k: k, _stratified, _stratified_variance),
    "systematic": Scheme("systematic", lambda k: 1, _systematic, _fraction_variance),
    "residual": Scheme("residual", lambda k: k, _residual, _residual_variance),
    "ssp": Scheme("ssp", _power_of_two, _ssp, _fraction_variance),
}
