r"""Token laws whose everything is known: open Ising chains, and the exact law of any masked sampler by matrix products.

Tokens 0 and 1 are spins -1 and +1; 2 is the mask.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..masked import MaskedExpert
from ..masked.experts import log_product
from ..masked.reveal import Scheme

__all__ = ["IsingChain", "MaskedPathLaw", "chain_product"]

_MASK = 2


@dataclass(frozen=True, eq=False)
class IsingChain:
    r"""p(s) proportional to :math:`\exp(\sum_l J_l s_l s_{l+1} + \sum_l h_l s_l)`.

    Attributes:
        couplings: J (L - 1,) float64.
        fields: h (L,) float64.
    """

    couplings: Tensor
    fields: Tensor

    def __post_init__(self) -> None:
        if self.fields.ndim != 1 or self.couplings.shape != (len(self.fields) - 1,):
            raise ValueError(
                f"couplings, fields: got shapes {tuple(self.couplings.shape)} and {tuple(self.fields.shape)}, expected "
                "(L - 1,) and (L,)"
            )

    @classmethod
    def uniform(cls, length: int, coupling: float, field: float = 0.0) -> IsingChain:
        """The same coupling and field everywhere."""
        return cls(
            torch.full((length - 1,), coupling, dtype=torch.float64), torch.full((length,), field, dtype=torch.float64)
        )

    @property
    def length(self) -> int:
        """L."""
        return len(self.fields)

    def energy(self, tokens: Tensor) -> Tensor:
        """(B,) the exponent, of clean tokens (B, L)."""
        s = 2.0 * tokens.double() - 1.0
        return (s[:, 1:] * s[:, :-1]) @ self.couplings + s @ self.fields

    def log_prob(self, tokens: Tensor) -> Tensor:
        """(B,) log p, of clean tokens (B, L)."""
        return self.energy(tokens) - self.log_normalizer

    @property
    def log_normalizer(self) -> float:
        """Log of the sum of exp(energy), by the transfer matrix."""
        ahead, _ = self._messages(torch.full((1, self.length), _MASK))
        return float(ahead[0, -1].logsumexp(dim=0))

    def logits(self, tokens: Tensor) -> Tensor:
        """The exact denoiser: (B, L, 2) log p(token at l | revealed tokens), by forward and backward messages; -inf for
        what a revealed token is not."""
        ahead, behind = self._messages(tokens)
        own = self.fields[:, None] * torch.tensor([-1.0, 1.0], dtype=torch.float64) + _evidence(tokens)
        return (ahead + behind - own.nan_to_num(neginf=0.0)).log_softmax(dim=2)

    def expert(self) -> MaskedExpert:
        """The chain as an expert."""
        return MaskedExpert(self.logits, _MASK, length=self.length)

    def magnetisation(self) -> Tensor:
        """(L,) <s_l>."""
        probs = self.logits(torch.full((1, self.length), _MASK))[0].exp()
        return probs[:, 1] - probs[:, 0]

    def correlations(self, first: int = 0) -> Tensor:
        """(L,) <s_first s_l>."""
        tokens = torch.full((2, self.length), _MASK)
        tokens[:, first] = torch.tensor([0, 1])
        probs = self.logits(tokens).exp()
        given = probs[..., 1] - probs[..., 0]
        up = (1.0 + float(self.magnetisation()[first])) / 2.0
        return up * given[1] - (1.0 - up) * given[0]

    def _messages(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, 2) each, unnormalised logs: all that lies up to l, and all from l on; both include site l."""
        spins = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        own = self.fields[:, None] * spins + _evidence(tokens)
        bonds = self.couplings[:, None, None] * torch.outer(spins, spins)
        ahead, behind = [own[:, 0]], [own[:, -1]]
        for i in range(1, self.length):
            ahead.append((ahead[-1][:, :, None] + bonds[i - 1]).logsumexp(dim=1) + own[:, i])
            behind.append((behind[-1][:, :, None] + bonds[-i]).logsumexp(dim=1) + own[:, -1 - i])
        return torch.stack(ahead, dim=1), torch.stack(behind[::-1], dim=1)


def _evidence(tokens: Tensor) -> Tensor:
    """(B, L, 2): 0 where a token is possible, -inf where it is not."""
    impossible = (tokens[..., None] != _MASK) & (tokens[..., None] != torch.arange(2))
    return torch.zeros(impossible.shape, dtype=torch.float64).masked_fill(impossible, -torch.inf)


def chain_product(
    chains: Sequence[IsingChain], powers: Sequence[float], field: float = 0.0
) -> tuple[IsingChain, float]:
    """The chain proportional to prod_i p_i^a_i exp(field sum_l s_l), and the log of the sum of that."""
    couplings = sum((a * c.couplings for a, c in zip(powers, chains, strict=True)), torch.zeros(()))
    fields = sum((a * c.fields for a, c in zip(powers, chains, strict=True)), torch.tensor(field))
    product = IsingChain(torch.as_tensor(couplings), torch.as_tensor(fields))
    return product, product.log_normalizer - sum(a * c.log_normalizer for a, c in zip(powers, chains, strict=True))


@dataclass(frozen=True, eq=False)
class MaskedPathLaw:
    r"""The law of a masked sampler with corrections, enumerated over all (V + 1)^L states.

    The patterns of masks are the sampler's; a step that reveals S in state y multiplies by
    :math:`\prod_{l \in S}\prod_i p_i(x_l | y)^{a_i}`. For one expert with exponent one that is the law
    of its own sampler.

    Attributes:
        experts: any.
        powers: a_i, fixed.
        length: L.
        vocab_size: V; the experts' mask is V.
        steps: T.
        scheme: see ``Reveal``.
        corrected: False for the moves alone, each token drawn from the normalised product.
    """

    experts: Sequence[MaskedExpert]
    powers: Sequence[float]
    length: int
    vocab_size: int
    steps: int
    scheme: Scheme = "even"
    corrected: bool = True

    @property
    def sequences(self) -> Tensor:
        """(V^L, L) clean sequences."""
        return torch.tensor(list(itertools.product(range(self.vocab_size), repeat=self.length)))

    def masses(self) -> Tensor:
        """(V^L,) of the sequences, from masks alone; their sum is the evidence."""
        states = torch.tensor(list(itertools.product(range(self.vocab_size + 1), repeat=self.length)))
        mass = torch.zeros(len(states), dtype=torch.float64)
        mass[-1] = 1.0
        for step in range(1, self.steps + 1):
            mass = mass @ self._transition(states, step)
        return mass[(states != self.vocab_size).all(dim=1)]

    def _transition(self, states: Tensor, step: int) -> Tensor:
        masked = states == self.vocab_size
        time = 1.0 - (step - 1) / self.steps
        logs = log_product([e.log_probs(states, time, masked) for e in self.experts], self.powers)
        if not self.corrected:
            logs = logs.log_softmax(dim=1)
        factors = torch.nn.functional.one_hot(states, self.vocab_size + 1).double()  # (states, L, V + 1)
        factors[masked] = torch.nn.functional.pad(logs.exp(), (0, 1), value=1.0)
        matrix = torch.ones(len(states), len(states), dtype=torch.float64)
        for position in range(self.length):
            matrix = matrix * factors[:, position][:, states[:, position]]
        return matrix * self._pattern(step, masked)

    def _pattern(self, step: int, masked: Tensor) -> Tensor:
        """(states, states) probability of the change of pattern."""
        left = masked.sum(dim=1)
        shown = left[:, None] - left
        if self.scheme == "independent":
            chance = 1.0 / (self.steps - step + 1)
            return chance**shown * (1.0 - chance) ** left
        count = self.length * step // self.steps - self.length * (step - 1) // self.steps
        if self.scheme == "even":
            choices = torch.tensor([math.comb(int(n), count) for n in left], dtype=torch.float64)
            return (shown == count) / choices.clamp_min(1.0)[:, None]
        rank = torch.tensor(list(self.scheme)).argsort()
        first = (rank >= self.length * (step - 1) // self.steps) & (rank < self.length * step // self.steps)
        return ((masked[:, None] & ~masked) == (masked & first)[:, None]).all(dim=2).double()
