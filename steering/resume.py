"""The state of a trajectory on disk, and back: a steered run that was killed goes on from its last checkpoint.

A pipeline cannot be entered in the middle of its loop, so it is called again with the same arguments, and its first
steps are run through without the denoiser; at the saved step the sample, the solver's memory, the particles and the
generators are put back. From there on every bit is that of a run never stopped.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..fkc import Population
from ..fkc import checkpoint as storage
from ..fkc.errors import CheckpointError
from ..fkc.run_state import Checkpoint
from .controls import Control
from .decode.call import PipelineCall, running_call
from .run import Calls, Run, StepRecord
from .settings import Settings

__all__ = ["Restored", "TrajectoryStore", "described", "identity_of", "pack", "unpack"]

_Tree = Any


class _Unknown(Exception):
    """A value that is neither a tensor nor plain data."""


def pack(value: Any, tensors: dict[str, Tensor], path: str) -> _Tree:
    """Plain data and tensors as a tree for JSON; the tensors go to ``tensors`` under names that begin with ``path``.

    Raises:
        _Unknown: something else is in it.
    """
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    if isinstance(value, list | tuple):
        entries = [pack(entry, tensors, f"{path}/{i}") for i, entry in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": entries}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: pack(entry, tensors, f"{path}/{key}") for key, entry in value.items()}}
    if callable(getattr(value, "step", None)) and callable(getattr(value, "set_timesteps", None)):
        return {"scheduler": _attributes(value, tensors, path)}  # one solver inside another
    raise _Unknown(type(value).__name__)


def _attributes(scheduler: Any, tensors: dict[str, Tensor], path: str) -> _Tree:
    """Attributes of a scheduler that hold plain data; functions and configurations are not changed by stepping."""
    tree = {}
    for name, value in vars(scheduler).items():
        held: dict[str, Tensor] = {}
        try:
            tree[name] = pack(value, held, f"{path}/{name}")
        except _Unknown:
            continue
        tensors.update(held)
    return tree


def unpack(tree: _Tree, tensors: Mapping[str, Tensor], like: Any = None) -> Any:
    """Inverse of :func:`pack`; tensors go to the device of ``like`` where that is a tensor."""
    ((kind, content),) = tree.items()
    if kind == "tensor":
        value = tensors[content]
        return value.to(like.device) if isinstance(like, Tensor) else value
    if kind == "plain":
        return content
    if kind in ("list", "tuple"):
        entries = [unpack(entry, tensors, _entry(like, i)) for i, entry in enumerate(content)]
        return entries if kind == "list" else tuple(entries)
    if kind == "dict":
        return {key: unpack(entry, tensors, _entry(like, key)) for key, entry in content.items()}
    _restore_attributes(like, content, tensors)
    return like


def _entry(like: Any, key: Any) -> Any:
    try:
        return like[key]
    except (TypeError, KeyError, IndexError):
        return None


def _restore_attributes(scheduler: Any, tree: _Tree, tensors: Mapping[str, Tensor]) -> None:
    for name, entry in tree.items():
        object.__setattr__(scheduler, name, unpack(entry, tensors, getattr(scheduler, name, None)))


@dataclass(frozen=True, eq=False)
class Restored:
    """What a checkpoint held.

    Attributes:
        calls: of the scheduler's step that were made before it was written.
        tensors: by name.
        meta: the rest.
    """

    calls: int
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    def part(self, name: str) -> Any:
        """One of the packed parts."""
        return unpack(self.meta["parts"][name], self.tensors)

    def output(self, base: Any) -> Any:
        """What the step returned, in the form of what the base has just returned, and on its device."""
        saved = self.part("output")
        if isinstance(base, tuple):
            return tuple(_placed(value, like) for value, like in zip(saved, base, strict=True))
        for key, value in saved.items():
            base[key] = _placed(value, base[key])
        return base

    def restore_scheduler(self, scheduler: Any) -> None:
        """Put the solver's memory and counters back."""
        _restore_attributes(scheduler, self.meta["parts"]["scheduler"]["scheduler"], self.tensors)

    def restore_run(self, run: Run) -> None:
        """Put records, counts and notes back."""
        run.records[:] = _records(self.part("records"))
        run.calls = Calls(**self.meta["calls"])
        run.notes[:], run.exact = self.meta["notes"], self.meta["exact"]

    def restore_generators(self, pipe: Any) -> None:
        """Set the generators of the running call to where they were.

        Raises:
            CheckpointError: the call has not as many.
        """
        generators = _generators(running_call(pipe))
        states = self.part("generators")
        if len(states) != len(generators):
            raise CheckpointError(
                f"generator: the checkpoint holds {len(states)} generators, the call has {len(generators)}"
            )
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state.clone())


class TrajectoryStore:
    """Writes and reads the checkpoint of one trajectory.

    Args:
        pipe: the pipeline.
        checkpoint: where, and after how many calls of the scheduler's step.
        resume: read what is there.
        identity: settings that must be the same, as plain data.

    Raises:
        CheckpointError: the folder holds a checkpoint and ``resume`` is False.
    """

    def __init__(self, pipe: Any, checkpoint: Checkpoint, resume: bool, identity: Mapping[str, Any]) -> None:
        self.pipe, self.checkpoint, self.resume = pipe, checkpoint, resume
        self.identity = dict(identity)
        if not resume:
            checkpoint.refuse_existing()

    def saved(self) -> Restored | None:
        """The checkpoint to go on from, once; None if there is none.

        Raises:
            CheckpointError: damaged, or of another call; the message names what differs.
        """
        if not self.resume or not storage.exists(self.checkpoint.folder):
            return None
        self.resume = False
        tensors, meta = storage.load_state(self.checkpoint.folder)
        now = self._identity()
        differing = [
            f"{key}: {meta['identity'].get(key)!r} there, {now.get(key)!r} here"
            for key in sorted({*now, *meta["identity"]})
            if meta["identity"].get(key) != now.get(key)
        ]
        if differing:
            raise CheckpointError(f"{self.checkpoint.folder} belongs to another run ({'; '.join(differing)})")
        return Restored(int(meta["count"]), tensors, meta)

    def due(self, count: int) -> bool:
        """After this many calls a checkpoint is written."""
        return count % self.checkpoint.every == 0

    def write(self, count: int, scheduler: Any, output: Any, particles: Any, run: Run) -> None:
        """Save the whole state after ``count`` calls of step.

        Args:
            count: calls made.
            scheduler: after the last.
            output: what that one returned.
            particles: packed state of the particles.
            run: the record so far.
        """
        members = tuple(output) if isinstance(output, tuple) else dict(output.items())
        parts = {
            "output": members,
            "scheduler": scheduler,
            "particles": particles,
            "records": _stacked(run.records),
            "generators": [g.get_state() for g in _generators(running_call(self.pipe))],
        }
        tensors: dict[str, Tensor] = {}
        trees = {name: pack(value, tensors, name) for name, value in parts.items()}
        meta = {
            "count": count,
            "identity": self._identity(),
            "parts": trees,
            "calls": asdict(run.calls),
            "notes": run.notes,
            "exact": run.exact,
        }
        storage.save_state(self.checkpoint.folder, tensors, meta)

    def _identity(self) -> dict[str, Any]:
        call = running_call(self.pipe)
        arguments = {} if call is None else call.arguments
        plain = {f"argument {name}": value for name, value in arguments.items() if _is_plain(value)}
        plain |= {f"argument {n}": described(value) for n, value in arguments.items() if isinstance(value, Tensor)}
        plain["generator seeds"] = [g.initial_seed() for g in _generators(call)]
        classes = {"pipeline": type(self.pipe).__name__, "scheduler": type(self.pipe.scheduler).__name__}
        return {**self.identity, **classes, **plain}


def identity_of(settings: Settings, controls: Sequence[Control]) -> dict[str, Any]:
    """What must be the same in a run that goes on with another's checkpoint: settings (not chunks) and controls."""
    named = {name: value for name, value in asdict(settings).items() if name != "chunk_size"}
    return {**named, **{f"control {i}": described(control) for i, control in enumerate(controls)}}


def described(value: Any) -> str:
    """A text that differs where two settings do: numbers, names of functions, the fields of a record."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = [f for f in fields(value) if not f.name.startswith("_") and f.name != "chunk_size"]
        inside = ", ".join(f"{f.name}={described(getattr(value, f.name))}" for f in shown)
        return f"{type(value).__name__}({inside})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(described(entry) for entry in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {described(entry)}' for key, entry in sorted(value.items()))}}}"
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {hashlib.sha256(_bytes(value)).hexdigest()[:16]}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return str(getattr(value, "name", None) or getattr(value, "__name__", None) or type(value).__name__)


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous().flatten()
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def _placed(value: Any, like: Any) -> Any:
    return value.to(like.device) if isinstance(value, Tensor) and isinstance(like, Tensor) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)


def _generators(call: PipelineCall | None) -> Sequence[torch.Generator]:
    generator = None if call is None else call.arguments.get("generator")
    if generator is None:
        return []
    return generator if isinstance(generator, list | tuple) else [generator]


def _stacked(records: Sequence[StepRecord]) -> list[dict[str, Any]]:
    return [
        {
            "index": r.index,
            "population": r.population.state_dict(),
            "ancestors": r.ancestors,
            "log_potential": r.log_potential,
            "rewards": r.rewards,
        }
        for r in records
    ]


def _records(saved: Sequence[Mapping[str, Any]]) -> list[StepRecord]:
    return [
        StepRecord(
            r["index"], Population.from_state_dict(r["population"]), r["ancestors"], r["log_potential"], r["rewards"]
        )
        for r in saved
    ]
