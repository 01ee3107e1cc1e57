"""Conditioning must be the same for all particles of a population: resampling copies states, not prompts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BatchLayoutError, SteeringError
from .names import STATES
from .rows import Call, row_ratio

__all__ = ["LayoutGuard"]

_TOLERANCE = 1e-4  # of the largest value: text encoders round equal prompts differently at different places of a batch


@dataclass(frozen=True)
class LayoutGuard:
    """Checks that every block of ``particles`` rows is conditioned alike.

    Only arguments known by name are compared (see :mod:`~feynkac.steering.denoiser.names`). What is part of the hidden
    states (the mask and image channels of inpainting models) is not compared: it is not
    told apart from the particle's state here.

    Attributes:
        populations: P, or None if any number will do.
        particles: rows of one population side by side, candidates included.
    """

    populations: int | None
    particles: int

    def check(self, call: Call) -> bool:
        """Compare embeddings, masks, labels and every other conditioning tensor of the call within each block.

        Numbers may differ by 1e-4 of the tensor's largest value; masks and labels not at all.

        Returns:
            Whether it was compared: the call's rows are a multiple of P x particles.

        Raises:
            BatchLayoutError: rows of one population are conditioned differently.
        """
        rows = call.rows()
        block = self.particles * (self.populations or 1)
        if rows % block or not rows:
            return False
        for name, value in call.tensors():
            if name not in STATES and _cuttable(name, value, rows):
                self._compare(name, value.reshape(rows // self.particles, self.particles, -1))
        return True

    def _compare(self, name: str, blocks: Tensor) -> None:
        first = blocks[:, :1]
        if blocks.is_floating_point():
            limit = _TOLERANCE * blocks.abs().max()
            differs = ((blocks - first).abs() > limit) | (blocks.isnan() != first.isnan())
        else:
            differs = blocks != first
        wrong = torch.nonzero(differs.any(dim=2).cpu())
        if len(wrong):
            rows = (wrong[:, 0] * self.particles + wrong[:, 1]).tolist()
            shown = ", ".join(str(row) for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
            raise BatchLayoutError(
                f"denoiser argument {name!r}: rows {shown} are conditioned unlike the first of their "
                f"{self.particles} particles, so resampling would carry states from one prompt to another. Put one "
                "prompt in a call, or keep a prompt's samples side by side, A A A B B B (num_images_per_prompt, or "
                "the prompt repeated)"
            )


def _cuttable(name: str, value: Tensor, rows: int) -> bool:
    try:
        return row_ratio(name, value, rows) > 0
    except SteeringError:
        return False
