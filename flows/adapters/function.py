"""Any pair of functions, or any object with ``sample`` and ``log_prob``, as a proposal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..proposal import ProposalFacts
from ._streams import borrowed_global_stream, numpy_generator

__all__ = ["FunctionProposal", "SampleAndDensity"]

Stream = Literal["generator", "numpy", "global"]


class SampleAndDensity(Protocol):
    """An object with the two methods; what ``sample`` takes depends on the ``stream`` it is adapted with."""

    sample: Callable[..., Any]
    log_prob: Callable[..., Any]


class FunctionProposal:
    """Wraps ``sample`` and ``log_prob``, in torch or NumPy.

    Args:
        sample: see ``stream``; returns x (n, *event_shape), as tensor or array.
        log_prob: x -> (n,); gets NumPy arrays where ``stream`` is ``numpy``, else tensors.
        event_shape: of one sample.
        facts: what the density means; nobody but the author of the functions can know.
        stream: where ``sample`` takes its randomness from. ``generator``: called as sample(n, torch.Generator).
            ``numpy``: sample(n, numpy.random.Generator). ``global``: sample(n), which draws from torch's global
            stream; that is set from the generator for the call and put back.

    Example:
        >>> proposal = FunctionProposal.of(model, event_shape=(2,), stream="global",
        ...     facts=ProposalFacts("euclidean", "1", "exact"))              # doctest: +SKIP
    """

    def __init__(
        self,
        sample: Callable[..., Any],
        log_prob: Callable[..., Any],
        *,
        event_shape: tuple[int, ...],
        facts: ProposalFacts,
        stream: Stream = "generator",
    ) -> None:
        if stream not in ("generator", "numpy", "global"):
            raise ValueError(f"stream must be 'generator', 'numpy' or 'global', got {stream!r}")
        self._sample, self._log_prob, self._stream = sample, log_prob, stream
        self._event_shape, self._facts = tuple(event_shape), facts

    @classmethod
    def of(
        cls,
        model: SampleAndDensity,
        *,
        event_shape: tuple[int, ...],
        facts: ProposalFacts,
        stream: Stream = "generator",
    ) -> FunctionProposal:
        """Wrap an object with methods ``sample`` and ``log_prob``."""
        return cls(model.sample, model.log_prob, event_shape=event_shape, facts=facts, stream=stream)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self._event_shape

    @property
    def facts(self) -> ProposalFacts:
        """As given."""
        return self._facts

    def sample_and_log_prob(
        self, n: int, *, generator: torch.Generator, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x (n, *event_shape), and evaluate log q (n,) float64 at the draws."""
        _refuse(context)
        x = torch.as_tensor(self._draw(n, generator))
        if tuple(x.shape) != (n, *self._event_shape):
            raise ValueError(f"sample returned shape {tuple(x.shape)}, declared is {(n, *self._event_shape)}")
        with torch.no_grad():
            return x.detach(), self.log_prob(x.detach())

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """log q (n,) float64; carries a gradient where the wrapped function does."""
        _refuse(context)
        given: Any = x.detach().cpu().numpy() if self._stream == "numpy" else x
        log_q = torch.as_tensor(self._log_prob(given)).to(torch.float64)
        if tuple(log_q.shape) != (len(x),):
            raise ValueError(f"log_prob returned shape {tuple(log_q.shape)} for {len(x)} samples")
        return log_q

    def _draw(self, n: int, generator: torch.Generator) -> Any:
        if self._stream == "generator":
            return self._sample(n, generator)
        if self._stream == "numpy":
            return self._sample(n, numpy_generator(generator))
        with borrowed_global_stream(generator), torch.no_grad():
            return self._sample(n)


def _refuse(context: Tensor | None) -> None:
    if context is not None:
        raise ValueError("this proposal takes no context")
