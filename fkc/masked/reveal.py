r"""Which positions a step reveals.

The pattern of masks is a Markov chain of its own, common to all experts. A tilted choice of positions replaces that
chain's kernel K by a proposal; the ratio of the two is part of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Reveal", "Scheme"]

Scheme = Literal["even", "independent"] | Sequence[int]

_FAR = 700.0  # exp of it is finite in float64


@dataclass(frozen=True)
class Reveal:
    """The chain of mask patterns.

    Attributes:
        scheme: ``"even"``: as many positions a step as makes the numbers even, chosen uniformly; a sequence: the same
            numbers in this order of all L positions; ``"independent"``: in step k of T each masked position with
            probability 1/(T - k + 1) (Austin et al. 2021), as ``MaskedDiffusionScheduler`` does.
        steps: T.
    """

    scheme: Scheme
    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.scheme, str) and self.scheme not in ("even", "independent"):
            raise ValueError(f"reveal: got {self.scheme!r}, expected even, independent or an order of the positions")
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")

    def check(self, length: int, most_masked: int, *, tilted: bool) -> None:
        """Refuses what does not fit sequences of ``length`` with at most ``most_masked`` masks.

        Raises:
            ValueError: an order that is no permutation of the positions; a tilted choice of several positions.
        """
        if not isinstance(self.scheme, str) and sorted(self.scheme) != list(range(length)):
            raise ValueError(f"reveal: got {list(self.scheme)}, expected each of the positions 0..{length - 1} once")
        if tilted and self.scheme == "even" and self.steps < most_masked:
            raise ValueError(
                f"steps: got {self.steps}, expected at least {most_masked}: adapted weights choose one position at a "
                'time, or with reveal="independent" each by itself'
            )

    def choose(
        self, step: int, masked: Tensor, started: Tensor, u: Tensor, tilt: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Positions revealed by step 1..T.

        Args:
            step: k.
            masked: (B, L) bool.
            started: (B,) int64, masks at the beginning.
            u: (B, L) float64 uniform numbers.
            tilt: (B, L) log of what a position's chance is multiplied by, or None.

        Returns:
            (B, L) bool, and (B,) log of the probability that they were chosen with over that of the chain.
        """
        lean = torch.zeros_like(u) if tilt is None else tilt.clamp(-_FAR, _FAR)
        if self.scheme == "independent":
            return self._independent(step, masked, u, lean)
        if self.scheme == "even":
            tiny = torch.finfo(u.dtype).tiny
            keys = (-torch.log1p(-u)).clamp_min(tiny).log() - lean  # the first of exponential clocks of rate exp(lean)
        else:
            order = torch.tensor(self.scheme, device=u.device)
            keys = order.argsort().to(u.dtype).expand_as(u)
        count = started * step // self.steps - started * (step - 1) // self.steps
        rank = keys.masked_fill(~masked, torch.inf).argsort(dim=1).argsort(dim=1)
        chosen = masked & (rank < count[:, None])
        if tilt is None or self.scheme != "even":
            return chosen, torch.zeros_like(u[:, 0])
        total = lean.masked_fill(~masked, -torch.inf).logsumexp(dim=1) - masked.sum(dim=1).to(u.dtype).log()
        ratio = (lean * chosen).sum(dim=1) - total
        return chosen, torch.where(count > 0, ratio, 0.0)

    def _independent(self, step: int, masked: Tensor, u: Tensor, lean: Tensor) -> tuple[Tensor, Tensor]:
        chance = 1.0 / (self.steps - step + 1)
        shown = chance * lean.exp()
        total = (1.0 - chance) + shown
        chosen = masked & (u < shown / total)
        return chosen, (lean * chosen).sum(dim=1) - (total.log() * masked).sum(dim=1)
