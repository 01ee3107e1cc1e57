"""One wrapped module, and how one of its calls is cut."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SteeringError
from .find import argument_names, has_caches, is_compiled, is_control
from .pieces import Plan, plan_copies, plan_pieces
from .rows import Call

__all__ = ["CALL", "MARK", "Tapped", "plan_for", "refuse_caches"]

CALL = "_compiled_call_impl"
"""What ``nn.Module.__call__`` runs in place of ``forward`` and its hooks, if it is set."""

MARK = "_feynkac_tap"
"""Attribute of the functions that taps put there."""


@dataclass
class Tapped:
    """One wrapped module.

    Attributes:
        module: the denoiser or control network.
        names: of the positional arguments of its forward.
        control: it is a control network.
        base: what its call ran before.
        pads: pieces must have one shape, since the module is compiled.
        checked: what can be found out at its first call of a run has been.
    """

    module: nn.Module
    names: tuple[str, ...]
    control: bool
    base: Callable[..., Any]
    pads: bool
    checked: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> "Tapped":
        """Read off the module.

        Raises:
            SteeringError: it is tapped already.
        """
        present = vars(module).get(CALL)
        if getattr(present, MARK, False):
            raise SteeringError(f"{type(module).__name__} is tapped already; taps do not nest")
        base = getattr(module, "_call_impl") if present is None else present  # noqa: B009 (private to torch)
        return cls(module, argument_names(module), is_control(module), base, is_compiled(module))


def refuse_caches(module: nn.Module) -> None:
    """The batch of a module with a feature cache cannot be cut.

    Raises:
        SteeringError: a cache is on.
    """
    if has_caches(module):
        raise SteeringError(
            f"{type(module).__name__}: a feature cache is on, which keeps tensors of the whole batch from call to "
            "call, so the batch cannot be cut: leave chunk_size out or call disable_cache()"
        )


def plan_for(
    call: Call, rows: int, block: int | None, *, chunk_size: int | None, keep: Tensor | None, pads: bool
) -> Plan | None:
    """How a call of ``rows`` hidden rows is cut; None: not at all.

    Args:
        call: the call.
        rows: hidden rows n.
        block: B, the rows of a guidance branch, or None if that is not known.
        chunk_size: rows of step in a piece, or None.
        keep: (B,) row b is a copy of row ``keep[b]``; or None.
        pads: all pieces have one shape.

    Raises:
        ValueError: ``keep`` names copies of copies.
    """
    if keep is not None and rows and rows % len(keep) == 0:
        kept = _copies_really(call, keep.cpu(), rows)
        return plan_copies(rows, kept, chunk_size or len(kept), pads)
    if chunk_size is None:
        return None
    if block is None or rows % block:
        block = rows
    return plan_pieces(rows, block, chunk_size, pads) if chunk_size < block else None


def _copies_really(call: Call, keep: Tensor, rows: int) -> Tensor:
    """``keep`` with the rows undone that some branch gives other inputs than their original; with all of them undone
    if the call has arguments that cannot be compared."""
    if not torch.equal(keep[keep], keep):
        raise ValueError("keep: a row that others are copies of must be kept itself: keep[keep] == keep")
    tiled = (torch.arange(rows // len(keep))[:, None] * len(keep) + keep).reshape(-1)
    try:
        same = call.copies(tiled).reshape(-1, len(keep)).all(dim=0)
    except SteeringError:
        return torch.arange(len(keep))
    return torch.where(same, keep, torch.arange(len(keep)))
