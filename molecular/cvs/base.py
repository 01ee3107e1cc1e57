"""What a collective variable is: a differentiable function of positions with a name, a unit, a period."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch

__all__ = [
    "AnalyticVariable",
    "CollectiveVariable",
    "PointKernel",
    "VariableGradient",
    "check_atoms",
    "check_group",
    "check_positions",
    "coordinate_rows",
    "gather_points",
    "gradient_of_points",
    "safe_sqrt",
    "wrapped",
]

PointKernel = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From the points (k, 3, T, B) of T variables on k atoms each to values (T, B) and gradients (k, 3, T, B).

The batch is last: every operation then runs along contiguous memory.
"""


@runtime_checkable
class CollectiveVariable(Protocol):
    """A scalar function of atomic positions.

    ``name`` labels columns and axes, ``unit`` is ``"rad"``, ``"nm"``, ``"nm^2"`` or ``""``, and ``period`` is the
    length of the circle the values live on (2 pi for a torsion) or None on an open axis.  Values of a periodic
    variable lie in ``[-period / 2, period / 2]``.  NaN coordinates give NaN values.
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


class VariableGradient(NamedTuple):
    """A variable and its gradient with respect to the atoms it depends on.

    Attributes:
        values: (B,).
        atoms: (k,) int64 indices of the atoms, none twice.
        gradient: (B, k, 3), derivatives of the values by the positions of ``atoms``, per nm.
    """

    values: torch.Tensor
    atoms: torch.Tensor
    gradient: torch.Tensor


@runtime_checkable
class AnalyticVariable(CollectiveVariable, Protocol):
    """A collective variable that knows its gradient without autograd. `Variables` uses it in place of autograd."""

    def value_and_gradient(self, positions: torch.Tensor) -> VariableGradient:
        """Values and gradient at positions (B, N, 3) in nm; records no graph of its own."""
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


def check_group(name: str, atoms: tuple[int, ...], *, at_least: int = 1) -> None:
    """Refuse a group with fewer than ``at_least`` atoms, and what `check_atoms` refuses.

    Raises:
        ValueError: naming the variable.
    """
    check_atoms(name, atoms)
    if len(atoms) < at_least:
        raise ValueError(f"{name}: needs at least {at_least} atoms, got {len(atoms)}")


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
    if atoms and max(atoms) >= positions.shape[1]:
        raise ValueError(f"{name}: atom {max(atoms)} is outside the {positions.shape[1]} atoms of the positions")


def safe_sqrt(squared: torch.Tensor) -> torch.Tensor:
    """Square roots of non-negative numbers with the gradient 0, of every order, where they are 0; NaN stays NaN."""
    apart = squared != 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def wrapped(values: torch.Tensor, period: float, lowest: float | None = None) -> torch.Tensor:
    """``values`` shifted by whole periods into [lowest, lowest + period), by default [-period/2, period/2)."""
    start = -0.5 * period if lowest is None else lowest
    turns = torch.floor((values.detach() - start) / period)
    shifted = values - period * turns
    # rounding may leave a value a hair below the interval, or on its far end
    shifted = torch.where(shifted.detach() < start, shifted + period, shifted)
    return torch.where(shifted.detach() >= start + period, shifted - period, shifted)


def gather_points(positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Points (k, 3, T, B) of T variables on k atoms each.

    Args:
        positions: (B, N, 3).
        rows: (k, 3, T) int64, three times the atom plus the axis: rows of the positions flattened to (3 N, B).
    """
    count = len(positions)
    return positions.reshape(count, -1).t().index_select(0, rows.reshape(-1)).view(*rows.shape, count)


def coordinate_rows(atoms: torch.Tensor) -> torch.Tensor:
    """The rows (k, 3, T) that `gather_points` takes, of atoms (T, k)."""
    return 3 * atoms.t()[:, None, :] + torch.arange(3, device=atoms.device)[None, :, None]


def gradient_of_points(positions: torch.Tensor, atoms: tuple[int, ...], kernel: PointKernel) -> VariableGradient:
    """Values and gradient of one variable on the points of ``atoms``, from its kernel."""
    index = torch.tensor(atoms, device=positions.device)
    with torch.no_grad():
        values, gradient = kernel(gather_points(positions, coordinate_rows(index[None])))
    return VariableGradient(values[0], index, gradient[:, :, 0].permute(2, 0, 1))
