"""Pairs (x_t, r(x0)) along unsteered trajectories of a sampler."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

__all__ = ["Rollouts"]


@dataclass(frozen=True, eq=False)
class Rollouts:
    """n trajectories, seen before L of their moves.

    Attributes:
        states: (n, L, ...) x_t: float32, or int64 tokens.
        levels: (L, 2) float64 alpha and sigma.
        moves: (L,) int64 which moves.
        rewards: (n,) float64 r(x0); minus infinity for an impossible sample.
        clean: (n, L, ...) float32 x0-hat, or None.
        denoised_rewards: (n, L) float64 r(x0-hat), or None.
    """

    states: Tensor
    levels: Tensor
    moves: Tensor
    rewards: Tensor
    clean: Tensor | None = None
    denoised_rewards: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state."""
        return tuple(self.states.shape[2:])

    def split(self, held_out: int) -> tuple["Rollouts", "Rollouts"]:
        """All but the last ``held_out`` trajectories, and those: whole ones, since the states of one share a reward.

        Raises:
            ValueError: nothing would be left on a side.
        """
        if not 0 < held_out < len(self):
            raise ValueError(f"held_out: got {held_out} of {len(self)} rollouts, expected some but not all")
        cut = len(self) - held_out
        return self._rows(slice(cut)), self._rows(slice(cut, None))

    def _rows(self, rows: slice) -> "Rollouts":
        tensors = self.tensors()
        return Rollouts(**{k: v if k in ("levels", "moves") else v[rows] for k, v in tensors.items()})

    def pick(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """States (B, ...), levels (B, 2), x0-hat or None, and rewards (B,) of pairs ``index`` (B,) in [0, n L)."""
        row, place = index // len(self.moves), index % len(self.moves)
        clean = None if self.clean is None else self.clean[row, place]
        return self.states[row, place], self.levels[place], clean, self.rewards[row]

    def tensors(self) -> dict[str, Tensor]:
        """What there is, by name, as it is stored."""
        found: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def joined(cls, parts: Sequence["Rollouts"]) -> "Rollouts":
        """One after the other.

        Raises:
            ValueError: they were seen at different moves or levels.
        """
        first = parts[0]
        for part in parts[1:]:
            if not (torch.equal(part.moves, first.moves) and torch.equal(part.levels, first.levels)):
                raise ValueError("rollouts: these parts were seen at different noise levels")
        stored = [part.tensors() for part in parts]
        shared = ("levels", "moves")
        return cls(**{k: v if k in shared else torch.cat([s[k] for s in stored]) for k, v in stored[0].items()})
