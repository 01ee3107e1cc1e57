"""zuko flows and distributions as proposals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..fingerprint import fingerprint
from ..proposal import ProposalFacts
from ._streams import borrowed_global_stream

__all__ = ["ZukoProposal"]


class ZukoProposal:
    """A zuko flow (a lazy distribution, called with a context) or an unbatched zuko distribution.

    Args:
        model: a zuko flow such as ``zuko.flows.NSF(...)``, or a ``torch.distributions.Distribution``.
        facts: what its density means; the fingerprint is filled in from the parameters if absent.
        event_shape: shape to give each event, with as many numbers; the distribution's own if None.

    Raises:
        ImportError: zuko is not installed.
        TypeError: the model is neither of the two.
        ValueError: the shapes do not hold equally many numbers, or the distribution is a batch of several.
    """

    def __init__(self, model: Any, *, facts: ProposalFacts, event_shape: tuple[int, ...] | None = None) -> None:
        lazy = _lazy_distribution()
        if not isinstance(model, (lazy, torch.distributions.Distribution)):
            raise TypeError(f"expected a zuko flow or a distribution, got {type(model).__name__}")
        self._model: Any = model
        self._is_lazy, self._facts = isinstance(model, lazy), facts
        self._event_shape = event_shape

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self._distribution(None).event_shape) if self._event_shape is None else self._event_shape

    @property
    def facts(self) -> ProposalFacts:
        """As given, with the fingerprint of the present parameters."""
        if self._facts.fingerprint is not None or not isinstance(self._model, nn.Module):
            return self._facts
        from dataclasses import replace

        return replace(self._facts, fingerprint=fingerprint(self._model.state_dict(), repr(self._model)))

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int, *, generator: torch.Generator, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x (n, *event_shape) and log q (n,) float64, in one pass of the flow."""
        distribution = self._distribution(context)
        with borrowed_global_stream(generator):
            if self._is_lazy:
                x, log_q = distribution.rsample_and_log_prob((n,))
            else:
                x = distribution.sample((n,))
                log_q = distribution.log_prob(x)
        shape = self._event_shape if self._event_shape is not None else tuple(distribution.event_shape)
        return x.reshape(n, *shape), log_q.to(torch.float64)

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """log q (n,) float64, differentiable; x is brought to the dtype of the parameters."""
        distribution = self._distribution(context)
        rows = x.reshape(len(x), *distribution.event_shape)
        if isinstance(self._model, nn.Module):
            rows = rows.to(next(self._model.parameters()).dtype)
        log_q: Tensor = distribution.log_prob(rows)
        return log_q.to(torch.float64)

    def _distribution(self, context: Tensor | None) -> Any:
        if not self._is_lazy:
            if context is not None:
                raise ValueError("a distribution takes no context")
            distribution = self._model
        else:
            distribution = self._model(context)
        if tuple(distribution.batch_shape) != ():
            raise ValueError(f"needs one distribution, got a batch of shape {tuple(distribution.batch_shape)}")
        if self._event_shape is not None and torch.Size(self._event_shape).numel() != distribution.event_shape.numel():
            raise ValueError(f"events of shape {tuple(distribution.event_shape)} do not fill {self._event_shape}")
        return distribution


def _lazy_distribution() -> Any:
    try:
        from zuko.lazy import LazyDistribution
    except ImportError as error:
        raise ImportError("zuko flows need the package zuko: pip install 'feynkac[molecular]'") from error
    return LazyDistribution
