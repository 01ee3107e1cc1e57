"""What a replica exchange run is: on disk and back, and its result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint as storage
from ..cloud import Cloud
from ..run_state import Checkpoint, refuse_other_run
from ..streams import Streams
from .ladder import Exchange, Ladder, SweepInfo
from .tallies import Estimate, Kept, Tally, batched_error

__all__ = ["ExchangeRun", "ExchangedSamples", "LowAcceptanceWarning", "restored", "saved"]


class LowAcceptanceWarning(RuntimeWarning):
    """Neighbouring rungs exchange too seldom."""


@dataclass(frozen=True, eq=False)
class ExchangeRun:
    """Everything that a later process needs in order to go on.

    Attributes:
        ladder: chains.
        streams: generators, at their present place.
        kept: samples.
        tallies: of the functions.
        counts: sums over the sweeps that count: accepted and tried exchanges (2, R - 1, P), accepted moves (R, P) and
            sweeps (), arrivals (P,), invalid ratios (P,) of all sweeps.
    """

    ladder: Ladder
    streams: Streams
    kept: Kept
    tallies: Mapping[str, Tally]
    counts: Mapping[str, Tensor]

    @classmethod
    def begun(cls, ladder: Ladder, streams: Streams, kept: Kept) -> ExchangeRun:
        """Nothing counted."""
        rungs, populations = ladder.step_size.shape
        counts = {
            "exchanged": torch.zeros((2, rungs - 1, populations), dtype=torch.float64),
            "moved": torch.zeros((rungs, populations), dtype=torch.float64),
            "sweeps": torch.zeros((), dtype=torch.float64),
            "arrivals": torch.zeros(populations, dtype=torch.int64),
            "invalid": torch.zeros(populations, dtype=torch.int64),
        }
        return cls(ladder, streams, kept, {}, counts)

    def advanced(
        self, ladder: Ladder, info: SweepInfo, kept: Kept, tallies: Mapping[str, Tally], *, counted: bool
    ) -> ExchangeRun:
        """One sweep later."""
        counts = dict(self.counts)
        counts["invalid"] = counts["invalid"] + info.invalid
        if counted:
            tried = ~info.accepted.isnan()
            counts["exchanged"] = counts["exchanged"] + torch.stack([info.accepted.nan_to_num(0.0), tried.double()])
            counts["moved"] = counts["moved"] + info.moved
            counts["sweeps"] = counts["sweeps"] + 1.0
            counts["arrivals"] = counts["arrivals"] + info.arrivals
        return ExchangeRun(ladder, self.streams, kept, tallies, counts)


@dataclass(frozen=True, eq=False)
class ExchangedSamples:
    """Equally weighted samples of a target, correlated in time.

    Attributes:
        chain: (T, P, K, *event), the data's chain at evenly spaced sweeps.
        estimates: of ``functions``, over all sweeps and ladders.
        acceptance: (R - 1,) of the exchanges between neighbouring rungs, noise first.
        moves_acceptance: (R,) of the Langevin moves; of the independent draws at rung 0.
        round_trips: (P,) walkers that came from the noise to the data.
        step_sizes: (R, P) of the Langevin moves, in the squared unit of y.
        rungs: indices of the levels.
        levels: noise variances of the rungs.
        last: (R, P, K, *event) of all chains; ``start`` of another run.
        calls: evaluations of every expert for each ladder.
        invalid: (P,) proposals whose ratio was NaN, all rejected.
        seed: of all streams.
    """

    chain: Tensor
    estimates: Mapping[str, Estimate]
    acceptance: Tensor
    moves_acceptance: Tensor
    round_trips: Tensor
    step_sizes: Tensor
    rungs: tuple[int, ...]
    levels: tuple[float, ...]
    last: Tensor
    calls: int
    invalid: Tensor
    seed: int

    @classmethod
    def of(cls, run: ExchangeRun, sampler: Exchange, seed: int) -> ExchangedSamples:
        """The result of a run."""
        ladder, counts = run.ladder, run.counts
        exchanged = counts["exchanged"].sum(dim=2)
        even, odd = sampler.evaluations
        return cls(
            run.kept.stacked(ladder.rungs[-1].x),
            {name: tally.estimate() for name, tally in run.tallies.items()},
            exchanged[0] / exchanged[1],
            counts["moved"].mean(dim=1) / counts["sweeps"],
            counts["arrivals"],
            ladder.step_size,
            sampler.rungs,
            tuple(sampler.model.levels[i].h for i in sampler.rungs),
            torch.stack([cloud.x for cloud in ladder.rungs]),
            sampler.model.n_steps + 1 + (ladder.sweep + 1) // 2 * even + ladder.sweep // 2 * odd,
            counts["invalid"],
            seed,
        )

    @property
    def x(self) -> Tensor:
        """(P, T K, *event), all kept samples of each population."""
        return self.chain.movedim(0, 1).flatten(1, 2)

    def mean(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean (P, ...) of ``function(x)`` (P, T K, ...) over the kept samples."""
        return function(self.x).double().mean(dim=1)

    def std_error(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Standard error of :meth:`mean` (P, ...), from batches in time and ladders."""
        values = function(self.x)
        series = values.reshape(len(values), *self.chain.shape[0:3:2], *values.shape[2:]).transpose(1, 2)
        return torch.stack([batched_error(population) for population in series])

    @property
    def barrier(self) -> float:
        """Sum of the rejection rates: round trips a sweep are at best 1 / (2 + 2 barrier) (Syed et al. 2022)."""
        return float((1.0 - self.acceptance.nan_to_num(0.0)).sum())

    def suggested_rungs(self) -> tuple[int, ...]:
        """Indices of levels between which rejections would be even, were they to add up along the ladder: as many as
        now, or twice the barrier where that is more."""
        heights = [0.0, *(1.0 - self.acceptance.nan_to_num(0.0)).clamp(min=1e-3).cumsum(0).tolist()]
        count = min(max(len(self.rungs), math.ceil(2.0 * heights[-1]) + 1), self.rungs[-1] + 1)
        found = {self.rungs[0], self.rungs[-1]}
        for i in range(1, count - 1):
            height = heights[-1] * i / (count - 1)
            for (a, b), (low, high) in zip(itertools.pairwise(self.rungs), itertools.pairwise(heights), strict=True):
                if low <= height <= high:
                    found.add(round(a + (b - a) * (height - low) / (high - low)))
        return tuple(sorted(found))


def saved(checkpoint: Checkpoint, run: ExchangeRun, identity: Mapping[str, Any]) -> None:
    """Writes the run to the checkpoint's folder, atomically."""
    ladder = run.ladder
    groups: dict[str, Mapping[str, Tensor]] = {
        "ladder": {"step_size": ladder.step_size, "visited": ladder.visited},
        "streams": run.streams.state_dict(),
        "kept": run.kept.state_dict(ladder.rungs[-1].x),
        "counts": run.counts,
        "sums": {name: tally.sums for name, tally in run.tallies.items()},
    }
    groups |= {f"rung{r}": cloud.state_dict() for r, cloud in enumerate(ladder.rungs)}
    tensors = {f"{group}/{name}": value for group, part in groups.items() for name, value in part.items()}
    places = {name: [tally.size, tally.count] for name, tally in run.tallies.items()}
    meta = {"sweep": ladder.sweep, "rungs": len(ladder.rungs), "tallies": places, "identity": dict(identity)}
    storage.save_state(checkpoint.folder, tensors, meta)


def restored(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> ExchangeRun | None:
    """Reads the run back, or None if the folder holds none.

    Raises:
        CheckpointError: damaged, or written by a run with other settings; the message names them.
    """
    if not storage.exists(checkpoint.folder):
        return None
    tensors, meta = storage.load_state(checkpoint.folder)
    refuse_other_run(checkpoint, meta["identity"], identity)

    def group(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}

    rungs = tuple(Cloud.from_state_dict(group(f"rung{r}")) for r in range(meta["rungs"]))
    chains = group("ladder")
    ladder = Ladder(rungs, chains["step_size"], chains["visited"], int(meta["sweep"]))
    tallies = {name: Tally(group("sums")[name], *place) for name, place in meta["tallies"].items()}
    return ExchangeRun(
        ladder, Streams.from_state_dict(group("streams")), Kept.from_state_dict(group("kept")), tallies, group("counts")
    )
