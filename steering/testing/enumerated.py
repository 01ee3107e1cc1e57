r"""A masked-diffusion model small enough to enumerate: every law that steering may claim is a matrix product.

Sequences of L tokens out of V, mask = V, so (V+1)^L states. The default is L = V = 3 with

.. math:: p(x) \propto \exp(0.6 [x_1 = x_2] + 0.4 [x_2 = x_3] - 0.3 x_1 + 0.2 x_3),

its exact denoiser (conditional marginals given the revealed tokens) and the sampler that at step k = 0..T-1 reveals
each masked position with probability 1/(T-k), independently. Revealing several positions in one step treats them as
independent, so the sampler's law is not p (total variation 0.0236 for T = 6): the sampler's law is the truth for a
steered sampler.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["EnumeratedMaskedModel", "EnumeratedTilt", "pair_energy", "twos_and_ends"]

_TIE = 1e-12


def pair_energy(x: Tensor) -> Tensor:
    """Log of the default data law, not normalised: (n, 3) tokens -> (n,) float64."""
    a, b, c = x.unbind(dim=1)
    return 0.6 * (a == b).double() + 0.4 * (b == c).double() - 0.3 * a.double() + 0.2 * c.double()


def twos_and_ends(x: Tensor) -> Tensor:
    """A reward with values 0..3: how many tokens are 2, plus one if the first differs from the last; (n, 3) -> (n,)."""
    return (x == 2).sum(dim=1).double() + (x[:, 0] != x[:, -1]).double()


@dataclass(frozen=True, eq=False)
class EnumeratedTilt:
    """base exp(scale r)/Z on the sequences: ``law`` (V^L,), ``evidence`` = Z, ``reward`` = E*[r], ``kl`` to the
    base."""

    law: Tensor
    evidence: float
    reward: float
    kl: float

    @property
    def log_evidence(self) -> float:
        """log Z."""
        return math.log(self.evidence)


@dataclass(frozen=True, eq=False)
class EnumeratedMaskedModel:
    """All of it, float64.

    A state is numbered by its tokens as digits in base V+1, a sequence by its tokens as digits in base V, first token
    first.

    Attributes:
        log_weight: (n, L) clean tokens -> (n,) log of the data law up to a constant.
        length: L.
        vocab_size: V; the mask is token V.
        num_steps: T.
    """

    log_weight: Callable[[Tensor], Tensor] = pair_energy
    length: int = 3
    vocab_size: int = 3
    num_steps: int = 6

    @property
    def mask_token_id(self) -> int:
        """V."""
        return self.vocab_size

    @cached_property
    def states(self) -> Tensor:
        """((V+1)^L, L) int64 tokens of every state."""
        return torch.tensor(list(itertools.product(range(self.vocab_size + 1), repeat=self.length)))

    @cached_property
    def sequences(self) -> Tensor:
        """(V^L, L) int64 clean sequences."""
        return torch.tensor(list(itertools.product(range(self.vocab_size), repeat=self.length)))

    def state_index(self, tokens: Tensor) -> Tensor:
        """(n, L) tokens, masks allowed -> (n,) numbers of their states."""
        return _digits(tokens, self.vocab_size + 1)

    def sequence_index(self, tokens: Tensor) -> Tensor:
        """(n, L) clean tokens -> (n,) numbers of the sequences."""
        return _digits(tokens, self.vocab_size)

    @cached_property
    def data_law(self) -> Tensor:
        """(V^L,) p(x)."""
        return self.log_weight(self.sequences).double().softmax(dim=0)

    @cached_property
    def marginals(self) -> Tensor:
        """((V+1)^L, L, V): for every state the law of each position's clean token given the revealed ones."""
        revealed = self.states != self.mask_token_id
        fits = (~revealed[:, None] | (self.states[:, None] == self.sequences)).all(dim=2)
        posterior = fits * self.data_law
        posterior = posterior / posterior.sum(dim=1, keepdim=True)
        one_hot = torch.nn.functional.one_hot(self.sequences, self.vocab_size).double()
        return torch.einsum("sx,xlv->slv", posterior, one_hot)

    def transition(self, index: int) -> Tensor:
        """((V+1)^L, (V+1)^L): row = state before step ``index``, column = state after it."""
        reveal = 1.0 / (self.num_steps - index)
        masked = self.states == self.mask_token_id
        stay = torch.nn.functional.one_hot(self.states, self.vocab_size + 1).double()
        hidden = torch.full((*masked.shape, 1), 1.0 - reveal, dtype=torch.float64)
        move = torch.cat([reveal * self.marginals, hidden], dim=2)
        by_position = torch.where(masked[..., None], move, stay)  # (states, L, V+1)
        matrix = torch.ones(len(self.states), len(self.states), dtype=torch.float64)
        for position in range(self.length):
            matrix = matrix * by_position[:, position][:, self.states[:, position]]
        return matrix

    @cached_property
    def transitions(self) -> tuple[Tensor, ...]:
        """Of all T steps."""
        return tuple(self.transition(k) for k in range(self.num_steps))

    @cached_property
    def start(self) -> Tensor:
        """((V+1)^L,) the law before the first step: all masked."""
        law = torch.zeros(len(self.states), dtype=torch.float64)
        law[-1] = 1.0
        return law

    @cached_property
    def clean_states(self) -> Tensor:
        """(V^L,) the states' numbers of the clean sequences."""
        return self.state_index(self.sequences)

    @cached_property
    def sampler_law(self) -> Tensor:
        """(V^L,) law of the sampler's output after T steps."""
        law = self.start
        for matrix in self.transitions:
            law = law @ matrix
        return law[self.clean_states]

    def values(self, reward: Callable[[Tensor], Tensor], scale: float) -> Tensor:
        """(T+1, (V+1)^L): h_k(state) = E[exp(scale r(x0)) | state before step k]; h_0 of all masks is Z.

        After the last step only clean states are reached; the others have value zero there.
        """
        final = torch.zeros(len(self.states), dtype=torch.float64)
        final[self.clean_states] = (scale * reward(self.sequences).double()).exp()
        values = [final]
        for matrix in reversed(self.transitions):
            values.append(matrix @ values[-1])
        return torch.stack(values[::-1])

    def tilted(self, reward: Callable[[Tensor], Tensor], scale: float) -> EnumeratedTilt:
        """The sampler's law tilted by exp(scale r)."""
        r, base = reward(self.sequences).double(), self.sampler_law
        weights = base * (scale * r).exp()
        evidence = float(weights.sum())
        law = weights / evidence
        expected = float(law @ r)
        return EnumeratedTilt(law, evidence, expected, scale * expected - math.log(evidence))

    @cached_property
    def filled(self) -> Tensor:
        """((V+1)^L, L) each state with its masks filled by the likeliest token, the lowest on a tie."""
        ids = torch.arange(self.vocab_size)
        likeliest = self.marginals >= self.marginals.amax(dim=2, keepdim=True) - _TIE
        best = torch.where(likeliest, ids, self.vocab_size).amin(dim=2)
        return torch.where(self.states == self.mask_token_id, best, self.states)


def _digits(tokens: Tensor, base: int) -> Tensor:
    length = tokens.shape[1]
    powers = torch.tensor([base ** (length - 1 - i) for i in range(length)], device=tokens.device)
    return (tokens * powers).sum(dim=1)
