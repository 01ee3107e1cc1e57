"""Log-densities, their scores, and geometric paths between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Autograd", "LogDensity", "GeometricPath", "Point", "WithScore"]


class LogDensity(Protocol):
    """An unnormalised log-density on rows ``(B, *event)``; ``-inf`` outside its support."""

    def log_prob(self, x: Tensor) -> Tensor:
        """``(B,)``."""
        ...

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` and the gradient ``(B, *event)``: one call, since they share work."""
        ...


@dataclass(frozen=True)
class Autograd:
    """A log-density given by a differentiable function ``(B, *event) -> (B,)``."""

    function: Callable[[Tensor], Tensor]

    def log_prob(self, x: Tensor) -> Tensor:
        """``(B,)``, detached."""
        with torch.no_grad():
            return self.function(x)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` and ``(B, *event)``, detached."""
        leaf = x.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            value = self.function(leaf)
            (score,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), score.detach()


@dataclass(frozen=True)
class WithScore:
    """A log-density given by a function that returns value and gradient, such as ``-E / kT`` and ``F /
    kT``."""

    function: Callable[[Tensor], tuple[Tensor, Tensor]]

    def log_prob(self, x: Tensor) -> Tensor:
        """``(B,)``."""
        return self.function(x)[0]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` and ``(B, *event)``."""
        return self.function(x)


@dataclass(frozen=True, eq=False)
class Point:
    """Particles with what the components of a path say of them.

    Attributes:
        x: ``(P, K, *event)``.
        log_prob: ``(P, K, C)`` float64, one column for each component.
        score: ``(P, K, C, *event)``, or None where no kernel asked for it.
    """

    x: Tensor
    log_prob: Tensor
    score: Tensor | None

    def where(self, mask: Tensor, other: Point) -> Point:
        """Rows of this point where ``mask`` ``(P, K)`` holds, of ``other`` elsewhere."""
        score = None
        if self.score is not None and other.score is not None:
            score = torch.where(_like(mask, self.score), self.score, other.score)
        return Point(
            torch.where(_like(mask, self.x), self.x, other.x),
            torch.where(mask[..., None], self.log_prob, other.log_prob),
            score,
        )


@dataclass(frozen=True, eq=False)
class GeometricPath:
    r"""The density :math:`\prod_c \pi_c(x)^{a_c}`, with exponents of their own for every population.

    Attributes:
        components: C log-densities.
        exponents: ``(P, C)`` float64. A component with exponent 0 does not count, even where its log-density
            is ``-inf``.
    """

    components: tuple[LogDensity, ...]
    exponents: Tensor

    @classmethod
    def single(cls, density: LogDensity, populations: int, *, device: torch.device | str = "cpu") -> GeometricPath:
        """One density with exponent one."""
        return cls((density,), torch.ones((populations, 1), dtype=torch.float64, device=device))

    def with_exponents(self, exponents: Tensor) -> GeometricPath:
        """The same components, other exponents ``(P, C)``."""
        return replace(self, exponents=exponents)

    def evaluate(self, x: Tensor, *, score: bool) -> Point:
        """Calls every component once on the ``P * K`` rows of ``x``."""
        rows = x.reshape(-1, *x.shape[2:])
        if not score:
            columns = [c.log_prob(rows).detach().to(torch.float64) for c in self.components]
            return Point(x, torch.stack(columns, dim=-1).reshape(*x.shape[:2], -1), None)
        pairs = [c.log_prob_and_score(rows) for c in self.components]
        values = torch.stack([value.detach().to(torch.float64) for value, _ in pairs], dim=-1)
        scores = torch.stack([gradient.detach() for _, gradient in pairs], dim=1)
        shape = (*x.shape[:2], len(pairs))
        return Point(x, values.reshape(shape), scores.reshape(*shape, *x.shape[2:]))

    def log_prob(self, point: Point) -> Tensor:
        """``(P, K)`` float64."""
        weighted = torch.where(self.exponents[:, None] == 0, 0.0, self.exponents[:, None] * point.log_prob)
        return weighted.sum(dim=-1)

    def score(self, point: Point) -> Tensor:
        """``(P, K, *event)``, in the dtype of ``x``.

        Raises:
            ValueError: the point was evaluated without scores.
        """
        if point.score is None:
            raise ValueError("the point was evaluated without scores")
        exponents = self.exponents.to(point.score.dtype)
        exponents = exponents.reshape(exponents.shape[0], 1, -1, *(1,) * (point.score.ndim - 3))
        return torch.where(exponents == 0, 0.0, exponents * point.score).sum(dim=2)


def _like(mask: Tensor, values: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
