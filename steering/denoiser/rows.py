"""Which arguments of a denoiser have one entry a row of the batch.

A leading axis as long as the batch proves nothing: Flux's ``img_ids`` have one row a token. So the arguments are known
by name, from the signatures of diffusers' denoisers; a tensor under an unknown name is refused rather than guessed at.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import SteeringError
from .names import HIDDEN, TOKENS, per_row, shared

__all__ = ["Call", "row_ratio"]


def row_ratio(name: str, value: Tensor, rows: int) -> int:
    """Entries of ``value`` for each of the ``rows`` hidden rows: 0 for a tensor that all of them share, F for
    embeddings repeated for F frames.

    Raises:
        SteeringError: the name is not known, or the leading axis is no multiple of the rows.
    """
    if value.ndim == 0 or value.shape[0] == 1 != rows or shared(name) or (name in TOKENS and value.ndim < 3):
        return 0
    if not per_row(name) and name not in TOKENS:
        raise SteeringError(
            f"denoiser argument {name!r} of shape {tuple(value.shape)}: not known to belong to the {rows} rows or to "
            "all of them; say which with feynkac.steering.denoiser.register_argument, or leave chunk_size out"
        )
    ratio, rest = divmod(value.shape[0], rows)
    if rest or not ratio:
        raise SteeringError(
            f"denoiser argument {name!r} has {value.shape[0]} entries for {rows} rows of hidden states; expected a "
            "multiple, so the batch cannot be cut: leave chunk_size out"
        )
    return ratio


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a denoiser.

    Attributes:
        names: of the positional parameters.
        args: positional arguments.
        kwargs: the others.
    """

    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def _positional(self) -> Iterator[tuple[str, Any]]:
        for i, value in enumerate(self.args):
            yield (self.names[i] if i < len(self.names) else f"*{i}"), value

    def named(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of every argument."""
        yield from self._positional()
        yield from self.kwargs.items()

    def hidden(self) -> tuple[str, Tensor]:
        """Name and value of the hidden states.

        Raises:
            SteeringError: no argument is a tensor.
        """
        given = dict(self.named())
        for name in (*HIDDEN, *given):
            value = given.get(name)
            if isinstance(value, Tensor) and value.ndim:
                return name, value
            if isinstance(value, list) and value and isinstance(value[0], Tensor):
                break
        raise SteeringError(
            "the denoiser was called without a tensor of hidden states (a list of one tensor a row is neither cut nor "
            "recorded)"
        )

    def rows(self) -> int:
        """Number of hidden rows; 0 if the call does not tell."""
        for _, value in self.named():
            if isinstance(value, Tensor) and value.ndim:
                return self.hidden()[1].shape[0]
            if isinstance(value, list):
                return len(value)
        return 0

    def mapped(self, change: Callable[[str, Tensor], Tensor]) -> "Call":
        """The same call with ``change(name, tensor)`` in every tensor's place, inside containers too."""
        args = tuple(_mapped(name, value, change) for name, value in self._positional())
        return Call(self.names, args, {name: _mapped(name, value, change) for name, value in self.kwargs.items()})

    def tensors(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) of every tensor, inside containers too."""
        found: list[tuple[str, Tensor]] = []

        def note(name: str, value: Tensor) -> Tensor:
            found.append((name, value))
            return value

        self.mapped(note)
        return found

    def replaced(self, name: str, value: Tensor) -> "Call":
        """The same call with another value of one argument."""
        args = tuple(value if key == name else old for key, old in self._positional())
        kwargs = {key: value if key == name else old for key, old in self.kwargs.items()}
        return Call(self.names, args, kwargs)

    def copies(self, kept: Tensor) -> Tensor:
        """Whether hidden row i is given exactly what row ``kept[i]`` is, (n,) bool on the CPU; a row with NaN is not.

        Raises:
            SteeringError: the rows of an argument are not known.
        """
        rows = len(kept)
        same = torch.ones(rows, dtype=torch.bool)
        for name, value in self.tensors():
            ratio = row_ratio(name, value, rows)
            if ratio:
                by_row = value.reshape(rows, -1)
                same &= (by_row == by_row.index_select(0, kept.to(value.device))).all(dim=1).cpu()
        return same


def _mapped(name: str, value: Any, change: Callable[[str, Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_make"):
        return type(value)(_mapped(name, entry, change) for entry in value)
    if type(value) is dict:
        return {key: _mapped(str(key), entry, change) for key, entry in value.items()}
    return value
