"""Everything that must move with a particle, moved by one set of ancestors.

Sample, model output and every other per-row argument of ``step``, the solver's history, returned tensors, and the
feature caches on the denoiser. Never the generators, nor noise drawn for a row: the copies of one particle must draw
different noise.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SteeringError

__all__ = ["gather_arguments", "gather_caches", "gather_history", "gather_output"]

Move = Callable[[Tensor], Tensor]

_BOUND_TO_THE_ROW = ("generator", "variance_noise")
_SPECTRA = ("low_frequency_delta", "high_frequency_delta")  # of FasterCache: (rows x frames, ...), guidance undone
_LISTED = ("previous_indicator",)  # of SeaCache: a list with one entry a row


def _moved(value: Any, move: Move) -> Any:
    """``value`` with ``move`` applied to its tensors, inside lists, tuples and dictionaries too; the same object if
    ``move`` changed none."""
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, (list, tuple)):
        entries = [_moved(entry, move) for entry in value]
        if all(new is old for new, old in zip(entries, value, strict=True)):
            return value
        if isinstance(value, list):
            return entries
        return type(value)._make(entries) if hasattr(value, "_make") else tuple(entries)
    if type(value) is dict:
        pairs = {key: _moved(entry, move) for key, entry in value.items()}
        return value if all(pairs[key] is entry for key, entry in value.items()) else pairs
    return value


def _rows_move(rows: Tensor, n_rows: int, accepts: Callable[[Tensor], bool]) -> Move:
    def move(value: Tensor) -> Tensor:
        if value.ndim and value.shape[0] == n_rows and accepts(value):
            return value.index_select(0, rows.to(value.device))
        return value

    return move


def gather_arguments(arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Arguments of ``step`` with every tensor of at least two axes and one entry a row re-indexed.

    Generators and noise handed in for a row (``variance_noise``) stay where they are.
    """
    move = _rows_move(rows, len(rows), lambda value: value.ndim >= 2)
    return {name: value if name in _BOUND_TO_THE_ROW else _moved(value, move) for name, value in arguments.items()}


def gather_history(scheduler: Any, rows: Tensor, ndim: int) -> tuple[str, ...]:
    """Re-index the scheduler's own per-particle memory (earlier model outputs, earlier samples), in place.

    A tensor belongs to the particles if it has as many axes as the sample and one entry a row; that leaves ``sigmas``
    and ``timesteps`` alone. A scheduler inside the scheduler (UniPC's ``solver_p``) is visited too.

    Returns:
        Names of the attributes that were re-indexed.
    """
    move = _rows_move(rows, len(rows), lambda value: value.ndim == ndim)
    names = []
    for name, value in list(vars(scheduler).items()):
        if value is None or isinstance(value, int | float | str) or name == "_internal_dict":
            continue
        if callable(getattr(value, "step", None)) and callable(getattr(value, "set_timesteps", None)):
            names += [f"{name}.{inner}" for inner in gather_history(value, rows, ndim)]
            continue
        moved = _moved(value, move)
        if moved is not value:
            object.__setattr__(scheduler, name, moved)
            names.append(name)
    return tuple(names)


def gather_output(output: Any, rows: Tensor, ndim: int, n_rows: int) -> Any:
    """What ``step`` returned, a tuple or an output object, with its tensors of ``n_rows`` rows re-indexed by ``rows``.

    ``rows`` may be fewer: after the last step the batch may shrink to the chosen candidates.
    """
    move = _rows_move(rows, n_rows, lambda value: value.ndim == ndim)
    if isinstance(output, dict):  # diffusers' BaseOutput is an ordered dictionary with attributes
        for name in list(output.keys()):
            output[name] = _moved(output[name], move)
        return output
    return _moved(output, move)


def gather_caches(denoisers: Sequence[nn.Module], rows: Tensor, branches: int | None = None) -> int:
    """Re-index the feature caches that diffusers' hooks keep on a denoiser; how many entries were moved.

    Several hooks may share one state, so states are visited once, by identity.

    Args:
        denoisers: modules with hooks, on themselves or on their parts.
        rows: (R,) ancestors of the rows that ``step`` sees.
        branches: how many times the R rows are repeated in one call of the denoiser (2 where the two branches of
            guidance run as one batch); needed where a denoiser folds frames into its batch. None: once or twice, as
            the number of entries in the cache says.

    Raises:
        SteeringError: a cached tensor is not R rows repeated once or ``branches`` times, so whose it is cannot be
            known.
    """
    if torch.equal(rows.cpu(), torch.arange(len(rows))):
        return 0
    moved = 0
    for state in _cache_states(denoisers):
        for name, value in list(vars(state).items()):
            order = _cache_order(rows, 1 if name in _SPECTRA else branches, f"{type(state).__name__}.{name}")
            if name in _SPECTRA:
                order = _shifted(order)
            if name in _LISTED and value:
                fresh: Any = [value[i] for i in order(len(value)).tolist()]
            else:
                fresh = _moved(value, _cache_move(order))
            if fresh is not value:
                setattr(state, name, fresh)
                moved += 1
    return moved


def _cache_move(order: Callable[[int], Tensor]) -> Move:
    def move(value: Tensor) -> Tensor:
        return value if value.ndim < 2 else value.index_select(0, order(len(value)).to(value.device))

    return move


def _cache_order(rows: Tensor, branches: int | None, name: str) -> Callable[[int], Tensor]:
    """Number of entries of a cached tensor -> the entry each is replaced by.

    Entries run over branches, then rows, then whatever a denoiser folds into its batch (frames).
    """
    count = len(rows)

    def order(entries: int) -> Tensor:
        tiles = 1 if entries == count else branches or 2
        inner, rest = divmod(entries, count * tiles)
        if rest or (branches is None and inner != 1):
            known = "1 or 2" if branches is None else f"{branches}"
            raise SteeringError(
                f"the feature cache {name} has {entries} entries, expected {count} rows x {known} branches of "
                "guidance: which of them belong to a particle cannot be known; disable the cache for this pipeline"
            )
        return torch.arange(entries).reshape(tiles, count, inner)[:, rows.cpu()].reshape(-1)

    return order


def _shifted(order: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """The same order for entries that ``torch.fft.fftshift`` has rolled by half: FasterCache shifts every axis, the
    rows' own among them."""

    def shifted(entries: int) -> Tensor:
        half = entries // 2
        return (order(entries).roll(half) + half) % entries

    return shifted


def _cache_states(denoisers: Sequence[nn.Module]) -> Iterator[Any]:
    """States of all hooks on the denoisers, each once; some hooks have one a context (``cond``, ``uncond``)."""
    seen: set[int] = set()
    for denoiser in denoisers:
        for module in denoiser.modules():
            registry = getattr(module, "_diffusers_hook", None)
            for hook in getattr(registry, "hooks", {}).values():
                states = [getattr(hook, "state", None)]
                for manager in vars(hook).values():
                    states += getattr(manager, "_state_cache", {}).values()
                for state in states:
                    if hasattr(state, "__dict__") and id(state) not in seen:
                        seen.add(id(state))
                        yield state
