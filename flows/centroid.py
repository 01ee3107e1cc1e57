"""Weights for a proposal that sees where a molecule is, when the energy does not."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .proposal import Proposal, ProposalFacts

__all__ = ["WithCentroidFactor"]


class WithCentroidFactor:
    """Makes a density over all of R^{3N} serve a translation-invariant energy.

    Any normalised law g of the centroid c gives correct weights over shapes, w = exp(-U/kT) g(c) / q(x), and
    Z = (1/V) int exp(-U/kT) d^{3N}x. Here g = N(0, std^2 I); where it is the law of q's own centroid, the centroid adds
    no variance. The method therefore returns log q(x) - log g(c), a density over shapes and not over positions.

    Args:
        proposal: with ``base_measure="euclidean"`` and event shape (N, 3).
        std: of each coordinate of the centroid, in the unit of x; sigma / sqrt(N) for N independent atoms.

    Raises:
        ValueError: the proposal is of another kind.
    """

    def __init__(self, proposal: Proposal, *, std: float) -> None:
        shape, measure = tuple(proposal.event_shape), proposal.facts.base_measure
        if len(shape) != 2 or shape[1] != 3 or measure != "euclidean":
            raise ValueError(f"needs a euclidean density over (N, 3) positions, got {measure} over {shape}")
        self.proposal, self.std = proposal, std

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(N, 3)."""
        return tuple(self.proposal.event_shape)

    @property
    def facts(self) -> ProposalFacts:
        """Those of the proposal, with base measure ``modulo_translation``."""
        mark = f"{self.proposal.facts.fingerprint}/centroid {self.std!r}"
        return replace(self.proposal.facts, base_measure="modulo_translation", fingerprint=mark)

    def sample_and_log_prob(
        self, n: int, *, generator: torch.Generator, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw x (n, N, 3) and log q(x) - log g(centroid) (n,) float64."""
        x, log_q = self.proposal.sample_and_log_prob(n, generator=generator, context=context)
        return x, log_q - self.log_factor(x)

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """log q(x) - log g(centroid) (n,) float64."""
        return self.proposal.log_prob(x, context=context) - self.log_factor(x)

    def log_factor(self, x: Tensor) -> Tensor:
        """log g (n,) of the centroids of x (n, N, 3)."""
        centroid = x.double().mean(dim=1)
        return -0.5 * (centroid / self.std).square().sum(-1) - 1.5 * math.log(2 * math.pi * self.std**2)
