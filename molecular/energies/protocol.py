"""What an energy is: a callable from batched positions to energies, with forces, a temperature and a counter."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import EnergyInputError

__all__ = ["Energy", "EnergyForces", "check_positions", "count_non_finite"]


class EnergyForces(NamedTuple):
    """Energies and forces of a batch.

    Attributes:
        energy: (B,) in kJ/mol; ``+inf`` where the evaluation was not finite.
        forces: (B, N, 3) in kJ/mol/nm; zero where the energy is ``+inf``.
    """

    energy: Tensor
    forces: Tensor


@runtime_checkable
class Energy(Protocol):
    """A potential energy of molecular configurations.

    ``energy(positions)`` takes (B, N, 3) positions in nm and returns (B,) float64 energies in kJ/mol. Configurations
    whose energy is not finite get ``+inf`` (their Boltzmann weight is zero) and are counted in ``n_non_finite``.
    Inputs are never modified.
    """

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        ...

    @property
    def kT(self) -> float:
        """Thermal energy in kJ/mol."""
        ...

    @property
    def topology(self) -> Any:
        """The OpenMM topology, or None when the energy was built without one."""
        ...

    @property
    def n_calls(self) -> int:
        """Number of single-configuration evaluations so far (a batch of B counts B)."""
        ...

    @property
    def n_non_finite(self) -> int:
        """Number of configurations whose energy was not finite so far."""
        ...

    def __call__(self, positions: Tensor) -> Tensor:
        """Energies (B,) in kJ/mol of positions (B, N, 3) in nm."""
        ...

    def energy_and_forces(self, positions: Tensor) -> EnergyForces:
        """Energies (B,) in kJ/mol and forces (B, N, 3) in kJ/mol/nm of positions (B, N, 3) in nm."""
        ...


def check_positions(positions: Tensor, n_atoms: int) -> None:
    """Raise :class:`EnergyInputError` unless ``positions`` is a floating (B, n_atoms, 3) tensor."""
    if not isinstance(positions, Tensor):
        raise EnergyInputError(f"positions: got {type(positions).__name__}, expected a torch tensor (B, {n_atoms}, 3)")
    if not positions.is_floating_point():
        raise EnergyInputError(f"positions: got dtype {positions.dtype}, expected float32 or float64 in nm")
    if positions.ndim != 3 or tuple(positions.shape[1:]) != (n_atoms, 3):
        raise EnergyInputError(f"positions: got shape {tuple(positions.shape)}, expected (B, {n_atoms}, 3)")


def count_non_finite(energy: Tensor, forces: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
    """Replace non-finite energies by ``+inf``, their forces by zero, and return how many there were."""
    bad = ~torch.isfinite(energy)
    if forces is not None:
        bad = bad | ~torch.isfinite(forces).flatten(1).all(dim=1)
    n_bad = int(bad.sum())
    if n_bad:
        energy = torch.where(bad, torch.inf, energy)
        if forces is not None:
            forces = torch.where(bad[:, None, None], 0.0, forces)
    return energy, forces, n_bad
