"""From clean latents to what rewards on images see."""

import copy
from typing import Any, Literal, Protocol

from torch import Tensor

from ..errors import SteeringError
from .call import PipelineCall, running_call
from .families import FamilyDecoder, has_family
from .tail import TailDecoder, tiles_of

__all__ = [
    "Decoder",
    "FamilyDecoder",
    "PipelineCall",
    "TailDecoder",
    "decoder_for",
    "has_family",
    "running_call",
    "tiles_of",
]

Kind = Literal["auto", "tail", "family"]


class Decoder(Protocol):
    """Clean latents (n, ...) -> n images; ``calls`` counts decoded samples."""

    calls: int

    def begin(self) -> None:
        """A run begins (called inside the pipeline's call): note its arguments."""
        ...

    def __call__(self, latents: Tensor) -> Any:
        """Decode."""
        ...


def decoder_for(
    pipe: Any,
    *,
    kind: Kind = "auto",
    chunk_size: int | None = None,
    output: Literal["pil", "pt"] = "pil",
    call: dict[str, Any] | None = None,
    vae: Any = None,
) -> Decoder:
    """A decoder for a pipeline's latents.

    Args:
        pipe: a diffusers pipeline.
        kind: ``"family"``: the few lines that this kind of pipeline needs; ``"tail"``: the pipeline's own ending, for
            any pipeline; ``"auto"``: the first where there is one.
        chunk_size: samples decoded at a time, to bound memory.
        output: ``"pil"``: list of PIL images (for videos: of lists of frames); ``"pt"``: float (n, C, H, W) in [0, 1]
            (videos: (n, F, C, H, W)).
        call: arguments of the pipeline's call, if the decoder is used outside of one and needs them.
        vae: another autoencoder for the same latents, such as a small ``AutoencoderTiny`` for rewards on the way.

    Raises:
        SteeringError: no family decoder for this pipeline, or the tail of a modular one.
        ValueError: a setting that has no meaning.
    """
    if kind not in ("auto", "tail", "family"):
        raise ValueError(f"kind: got {kind!r}, expected 'auto', 'tail' or 'family'")
    if output not in ("pil", "pt"):
        raise ValueError(f"output: got {output!r}, expected 'pil' or 'pt'")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1")
    known = has_family(pipe)
    if kind == "family" and not known:
        raise SteeringError(f"no fast decoder for {type(pipe).__name__} in this setting; use kind='tail'")
    if kind == "tail" or not known:
        _refuse_modular(pipe)
    decoder: FamilyDecoder | TailDecoder
    if known and kind != "tail":
        decoder = FamilyDecoder(pipe, call=call, chunk_size=chunk_size, output=output)
    else:
        decoder = TailDecoder(pipe, call=call, chunk_size=chunk_size, output=output)
    if vae is not None:
        decoder.pipe = _with_vae(pipe, vae)
    return decoder


def _refuse_modular(pipe: Any) -> None:
    if hasattr(type(pipe), "update_components"):
        raise SteeringError(f"{type(pipe).__name__} is a modular pipeline: it has no ending of its own to run")


def _with_vae(pipe: Any, vae: Any) -> Any:
    other = copy.copy(pipe)
    object.__setattr__(other, "vae", vae)
    return other
