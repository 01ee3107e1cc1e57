"""What a collective variable is: a differentiable function of positions with a name, a unit, a period."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

__all__ = ["CollectiveVariable", "check_atoms", "check_positions"]


@runtime_checkable
class CollectiveVariable(Protocol):
    """A scalar function of atomic positions.

    ``name`` labels columns and axes, ``unit`` is ``"rad"``, ``"nm"`` or ``""``, and ``period`` is the length
    of the circle the values live on (2 pi for a torsion) or None on an open axis.  Values of a periodic
    variable lie in ``[-period / 2, period / 2]``.
    """

    @property
    def name(self) -> str:
        """Label of the variable in files, plots and configs."""
        ...

    @property
    def period(self) -> float | None:
        """Period in ``unit``, or None."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the values."""
        ...

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Values (B,) of positions (B, N, 3) in nm; differentiable."""
        ...


def check_atoms(name: str, atoms: tuple[int, ...]) -> None:
    """Refuse negative or repeated atom indices.

    Raises:
        ValueError: naming the variable and the indices.
    """
    if any(isinstance(a, bool) or not isinstance(a, int) or a < 0 for a in atoms):
        raise ValueError(f"{name}: atom indices must be integers from 0 on, got {list(atoms)}")
    if len(set(atoms)) != len(atoms):
        raise ValueError(f"{name}: an atom appears twice in {list(atoms)}")


def check_positions(name: str, positions: torch.Tensor, atoms: tuple[int, ...]) -> None:
    """Refuse positions that are not (B, N, 3) floating point, or that lack one of ``atoms``.

    Raises:
        ValueError: naming the variable and the shape.
    """
    if positions.ndim != 3 or positions.shape[-1] != 3 or not positions.is_floating_point():
        raise ValueError(
            f"{name}: positions must be a floating-point tensor of shape (B, N, 3) in nm, "
            f"got {positions.dtype} {tuple(positions.shape)}"
        )
    if max(atoms) >= positions.shape[1]:
        raise ValueError(f"{name}: atom {max(atoms)} is outside the {positions.shape[1]} atoms of the positions")
