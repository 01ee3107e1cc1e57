"""The proposal of a free-energy run."""

from __future__ import annotations

from pathlib import Path

from ...flows import Proposal, load_flow
from ...molecular.systems import MolecularSystem
from ..errors import UserError
from ..paths import resolve
from ..plugins import call_plugin, load_plugin
from .config import ProposalConfig

__all__ = ["build_proposal"]


def build_proposal(config: ProposalConfig, system: MolecularSystem) -> Proposal:
    """The proposal that the config names.

    Raises:
        UserError: for an unknown plugin, or a proposal of another number of atoms.
        CheckpointError: for a truncated or altered checkpoint.
        MoleculeMismatch: for a checkpoint of another molecule.
    """
    if config.checkpoint is not None:
        proposal: Proposal = load_flow(
            resolve(config.checkpoint, Path()),
            elements=system.elements,
            names=[atom.name for atom in system.topology.atoms()],
        )
    else:
        name = str(config.plugin)
        group = "feynkac.proposals"
        proposal = call_plugin(group, load_plugin(group, name), name, system, **config.options)
    if tuple(proposal.event_shape) != (system.n_atoms, 3):
        raise UserError(
            f"proposal: draws have shape {tuple(proposal.event_shape)}, but the molecule has {system.n_atoms} atoms"
        )
    return proposal
