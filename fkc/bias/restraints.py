"""Walls and restraints on one variable: they belong to the target, not to the bias, and are reported by themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .variables import shortest

__all__ = ["FlatBottom", "Harmonic", "LowerWall", "UpperWall", "Wall"]


class Wall(Protocol):
    """An energy of one variable."""

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """R and dR/ds, (B,) each, of values (B,)."""
        ...


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (number > 0.0 and math.isfinite(number)):
            raise ValueError(f"{name}: got {number!r}, expected a positive number")


@dataclass(frozen=True)
class _PowerWall:
    """A power of the way beyond a wall.

    Attributes:
        at: where the wall stands, in the unit of the variable.
        stiffness: k, energy.
        exponent: at least 1.
        scale: unit of the variable.
        offset: the wall begins this much before ``at``.
    """

    at: float
    stiffness: float
    exponent: float = 2.0
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        _positive(stiffness=self.stiffness, scale=self.scale)
        if not (self.exponent >= 1.0 and math.isfinite(self.exponent)):
            raise ValueError(f"exponent: got {self.exponent!r}, expected at least 1")

    def _power(self, beyond: Tensor) -> tuple[Tensor, Tensor]:
        """k (beyond / scale)^exponent where that is positive, and its derivative."""
        scaled = beyond.clamp_min(0.0) / self.scale
        value = self.stiffness * scaled**self.exponent
        slope = self.stiffness * self.exponent / self.scale * scaled ** (self.exponent - 1.0)
        return value, torch.where(beyond <= 0.0, 0.0, slope + 0.0 * beyond)  # NaN stays NaN


class UpperWall(_PowerWall):
    """k ((s - at + offset) / scale)^exponent where that is positive (PLUMED's UPPER_WALLS).

    Attributes:
        at: where the wall stands, in the unit of the variable.
        stiffness: k, energy.
        exponent: at least 1.
        scale: unit of the variable.
        offset: the wall begins this much before ``at``.
    """

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """R and dR/ds, (B,) each."""
        return self._power(values - self.at + self.offset)


class LowerWall(_PowerWall):
    """k ((at + offset - s) / scale)^exponent where that is positive.

    The sign of the offset is that of PLUMED's code of LOWER_WALLS, not of its manual; with odd exponents PLUMED's
    energy is negative, this one is not.

    Attributes:
        at: where the wall stands, in the unit of the variable.
        stiffness: k, energy.
        exponent: at least 1.
        scale: unit of the variable.
        offset: the wall begins this much before ``at``.
    """

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """R and dR/ds, (B,) each."""
        value, slope = self._power(self.at + self.offset - values)
        return value, -slope


@dataclass(frozen=True)
class Harmonic:
    """stiffness / 2 times the squared distance from ``center``, the short way around a circle.

    Attributes:
        center: in the unit of the variable.
        stiffness: energy over squared unit.
        period: of the variable, or None.
    """

    center: float
    stiffness: float
    period: float | None = None

    def __post_init__(self) -> None:
        _positive(stiffness=self.stiffness)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """R and dR/ds, (B,) each."""
        distance = shortest(values - self.center, self.period)
        return 0.5 * self.stiffness * distance * distance, self.stiffness * distance


@dataclass(frozen=True)
class FlatBottom:
    """Zero within ``half_width`` of ``center``, harmonic beyond.

    Attributes:
        center: in the unit of the variable.
        half_width: of the flat part.
        stiffness: energy over squared unit.
        period: of the variable, or None.
    """

    center: float
    half_width: float
    stiffness: float
    period: float | None = None

    def __post_init__(self) -> None:
        _positive(stiffness=self.stiffness, half_width=self.half_width)

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """R and dR/ds, (B,) each."""
        distance = shortest(values - self.center, self.period)
        beyond = torch.where(distance.abs() > self.half_width, distance - distance.sign() * self.half_width, 0.0)
        beyond = torch.where(distance.isnan(), distance, beyond)
        return 0.5 * self.stiffness * beyond * beyond, self.stiffness * beyond
