"""Targets made of mixtures, exactly: by expanding a power, or by quadrature in one and two dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .experts import MixtureLaw

__all__ = ["ExactTarget", "Grid", "exact_target", "quadrature"]

_POINTS = {1: 20_000, 2: 250_000}
"""Of a grid, by its dimension, about: more than the integral needs, for the borders between modes."""

_COARSEST = 2_000_000
"""Of a grid that the integral needs, at most."""

_TERMS = 100_000
"""Components of an expanded power, at most."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A density on an equally spaced grid.

    Attributes:
        axes: d of them, each (n_i,).
        log_density: (n_1, ..., n_d) of the normalised target.
    """

    axes: tuple[Tensor, ...]
    log_density: Tensor

    @property
    def points(self) -> Tensor:
        """(n_1 ... n_d, d)."""
        return torch.cartesian_prod(*self.axes).reshape(-1, len(self.axes))

    @property
    def masses(self) -> Tensor:
        """(n_1 ... n_d,) probabilities of the cells."""
        return self.log_density.reshape(-1).softmax(0)


@dataclass(frozen=True, eq=False)
class ExactTarget:
    """Exact answers for a product of powers of mixtures.

    Attributes:
        log_integral: of the product.
        mean: (d,).
        square: mean of |x|^2.
        modes: (m, d) means of the mixtures' components.
        masses: (m,) probability of being nearest to each mode; None above two dimensions.
        grid: the density; None above two dimensions.
        how: for people.
    """

    log_integral: float
    mean: Tensor
    square: float
    modes: Tensor
    masses: Tensor | None
    grid: Grid | None
    how: str


def exact_target(laws: Sequence[MixtureLaw], powers: Sequence[float]) -> ExactTarget | None:
    """The exact answers for prod_i ``laws``_i^``powers``_i; None where none is known.

    Args:
        laws: mixtures of one dimension d, each of one width.
        powers: one for each.

    Raises:
        ValueError: numbers, dimensions or widths that do not fit.
    """
    _check(laws, powers)
    modes = torch.unique(torch.cat([law.means for law in laws]), dim=0)
    dimension = modes.shape[1]
    found = quadrature(laws, powers) if dimension <= 2 else None
    grid, masses = None, None
    if found is not None:
        grid, log_integral = found
        nearest = torch.cat([torch.cdist(part, modes).argmin(dim=1) for part in torch.split(grid.points, 100_000)])
        masses = torch.zeros(len(modes), dtype=torch.float64).index_add(0, nearest, grid.masses)
    expanded = _expanded(laws[0], powers[0]) if len(laws) == 1 else None
    if expanded is not None:
        law, log_integral = expanded
        mean, variance = law.moments()
        square = float(mean.square().sum()) + dimension * variance
        return ExactTarget(log_integral, mean, square, modes, masses, grid, "by expanding the power of the mixture")
    if grid is None:
        return None
    mean = grid.masses @ grid.points
    square = float(grid.masses @ grid.points.square().sum(dim=1))
    return ExactTarget(log_integral, mean, square, modes, masses, grid, "by quadrature")


def quadrature(laws: Sequence[MixtureLaw], powers: Sequence[float]) -> tuple[Grid, float] | None:
    """The target on a grid, by the trapezoidal rule, which is exact to rounding for steps below half a width.

    Args:
        laws: mixtures in one or two dimensions, each of one width.
        powers: one for each.

    Returns:
        The grid and the log of the integral; None where the density does not vanish at the edges of any grid that
        can be afforded.

    Raises:
        ValueError: numbers, dimensions or widths that do not fit, or more than two dimensions.
    """
    widths = _check(laws, powers)
    means = torch.cat([law.means for law in laws])
    if means.shape[1] not in _POINTS:
        raise ValueError(f"laws: got dimension {means.shape[1]}, expected 1 or 2")
    largest = max(1.0, *(abs(power) for power in powers))
    step = min(widths) / (2.0 * math.sqrt(largest))
    for margin in (8.0, 16.0, 32.0):
        reach = margin * max(widths)
        lows, highs = means.amin(dim=0) - reach, means.amax(dim=0) + reach
        needed = math.prod(math.ceil(float(extent) / step) + 1 for extent in highs - lows)
        if needed > _COARSEST:
            return None
        fine = step / max(1.0, (_POINTS[len(lows)] / needed) ** (1 / len(lows)))
        counts = [math.ceil(float(extent) / fine) + 1 for extent in highs - lows]
        axes = tuple(
            torch.linspace(float(low), float(high), n, dtype=torch.float64)
            for low, high, n in zip(lows, highs, counts, strict=True)
        )
        points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        parts = [_log_target(part, laws, powers) for part in torch.split(points, 50_000)]
        log_target = torch.cat(parts).reshape(counts)
        if float(_edges(log_target).max()) < float(log_target.max()) - 30.0:
            cell = sum(math.log(float(axis[1] - axis[0])) for axis in axes)
            log_integral = float(log_target.reshape(-1).logsumexp(0)) + cell
            return Grid(axes, log_target - log_integral), log_integral
    return None


def _check(laws: Sequence[MixtureLaw], powers: Sequence[float]) -> list[float]:
    """Widths of the laws."""
    if not laws or len(laws) != len(powers):
        raise ValueError(f"powers: got {len(powers)} for {len(laws)} laws, expected one for each of one or more")
    if len({law.dimension for law in laws}) > 1:
        raise ValueError(f"laws: got dimensions {[law.dimension for law in laws]}, expected one")
    widths = []
    for law in laws:
        if isinstance(law.std, tuple):
            raise ValueError("laws: got a mixture of several widths, expected one")
        widths.append(float(law.std))
    return widths


def _expanded(law: MixtureLaw, power: float) -> tuple[MixtureLaw, float] | None:
    """A whole power of a mixture, and the log of its integral."""
    if power < 1.0 or power != round(power) or math.comb(len(law.means) + int(power) - 1, int(power)) > _TERMS:
        return None
    return law.power(int(power))


def _log_target(x: Tensor, laws: Sequence[MixtureLaw], powers: Sequence[float]) -> Tensor:
    one, none = torch.ones(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    pairs = zip(laws, powers, strict=True)
    return sum((power * law.score_and_log_density(x, one, none)[1] for law, power in pairs), none)


def _edges(values: Tensor) -> Tensor:
    ends = [values.select(axis, place).reshape(-1) for axis in range(values.ndim) for place in (0, -1)]
    return torch.cat(ends)
