"""Single-sample calls of one pipeline that meet at every step of its scheduler."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ..decode.call import PipelineCall
from ..decode.tail import tiles_of
from ..errors import SteeringError
from .attached import one_by_one
from .calls import arguments_of, refuse_caches
from .rows import Joint, agreed
from .schedulers import Meeting, Share, Streams, Work, agree_on_state, hand_over_state, member_scheduler
from .threads import Failed, Finished, Paused, Report, Strand

__all__ = ["LockStep", "run_lockstep"]


def run_lockstep(
    pipe: Any,
    *,
    rows: int,
    generators: Sequence[torch.Generator] | None = None,
    seed: int | None = None,
    calls: Sequence[dict[str, Any]] | None = None,
    **call: Any,
) -> list[Any]:
    """Call ``pipe`` ``rows`` times with one sample each; the calls meet whenever they step the scheduler.

    There one batched step is made by ``pipe.scheduler``, so that whatever is attached to it steers ``rows`` rows,
    as if the pipeline had been called with a batch: same samples for the same generators, memory of one row in the
    denoiser and in the decoder, no gain from batching. The calls take turns in a fixed order, one at a time.

    Without an attachment the calls run side by side and do not touch each other.

    Args:
        pipe: a diffusers pipeline; it is left as found. Its components are shared by all calls, its progress bar is
            off, and hooks that offload models are reset once, at the end.
        rows: B, for an attachment P prompts x K particles x M candidates, a prompt's rows side by side.
        generators: B, one a row, all different.
        seed: of the rows' generators, on the CPU, where none are given.
        calls: B dictionaries of arguments that differ from row to row, such as prompts; they go before ``call``.
        **call: arguments of every call, for one sample.

    Returns:
        What each call returned, in the order of the rows. Where an attachment keeps one of M candidates at the last
        step the others stop there: the P x K that go on are returned.

    Raises:
        ValueError: rows below one; not one generator or one dictionary of arguments a row; neither generators nor
            seed, or both.
        SteeringError: the call asks for several samples; feature caches are on; the pipeline takes no generator; the
            attachment takes gradients through the denoiser or writes checkpoints; the calls take different paths
            (other time steps, other shapes), or never step ``pipe.scheduler``.
        BaseException: what one of the calls, the attachment or the keyboard raised; all other calls have been ended.

    Note:
        Noise that a pipeline draws for its conditioning (an image's posterior sample, an image-to-video frame) is
        every row's own here, and one draw for all rows of many batched calls: there the samples differ. A pipeline
        that draws from torch's global generator does so in the order of the rows, within every step. Callbacks are
        called by every call, with the copy of the pipeline that it runs on. Every thread has its own buffers in the
        libraries that torch calls, some MiB each. Rewards on images decode one call's ending; give ``attach``
        ``chunk_size=1`` to decode one sample at a time.
    """
    arguments = arguments_of(pipe, rows, generators, seed, calls, call)
    refuse_caches(pipe)
    outputs = LockStep(pipe).run(arguments)
    if callable(getattr(pipe, "maybe_free_model_hooks", None)):
        pipe.maybe_free_model_hooks()
    return outputs


class LockStep:
    """One run: its members, and the meetings that it conducts from the caller's thread."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.streams = Streams([pipe.scheduler])
        self.tiles = 1

    def run(self, calls: Sequence[dict[str, Any]]) -> list[Any]:
        """All calls, to their ends; no thread is left behind, whatever happens."""
        plain = {name: value for name, value in calls[0].items() if name != "generator"}
        self.tiles = tiles_of(self.pipe, PipelineCall.of(plain))
        with one_by_one(self.pipe.scheduler):
            return self._run(calls)

    def _run(self, calls: Sequence[dict[str, Any]]) -> list[Any]:
        strands = [Strand(partial(self._call, call), f"lockstep-{row}") for row, call in enumerate(calls)]
        try:
            waiting = [(strand, _successful(strand.resume())) for strand in strands]
            met = False
            while not all(isinstance(report, Finished) for _, report in waiting):
                waiting, met = self._meet([strand for strand, _ in waiting], _meetings(waiting)), True
            if not met:
                raise SteeringError(
                    f"{type(self.pipe).__name__} never stepped its scheduler; it steps another one, or a copy"
                )
            return [report.value for _, report in waiting if isinstance(report, Finished)]
        finally:
            for strand in strands:
                strand.end()

    def _call(self, call: dict[str, Any], strand: Strand) -> Any:
        """One member: a copy of the pipeline that shares its components and has a scheduler of its own."""
        member = copy.copy(self.pipe)
        object.__setattr__(member, "scheduler", member_scheduler(strand, self.streams))
        object.__setattr__(member, "_progress_bar_config", {"disable": True})
        object.__setattr__(member, "maybe_free_model_hooks", lambda: None)
        object.__setattr__(member, "_feynkac_original", self.pipe)  # whose call this is, for its decoder
        return member(**call)

    def _meet(self, strands: list[Strand], meetings: list[Meeting]) -> list[tuple[Strand, Report]]:
        """The members have met: act once, in the first one's thread, and let those that are given a share go on."""
        agree_on_state([meeting.seat for meeting in meetings])
        work = self._step if meetings[0].method == "step" else self._set_timesteps
        done = _successful(strands[0].resume(Work(partial(work, meetings))))
        shares: dict[int, Any] = done.at if isinstance(done, Paused) else {}
        for member, strand in enumerate(strands):
            if member not in shares:
                strand.end()
        reports = []
        for member, share in shares.items():
            hand_over_state(meetings[member].seat)
            reports.append((strands[member], _successful(strands[member].resume(Share(share)))))
        return reports

    def _step(self, meetings: list[Meeting]) -> dict[int, Any]:
        """One batched step of the real scheduler; what each member that goes on is given."""
        bounds = [meeting.bound for meeting in meetings]
        joint = Joint.of(bounds[0].arguments["sample"], len(bounds), self.tiles)
        call = joint.arguments(bounds)
        real = meetings[0].seat.real
        output = real.step(*call.args[1:], **call.kwargs)
        return joint.split(output)

    def _set_timesteps(self, meetings: list[Meeting]) -> dict[int, Any]:
        """The real scheduler is given its time steps once."""
        first = meetings[0].bound
        for name in first.arguments:
            if name != "self":
                agreed(name, [meeting.bound.arguments.get(name) for meeting in meetings])
        result = meetings[0].seat.real.set_timesteps(*first.args[1:], **first.kwargs)
        return dict.fromkeys(range(len(meetings)), result)


def _successful(report: Report) -> Report:
    if isinstance(report, Failed):
        raise report.error
    return report


def _meetings(waiting: Sequence[tuple[Strand, Report]]) -> list[Meeting]:
    """Where the members wait: all at the same place.

    Raises:
        SteeringError: they do not.
    """
    meetings = [report.at for _, report in waiting if isinstance(report, Paused)]
    places = {(meeting.method, meeting.seat.stream) for meeting in meetings}
    found = sorted({meeting.method for meeting in meetings}) + ["the end"] * (len(meetings) < len(waiting))
    if len(found) > 1 or len(places) > 1:
        raise SteeringError(f"the calls do not run in step: they wait at {', '.join(found)}; give them equal work")
    return meetings
