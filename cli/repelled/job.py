"""A repelled run: the plane, then batch after batch, each kept when it is done, then as many without the bias."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from ...fkc.checkpoint import exists, load_state, save_state
from ...fkc.errors import PopulationCollapsed
from ...fkc.streams import split_seed
from ...steering import SteeringError
from ...steering.repel import Batch, repelled_batches
from ...steering.rewards import RewardError, WrongLength
from ..caught import collected_warnings
from ..conclude import conclude
from ..errors import UserError
from ..kinds import JobKind
from ..run_folder import RunFolder
from .build import Plane, Sampler, repelled_inputs
from .config import RepelledConfig
from .page import write_repelled_report
from .progress import BatchBar, batches_shown
from .results import Batches, Outcome, numbers, warnings_of
from .states import batches_of, bias_in, metrics_of, state_of, write_data

__all__ = ["KIND", "RepelledJob"]

_PLANE = "plane"

_PLAIN = 2**30  # draws to compare with have noise of their own, so that differences have their errors


def _redraw(folder: RunFolder, config: RepelledConfig, console: Console) -> None:
    """`feynkac report`: pictures and report again, from the checkpoints of the finished run."""
    with console.status("loading pipeline and classifier"):
        job = RepelledJob(Sampler.build(config))
    job.conclude(folder, console, first=False)


# --- the job --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RepelledJob:
    """What a repelled config stands for, built and checked before any folder is made."""

    sampler: Sampler

    @property
    def config(self) -> RepelledConfig:
        """Settled."""
        return self.sampler.config

    @property
    def ways(self) -> tuple[str, ...]:
        """``repelled``, and ``plain`` to compare."""
        return ("repelled", "plain") if self.config.compare else ("repelled",)

    @property
    def n_batches(self) -> int:
        """Of each way."""
        return self.config.sampling.batches + self.config.sampling.frozen

    def units(self) -> list[str]:
        """Names of everything that is kept, in the order in which it is made."""
        return [_PLANE, *(_unit(way, index) for way in self.ways for index in range(self.n_batches))]

    def execute(self, folder: RunFolder, console: Console) -> None:
        """Run what is not done yet, then write every result, and print the numbers."""
        done = {unit for unit in self.units() if exists(folder.checkpoint / unit)}
        folder.keep_metrics(lambda line: line.get("unit") in done)
        if _PLANE not in done:
            with console.status("drawing from the model to find the plane"):
                save_state(folder.checkpoint / _PLANE, self.sampler.fit_plane().state(), {})
        plane = self._plane(folder)
        with batches_shown(console, len(self.ways) * self.n_batches) as bar:
            for way in self.ways:
                self._run(way, plane, folder, bar)
        self.conclude(folder, console, first=True)

    def _run(self, way: str, plane: Plane, folder: RunFolder, bar: BatchBar) -> None:
        """The batches of a way that are not there yet."""
        first, bias = 0, self.sampler.bias(plane)
        while first < self.n_batches and exists(folder.checkpoint / _unit(way, first)):
            bias = bias_in(load_state(folder.checkpoint / _unit(way, first))[0])
            first += 1
        bar.advance(first)
        if first == self.n_batches:
            return
        deposits = self.config.sampling.batches if way == "repelled" else 0
        seed = self.config.sampling.seed
        batches = repelled_batches(
            self.sampler.pipe,
            self.sampler.repulsion(plane, bias),
            *self.sampler.controls(),
            batches=deposits,
            frozen_batches=self.n_batches - deposits,
            seed=seed if way == "repelled" else split_seed(seed, _PLAIN),
            first=first,
            **self.sampler.options(),
        )
        with _refusals_named(way):
            started = time.perf_counter()
            for batch, notes in _with_warnings(batches):
                state = state_of(batch, self.sampler.classes)
                meta = {"notes": [*batch.run.notes, *notes], "seconds": time.perf_counter() - started}
                # the line first: one without a state is dropped when a killed run goes on
                folder.append_metrics(metrics_of(_unit(way, batch.index), batch))
                save_state(folder.checkpoint / _unit(way, batch.index), state, meta)
                bar.finished(way, batch)
                started = time.perf_counter()

    # --- results ------------------------------------------------------------------------------------------------------

    def conclude(self, folder: RunFolder, console: Console, *, first: bool) -> None:
        """Write the results of a run whose units are done, and print the numbers."""
        with console.status("reading batches"):
            outcome = self._outcome(folder)
        conclude(
            console,
            folder,
            numbers(outcome),
            warnings_of(outcome),
            data=(lambda stage: write_data(stage, outcome)) if first else None,
            report=lambda stage, frame: write_repelled_report(stage, frame, config=self.config, outcome=outcome),
        )

    def _plane(self, folder: RunFolder) -> Plane:
        return Plane(**load_state(folder.checkpoint / _PLANE)[0])

    def _outcome(self, folder: RunFolder) -> Outcome:
        plane = self._plane(folder)
        found: dict[str, Batches] = {}
        for way in self.ways:
            loaded = [load_state(folder.checkpoint / _unit(way, index)) for index in range(self.n_batches)]
            states, metas = [state for state, _ in loaded], [meta for _, meta in loaded]
            found[way] = batches_of(states, metas, self.sampler.bias(plane))
        classes = int(self.sampler.classifier.config.n_classes)
        config = self.config
        return Outcome(
            plane, found["repelled"], found.get("plain"), classes, bool(config.rewards), config.sampling.frozen
        )


def _unit(way: str, index: int) -> str:
    return f"{way}-{index:03d}"


def _with_warnings(batches: Iterator[Batch]) -> Iterator[tuple[Batch, list[str]]]:
    """Each batch with the warnings that were raised while it was made."""
    while True:
        with collected_warnings() as caught:
            batch = next(batches, None)
        if batch is None:
            return
        yield batch, caught


@contextmanager
def _refusals_named(way: str) -> Iterator[None]:
    """What the pipeline or the rewards refuse is the user's to mend."""
    try:
        yield
    except (SteeringError, RewardError, WrongLength, PopulationCollapsed) as error:
        raise UserError(f"{way}: {error}") from error


def _headline(job: RepelledJob) -> str:
    s = job.config.sampling
    return f"{s.batches} + {s.frozen} batches of {s.populations} x {job.config.steering.particles}"


KIND = JobKind(
    config=RepelledConfig,
    building="loading pipeline and classifier",
    build=lambda config, folder: RepelledJob(Sampler.build(config)),
    inputs=repelled_inputs,
    headline=_headline,
    redraw=_redraw,
)
