"""A proposal over the positions of one molecule: an autoregressive flow on its internal coordinates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .autoregressive import AutoregressiveSplineFlow
from .fingerprint import fingerprint
from .internal_coordinates import InternalCoordinates, random_rotations
from .proposal import ProposalFacts

__all__ = ["InternalCoordinateFlow"]


class InternalCoordinateFlow(nn.Module):
    """Normalised density over molecular shapes, in nm^-(3N-3): modulo translation, orientation uniform.

    Args:
        coordinates: the internal coordinates, with domains fitted to data.
        orientation: ``fixed`` returns x in the frame of :meth:`InternalCoordinates.inverse`, enough for an
            energy that does not see rotations; ``random`` turns every sample uniformly. log q is the same.
        dtype: of the positions returned by :meth:`sample_and_log_prob`.
        settings: passed to :class:`AutoregressiveSplineFlow`.

    Example:
        >>> flow = InternalCoordinateFlow.from_data(coordinates, y)           # doctest: +SKIP
        >>> x, log_q = flow.sample_and_log_prob(1000, generator=generator)    # doctest: +SKIP
    """

    def __init__(
        self,
        coordinates: InternalCoordinates,
        *,
        orientation: str = "fixed",
        dtype: torch.dtype = torch.float64,
        **settings: Any,
    ) -> None:
        super().__init__()
        if orientation not in ("fixed", "random"):
            raise ValueError(f"orientation must be 'fixed' or 'random', got {orientation!r}")
        self.coordinates, self.orientation, self.dtype = coordinates, orientation, dtype
        self.density = AutoregressiveSplineFlow(coordinates.domains, **settings)

    @classmethod
    def from_data(cls, coordinates: InternalCoordinates, y: Tensor, **settings: Any) -> InternalCoordinateFlow:
        """Build a flow that starts at the Gaussian model of the data y (n, D), in the domains of ``coordinates``."""
        flow = cls(coordinates, **settings)
        flow.density.initialise(y)
        return flow

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(N, 3)."""
        return (self.coordinates.n_atoms, 3)

    @property
    def facts(self) -> ProposalFacts:
        """Exact normalised density modulo translation, invariant under rotation, of one stereoisomer."""
        return ProposalFacts(
            base_measure="modulo_translation",
            unit="nm",
            density="exact",
            normalised=True,
            invariances=("translation", "rotation"),
            restriction=self.coordinates.restriction,
            fingerprint=fingerprint(self.state_dict(), self.density.settings, self.density.order, self.coordinates),
        )

    @torch.no_grad()
    def sample_and_log_prob(
        self, n: int, *, generator: torch.Generator, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw positions x (n, N, 3) nm and log q (n,) float64; log q is evaluated at the coordinates drawn."""
        _no_context(context)
        y = self.density.sample(n, generator=generator)
        x, _ = self.coordinates.inverse(y)
        log_q = self.log_prob_internal(y) + self.coordinates.log_jacobian(y)
        if self.orientation == "random":
            turns = random_rotations(n, generator=generator).to(x.device)
            x = torch.einsum("bij,bnj->bni", turns, x)
        return x.to(self.dtype), log_q

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """log q (n,) float64 of positions x (n, N, 3) nm, differentiable; -inf for another stereoisomer."""
        _no_context(context)
        y, log_jacobian = self.coordinates.forward(x.double())
        return self.log_prob_internal(y) + log_jacobian

    def log_prob_internal(self, y: Tensor, chunk: int = 4096) -> Tensor:
        """log density (n,) over the internal coordinates y (n, D) themselves, in the dtype of y."""
        return torch.cat([self.density.log_prob(part) for part in torch.split(y, chunk)])


def _no_context(context: Tensor | None) -> None:
    if context is not None:
        raise ValueError("this flow describes one molecule and takes no context")
