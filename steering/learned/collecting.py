"""Rollouts of the real pipeline: a control that only records, and chunks that survive an interruption.

The law recorded is that of the sampler at its finite steps, in the setting in which it will be steered.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from ...fkc.checkpoint import exists, load_state, save_state
from ...fkc.streams import generator_for, split_seed
from ..asking import batched_call
from ..attach import attach
from ..context import FinalContext, StepContext
from ..controls import Memory, Target, When, due
from ..errors import SteeringError
from ..moves import Transition
from ..resume import described
from ..rewards import Reward, RewardCalls
from ..tilt import Space
from .rollouts import Rollouts

__all__ = ["Call", "Recorder", "collect_rollouts"]

Call = Mapping[str, Any] | Callable[[int, Generator], Any]
"""Arguments of the pipeline; or a function of (rows, generator) that calls it for that many rows."""


class Recorder:
    """A control that records states on the way and rewards in the end, and changes nothing.

    Args:
        reward: samples -> one number each.
        on: what the reward is given.
        when: the moves recorded.
        clean: record x0-hat too.
        baseline: judge x0-hat too, at the cost of a decoding and a reward a state.
    """

    candidates = 1

    def __init__(
        self, reward: Reward, *, on: Space = "images", when: When = None, clean: bool = False, baseline: bool = False
    ) -> None:
        self.calls, self.on, self.when = RewardCalls(reward), on, when
        self.with_clean, self.baseline = clean, baseline
        self.states: list[Tensor] = []
        self.clean: list[Tensor] = []
        self.judged: list[Tensor] = []
        self.levels: list[tuple[float, float]] = []
        self.moves: list[int] = []
        self.rewards: Tensor | None = None

    @property
    def name(self) -> str:
        """Of the reward."""
        return self.calls.name

    @property
    def reward_calls(self) -> int:
        """Samples scored so far."""
        return self.calls.calls

    def begin(self, rows: int) -> Memory:
        """Nothing is remembered of a row."""
        return {}

    def weigh(self, context: StepContext, memory: Memory) -> None:
        """Records x_t."""
        if not due(self.when, context):
            return
        self.states.append(_stored(context.sample))
        self.levels.append((context.level.alpha, context.level.sigma))
        self.moves.append(context.index)
        if self.with_clean and context.sample.is_floating_point():
            self.clean.append(_stored(context.clean))
        if self.baseline:
            samples = context.images if self.on == "images" else context.clean
            self.judged.append(self.calls(samples, len(context.sample), context.chunk_size))

    def target(self, final: FinalContext, memory: Memory) -> Target:
        """Records r(x0); no tilt."""
        samples = final.images if self.on == "images" else final.sample
        self.rewards = self.calls(samples, len(final.sample), final.chunk_size)
        return Target(torch.zeros_like(self.rewards), self.rewards)

    def rollouts(self) -> Rollouts:
        """What was recorded.

        Raises:
            SteeringError: no whole trajectory, or no move of it.
        """
        if self.rewards is None or not self.states:
            raise SteeringError("rollouts: nothing was recorded; did the pipeline run, and does when= name a move?")
        return Rollouts(
            torch.stack(self.states, dim=1),
            torch.tensor(self.levels, dtype=torch.float64),
            torch.tensor(self.moves),
            self.rewards,
            torch.stack(self.clean, dim=1) if self.clean else None,
            torch.stack(self.judged, dim=1) if self.baseline else None,
        )


def _stored(state: Tensor) -> Tensor:
    state = state.detach().cpu()
    return state.float() if state.is_floating_point() else state.long()


def collect_rollouts(
    pipe: Any,
    reward: Reward,
    n: int,
    *,
    seed: int,
    call: Call,
    batch_size: int = 64,
    on: Space = "images",
    when: When = None,
    clean: bool = False,
    baseline: bool = False,
    transition: Transition = "native",
    kernel_eta: float = 1.0,
    chunk_size: int | None = None,
    folder: Path | None = None,
    progress: bool = True,
) -> Rollouts:
    """``n`` unsteered trajectories of ``pipe`` with the rewards of their ends.

    Chunk c of ``batch_size`` rows draws from streams of (seed, c) alone: a collection that was interrupted goes on in
    ``folder``, asked for with the same arguments, and ends with the same bits. All of it is held in memory, 4 bytes a
    number: for large states record fewer moves.

    Args:
        pipe: a diffusers pipeline with a known scheduler.
        reward: samples -> one number each.
        n: trajectories of each prompt.
        seed: of all draws.
        call: the pipeline's arguments, without those that ask for several samples and without a generator; or a
            function of (rows, generator), for pipelines that need more.
        batch_size: trajectories a call of the pipeline.
        on: what the reward is given: ``"images"``, ``"latents"`` or ``"tokens"``.
        when: the moves recorded.
        clean: record x0-hat too.
        baseline: judge x0-hat too.
        transition, kernel_eta, chunk_size: as for :func:`feynkac.steering.attach`.
        folder: in which finished chunks are kept.
        progress: show a bar.

    Raises:
        ValueError: a number out of range, or ``folder`` holds other rollouts.
        SteeringError: the pipeline cannot be asked for several samples, or what :func:`attach` refuses.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"n, batch_size: got {n}, {batch_size}; expected at least 1")
    plan = {
        "n": n, "seed": seed, "batch_size": batch_size, "clean": clean, "baseline": baseline, "on": on,
        "transition": transition, "kernel_eta": kernel_eta, "reward": described(reward), "call": described(call),
        "when": described(when),
    }  # fmt: skip
    parts = []
    starts = range(0, n, batch_size)
    for c, start in enumerate(tqdm(starts, desc="rollouts", disable=not progress)):
        rows = min(batch_size, n - start)
        place = None if folder is None else folder / f"chunk-{c:06d}"
        if place is not None and exists(place):
            parts.append(_loaded(place, plan))
            continue
        recorder = Recorder(reward, on=on, when=when, clean=clean, baseline=baseline)
        options: dict[str, Any] = {"transition": transition, "kernel_eta": kernel_eta, "chunk_size": chunk_size}
        # populations of one particle: nothing to resample, and steps without noise are welcome
        with attach(pipe, recorder, particles=1, seed=split_seed(seed, c, 1), **options):
            _call(pipe, call, rows, generator_for(seed, c))
        parts.append(recorder.rollouts())
        if place is not None:
            save_state(place, parts[-1].tensors(), {"plan": plan})
    return Rollouts.joined(parts)


def _loaded(place: Path, plan: dict[str, Any]) -> Rollouts:
    tensors, meta = load_state(place)
    for key, value in plan.items():
        if meta["plan"].get(key) != value:
            raise ValueError(
                f"{place} holds rollouts with another {key}: {meta['plan'].get(key)!r}, expected {value!r}"
            )
    return Rollouts(**tensors)


def _call(pipe: Any, call: Call, rows: int, generator: Generator) -> None:
    if not isinstance(call, Mapping):
        call(rows, generator)
        return
    try:
        asked = batched_call(pipe, rows, 1, dict(call))
    except SteeringError as error:
        raise SteeringError(f"{error}; or give call= as a function of (rows, generator)") from error
    pipe(**{"generator": generator, **asked})
