"""Flow proposals and reweighting: exact densities over molecular shapes, importance sampling.

Example:
    >>> flow = load_flow("path/of/a/flow")                                   # doctest: +SKIP
    >>> result = importance_sample(flow, energy, 20_000, seed=1)            # doctest: +SKIP
    >>> result.ess_fraction, result.log_evidence, result.pareto.khat       # doctest: +SKIP
"""

from ..fkc.errors import ParetoWarning
from .adapters import FunctionProposal, ZukoProposal
from .autoregressive import AutoregressiveSplineFlow
from .centroid import WithCentroidFactor
from .checkpoint import MoleculeMismatch, load_flow, read_card, save_flow
from .importance import ImportanceResult, importance_sample
from .internal_coordinates import InternalCoordinates
from .molecule_flow import InternalCoordinateFlow
from .proposal import Proposal, ProposalFacts
from .repelled import RepelledProposal, importance_sample_repelled
from .training import DrawBuffer, Frames, Phase, TrainingProgress, fit

__all__ = [
    # proposals
    "Proposal",
    "ProposalFacts",
    "InternalCoordinates",
    "InternalCoordinateFlow",
    "AutoregressiveSplineFlow",
    "WithCentroidFactor",
    "FunctionProposal",
    "ZukoProposal",
    # reweighting
    "importance_sample",
    "ImportanceResult",
    "importance_sample_repelled",
    "RepelledProposal",
    "ParetoWarning",
    # training and files
    "fit",
    "Frames",
    "Phase",
    "DrawBuffer",
    "TrainingProgress",
    "save_flow",
    "load_flow",
    "read_card",
    "MoleculeMismatch",
]
