"""Flow proposals and reweighting: exact densities over molecular shapes, importance sampling."""

from .autoregressive import AutoregressiveSplineFlow
from .internal_coordinates import InternalCoordinates
from .molecule_flow import InternalCoordinateFlow
from .proposal import Proposal, ProposalFacts

__all__ = [
    "AutoregressiveSplineFlow",
    "InternalCoordinateFlow",
    "InternalCoordinates",
    "Proposal",
    "ProposalFacts",
]
