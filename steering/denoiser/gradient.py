"""The model output of a step as a differentiable function of the sample."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SteeringError
from ..predictions import upcast
from .branches import cut_blocks, fit_branches, tolerance
from .rows import Call

__all__ = ["Recorded", "differentiable_output", "first_tensor", "hidden_with"]


@dataclass(frozen=True)
class Recorded:
    """One call of a denoiser.

    Attributes:
        module: the denoiser.
        call: its arguments.
        output: (n, ...) its prediction.
        again: evaluates the call anew, with other arguments.
    """

    module: nn.Module
    call: Call
    output: Tensor
    again: Callable[[Call], Any]


def first_tensor(result: Any) -> Tensor:
    """The prediction in what a denoiser returned: a tensor, a tuple or an output object."""
    tensor = result if isinstance(result, Tensor) else result[0]
    if not isinstance(tensor, Tensor):
        raise SteeringError(f"the denoiser returned {type(result).__name__} without a tensor")
    return tensor


def differentiable_output(records: Sequence[Recorded], sample: Tensor, model_output: Tensor) -> tuple[Tensor, Tensor]:
    """A leaf copy x of ``sample`` and the model output recomputed from it.

    The hidden states of a call are c x in every block of rows, with c what ``scale_model_input`` applied, next to the
    channels that only condition. The calls are run again with these, and their branches summed as the pipeline did.

    Args:
        records: the calls of this step.
        sample: (B, ...) x_t as the scheduler's step got it.
        model_output: (B, ...) likewise.

    Returns:
        x (B, ...) requiring grad and the output (B, ...), both float32 at least; gradients reach nothing but x. What
        is computed from the output belongs inside ``torch.enable_grad()``: pipelines run without gradients.

    Raises:
        SteeringError: hidden states are not made of ``sample`` in this way, guidance is not linear, or the
            recomputed output differs from ``model_output``.
    """
    if torch.is_inference_mode_enabled():
        raise SteeringError("gradients cannot be taken inside torch.inference_mode(); use torch.no_grad()")
    fit = fit_branches([record.output for record in records], model_output)
    x = upcast(sample).detach().clone().requires_grad_()
    block = len(sample) // fit.tiles
    outputs = []
    with torch.enable_grad(), _frozen({record.module for record in records}):
        for record in records:
            name, hidden = record.call.hidden()
            changed = record.call.replaced(name, _hidden_of(x[:block], hidden))
            outputs.append(first_tensor(record.again(changed)))
        blocks = cut_blocks(outputs, block, model_output[:block])
        if blocks is None:
            raise SteeringError("the denoiser answered the same call with another shape")
        output = fit.combined(blocks)
    error = float((output.detach().double() - model_output.double()).norm() / model_output.double().norm())
    limit = tolerance(model_output, *outputs)
    if not error <= limit:
        raise SteeringError(
            f"the model output recomputed for gradients differs by {error:.1e} (relative; at most {limit:.0e} "
            "expected): the denoiser is random or keeps state between calls (dropout, feature caches), switch that off"
        )
    return x, output


def _hidden_of(x: Tensor, hidden: Tensor) -> Tensor:
    """``hidden`` with x in the place of the values it was made of: unchanged in value, with derivative c."""
    axis = _longer_axis(x, hidden)
    part = hidden if axis is None else hidden.narrow(axis, 0, x.shape[axis])
    if len(part) % len(x):
        raise SteeringError(f"the denoiser ran {len(part)} rows for {len(x)} rows of the sample")
    tiled, given = torch.cat([x] * (len(part) // len(x))), x.detach().double()
    wide = part.detach().double().reshape(-1, *x.shape)
    square = float(given.square().sum()) * len(wide)
    scale = float((wide * given).sum()) / square if square > 0.0 else 1.0
    rest, size = float((wide - scale * given).norm()), float(wide.norm())
    limit = tolerance(x, part)
    if rest > limit * size:
        raise SteeringError(
            f"the denoiser's hidden states are no multiple of the sample (relative residual {rest / size:.1e}), so no "
            "derivative with respect to the sample is known"
        )
    new = (upcast(part).detach() + scale * (tiled - tiled.detach())).to(hidden.dtype)
    return new if axis is None else torch.cat([new, hidden.narrow(axis, x.shape[axis], _rest(x, hidden, axis))], axis)


def hidden_with(state: Tensor, hidden: Tensor) -> Tensor:
    """``hidden`` (n, ...) with ``state`` (rows, ...) in the place of the state in every block of rows; channels that
    only condition stay.

    Raises:
        SteeringError: hidden states are not made of such a state.
    """
    axis = _longer_axis(state, hidden)
    if len(hidden) % len(state):
        raise SteeringError(f"the denoiser ran {len(hidden)} rows for {len(state)} rows of the sample")
    tiled = torch.cat([state] * (len(hidden) // len(state))).to(hidden.dtype)
    return (
        tiled
        if axis is None
        else torch.cat([tiled, hidden.narrow(axis, state.shape[axis], _rest(state, hidden, axis))], axis)
    )


def _rest(x: Tensor, hidden: Tensor, axis: int) -> int:
    return hidden.shape[axis] - x.shape[axis]


def _longer_axis(x: Tensor, hidden: Tensor) -> int | None:
    """The axis along which conditioning channels follow those of the state."""
    same = x.ndim == hidden.ndim
    longer = [a for a in range(1, x.ndim) if hidden.shape[a] != x.shape[a]] if same else []
    if not same or len(longer) > 1 or any(hidden.shape[a] < x.shape[a] for a in longer):
        raise SteeringError(
            f"the denoiser's hidden states of shape {tuple(hidden.shape)} are not made of the sample of shape "
            f"{tuple(x.shape)} by scaling and adding channels, so no derivative with respect to the sample is known"
        )
    return longer[0] if longer else None


@contextmanager
def _frozen(modules: set[nn.Module]) -> Iterator[None]:
    """Parameters ask for no gradients within the block."""
    asking = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_()
