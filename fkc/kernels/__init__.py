"""Markov moves: exact ones that leave the target invariant, and an inexact one that says so in a weight."""

from .base import Kernel, Move
from .langevin import UnadjustedLangevin, langevin_proposal
from .mala import MALA
from .random_walk import RandomWalk

__all__ = ["Kernel", "Move", "RandomWalk", "MALA", "UnadjustedLangevin", "langevin_proposal"]
