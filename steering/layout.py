"""How the rows of a batch are P populations of K particles with M candidates each."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import BatchLayoutError

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Rows (p, k, m), the last running fastest; ``tiles`` repeats of them all (a pipeline that passes [cond, uncond]
    to the scheduler)."""

    populations: int
    particles: int
    candidates: int
    tiles: int = 1

    @classmethod
    def of_batch(
        cls, rows: int, *, populations: int | None, particles: int, candidates: int, tiles: int = 1
    ) -> "Layout":
        """Read the layout off the number of rows.

        Raises:
            BatchLayoutError: the rows are not a multiple of particles x candidates, or not ``populations`` of them.
        """
        unit = particles * candidates * tiles
        found, rest = divmod(rows, unit)
        if rest or found == 0 or (populations is not None and found != populations):
            wanted = f"{populations} x " if populations is not None else "a multiple of "
            raise BatchLayoutError(
                f"the pipeline runs {rows} rows, expected {wanted}{particles} particles"
                + (f" x {candidates} candidates" if candidates > 1 else "")
                + (f" x {tiles} tiles" if tiles > 1 else "")
                + f"; ask it for {particles * candidates} samples a prompt (num_images_per_prompt, batch_size, or the "
                "prompt repeated)"
            )
        return cls(found, particles, candidates, tiles)

    @property
    def rows(self) -> int:
        """Rows of one tile."""
        return self.populations * self.particles * self.candidates

    def grouped(self, values: Tensor) -> Tensor:
        """(rows, ...) -> (P, K, M, ...)."""
        return values.reshape(self.populations, self.particles, self.candidates, *values.shape[1:])

    def chosen(self, values: Tensor, child: Tensor) -> Tensor:
        """Of values (rows,) those of the chosen child (P, K): (P, K)."""
        if self.candidates == 1:
            return values.reshape(self.populations, self.particles)
        return self.grouped(values).gather(2, child[:, :, None])[:, :, 0]

    def rows_of(self, ancestors: Tensor, child: Tensor, slots: int) -> Tensor:
        """Row indices (P x K x ``slots``,) after particles were replaced by ``ancestors`` (P, K) and each took its
        ``child`` (P, K) for all its slots."""
        row = self._first_particles + ancestors
        if self.candidates > 1:
            row = row * self.candidates + child.gather(1, ancestors)
        row = row.reshape(-1)
        return row if slots == 1 else row.repeat_interleave(slots)

    @cached_property
    def _first_particles(self) -> Tensor:
        return self.particles * torch.arange(self.populations)[:, None]

    def first(self, slots: int) -> Tensor:
        """Row indices of the first ``slots`` candidates of every particle."""
        particles = self.candidates * torch.arange(self.populations * self.particles)
        return (particles[:, None] + torch.arange(slots)).reshape(-1)

    def standing_for(self, slots: int) -> Tensor:
        """For every row the row that stands for it where only the first ``slots`` candidates are judged (rows,)."""
        row = torch.arange(self.rows)
        slot = row % self.candidates
        return torch.where(slot < slots, row, row - slot)

    def tiled(self, rows: Tensor) -> Tensor:
        """The same row indices for every tile."""
        if self.tiles == 1:
            return rows
        offsets = self.rows * torch.arange(self.tiles)
        return (offsets[:, None] + rows[None]).reshape(-1)
