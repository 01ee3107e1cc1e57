"""Repulsion along collective variables: a bias that pushes samples away from where samples have been.

A bias is an immutable function of d variables, in the unit of the ``kT`` it was given. ``deposited`` returns the next
one; ``reweight`` undoes it. Two rules make it grow: well-tempered hills (Barducci, Bussi, Parrinello 2008, Phys. Rev.
Lett. 100, 020603) and OPES (Invernizzi, Parrinello 2020, J. Phys. Chem. Lett. 11, 2731).

Example:
    >>> phi = BiasVariable("phi", sigma=0.3, period=2 * math.pi, unit="rad")
    >>> bias = RepulsionBias.well_tempered([phi], kT=2.494, bias_factor=10, height=20.0)
    >>> bias = bias.deposited(samples)                     # (n, 1)
    >>> value, gradient = bias.value_and_gradient(samples)
    >>> log_weights = bias.reweight(samples)               # of the law without the bias
"""

from .base import Counts, RepulsionBias
from .grid import Grid, GridAxis
from .kernels import Hills, Kernels
from .opes import OpesBias, OpesSums
from .restraints import FlatBottom, Harmonic, LowerWall, UpperWall, Wall
from .rounds import Drawn, PooledRounds, Round, bias_rounds, pool_rounds
from .shapes import SHAPES, Shape
from .targets import biased, undone
from .variables import BiasVariable
from .well_tempered import WellTemperedBias, tiwary_parrinello

__all__ = [
    "RepulsionBias",
    "WellTemperedBias",
    "OpesBias",
    "OpesSums",
    "Counts",
    "BiasVariable",
    "GridAxis",
    "Grid",
    "Hills",
    "Kernels",
    "Shape",
    "SHAPES",
    "Wall",
    "UpperWall",
    "LowerWall",
    "Harmonic",
    "FlatBottom",
    "tiwary_parrinello",
    "Drawn",
    "Round",
    "PooledRounds",
    "bias_rounds",
    "pool_rounds",
    "biased",
    "undone",
]
