"""Batched Langevin dynamics: thousands of independent walkers in one call of the energy.

The BAOAB splitting (Leimkuhler, Matthews 2013, J. Chem. Phys. 138, 174102): its error in configurations is second
order in the time step, with an exceptionally small prefactor, and zero for harmonic forces. Masses do not enter the
configurational law, so a uniform mass lets a molecule without constraints take 2 fs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..energies import Energy
from ..units import GAS_CONSTANT

__all__ = ["Langevin", "LangevinState", "WalkerExploded"]


class WalkerExploded(RuntimeError):
    """A walker reached a configuration without a finite energy; the message names walker and step."""


class LangevinState(NamedTuple):
    """What the next step needs.

    Attributes:
        positions: (B, N, 3) nm.
        velocities: (B, N, 3) nm/ps.
        energy: (B,) kJ/mol at ``positions``.
        forces: (B, N, 3) kJ/mol/nm at ``positions``.
    """

    positions: Tensor
    velocities: Tensor
    energy: Tensor
    forces: Tensor


@dataclass(frozen=True)
class Langevin:
    """BAOAB Langevin dynamics of B walkers, each with its own temperature.

    Attributes:
        energy: an :class:`~feynkac.molecular.energies.Energy` with forces.
        temperatures: one number of kelvin, or one for every walker.
        time_step: ps.
        friction: 1/ps.
        mass: amu, the same for all atoms (configurations do not depend on it).
    """

    energy: Energy
    temperatures: float | Sequence[float]
    time_step: float
    friction: float
    mass: float = 12.0

    def __post_init__(self) -> None:
        for name in ("time_step", "friction", "mass"):
            value = getattr(self, name)
            if not (value > 0.0 and math.isfinite(value)):
                raise ValueError(f"{name}: got {value!r}, expected a positive finite number")

    def _speeds(self, like: Tensor) -> Tensor:
        """Standard deviation (B or 1, 1, 1) of a velocity component, nm/ps."""
        temperatures = torch.as_tensor(self.temperatures, dtype=torch.float64).reshape(-1, 1, 1)
        return (GAS_CONSTANT * temperatures / self.mass).sqrt().to(like)

    def init(self, generator: torch.Generator, positions: Tensor) -> LangevinState:
        """Start at ``positions`` (B, N, 3) nm with Maxwell-Boltzmann velocities.

        Raises:
            WalkerExploded: a starting position has no finite energy.
        """
        energy, forces = self.energy.energy_and_forces(positions)
        positions = positions.to(forces)
        self._check(energy, 0)
        noise = torch.randn(positions.shape, generator=generator, dtype=positions.dtype, device=positions.device)
        return LangevinState(positions, self._speeds(positions) * noise, energy, forces)

    def step(self, generator: torch.Generator, state: LangevinState, steps: int = 1) -> LangevinState:
        """Advance all walkers by ``steps`` time steps.

        Raises:
            WalkerExploded: a walker has no finite energy after the steps.
        """
        half = 0.5 * self.time_step
        decay = math.exp(-self.friction * self.time_step)
        kick = self._speeds(state.positions) * math.sqrt(1.0 - decay * decay)
        positions, velocities = state.positions.clone(), state.velocities.clone()
        energy, forces = state.energy, state.forces
        noise = torch.empty_like(positions)
        for _ in range(steps):
            velocities.add_(forces, alpha=half / self.mass)
            positions.add_(velocities, alpha=half)
            noise.normal_(generator=generator)
            velocities.mul_(decay).addcmul_(noise, kick)
            positions.add_(velocities, alpha=half)
            energy, forces = self.energy.energy_and_forces(positions)
            velocities.add_(forces, alpha=half / self.mass)
        self._check(energy, steps)
        return LangevinState(positions, velocities, energy, forces)

    @staticmethod
    def _check(energy: Tensor, steps: int) -> None:
        bad = torch.nonzero(~torch.isfinite(energy)).flatten()
        if len(bad):
            raise WalkerExploded(
                f"walker {int(bad[0])} (of {len(bad)} such) has no finite energy after {steps} steps; "
                "use a shorter time step or start from relaxed positions"
            )
