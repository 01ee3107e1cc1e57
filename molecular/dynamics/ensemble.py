"""A Boltzmann ensemble from one structure: melt, equilibrate and record by replica exchange in temperature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..energies import Energy
from .langevin import Langevin
from .relax import melt, relax
from .replica_exchange import ReplicaExchange, geometric_temperatures

__all__ = ["Ensemble", "EnsembleSettings", "sample_ensemble"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EnsembleSettings:
    """How long to run, and how.

    Attributes:
        temperature, highest_temperature: K, ends of the ladder; frames are those of the lowest.
        replicas: temperatures of a ladder, in geometric progression.
        ladders: independent ladders; error bars come from their scatter.
        melt_ps: plain dynamics of all walkers at the highest temperature, to forget the start.
        burn_in_ps, production_ps: length of the exchange run that is dropped, and kept, per walker.
        exchange_steps: steps between exchange attempts; one frame of each ladder is kept at each.
        time_step: ps.
        friction: 1/ps.
        mass: amu, one number for all atoms or (N,) numbers.
    """

    temperature: float = 300.0
    highest_temperature: float = 800.0
    replicas: int = 6
    ladders: int = 96
    melt_ps: float = 20.0
    burn_in_ps: float = 200.0
    production_ps: float = 800.0
    exchange_steps: int = 25
    time_step: float = 0.002
    friction: float = 2.0
    mass: float | Sequence[float] = 12.0


class Ensemble(NamedTuple):
    """Frames of the lowest temperature.

    Attributes:
        positions: (T, L, N, 3) float32 nm: T records of L ladders, in time order.
        energy: (T, L) float64 kJ/mol.
        acceptance: (R - 1,) mean exchange acceptance.
        round_trips: configurations that went from the lowest to the highest temperature and back, over all ladders.
        energy_calls: evaluations spent, all stages.
    """

    positions: Tensor
    energy: Tensor
    acceptance: Tensor
    round_trips: int
    energy_calls: int


def sample_ensemble(
    energy: Energy,
    start: Tensor,
    settings: EnsembleSettings,
    generator: torch.Generator,
    *,
    progress: Progress | None = None,
) -> Ensemble:
    """Sample the Boltzmann law of ``energy`` at ``settings.temperature`` from one structure ``start`` (N, 3) nm.

    Raises:
        WalkerExploded: the time step is too long for the force field.
    """
    calls = energy.n_calls
    temperatures = geometric_temperatures(settings.temperature, settings.highest_temperature, settings.replicas)
    exchange = ReplicaExchange(
        energy,
        temperatures,
        settings.ladders,
        settings.exchange_steps,
        settings.time_step,
        settings.friction,
        settings.mass,
    )
    state = exchange.init(generator, _melt(energy, start, settings, generator, progress))
    sweep_ps = settings.exchange_steps * settings.time_step
    burn_in, keep = round(settings.burn_in_ps / sweep_ps), max(1, round(settings.production_ps / sweep_ps))
    relaxed = state
    for state, _ in exchange.run(generator, relaxed, burn_in, progress=_stage(progress, "equilibrate")):  # noqa: B007
        pass
    trips = _RoundTrips(state.replica)
    positions = torch.empty((keep, settings.ladders, *start.shape), dtype=torch.float32)
    energies = torch.empty((keep, settings.ladders), dtype=torch.float64)
    acceptance = []
    production = exchange.run(generator, state, keep, progress=_stage(progress, "sample"))
    for row, (state, info) in enumerate(production):
        positions[row], energies[row] = info.positions, info.energy
        acceptance.append(info.acceptance)
        trips.update(state.replica)
    mean = torch.stack(acceptance).nanmean(dim=0)
    return Ensemble(positions, energies, mean, trips.count, energy.n_calls - calls)


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)


def _melt(
    energy: Energy,
    start: Tensor,
    settings: EnsembleSettings,
    generator: torch.Generator,
    progress: Progress | None,
) -> Tensor:
    count = settings.ladders * settings.replicas
    relaxed = relax(
        energy,
        start.expand(count, *start.shape),
        generator,
        temperature=settings.temperature,
        time_step=settings.time_step,
        mass=settings.mass,
    )
    dynamics = Langevin(energy, settings.highest_temperature, settings.time_step, settings.friction, settings.mass)
    return melt(
        dynamics, relaxed.positions, generator, length=settings.melt_ps, progress=_stage(progress, "melt")
    ).positions


class _RoundTrips:
    """Counts journeys bottom -> top -> bottom of every replica."""

    def __init__(self, replica: Tensor) -> None:
        self._at_top = torch.zeros(replica.numel(), dtype=torch.bool)
        self._seen_bottom = torch.zeros(replica.numel(), dtype=torch.bool)
        self.count = 0

    def update(self, replica: Tensor) -> None:
        bottom, top = replica[:, 0], replica[:, -1]
        self.count += int(self._at_top[bottom].sum())
        self._at_top[bottom] = False
        self._seen_bottom[bottom] = True
        self._at_top[top] |= self._seen_bottom[top]
