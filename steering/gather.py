"""Everything that must move with a particle, moved by one set of ancestors.

Sample, model output and every other per-row argument of ``step``, the solver's history, returned tensors, and the
feature caches on the denoiser. Never the generators: the copies of one particle must draw different noise.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["gather_arguments", "gather_caches", "gather_history", "gather_output"]

Gather = Callable[[Any], Any]


def _gather_by(rows: Tensor, n_rows: int, accepts: Callable[[Tensor], bool]) -> Gather:
    def gather(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.ndim and value.shape[0] == n_rows and accepts(value):
                return value.index_select(0, rows.to(value.device))
            return value
        if isinstance(value, list):
            return [gather(entry) for entry in value]
        if type(value) is tuple:
            return tuple(gather(entry) for entry in value)
        return value

    return gather


def gather_arguments(arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Arguments of ``step`` with every tensor of at least two axes and one entry a row re-indexed."""
    gather = _gather_by(rows, len(rows), lambda value: value.ndim >= 2)
    return {name: value if name == "generator" else gather(value) for name, value in arguments.items()}


def gather_history(scheduler: Any, rows: Tensor, ndim: int) -> None:
    """Re-index the scheduler's own per-particle memory (earlier model outputs, earlier samples), in place.

    A tensor belongs to the particles if it has as many axes as the sample and one entry a row; that leaves ``sigmas``
    and ``timesteps`` alone.
    """
    gather = _gather_by(rows, len(rows), lambda value: value.ndim == ndim)
    for name, value in vars(scheduler).items():
        moved = gather(value)
        if moved is not value:
            object.__setattr__(scheduler, name, moved)


def gather_output(output: Any, rows: Tensor, ndim: int, n_rows: int) -> Any:
    """What ``step`` returned, a tuple or an output object, with its tensors of ``n_rows`` rows re-indexed by ``rows``.

    ``rows`` may be fewer: after the last step the batch may shrink to the chosen candidates.
    """
    gather = _gather_by(rows, n_rows, lambda value: value.ndim == ndim)
    if type(output) is tuple:
        return gather(output)
    if isinstance(output, dict):  # diffusers' BaseOutput is an ordered dictionary with attributes
        for name in list(output.keys()):
            output[name] = gather(output[name])
    return output


def gather_caches(denoisers: list[nn.Module], rows: Tensor) -> int:
    """Re-index the feature caches that diffusers' hooks keep on a denoiser; how many tensors were moved.

    Several hooks may share one state, so states are visited once, by identity.
    """
    moved = 0
    seen: set[int] = set()
    for state in _cache_states(denoisers):
        if id(state) in seen:
            continue
        seen.add(id(state))
        gather = _gather_by(rows, len(rows), lambda value: value.ndim >= 2)
        for name, value in vars(state).items():
            fresh = gather(value)
            if isinstance(value, (Tensor, list, tuple)) and fresh is not value:
                setattr(state, name, fresh)
                moved += 1
    return moved


def _cache_states(denoisers: list[nn.Module]) -> Iterator[Any]:
    for denoiser in denoisers:
        for module in denoiser.modules():
            registry = getattr(module, "_diffusers_hook", None)
            for hook in getattr(registry, "hooks", {}).values():
                for manager in vars(hook).values():
                    yield from getattr(manager, "_state_cache", {}).values()
