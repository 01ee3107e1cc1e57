"""Zeros in a denoiser's place: what its result would look like, with nothing evaluated."""

from typing import Any

from torch import Tensor, nn

from .find import is_control, plain_module
from .rows import Call

__all__ = ["Zeros", "zeros_for"]

_CHANNELS_THIRD = ("CogVideoX", "ConsisID", "UNetSpatioTemporal")  # (rows, frames, channels, height, width)


class Zeros(tuple[Any, ...]):
    """Looks like a model's output object and like its tuple."""

    @property
    def sample(self) -> Any:
        """The prediction."""
        return self[0]


def zeros_for(module: nn.Module, call: Call) -> Zeros:
    """Zeros of the shape and type of what the module returns for the call.

    The channels that only condition (inpainting, image to video) are absent from the result and a learned variance is
    present. A control network answers no residuals.
    """
    _, hidden = call.hidden()
    if is_control(module):
        return Zeros(([], hidden.new_zeros(hidden.shape[0], *[1] * 3)))
    sound = call.kwargs.get("audio_hidden_states")
    shape = _result_shape(plain_module(module), hidden)
    zeros = hidden.new_zeros(shape)
    return Zeros((zeros, sound.new_zeros(sound.shape)) if isinstance(sound, Tensor) else (zeros,))


def _result_shape(module: nn.Module, hidden: Tensor) -> list[int]:
    config = getattr(module, "config", None)
    channels, entering = getattr(config, "out_channels", None), getattr(config, "in_channels", None)
    shape = list(hidden.shape)
    if not isinstance(channels, int):
        return shape
    if hidden.ndim == 4:
        axis = 1
    elif hidden.ndim == 5:
        axis = 2 if type(module).__name__.startswith(_CHANNELS_THIRD) else 1
    elif hidden.ndim == 3:  # packed: a token carries a patch
        patch = getattr(config, "patch_size", 1)
        axis, channels = 2, channels * (patch**2 if isinstance(patch, int) else 1)
    else:
        return shape
    if entering is None or shape[axis] == entering or axis == 1:
        shape[axis] = channels
    return shape
