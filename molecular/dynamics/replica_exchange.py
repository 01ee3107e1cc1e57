"""Replica exchange in temperature on batched Langevin dynamics (Sugita, Okamoto 1999, Chem. Phys. Lett. 314, 141).

L ladders of R temperatures run as one batch of L * R walkers. Every sweep moves all walkers and then tries to exchange
neighbouring configurations of each ladder, even and odd pairs in turn, with probability
min(1, exp((beta_i - beta_j) (U_i - U_j))). The lowest temperature then visits all basins with their Boltzmann weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..energies import Energy
from ..units import GAS_CONSTANT
from .langevin import Explosion, Langevin
from .walkers import LangevinState

__all__ = ["ReplicaExchange", "ReplicaState", "Sweep", "geometric_temperatures"]


def geometric_temperatures(lowest: float, highest: float, count: int) -> tuple[float, ...]:
    """Temperatures in K in geometric progression.

    Raises:
        ValueError: the temperatures do not rise, or fewer than two are asked for.
    """
    if not 0.0 < lowest < highest or count < 2:
        raise ValueError(
            f"temperatures: got {count} from {lowest} K to {highest} K, expected at least 2 and 0 < lowest < highest"
        )
    return tuple(lowest * (highest / lowest) ** (i / (count - 1)) for i in range(count))


class ReplicaState(NamedTuple):
    """Walkers in the order (ladder, temperature), which configuration each holds, and how many sweeps were made."""

    walkers: LangevinState
    replica: Tensor
    """(L, R) int64: the label of the trajectory that now sits at each temperature."""
    sweeps: int


class Sweep(NamedTuple):
    """What one sweep is worth looking at for.

    Attributes:
        positions: (L, N, 3) nm at the lowest temperature.
        energy: (L,) kJ/mol of these.
        acceptance: (R - 1,) fraction of ladders whose pair was exchanged; NaN for pairs not tried.
    """

    positions: Tensor
    energy: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class ReplicaExchange:
    """Temperature replica exchange.

    Attributes:
        energy: an energy with forces; with a :class:`~feynkac.molecular.dynamics.BiasedEnergy` all temperatures feel
            the same bias, and samples are those of the biased energy.
        temperatures: (R,) K, rising; samples are those of the first.
        ladders: number L of independent ladders.
        steps: dynamics steps a sweep.
        time_step, friction, mass, on_explosion: as in :class:`~feynkac.molecular.dynamics.Langevin`. A retired walker
            is never exchanged: its rung stays empty, with energy +inf in the records if it is the lowest.
    """

    energy: Energy
    temperatures: Sequence[float]
    ladders: int
    steps: int
    time_step: float
    friction: float
    mass: float | Sequence[float] | Tensor = 12.0
    on_explosion: Explosion = "raise"

    def __post_init__(self) -> None:
        if list(self.temperatures) != sorted(self.temperatures) or len(self.temperatures) < 2:
            raise ValueError(f"temperatures: got {list(self.temperatures)} K, expected at least two, rising")
        if self.ladders < 1 or self.steps < 1:
            raise ValueError(f"ladders, steps: got {self.ladders}, {self.steps}, expected positive whole numbers")

    @property
    def dynamics(self) -> Langevin:
        """The dynamics of the whole batch."""
        temperatures = list(self.temperatures) * self.ladders
        return Langevin(self.energy, temperatures, self.time_step, self.friction, self.mass, self.on_explosion)

    def init(self, generator: torch.Generator, positions: Tensor) -> ReplicaState:
        """Start every walker from ``positions``, (N, 3) for all or (L * R, N, 3), in nm.

        Raises:
            WalkerExploded: a starting position has no finite energy.
        """
        count = self.ladders * len(self.temperatures)
        if positions.ndim == 2:
            positions = positions.expand(count, *positions.shape)
        replica = torch.arange(count).reshape(self.ladders, -1)
        return ReplicaState(self.dynamics.init(generator, positions.contiguous()), replica, 0)

    def sweep(self, generator: torch.Generator, state: ReplicaState) -> tuple[ReplicaState, Sweep]:
        """Move all walkers, then exchange neighbours.

        Raises:
            WalkerExploded: a walker has no finite energy.
        """
        walkers = self.dynamics.step(generator, state.walkers, self.steps)
        energy = walkers.energy.reshape(self.ladders, -1)
        source, acceptance = self._exchange(generator, energy, state.sweeps % 2)
        flat = (source + torch.arange(self.ladders)[:, None] * source.shape[1]).flatten()
        temperatures = torch.tensor(list(self.temperatures), dtype=torch.float64)
        # momenta are rescaled so that they keep the Maxwell-Boltzmann law of the new temperature
        scale = (temperatures[None, :] / temperatures[source]).sqrt().flatten().to(walkers.velocities)
        moved = LangevinState(
            walkers.positions[flat],
            walkers.velocities[flat] * scale[:, None, None],
            walkers.energy[flat],
            walkers.forces[flat],
            walkers.alive[flat],
            walkers.steps,
        )
        lowest = slice(None, None, len(self.temperatures))
        info = Sweep(moved.positions[lowest], moved.energy[lowest], acceptance)
        return ReplicaState(moved, state.replica.gather(1, source), state.sweeps + 1), info

    def _exchange(self, generator: torch.Generator, energy: Tensor, parity: int) -> tuple[Tensor, Tensor]:
        """Where each temperature takes its configuration from, (L, R), and the accepted fraction of each pair."""
        count = energy.shape[1]
        beta = 1.0 / (GAS_CONSTANT * torch.tensor(list(self.temperatures), dtype=torch.float64))
        energy = energy.to(beta)
        log_ratio = (beta[1:] - beta[:-1]) * (energy[:, 1:] - energy[:, :-1])
        draw = torch.rand(log_ratio.shape, generator=generator, dtype=torch.float64, device=generator.device).cpu()
        tried = torch.arange(count - 1) % 2 == parity
        finite = torch.isfinite(energy)  # a retired walker has energy +inf
        accepted = (draw.log() < log_ratio) & tried & finite[:, 1:] & finite[:, :-1]
        source = torch.arange(count).expand_as(energy).clone()
        source[:, :-1] += accepted.to(torch.int64)
        source[:, 1:] -= accepted.to(torch.int64)
        fraction = torch.where(tried, accepted.to(torch.float64).mean(dim=0), torch.nan)
        return source, fraction

    def run(
        self,
        generator: torch.Generator,
        state: ReplicaState,
        sweeps: int,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[ReplicaState, Sweep]]:
        """Yield the state and the sweep's record after every one of ``sweeps`` sweeps."""
        for done in range(1, sweeps + 1):
            state, info = self.sweep(generator, state)
            if progress is not None:
                progress(done, sweeps)
            yield state, info
