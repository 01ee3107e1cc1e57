"""A whole metadynamics run: relax, melt, fill, equilibrate under the frozen bias, sample."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Generator, Tensor

from ...fkc.bias import RepulsionBias
from ..cvs import CollectiveVariable
from ..energies import Energy
from .langevin import Langevin
from .metadynamics import Metadynamics
from .metadynamics_result import Collector, MetadynamicsResult
from .metadynamics_state import MetadynamicsState, Record
from .relax import melt, relax
from .restraints import Restrained

__all__ = ["MetadynamicsSettings", "Staged", "follow", "metadynamics", "prepare"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class MetadynamicsSettings:
    """How long to run, and how. Lengths are per walker.

    Attributes:
        walkers: B, all moved as one batch.
        fill_ps: growth of the bias.
        burn_in_ps: under the frozen bias, dropped: the filling leaves the walkers out of equilibrium.
        production_ps: under the frozen bias, kept.
        temperature: K.
        melt_ps: plain dynamics without bias at ``melt_temperature``, to spread the walkers; 0 for none.
        melt_temperature: K.
        pace: steps between deposits.
        record_steps: steps between records of the production.
        fill_record_steps: steps between records of the filling, a multiple of ``pace`` (default: ``pace``).
        positions_every: keep the positions of every n-th record of the production; 0 for none.
        time_step: ps.
        friction: 1/ps.
        mass: amu, one number for all atoms or (N,) numbers.
    """

    walkers: int
    fill_ps: float
    burn_in_ps: float
    production_ps: float
    temperature: float = 300.0
    melt_ps: float = 0.0
    melt_temperature: float = 600.0
    pace: int = 50
    record_steps: int = 50
    fill_record_steps: int | None = None
    positions_every: int = 0
    time_step: float = 0.002
    friction: float = 2.0
    mass: float | Sequence[float] = 12.0

    def __post_init__(self) -> None:
        for name in ("walkers", "pace", "record_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in ("fill_ps", "burn_in_ps", "production_ps", "melt_ps", "positions_every"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}: got {value!r}, expected a number from 0 on")

    @property
    def deposits(self) -> int:
        """Batches that the filling deposits."""
        return round(self.fill_ps / (self.pace * self.time_step))

    @property
    def burn_in_records(self) -> int:
        """Length of the burn-in, in intervals between records."""
        return round(self.burn_in_ps / (self.record_steps * self.time_step))

    @property
    def records(self) -> int:
        """Records of the production, at least one."""
        return max(1, round(self.production_ps / (self.record_steps * self.time_step)))

    def method(
        self,
        energy: Energy,
        variables: Sequence[CollectiveVariable],
        bias: RepulsionBias,
        restraints: Sequence[Restrained] = (),
        *,
        rct_points: Tensor | None = None,
    ) -> Metadynamics:
        """The dynamics that these settings describe; walkers without a finite energy are retired."""
        return Metadynamics(
            energy,
            variables,
            bias,
            temperature=self.temperature,
            time_step=self.time_step,
            friction=self.friction,
            mass=self.mass,
            restraints=restraints,
            pace=self.pace,
            rct_points=rct_points,
        )


class Staged(NamedTuple):
    """One record of a run.

    Attributes:
        stage: "fill", "burn-in" or "sample".
        done, total: records of this stage; deposits in the filling.
        state: from which the run goes on.
        record: the walkers.
    """

    stage: str
    done: int
    total: int
    state: MetadynamicsState
    record: Record


def prepare(
    method: Metadynamics,
    start: Tensor,
    settings: MetadynamicsSettings,
    generator: Generator,
    *,
    progress: Progress | None = None,
) -> MetadynamicsState:
    """Relax and melt walkers from ``start``, (N, 3) or (B, N, 3) nm, and give them velocities.

    A walker retired on the way starts again from its last good place.

    Raises:
        ValueError: ``start`` holds another number of walkers than the settings.
        WalkersExploded: no walker has a finite energy.
    """
    if start.ndim == 2:
        start = start.expand(settings.walkers, *start.shape)
    if len(start) != settings.walkers:
        raise ValueError(f"start: got {len(start)} structures, expected one, or one for each of {settings.walkers}")
    plain = method.biased(None)
    walkers = relax(
        plain,
        start,
        generator,
        temperature=settings.temperature,
        time_step=settings.time_step,
        mass=settings.mass,
        on_explosion="retire",
    )
    if settings.melt_ps > 0.0:
        hot = Langevin(plain, settings.melt_temperature, settings.time_step, settings.friction, settings.mass, "retire")
        report = None if progress is None else lambda done, total: progress("melt", done, total)
        walkers = melt(hot, walkers.positions, generator, length=settings.melt_ps, progress=report)
    return method.init(generator, walkers.positions)


def follow(
    method: Metadynamics, settings: MetadynamicsSettings, generator: Generator, state: MetadynamicsState
) -> Iterator[Staged]:
    """Fill, burn in and sample, from wherever ``state`` stands.

    A state of any record, kept with the generator's state, leads to the same bits as a run that never stopped.

    Raises:
        WalkersExploded: no walker is left.
    """
    deposits, burn_in, every = settings.deposits, settings.burn_in_records, settings.record_steps
    left = deposits - state.deposits
    now = state
    for now, record in method.fill(generator, state, left, record_every=settings.fill_record_steps):
        yield Staged("fill", now.deposits, deposits, now, record)
    done = (now.steps - deposits * settings.pace) // every
    for now, record in method.produce(generator, now, burn_in + settings.records - done, record_every=every):  # noqa: B020
        done += 1
        if done <= burn_in:
            yield Staged("burn-in", done, burn_in, now, record)
        else:
            yield Staged("sample", done - burn_in, settings.records, now, record)


def metadynamics(
    energy: Energy,
    start: Tensor,
    variables: Sequence[CollectiveVariable],
    bias: RepulsionBias,
    settings: MetadynamicsSettings,
    generator: Generator,
    *,
    restraints: Sequence[Restrained] = (),
    rct_points: Tensor | None = None,
    progress: Progress | None = None,
    on_record: Callable[[Staged], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> MetadynamicsResult:
    """Sample along collective variables: grow a bias, freeze it, and weigh the samples under it.

    Weights are exact for walkers in equilibrium with the frozen bias. A filling too short leaves basins that walkers
    leave slowly then, which neither the weights nor their error bars show: compare parts of the production with each
    other, count crossings, and fill longer, or with more height, or by OPES, if parts differ.

    Args:
        energy: with forces.
        start: (N, 3) or (walkers, N, 3) nm.
        variables: d collective variables, in the order of the bias.
        bias: at the start, in kJ/mol; well-tempered or OPES, empty or with hills.
        settings: lengths and steps.
        generator: of all noise.
        restraints: walls and restraints; they stay in the target.
        rct_points: as in :class:`~feynkac.molecular.dynamics.Metadynamics`.
        progress: called with stage ("melt", "fill", "burn-in", "sample"), done and total.
        on_record: called with every record as it is made, hills included, for files.
        should_stop: asked after every record; when it says yes, the result so far is returned, not ``complete``.

    Returns:
        The samples of the frozen bias with log-weights, and beside them what the filling showed.

    Raises:
        ValueError: variables, bias, start and settings that do not fit each other.
        WalkersExploded: no walker is left.
    """
    calls = energy.n_calls
    method = settings.method(energy, variables, bias, restraints, rct_points=rct_points)
    state = prepare(method, start, settings, generator, progress=progress)
    collector = Collector(settings.positions_every)
    for step in follow(method, settings, generator, state):
        state = step.state
        collector.add(step.stage, step.record)
        if on_record is not None:
            on_record(step)
        if progress is not None:
            progress(step.stage, step.done, step.total)
        if should_stop is not None and should_stop():
            break
    return collector.result(state, energy_calls=energy.n_calls - calls, expected=settings.records)
