"""Weighted token sequences of a product of powers of masked diffusion models."""

from __future__ import annotations

import secrets
from typing import Literal

import torch
from torch import Tensor

from ..correctors.sampling import WeightedSamples
from ..correctors.targets import Target
from ..smc import Checkpoint, smc
from .experts import MaskedExpert
from .model import MaskedModel, Weights, masked_experts
from .reveal import Reveal, Scheme

__all__ = ["sample_corrected_masked"]


def sample_corrected_masked(
    target: Target[MaskedExpert],
    *,
    particles: int,
    populations: int = 1,
    length: int | None = None,
    tokens: Tensor | None = None,
    steps: int | None = None,
    reveal: Scheme = "even",
    weights: Weights = "kernel",
    seed: int | None = None,
    resampler: str = "systematic",
    ess_threshold: float = 0.5,
    chunk_size: int | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    on_collapse: Literal["raise", "keep"] = "raise",
) -> WeightedSamples:
    """Weighted sequences of a product of powers of masked diffusion models, and its normalising constant.

    With exact experts and one position a step the target is met exactly: the sum over x of prod_i q_i(x)^a_i
    exp(beta r(x)) is the mean of exp(``log_evidence``). Otherwise the laws of the experts' own samplers are multiplied
    path by path: q_i is then the law of the tokens given the order in which, and the company with which, positions were
    revealed, and the evidence is the average over that.

    Args:
        target: ``Annealed``, ``Product``, ``GeometricAverage``, ``AnnealedProduct`` or any ``Target`` of
            :class:`MaskedExpert`, possibly ``.tilted`` by a reward on tokens (B, L) -> (B,), on the way with masks
            among them; where its scale is 0 the reward is not asked.
        particles: K.
        populations: P, independent.
        length: L; from ``tokens`` or the experts if None.
        tokens: (L,) or (P, L) int64 prompt, with masks where tokens are wanted; None for masks alone. The laws are then
            conditional on the prompt, and so is the evidence.
        steps: T; None: as many as there are masks, one position a step.
        reveal: see :class:`Reveal`; ``"even"``, ``"independent"`` or an order of the positions.
        weights: ``"kernel"``; ``"adapted"``: known before the move, of larger variance; ``"none"``: the law without
            correction.
        seed: of everything; None draws one, see ``WeightedSamples.seed``.
        resampler: scheme.
        ess_threshold: resample below this fraction of K.
        chunk_size: rows that an expert sees at a time.
        checkpoint: see :func:`feynkac.fkc.smc`.
        resume: see :func:`feynkac.fkc.smc`.
        on_collapse: see :func:`feynkac.fkc.smc`.

    Returns:
        Samples with ``x`` (P, K, L) int64; ``levels`` are the shares of masked positions, 1 to 0.

    Raises:
        PopulationCollapsed: every sequence of a population is impossible.
        WeightError: an expert with a negative exponent gives probability 0 to a token that the others allow.
        TypeError: an expert that is no :class:`MaskedExpert`.
        ValueError: settings that contradict each other.
    """
    experts = masked_experts(target)
    start = _start(experts, populations, length, tokens)
    masked = (start == experts[0].mask_id).sum(dim=1)
    moves = max(int(masked.max()), 1) if steps is None else steps
    model = MaskedModel(target, start, Reveal(reveal, moves), weights=weights, chunk_size=chunk_size)
    chosen = secrets.randbits(62) if seed is None else seed
    result = smc(
        model,
        particles=particles,
        seed=chosen,
        populations=populations,
        resampler=resampler,
        ess_threshold=ess_threshold,
        checkpoint=checkpoint,
        resume=resume,
        on_collapse=on_collapse,
    )
    return WeightedSamples(result, chosen, tuple(1.0 - k / moves for k in range(moves + 1)))


def _start(experts: tuple[MaskedExpert, ...], populations: int, length: int | None, tokens: Tensor | None) -> Tensor:
    """(P, L) int64."""
    if tokens is None:
        known = length if length is not None else experts[0].length
        if known is None or known < 1:
            raise ValueError(f"length: got {known}, expected a positive number, or tokens, or experts with a length")
        return torch.full((populations, known), experts[0].mask_id, dtype=torch.int64)
    rows = tokens if tokens.ndim == 2 else tokens[None]
    if rows.ndim != 2 or len(rows) not in (1, populations) or (length is not None and rows.shape[1] != length):
        expected = "L" if length is None else length
        raise ValueError(
            f"tokens: got shape {tuple(tokens.shape)}, expected ({expected},) or ({populations}, {expected})"
        )
    if rows.dtype.is_floating_point or rows.dtype == torch.bool or bool((rows < 0).any()):
        raise ValueError("tokens: expected token ids, integers >= 0")
    return rows.to(device="cpu", dtype=torch.int64).expand(populations, -1).clone()
