"""Ready to run: gentle relaxation of strained starts, and melting at a high temperature."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cvs import Cell
from ..energies import Energy
from .langevin import Explosion, Langevin
from .walkers import LangevinState, WalkerExploded, WalkersExploded

__all__ = ["check_start", "melt", "relax"]

RELAX_STEPS = 500
RELAX_FRICTION = 50.0  # 1/ps: heavily damped
RELAX_SHORTENING = 0.1
MELT_PIECE = 100  # steps between two reports of progress
SHORTEST_BOND, LONGEST_BOND = 0.03, 0.5  # nm; covalent bonds have 0.07 to 0.3
SMALLEST_CELL = 1.0  # nm; a shorter one is a file's way of saying none


def check_start(positions: Tensor, topology: Any | None) -> None:
    """Refuse starting positions (B, N, 3) that are not finite, or not in nm by the lengths of their bonds.

    A bond across the border of a periodic cell counts with its nearest image.

    Args:
        positions: nm.
        topology: OpenMM's; without one bonds are not checked.

    Raises:
        ValueError: naming walker and atoms.
    """
    positions = positions.detach()
    finite = torch.isfinite(positions).all(dim=2)
    if not bool(finite.all()):
        walker, atom = (int(k) for k in (~finite).nonzero()[0])
        place = positions[walker, atom].tolist()
        raise ValueError(f"start: atom {_label(topology, atom)} of walker {walker} is at {place}, which is not finite")
    bonds = getattr(topology, "bonds", None)
    pairs = [(bond[0].index, bond[1].index) for bond in bonds()] if callable(bonds) else []
    if not pairs or max(max(pair) for pair in pairs) >= positions.shape[1]:
        return
    index = torch.tensor(pairs, device=positions.device)
    difference = positions[:, index[:, 1]] - positions[:, index[:, 0]]
    length = difference.norm(dim=2)
    if bool((length > LONGEST_BOND).any()):
        length = torch.minimum(length, _nearest(difference, topology).norm(dim=2))
    bad = (length > LONGEST_BOND) | (length < SHORTEST_BOND)
    if bool(bad.any()):
        walker, bond = (int(k) for k in bad.nonzero()[0])
        first, second = (_label(topology, atom) for atom in pairs[bond])
        raise ValueError(
            f"start: the bond between atoms {first} and {second} of walker {walker} is "
            f"{float(length[walker, bond]):.3g} nm long, expected {SHORTEST_BOND:g} to {LONGEST_BOND:g} nm; are these "
            "ångström? positions are in nm"
        )


def _nearest(difference: Tensor, topology: Any) -> Tensor:
    """(B, P, 3), to nearest images in the cell of a topology that has one."""
    vectors = getattr(topology, "getPeriodicBoxVectors", lambda: None)()
    if vectors is None:
        return difference
    bare = [getattr(vector, "_value", vector) for vector in getattr(vectors, "_value", vectors)]
    cell = Cell.of([[float(x) for x in vector] for vector in bare])
    return cell.minimum_image(difference) if min(cell.lengths) >= SMALLEST_CELL else difference


def _label(topology: Any | None, atom: int) -> str:
    """Index and, from a topology, name."""
    atoms = getattr(topology, "atoms", None)
    for found in atoms() if callable(atoms) else ():
        if found.index == atom:
            return f"{atom} ({found.residue.name}{found.residue.id}:{found.name})"
    return str(atom)


def relax(
    energy: Energy,
    positions: Tensor,
    generator: torch.Generator,
    *,
    temperature: float,
    time_step: float,
    mass: float | Sequence[float] | Tensor = 12.0,
    on_explosion: Explosion = "raise",
) -> LangevinState:
    """Let walkers at ``positions`` (B, N, 3) nm relax in 500 heavily damped steps of a tenth of ``time_step`` (ps).

    A structure from a builder or a file is often strained; at the full time step its walkers would explode.

    Raises:
        WalkerExploded: a walker has no finite energy.
        WalkersExploded: none has.
    """
    gentle = Langevin(energy, temperature, RELAX_SHORTENING * time_step, RELAX_FRICTION, mass, on_explosion)
    try:
        state = gentle.init(generator, positions.contiguous())
    except WalkersExploded as error:
        raise WalkersExploded(
            f"the start has no finite energy (walker 0, and so all {len(positions)}): do atoms lie on one another?"
        ) from error
    except WalkerExploded as error:
        raise WalkerExploded(f"the start has no finite energy: {error}") from error
    return gentle.step(generator, state, RELAX_STEPS)


def melt(
    dynamics: Langevin,
    positions: Tensor,
    generator: torch.Generator,
    *,
    length: float,
    progress: Callable[[int, int], None] | None = None,
) -> LangevinState:
    """Run ``dynamics`` from ``positions`` (B, N, 3) nm for ``length`` ps, in pieces of 100 steps, to forget the start.

    Raises:
        WalkerExploded: a walker has no finite energy.
    """
    state = dynamics.init(generator, positions)
    pieces = max(1, round(length / dynamics.time_step / MELT_PIECE))
    for piece in range(pieces):
        state = dynamics.step(generator, state, MELT_PIECE)
        if progress is not None:
            progress(piece + 1, pieces)
    return state
