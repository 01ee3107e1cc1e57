"""Ready to run: gentle relaxation of strained starts, and melting at a high temperature."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..energies import Energy
from .langevin import Explosion, Langevin
from .walkers import LangevinState

__all__ = ["melt", "relax"]

RELAX_STEPS = 500
RELAX_FRICTION = 50.0  # 1/ps: heavily damped
RELAX_SHORTENING = 0.1
MELT_PIECE = 100  # steps between two reports of progress


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
    """
    gentle = Langevin(energy, temperature, RELAX_SHORTENING * time_step, RELAX_FRICTION, mass, on_explosion)
    return gentle.step(generator, gentle.init(generator, positions.contiguous()), RELAX_STEPS)


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
