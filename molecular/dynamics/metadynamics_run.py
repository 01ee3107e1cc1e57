"""A whole metadynamics run: relax, melt, fill, equilibrate under the frozen bias, sample."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Generator, Tensor

from ...fkc.bias import RepulsionBias
from ..cvs import CollectiveVariable
from ..energies import Energy
from .langevin import Langevin
from .metadynamics import Metadynamics
from .metadynamics_result import Collector, MetadynamicsResult
from .metadynamics_settings import MetadynamicsSettings
from .metadynamics_state import MetadynamicsState, Record
from .relax import check_start, melt, relax
from .restraints import Restrained
from .walkers import WalkerRestartedWarning, WalkerRetiredWarning

__all__ = ["Staged", "follow", "metadynamics", "prepare"]

Progress = Callable[[str, int, int], None]


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

    A walker that loses its finite energy on the way starts again: from the last place where it was looked at, or, if
    its own start has no finite energy, from another walker's. These are counted as ``restarted`` in the state.

    Warns:
        WalkerRestartedWarning: with the number of these walkers; they are correlated with others, and perhaps not where
            they were put.

    Raises:
        ValueError: ``start`` holds another number of walkers than the settings, a place that is not finite, or, where
            the energy has a topology, a bond shorter than 0.03 nm or longer than 0.5 nm, as in ångström; or a biased or
            restrained variable is finite for no walker.
        WalkersExploded: no walker has a finite energy.
    """
    if start.ndim == 2:
        start = start.expand(settings.walkers, *start.shape)
    if len(start) != settings.walkers:
        raise ValueError(f"start: got {len(start)} structures, expected one, or one for each of {settings.walkers}")
    check_start(start, method.energy.topology)
    method.check_values(start)
    plain = method.biased(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WalkerRetiredWarning)  # they start again, which is said below
        walkers = relax(
            plain,
            start,
            generator,
            temperature=settings.temperature,
            time_step=settings.time_step,
            mass=settings.mass,
            on_explosion="retire",
        )
        lost = ~walkers.alive
        if settings.melt_ps > 0.0:
            step, friction, mass = settings.time_step, settings.friction, settings.mass
            hot = Langevin(plain, settings.melt_temperature, step, friction, mass, "retire")
            report = None if progress is None else lambda done, total: progress("melt", done, total)
            walkers = melt(hot, walkers.positions, generator, length=settings.melt_ps, progress=report)
            lost |= ~walkers.alive
    restarted = int(lost.sum())
    if restarted:
        warnings.warn(
            f"{restarted} of {len(lost)} walkers, the first of them walker {int(lost.nonzero()[0])}, lost their finite "
            "energy while they were relaxed or melted, and start again from an earlier place or from another walker's",
            WalkerRestartedWarning,
            stacklevel=2,
        )
    return method.init(generator, walkers.positions)._replace(restarted=restarted)


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
        start: (N, 3) or (walkers, N, 3) nm, checked by its bonds where the energy has a topology.
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
        ValueError: variables, bias, start and settings that do not fit each other; a start not finite or not in nm; a
            variable that is finite for no walker at the start.
        WalkersExploded: no walker is left.

    Warns:
        WalkerRestartedWarning, WalkerRetiredWarning: for walkers that lost their finite energy.

    A run that must survive a kill is made of the same parts: ``settings.method``, :func:`prepare`, :func:`follow` and
    :class:`~feynkac.molecular.dynamics.Collector`, which shows how.
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
