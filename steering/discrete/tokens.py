"""Tokens from logits: what every masked-diffusion step and reward is made of.

Two rules of masked diffusion are applied to any logits (Sahoo et al. 2024, "Simple and effective masked diffusion
language models"): the mask token is never predicted, and a revealed token stays as it is. Draws invert a float64
distribution function: Gumbel noise in float32 is truncated, which silently lowers the temperature (Zheng et al. 2024,
"Masked diffusion models are secretly time-agnostic masked models").
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

__all__ = ["Generators", "clean_tokens", "draw_tokens", "token_log_probs", "uniforms"]

Generators = Generator | Sequence[Generator] | None
"""One generator, one for each row, or None for torch's default (as everywhere in diffusers)."""

_TIE = 1e-12  # log-probabilities this close count as equal: rounding must not decide a tie


def token_log_probs(logits: Tensor, mask_token_id: int) -> Tensor:
    """Log-probabilities (..., V) float64 of the tokens; that of the mask token, if it has a logit, is -inf."""
    values = logits.double()
    if mask_token_id < values.shape[-1]:
        forbidden = torch.arange(values.shape[-1], device=values.device) == mask_token_id
        values = values.masked_fill(forbidden, -torch.inf)
    return values.log_softmax(dim=-1)


def clean_tokens(logits: Tensor, sample: Tensor, mask_token_id: int) -> Tensor:
    """The most probable clean sequence (B, L): masked positions take their likeliest token, the lowest one on a tie.

    Args:
        logits: (B, L, V).
        sample: (B, L) token ids, some of them ``mask_token_id``.
        mask_token_id: of the absorbing state.
    """
    masked = sample == mask_token_id
    log_probs = token_log_probs(logits[masked], mask_token_id)
    ids = torch.arange(log_probs.shape[-1], device=logits.device)
    likeliest = log_probs >= log_probs.amax(dim=-1, keepdim=True) - _TIE
    filled = sample.clone()
    filled[masked] = torch.where(likeliest, ids, len(ids)).amin(dim=-1).to(sample.dtype)
    return filled


def draw_tokens(logits: Tensor, u: Tensor, mask_token_id: int) -> Tensor:
    """One token (N,) int64 from each of N laws ``softmax(logits)``, by inversion of the distribution function at ``u``.

    Args:
        logits: (N, V).
        u: (N,) float64 in [0, 1).
        mask_token_id: never drawn.

    Raises:
        ValueError: logits that are not a number, or that leave no token possible.
    """
    cumulative = token_log_probs(logits, mask_token_id).exp().cumsum(dim=-1)
    total = cumulative[:, -1:]
    if bool(total.isnan().any()):
        raise ValueError("model_output: got logits that are not a number, or a position where no token is possible")
    levels = torch.minimum(u.to(cumulative)[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, levels, right=True)[:, 0]


def uniforms(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), float64, ``shape`` = (B, ...), on ``device``.

    With one generator a row, a row's numbers depend on its own generator alone.

    Raises:
        ValueError: a list of generators that is not one a row.
    """
    if generator is None or isinstance(generator, Generator):
        where = device if generator is None else generator.device
        return torch.rand(shape, generator=generator, dtype=torch.float64, device=where).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"generator: got a list of {len(generator)} for {shape[0]} rows, expected one a row")
    rows = [torch.rand(shape[1:], generator=g, dtype=torch.float64, device=g.device).to(device) for g in generator]
    return torch.stack(rows)
