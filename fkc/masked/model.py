r"""Products of powers of masked diffusion models as a Feynman-Kac model.

A state is a pattern of masks and the tokens revealed. Masking is one Markov chain of patterns, with kernel K and
reversal L, common to all experts; given the pattern, expert i draws the token of a position revealed by a step from its
own law p_i. So the law q_i of the tokens that its path revealed changes by

.. math:: q_i(y') / q_i(y) = \prod_{l \in S} p_i(x_l \mid y),

S the positions revealed. The target, with m over the positions still masked, is

.. math:: \pi(y) = P(\text{pattern}) \prod_i q_i(y)^{a_i}\, e^{\beta r(y)} \prod_m c_m, \qquad
    P(\text{pattern})\, K = P(\text{pattern}')\, L.

A move that reveals S with probability K and draws tokens from :math:`\bar p_l = \prod_i p_i^{a_i}/Z_l` therefore
weighs, for fixed exponents,

.. math:: \frac{\pi(y')\, L}{\pi(y)\, K \prod_{l \in S} \bar p_l} = e^{\Delta(\beta r)} \prod_{l \in S} Z_l / c_l .

c_l is Z_l at the start: known, so that it cancels from the result, and a particle that revealed easy positions first is
not resampled for it. With no mask left the evidence is the sum over x of prod q_i^a_i e^(beta r), constants included.

Tilting the choice of S by Z_l/c_l gives a weight that is known before the move (``"adapted"``): the mean of Z_l/c_l
over masked l for one position at a time, and the product over masked l of 1 - rho + rho Z_l/c_l where each is
revealed with probability rho; for small rho its logarithm is rho sum_l (Z_l/c_l - 1), the form of the rates of
discrete Feynman-Kac correctors (arXiv 2601.10403). In every case measured (docs/discrete_correctors.md) its variance
is the larger one: for exact experts the mean of prod Z_l, given the order of the positions, is the evidence for every
order, so that no order needs correcting, and a tilted order adds a weight of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from ..cloud import Cloud
from ..correctors.targets import Target
from ..model import FeynmanKacModel
from ..population import Population
from ..streams import uniform
from .experts import MaskedExpert, log_product
from .reveal import Reveal

__all__ = ["MaskedModel", "Weights"]

Weights = Literal["kernel", "adapted", "none"]


class MaskedModel(FeynmanKacModel):
    """A target over tokens as a Feynman-Kac model.

    Args:
        target: of :class:`MaskedExpert`.
        start: (P, L) int64 prompts, masks where tokens are wanted.
        reveal: which positions a step reveals.
        weights: ``"kernel"``, ``"adapted"`` or ``"none"``.
        chunk_size: rows that an expert sees at a time; all if None.

    Raises:
        TypeError: an expert that is no :class:`MaskedExpert`.
        ValueError: experts with different masks, or settings that contradict each other.
    """

    def __init__(
        self,
        target: Target[MaskedExpert],
        start: Tensor,
        reveal: Reveal,
        *,
        weights: Weights = "kernel",
        chunk_size: int | None = None,
    ) -> None:
        if weights not in ("kernel", "adapted", "none"):
            raise ValueError(f"weights: got {weights!r}, expected kernel, adapted or none")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: got {chunk_size}, expected at least 1")
        self.target, self.start, self.reveal, self.weights, self.chunk_size = target, start, reveal, weights, chunk_size
        self.experts = masked_experts(target)
        self.mask_id = self.experts[0].mask_id
        self.most_masked = int((start == self.mask_id).sum(dim=1).max())
        reveal.check(start.shape[1], self.most_masked, tilted=weights == "adapted")

    def identity(self) -> dict[str, object]:
        """What a checkpoint of this model can go on with."""
        places = [i / 16 for i in range(17)]
        return {
            "powers": [list(self.target.powers(u)) for u in places],
            "reward_scales": [self.target.reward_scale(u) for u in places],
            "start": self.start.tolist(),
            "settings": [self.reveal.steps, self.weights, self.mask_id],
        }

    @property
    def n_steps(self) -> int:
        """Moves."""
        return self.reveal.steps

    def initial(self, generators: Sequence[Generator], particles: int) -> tuple[Cloud, Tensor]:
        """The prompt, weighted to the target there."""
        x = self.start[:, None].expand(-1, particles, -1).clone()
        masked = self.start == self.mask_id
        values = torch.zeros(masked.shape, dtype=torch.float64)
        worth = values.masked_scatter(masked, self._log_z(self._logs(self.start, 1.0, masked), 1.0))
        shared = {"worth": worth.masked_fill(worth == -torch.inf, 0.0), "started": masked.sum(dim=1)}
        log_q = torch.zeros((*x.shape[:2], len(self.experts)), dtype=torch.float64)
        cloud = self._arrived(x, log_q, torch.zeros(x.shape[:2], dtype=torch.float64), shared, 0.0)
        if self.weights == "none":
            return cloud, torch.zeros(x.shape[:2], dtype=torch.float64)
        return cloud, cloud.carried["log_target"]

    def move(self, generators: Sequence[Generator], step: int, cloud: Cloud, population: Population) -> Cloud:
        """Some positions revealed."""
        p, k, length = cloud.x.shape
        u = uniform(generators, (k, 2, length)).flatten(0, 1)
        tokens = cloud.x.flatten(0, 1)
        worth = cloud.shared["worth"].repeat_interleave(k, dim=0)
        started = cloud.shared["started"].repeat_interleave(k, dim=0)
        size = self.chunk_size or len(tokens)
        rows = zip(*(torch.split(value, size) for value in (tokens, started, worth, u)), strict=True)
        x, gained, log_proposal = (torch.cat(part) for part in zip(*(self._step(step, *r) for r in rows), strict=True))
        log_q = cloud.carried["log_q"] + gained.reshape(p, k, -1)
        return self._arrived(x.reshape(p, k, length), log_q, log_proposal.reshape(p, k), cloud.shared, self._at(step))

    def log_potential(self, step: int, previous: Cloud, cloud: Cloud) -> Tensor:
        """What the move weighs."""
        before, after = previous.carried["log_target"], cloud.carried["log_target"]
        if self.weights == "none":
            return torch.zeros_like(after)
        dead = (before == -torch.inf) | (after == -torch.inf)
        return (after - before - cloud.carried["log_proposal"]).masked_fill(dead, -torch.inf)

    def finished(self, step: int, cloud: Cloud) -> Tensor:
        """After the last step."""
        return torch.full((cloud.n_populations,), step >= self.n_steps)

    # --- pieces ------------------------------------------------------------------------------------------------------

    def _at(self, step: int) -> float:
        return step / self.n_steps

    def _logs(self, tokens: Tensor, time: float, where: Tensor) -> list[Tensor]:
        """Log-probabilities (N, V) of every expert at the positions ``where``.

        Raises:
            ValueError: vocabularies that differ.
        """
        logs = [expert.log_probs(tokens, time, where) for expert in self.experts]
        sizes = [values.shape[1] for values in logs]
        if len(set(sizes)) > 1:
            raise ValueError(f"experts: got vocabularies of {sizes} tokens, expected one size")
        return logs

    def _log_z(self, logs: Sequence[Tensor], progress: float) -> Tensor:
        return self._product(logs, progress).logsumexp(dim=1)

    def _product(self, logs: Sequence[Tensor], progress: float) -> Tensor:
        product = log_product(logs, self.target.powers(progress))
        if self.mask_id < product.shape[1]:  # where every exponent is zero
            product[:, self.mask_id] = -torch.inf
        return product

    def _step(
        self, step: int, tokens: Tensor, started: Tensor, worth: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows after the step (B, L), what log q_i gained (B, n), log of the proposal over the chain's kernel (B,)."""
        masked, time, progress = tokens == self.mask_id, 1.0 - self._at(step - 1), self._at(step)
        if self.weights == "adapted":
            everywhere = self._logs(tokens, time, masked)
            log_z = torch.zeros_like(worth).masked_scatter(masked, self._log_z(everywhere, progress))
            chosen, log_ratio = self.reveal.choose(step, masked, started, u[:, 0], log_z - worth)
            logs = [values[chosen[masked]] for values in everywhere]
        else:
            chosen, log_ratio = self.reveal.choose(step, masked, started, u[:, 0], None)
            logs = self._logs(tokens, time, chosen)
        product = self._product(logs, progress)
        total = product.logsumexp(dim=1, keepdim=True)
        log_law = torch.where(total == -torch.inf, logs[0], product - total)  # the particle dies; any token will do
        ids = _drawn(log_law, u[:, 1][chosen])
        moved = tokens.masked_scatter(chosen, ids)

        def summed(values: Tensor) -> Tensor:
            """(N, V) at the tokens drawn, added up in each row (B,)."""
            return torch.zeros_like(worth).masked_scatter(chosen, values.gather(1, ids[:, None])[:, 0]).sum(dim=1)

        return moved, torch.stack([summed(values) for values in logs], dim=1), log_ratio + summed(log_law)

    def _arrived(
        self, x: Tensor, log_q: Tensor, log_proposal: Tensor, shared: Mapping[str, Tensor], progress: float
    ) -> Cloud:
        worth = shared["worth"][:, None] * (x == self.mask_id)
        log_target = log_product(log_q.unbind(dim=2), self.target.powers(progress)) + worth.sum(dim=2)
        scale = self.target.reward_scale(progress)
        if self.target.tilt is not None and scale != 0.0:
            reward = self.target.tilt.reward(x.flatten(0, 1)).detach().to(log_target)
            log_target = log_target + scale * reward.reshape(x.shape[:2])
        return Cloud(x, {"log_q": log_q, "log_target": log_target, "log_proposal": log_proposal}, shared)


def masked_experts(target: Target[MaskedExpert]) -> tuple[MaskedExpert, ...]:
    """The target's experts.

    Raises:
        TypeError: one that is no :class:`MaskedExpert`.
        ValueError: different masks.
    """
    given: tuple[object, ...] = target.experts
    for i, expert in enumerate(given):
        if not isinstance(expert, MaskedExpert):
            raise TypeError(f"experts[{i}]: got {type(expert).__name__}, expected MaskedExpert")
    masks = [expert.mask_id for expert in target.experts]
    if len(set(masks)) > 1:
        raise ValueError(f"experts: got mask ids {masks}, expected one")
    return target.experts


def _drawn(log_law: Tensor, u: Tensor) -> Tensor:
    """(N,) int64 draws by inversion at ``u`` from laws (N, V)."""
    cumulative = log_law.exp().cumsum(dim=1)
    total = cumulative[:, -1:]
    levels = torch.minimum(u[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, levels, right=True)[:, 0]
