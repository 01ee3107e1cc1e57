"""What a proposal is: something that draws samples with their log-density, and declares what that density means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["BaseMeasure", "DensityQuality", "Proposal", "ProposalFacts"]

BaseMeasure = Literal["euclidean", "modulo_translation", "mean_free", "internal", "torus"]
DensityQuality = Literal["exact", "ode", "stochastic", "surrogate"]


@dataclass(frozen=True)
class ProposalFacts:
    """What the weights rely on. Wrong facts give wrong weights, so there are no defaults for the first three.

    Attributes:
        base_measure: what log q is a density with respect to. ``euclidean``: all the numbers of x.
            ``modulo_translation``: positions with one point held fixed, orientation uniform (unit^(3N-3); the
            target is then exp(-U/kT) integrated over everything but the centre). ``mean_free``: Lebesgue on the
            subspace of zero centroid, d^{3N}x = N^{3/2} d(mean free) d(centroid). ``internal``, ``torus``: as named.
        unit: unit of x, such as ``nm``; ``1`` when it has none.
        density: ``exact``; ``ode`` up to a solver tolerance; ``stochastic`` (a noisy log-density of standard
            deviation sigma inflates weights by exp(sigma^2/2)); ``surrogate``, not the density of the draws.
        normalised: log q integrates to one; without it evidences are known up to a constant.
        invariances: those of q, out of translation, rotation, parity, permutation.
        restriction: what part of space the draws are confined to, in words: the target is restricted likewise.
        fingerprint: identifies the parameters; part of what a resumed run must find unchanged.
    """

    base_measure: BaseMeasure
    unit: str
    density: DensityQuality
    normalised: bool = True
    invariances: tuple[str, ...] = ()
    restriction: str | None = None
    fingerprint: str | None = None


@runtime_checkable
class Proposal(Protocol):
    """Draws samples together with their log-density.

    Rules: log q is float64; x is finite or its log q is -inf; nothing is dropped silently; both methods use the same
    parameters; no other random stream than ``generator`` is touched.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    @property
    def facts(self) -> ProposalFacts:
        """What the log-density means."""
        ...

    def sample_and_log_prob(
        self, n: int, *, generator: torch.Generator, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x (n, *event_shape) and return it with log q(x) (n,) float64."""
        ...

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """log q(x) (n,) float64 of x (n, *event_shape)."""
        ...
