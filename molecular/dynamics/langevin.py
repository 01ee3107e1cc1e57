"""Batched Langevin dynamics: thousands of independent walkers in one call of the energy.

The BAOAB splitting (Leimkuhler, Matthews 2013, J. Chem. Phys. 138, 174102): its error in configurations is second
order in the time step, with an exceptionally small prefactor, and zero for harmonic forces. Masses do not enter the
configurational law, so a uniform mass lets a molecule without constraints take 2 fs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..energies import Energy
from ..units import GAS_CONSTANT
from .walkers import LangevinState, WalkerExploded, retire, start_retired

__all__ = ["Explosion", "Langevin", "LangevinState", "WalkerExploded"]

Explosion = Literal["raise", "retire"]


class _Coefficients(NamedTuple):
    """Factors of one step, shaped so that products with (B, N, 3) run over long contiguous rows."""

    push: Tensor
    decay: float
    kick: Tensor


@dataclass(frozen=True)
class Langevin:
    """BAOAB Langevin dynamics of B walkers, each with its own temperature.

    The energies of all walkers are checked in every step, at the cost of one sum. A walker without a finite energy
    either ends the run or is retired in that step: it is put back to where the call of :meth:`step` found it and stays
    there, at rest, with energy +inf and ``alive`` False. Its rows are still evaluated and its noise is still drawn, so
    that the others' bits do not depend on it. An energy that returns non-finite forces with a finite energy, which the
    protocol forbids, is caught one step later.

    Noise is drawn on the device of the generator and moved to that of the positions: on the same device it is fastest,
    and a generator on the CPU gives the same noise everywhere.

    Attributes:
        energy: an :class:`~feynkac.molecular.energies.Energy` with forces.
        temperatures: one number of kelvin, or one for every walker.
        time_step: ps.
        friction: 1/ps.
        mass: amu, one number for all atoms or (N,) numbers (configurations do not depend on it).
        on_explosion: "raise" :class:`WalkerExploded`, or "retire" the walker.
    """

    energy: Energy
    temperatures: float | Sequence[float]
    time_step: float
    friction: float
    mass: float | Sequence[float] | Tensor = 12.0
    on_explosion: Explosion = "raise"

    def __post_init__(self) -> None:
        for name in ("time_step", "friction"):
            value = getattr(self, name)
            if not (value > 0.0 and math.isfinite(value)):
                raise ValueError(f"{name}: got {value!r}, expected a positive finite number")
        for name in ("mass", "temperatures"):
            value = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            if value.ndim > 1 or not bool(((value > 0.0) & torch.isfinite(value)).all()):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected positive finite numbers, one or a row")
        if self.on_explosion not in ("raise", "retire"):
            raise ValueError(f"on_explosion: got {self.on_explosion!r}, expected 'raise' or 'retire'")

    def init(self, generator: torch.Generator, positions: Tensor) -> LangevinState:
        """Start at ``positions`` (B, N, 3) nm with Maxwell-Boltzmann velocities.

        A walker retired at the start is put on the start of the first living one, at rest.

        Raises:
            WalkerExploded: a starting position has no finite energy.
            WalkersExploded: none has, with ``on_explosion="retire"``.
            ValueError: masses or temperatures do not fit the numbers of atoms and walkers.
        """
        self._check_sizes(positions)
        energy, forces = self.energy.energy_and_forces(positions)
        positions = positions.to(forces)
        noise = torch.randn(positions.shape, generator=generator, dtype=positions.dtype, device=generator.device)
        alive = torch.ones(len(positions), dtype=torch.bool, device=positions.device)
        velocities = self._speeds(positions) * noise.to(positions.device)
        state = LangevinState(positions, velocities, energy, forces, alive, 0)
        if math.isfinite(energy.sum().item()):
            return state
        return start_retired(state, raising=self.on_explosion == "raise")

    def step(self, generator: torch.Generator, state: LangevinState, steps: int = 1) -> LangevinState:
        """Advance all walkers by ``steps`` time steps; two calls of n steps give the bits of one call of 2 n.

        Raises:
            WalkerExploded: a walker has no finite energy.
            WalkersExploded: none has any more, with ``on_explosion="retire"``.
        """
        half = 0.5 * self.time_step
        push, decay, kick = self._coefficients(state)
        alive, energy, forces = state.alive, state.energy, state.forces
        all_alive = bool(alive.all())
        positions, velocities = state.positions.clone(), state.velocities.clone()
        noise = torch.empty_like(positions, device=generator.device)
        for done in range(1, steps + 1):
            velocities.addcmul_(forces, push)
            positions.add_(velocities, alpha=half)
            noise.normal_(generator=generator)
            velocities.mul_(decay).addcmul_(noise.to(positions.device), kick)
            positions.add_(velocities, alpha=half)
            energy, forces = self.energy.energy_and_forces(positions)
            if not (all_alive and math.isfinite(energy.sum().item())):
                now = LangevinState(positions, velocities, energy, forces, alive, state.steps + done)
                now = retire(now, state.positions, raising=self.on_explosion == "raise")
                if now.alive is not alive:
                    alive, all_alive = now.alive, False
                    kick = kick * alive[:, None, None].to(kick)
                energy, forces = now.energy, now.forces
            velocities.addcmul_(forces, push)
        return LangevinState(positions, velocities, energy, forces, alive, state.steps + steps)

    def _check_sizes(self, positions: Tensor) -> None:
        for name, given, count, what in (
            ("mass", self.mass, positions.shape[1], "atom"),
            ("temperatures", self.temperatures, positions.shape[0], "walker"),
        ):
            size = torch.as_tensor(given).numel()
            if size not in (1, count):
                raise ValueError(f"{name}: got {size} numbers, expected one, or one for each of {count} {what}s")

    def _masses(self) -> Tensor:
        """(1, N or 1, 1) amu."""
        return torch.as_tensor(self.mass, dtype=torch.float64).reshape(1, -1, 1)

    def _speeds(self, like: Tensor) -> Tensor:
        """Standard deviation (B or 1, N or 1, 1) of a velocity component, nm/ps."""
        temperatures = torch.as_tensor(self.temperatures, dtype=torch.float64).reshape(-1, 1, 1)
        return (GAS_CONSTANT * temperatures / self._masses().to(temperatures.device)).sqrt().to(like)

    def _coefficients(self, state: LangevinState) -> _Coefficients:
        decay = math.exp(-self.friction * self.time_step)
        kick = self._speeds(state.positions) * math.sqrt(1.0 - decay * decay)
        if not bool(state.alive.all()):
            kick = kick * state.alive[:, None, None].to(kick)
        push = (0.5 * self.time_step / self._masses()).to(state.positions)
        return _Coefficients(_in_rows(push), decay, _in_rows(kick))


def _in_rows(factor: Tensor) -> Tensor:
    """Factors of atoms, (., N, 1), written out for x, y and z: broadcasting over three entries is ten times slower."""
    return factor if factor.shape[1] == 1 else factor.expand(*factor.shape[:2], 3).contiguous()
