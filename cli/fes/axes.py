"""Which grid: the rules of PLUMED's ``sum_hills``, and those for histograms of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ...molecular.free_energy import Axis
from ...molecular.io import grid_axis
from ..errors import UserError
from .options import FesOptions

__all__ = ["data_axes", "kernel_axes", "unit_of"]

_CELLS_A_REACH = 10
"""sum_hills' automatic spacing: a tenth of the distance at which the narrowest kernel ends."""

_MOST_POINTS = 5_000_000
_MOST_VARIABLES = 3
_BINS = {1: 60, 2: 40}
"""Cells an axis of a histogram in one and in two dimensions."""


def unit_of(period: float | None) -> str:
    """``rad`` for a circle of 2 pi, which pictures show in degrees; PLUMED's files name no units."""
    return "rad" if period is not None and math.isclose(period, 2 * math.pi, rel_tol=1e-6) else ""


def kernel_axes(
    names: Sequence[str],
    domains: Sequence[tuple[float, float] | None],
    centers: Tensor,
    reach: Tensor,
    options: FesOptions,
) -> tuple[Axis, ...]:
    """Axes for a sum of kernels that end.

    Open variables reach from the lowest to the highest end of a kernel, periodic ones once around; the spacing is a
    tenth of the narrowest kernel's reach. ``bin`` counts cells between ``min`` and ``max``: an open axis has one grid
    point more. ``spacing`` makes int(range / spacing) + 1 cells; of both the finer grid counts.

    Args:
        names: of d variables.
        domains: ends of periodic ones.
        centers: (M, d).
        reach: (M, d) distance from the centre to a kernel's end along each variable.
        options: with the grid asked for, if any.

    Raises:
        UserError: naming the option that does not fit.
    """
    d = len(names)
    if d > _MOST_VARIABLES:
        raise UserError(f"{d} variables ({', '.join(names)}): grids have up to {_MOST_VARIABLES}")
    _check_counts(options, names)
    axes = []
    for k, (name, domain) in enumerate(zip(names, domains, strict=True)):
        if options.min is not None and options.max is not None:
            low, high, periodic = _given(name, options.min[k], options.max[k], domain)
        elif domain is not None:
            (low, high), periodic = domain, True
        else:
            low, high = float((centers[:, k] - reach[:, k]).min()), float((centers[:, k] + reach[:, k]).max())
            periodic = False
        bins = _bins(options, k, high - low, float(reach[:, k].min()))
        points = bins if periodic else bins + 1
        period = None if domain is None else domain[1] - domain[0]
        axes.append(grid_axis(name, low, high, points, periodic=periodic, unit=unit_of(period)))
    total = math.prod(axis.bins for axis in axes)
    if total > _MOST_POINTS:
        shape = " x ".join(str(axis.bins) for axis in axes)
        raise UserError(f"a grid of {shape} points is too large (more than {_MOST_POINTS:,}): use --bin")
    return tuple(axes)


def data_axes(
    names: Sequence[str], domains: Sequence[tuple[float, float] | None], values: Tensor, options: FesOptions
) -> tuple[Axis, ...]:
    """Axes for a histogram of samples: their range, or once around a circle.

    Args:
        names: of one or two variables.
        domains: ends of periodic ones.
        values: (n, d) finite.
        options: with the grid asked for, if any; ``bin`` counts cells.

    Raises:
        UserError: naming the option that does not fit, or a variable that never changes.
    """
    _check_counts(options, names)
    axes = []
    for k, (name, domain) in enumerate(zip(names, domains, strict=True)):
        if options.min is not None and options.max is not None:
            low, high, periodic = _given(name, options.min[k], options.max[k], domain)
        elif domain is not None:
            (low, high), periodic = domain, True
        else:
            low, high, periodic = float(values[:, k].min()), float(values[:, k].max()), False
        if not low < high:
            raise UserError(f"{name} has the value {low:g} in every frame: there is no free energy along it")
        bins = _BINS[len(names)]
        if options.bin is not None or options.spacing is not None:
            bins = _bins(options, k, high - low, math.inf)
        period = None if domain is None else domain[1] - domain[0]
        axes.append(Axis(name=name, lower=low, upper=high, bins=max(bins, 2), periodic=periodic, unit=unit_of(period)))
    if math.prod(axis.bins for axis in axes) > _MOST_POINTS:
        raise UserError(f"--bin: more than {_MOST_POINTS:,} cells")
    return tuple(axes)


def _check_counts(options: FesOptions, names: Sequence[str]) -> None:
    for option in ("bin", "min", "max", "spacing"):
        given: Sequence[float] | None = getattr(options, option)
        if given is not None and len(given) != len(names):
            raise UserError(f"--{option}: {len(given)} values for {len(names)} variables ({', '.join(names)})")


def _given(name: str, low: float, high: float, domain: tuple[float, float] | None) -> tuple[float, float, bool]:
    if not low < high:
        raise UserError(f"--min and --max: {low:g} and {high:g} of {name} are not in order")
    if domain is None:
        return low, high, False
    period = domain[1] - domain[0]
    if math.isclose(high - low, period, rel_tol=1e-5):  # "3.14159" typed for pi is the whole circle
        return (*domain, True) if math.isclose(low, domain[0], abs_tol=1e-5 * period) else (low, low + period, True)
    if high - low > period:
        raise UserError(f"--min and --max: {low:g} to {high:g} is more than the period {period:g} of {name}")
    return low, high, False


def _bins(options: FesOptions, k: int, span: float, reach: float) -> int:
    found = [] if options.bin is None else [options.bin[k]]
    if options.spacing is not None:
        found.append(int(span / options.spacing[k]) + 1)
    if not found:
        found.append(math.ceil(span / (reach / _CELLS_A_REACH)))
    return max([2, *found])
