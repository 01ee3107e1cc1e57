"""The variables that a bias acts on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BiasVariable", "check_values", "check_variables", "check_widths", "differences", "shortest"]

WIDTHS_A_PERIOD = 7.0
"""Kernel widths in a period, at least: where the two ways around the circle are equally long a kernel has a kink of
exp(-6.1) of its height, the size of what truncated kernels leave out."""


@dataclass(frozen=True)
class BiasVariable:
    """One variable of a bias.

    Attributes:
        name: in files and reports.
        sigma: width of a kernel along it, in its unit.
        period: length of the circle it lives on, values in [-period/2, period/2]; None for an open variable.
        unit: label.

    Raises:
        ValueError: a width that is not positive or more than a seventh of the period, or a period that is not
            positive.
    """

    name: str
    sigma: float
    period: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.period is not None and not (self.period > 0.0 and math.isfinite(self.period)):
            raise ValueError(f"{self.name}: period = {self.period!r}, expected a positive number or None")
        if not (self.sigma > 0.0 and math.isfinite(self.sigma)):
            raise ValueError(f"{self.name}: sigma = {self.sigma!r}, expected a positive number")
        check_widths(self.name, self.sigma, self.period)


def check_widths(name: str, widest: float, period: float | None) -> None:
    """Refuse kernels so wide that they meet themselves on the other side of the circle.

    Raises:
        ValueError: naming the variable and the width.
    """
    if period is not None and widest > period / WIDTHS_A_PERIOD:
        raise ValueError(
            f"{name}: sigma = {widest:g} is more than a seventh of the period {period:g}: "
            "a kernel would meet itself on the other side of the circle"
        )


def check_variables(variables: Sequence[BiasVariable]) -> tuple[BiasVariable, ...]:
    """At least one, with names of their own.

    Raises:
        ValueError: none, or a name that occurs twice.
    """
    names = [variable.name for variable in variables]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"variables: got {names}, expected at least one, each with a name of its own")
    return tuple(variables)


def check_values(values: Tensor, dimension: int) -> Tensor:
    """``values`` as (n, d) float64; (n,) is taken for one variable.

    Raises:
        ValueError: another shape, or whole numbers.
    """
    if dimension == 1 and values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] != dimension or not values.is_floating_point():
        raise ValueError(
            f"values: got {values.dtype} {tuple(values.shape)}, expected (n, {dimension}) of floating point"
        )
    return values.to(torch.float64)


def shortest(difference: Tensor, period: float | None) -> Tensor:
    """A difference of one variable, the short way around its circle if it has a period."""
    return difference if period is None else difference - period * torch.round(difference / period)


def differences(a: Tensor, b: Tensor, periods: Tensor) -> Tensor:
    """a - b, the short way around the circle where ``periods`` (d,) is not 0."""
    difference = a - b
    safe = torch.where(periods > 0, periods, 1.0)
    return torch.where(periods > 0, difference - safe * torch.round(difference / safe), difference)
