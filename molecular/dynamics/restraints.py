"""Restraints on collective variables: part of the target, reported by name."""

from dataclasses import dataclass

from ...fkc.bias import Wall
from ..cvs import CollectiveVariable

__all__ = ["Restrained"]


@dataclass(frozen=True)
class Restrained:
    """A wall or restraint on one variable, which need not be a biased one.

    Restraints are not weighed out: results are those of the energy with its restraints.

    Attributes:
        variable: of the positions.
        wall: energy in kJ/mol of the variable's values, see :mod:`feynkac.fkc.bias.restraints`.
        name: under which its energy is reported.
    """

    variable: CollectiveVariable
    wall: Wall
    name: str
