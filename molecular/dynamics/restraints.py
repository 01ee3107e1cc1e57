"""Restraints on collective variables: part of the target, reported by name."""

import math
from dataclasses import dataclass

from ...fkc.bias import FlatBottom, Harmonic, LowerWall, UpperWall, Wall
from ..cvs import CollectiveVariable

__all__ = ["Restrained", "same_period"]


def same_period(first: float | None, second: float | None) -> bool:
    """Whether two periods agree, up to rounding; None is an open axis."""
    return math.isclose(first or 0.0, second or 0.0, rel_tol=1e-9)


@dataclass(frozen=True)
class Restrained:
    """A wall or restraint on one variable, which need not be a biased one.

    Restraints are not weighed out: results are those of the energy with its restraints. On a periodic variable a wall
    to one side would have a cliff at the seam, and a harmonic one must know the period.

    Attributes:
        variable: of the positions.
        wall: energy in kJ/mol of the variable's values, see :mod:`feynkac.fkc.bias.restraints`.
        name: under which its energy is reported.
    """

    variable: CollectiveVariable
    wall: Wall
    name: str

    def check(self) -> None:
        """Refuse a wall that does not fit the period of the variable; walls of other classes are trusted.

        Raises:
            ValueError: naming restraint and variable.
        """
        period, wall, variable = self.variable.period, self.wall, self.variable.name
        if isinstance(wall, UpperWall | LowerWall) and period is not None:
            raise ValueError(
                f"{self.name}: {variable} is periodic, and a wall to one side of it would have a cliff at its seam: "
                f"use FlatBottom with period={period:g}"
            )
        if isinstance(wall, Harmonic | FlatBottom) and not same_period(wall.period, period):
            raise ValueError(
                f"{self.name}: the wall has period={wall.period}, but that of {variable} is {period}: "
                f"use {type(wall).__name__} with period={period}"
            )
