r"""Replica exchange between noise levels: samples one after another, in constant memory, that goes on where it stopped.

    samples = sample_exchanged(Annealed(expert, 2.0), sweeps=2000, populations=8, seed=0)
    samples.x, samples.mean(lambda x: x), samples.std_error(lambda x: x), samples.acceptance

No weights: the chain at the data has the target's law from the end of its burn-in on. How chains exchange and why that
is right is in :mod:`.ladder`.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteWeightWarning
from ..experts import Expert
from ..run_state import Checkpoint
from ..smc import settings_digest
from ..streams import Streams
from .controls import Control
from .exchange_run import ExchangedSamples, ExchangeRun, LowAcceptanceWarning, restored, saved
from .guides import Gauge
from .ladder import Exchange
from .model import CorrectedModel
from .sampling import corrected_model
from .tallies import Kept, Tally
from .targets import Target

__all__ = ["ExchangedSamples", "LowAcceptanceWarning", "sample_exchanged"]

_LOW = 0.1
"""Acceptance below which exchanges are warned of."""


def sample_exchanged(
    target: Target[Expert],
    *,
    sweeps: int,
    chains: int | Sequence[int] = 11,
    steps: int = 100,
    particles: int = 1,
    populations: int = 1,
    moves: int = 1,
    step_size: float = 0.1,
    burn_in: int | None = None,
    functions: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    keep: int = 1000,
    on_sweep: Callable[[int, Tensor], None] | None = None,
    start: Tensor | None = None,
    noise: float | None = None,
    gauge: Gauge = "reference",
    control: Control = "none",
    levels: Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    seed: int | None = None,
    dtype: torch.dtype = torch.float64,
    chunk_size: int | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
) -> ExchangedSamples:
    """Samples of a product of powers of pretrained laws by replica exchange between noise levels.

    A sweep draws the noisiest rung afresh, makes Langevin moves at the others and exchanges every second pair of
    neighbours. It costs about ``steps`` evaluations of the experts a ladder, and the moves: see
    ``ExchangedSamples.calls``.

    Args:
        target: what is sampled.
        sweeps: in all, those of the burn-in and those made before a resumption included.
        chains: rungs of a ladder, spread evenly over the levels; or the indices of their levels, 0 to ``steps``.
        steps: moves from the noisiest level to the last; between two rungs lie ``steps`` / (``chains`` - 1).
        particles: K, ladders side by side that share a population's random streams.
        populations: P, independent; a population's result is the same alone or among others.
        moves: Langevin moves a rung a sweep, see :mod:`.langevin` for what is exact.
        step_size: where their size starts, in units of the reference's variance times d^(-1/3); tuned to an acceptance
            of 0.574 at each rung during the burn-in, and fixed after it.
        burn_in: sweeps that are not counted; None: a fifth of ``sweeps``. To be given where a run may be resumed.
        functions: name -> function of x (P, K, *event) that returns (P, K, ...): averaged over all sweeps.
        keep: states of the data's chain that are kept, evenly spaced; at least 2.
        on_sweep: called with the sweep and x (P, K, *event) after each sweep that counts.
        start: (R, P, K, *event) where the chains begin, noise first; None: where a sequential run of each population's
            K particles takes them, which is near the target for large K, and what the moves give for K = 1.
        noise: see :func:`sample_corrected`; None: 1, at which scores suffice.
        gauge: ``"reference"``, ``"velocities"`` or ``"plain"``, see :func:`sample_corrected`.
        control: ``"none"``, ``"score"`` or ``"reward"``.
        levels: see :func:`sample_corrected`.
        shape: of an event; that of the first expert if None.
        seed: of everything; None draws one.
        dtype: of the chains.
        chunk_size: rows that an expert sees at a time.
        checkpoint: folder and interval, in sweeps.
        resume: go on from the checkpoint, with the same bits as a run never stopped; with more ``sweeps``, a finished
            run goes on.

    Raises:
        CheckpointError: the checkpoint is damaged or of another run, or there is one and ``resume`` is False.
        PathCollapsed: the target cannot be normalised at some level.
        ValueError: settings that contradict each other.
    """
    model = corrected_model(
        target,
        steps=steps,
        noise=1.0 if noise is None else noise,
        gauge=gauge,
        control=control,
        weights="kernel",
        levels=levels,
        shape=shape,
        force=True,
        dtype=dtype,
        chunk_size=chunk_size,
    )
    rungs = _rungs(chains, model)
    burn = sweeps // 5 if burn_in is None else burn_in
    _check(model, sweeps, burn, particles, populations, moves, step_size, keep, resume and burn_in is None)
    sampler = Exchange(model, rungs, moves, step_size, burn)
    named = dict(functions or {})
    chosen = secrets.randbits(62) if seed is None else seed
    identity: dict[str, Any] = {
        "settings": settings_digest(model),
        "rungs": list(rungs),
        "particles": particles,
        "populations": populations,
        "seed": chosen,
        "moves": moves,
        "step_size": step_size,
        "burn_in": burn,
        "functions": sorted(named),
        "keep": keep,
        "noise": model.kappa,
        "gauge": gauge,
        "control": control,
    }
    run = restored(checkpoint, identity) if resume and checkpoint is not None else None
    if run is None:
        if checkpoint is not None:
            checkpoint.refuse_existing()
        _check_start(start, (len(rungs), populations, particles, *model.shape))
        streams = Streams.from_seed(chosen, populations)
        run = ExchangeRun.begun(sampler.init(streams, particles, start), streams, Kept((), keep))
    if run.ladder.sweep > sweeps:
        raise ValueError(f"sweeps: got {sweeps}, but the checkpoint has made {run.ladder.sweep}")
    while run.ladder.sweep < sweeps:
        run = _swept(sampler, run, named, burn, on_sweep)
        if checkpoint is not None and run.ladder.sweep % checkpoint.every == 0:
            saved(checkpoint, run, identity)
    if checkpoint is not None:
        saved(checkpoint, run, identity)
    result = ExchangedSamples.of(run, sampler, chosen)
    _warn(result)
    return result


def _swept(
    sampler: Exchange,
    run: ExchangeRun,
    functions: Mapping[str, Callable[[Tensor], Tensor]],
    burn: int,
    on_sweep: Callable[[int, Tensor], None] | None,
) -> ExchangeRun:
    ladder, info = sampler.step(run.streams, run.ladder)
    if ladder.sweep <= burn:
        return run.advanced(ladder, info, run.kept, run.tallies, counted=False)
    x = ladder.rungs[-1].x
    tallies = {}
    for name, function in functions.items():
        values = function(x).flatten(0, 1)
        tallies[name] = run.tallies.get(name, Tally.empty(values)).added(values)
    if on_sweep is not None:
        on_sweep(ladder.sweep, x)
    return run.advanced(ladder, info, run.kept.added(x), tallies, counted=True)


def _rungs(chains: int | Sequence[int], model: CorrectedModel) -> tuple[int, ...]:
    n = model.n_steps
    if isinstance(chains, int):
        if not 2 <= chains <= n + 1:
            raise ValueError(f"chains: got {chains}, expected 2 to {n + 1}, the number of levels")
        return tuple(round(n * r / (chains - 1)) for r in range(chains))
    rungs = tuple(chains)
    if len(rungs) < 2 or rungs[0] != 0 or rungs[-1] != n or sorted(set(rungs)) != list(rungs):
        raise ValueError(f"chains: got {rungs}, expected indices of levels that rise from 0 to {n}")
    return rungs


def _check(
    model: CorrectedModel,
    sweeps: int,
    burn: int,
    particles: int,
    populations: int,
    moves: int,
    step_size: float,
    keep: int,
    unsure: bool,
) -> None:
    for name, value, least in (
        ("sweeps", sweeps, 1),
        ("particles", particles, 1),
        ("populations", populations, 1),
        ("moves", moves, 0),
        ("keep", keep, 2),
    ):
        if value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
    if not 0 <= burn < sweeps:
        raise ValueError(f"burn_in: got {burn}, expected 0 to {sweeps - 1}")
    if not step_size > 0.0:
        raise ValueError(f"step_size: got {step_size}, expected a positive number")
    if unsure:
        raise ValueError("burn_in: got None, expected a number where a run is resumed: a fifth of sweeps changes")
    if model.target.moving and not model.known:
        raise ValueError(
            "target: exponents that move along the path need experts that know their log_density here: with scores "
            "only the change of a density along a path is known, not the density"
        )
    if any(a.h <= b.h for a, b in zip(model.levels[:-1], model.levels[1:], strict=True)):
        raise ValueError("levels: expected noise variances that fall")


def _check_start(start: Tensor | None, expected: tuple[int, ...]) -> None:
    if start is not None and tuple(start.shape) != expected:
        raise ValueError(f"start: got shape {tuple(start.shape)}, expected {expected}")


def _warn(result: ExchangedSamples) -> None:
    if bool(result.invalid.any()):
        warnings.warn(
            f"{int(result.invalid.sum())} proposals had no density (NaN) and were rejected",
            NonFiniteWeightWarning,
            stacklevel=3,
        )
    low = (result.acceptance < _LOW).nonzero().flatten().tolist()
    if low:
        pairs = ", ".join(f"{r}-{r + 1} ({float(result.acceptance[r]):.3f})" for r in low)
        warnings.warn(
            f"exchanges between rungs {pairs} are accepted less than one time in ten; try chains="
            f"{list(result.suggested_rungs())}, which spreads the rejections evenly, or more steps",
            LowAcceptanceWarning,
            stacklevel=3,
        )
