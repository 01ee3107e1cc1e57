"""Decoding during a run: a decoder for the way, one for the end, each made when it is first needed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import Decoder, decoder_for
from .families import FamilyDecoder

__all__ = ["RunDecoding"]

Decode = Callable[[Tensor], Any]


class RunDecoding:
    """Clean states -> what rewards on images see, for one attachment.

    Args:
        pipe: the pipeline.
        decode: in place of the pipeline's own decoding, or None.
        preview: the same for x0-hat on the way alone (a small autoencoder, say); ``decode`` if None.
        chunk_size: samples decoded at a time by the pipeline's own.
    """

    def __init__(self, pipe: Any, decode: Decode | None, preview: Decode | None, chunk_size: int | None) -> None:
        self.pipe, self.chunk_size = pipe, chunk_size
        self._decode, self._preview = decode, preview
        self._own: Decoder | None = None

    def begin(self) -> None:
        """Note the running call's arguments and generators, before noise is drawn."""
        own = None if self._decode is not None else self._pipeline()
        for decoder in (self._decode, self._preview, own):
            begin = getattr(decoder, "begin", None)
            if callable(begin):
                begin()

    def on_the_way(self, clean: Tensor) -> Any:
        """Images of x0-hat."""
        return self.at_the_end(clean) if self._preview is None else self._preview(clean)

    def at_the_end(self, final: Tensor) -> Any:
        """Images of the final states."""
        return self._pipeline()(final) if self._decode is None else self._decode(final)

    @property
    def differentiable(self) -> Callable[[Tensor], Tensor] | None:
        """x0-hat -> images as a tensor with a graph, or None where the decoding is not known to have one."""
        given = self._preview or self._decode
        if given is not None:
            return given
        own = self._pipeline()
        return own.differentiable if isinstance(own, FamilyDecoder) else None

    def _pipeline(self) -> Decoder:
        if self._own is None:
            self._own = decoder_for(self.pipe, chunk_size=self.chunk_size)
        return self._own
