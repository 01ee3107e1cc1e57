"""Experts over tokens, and products of their powers where some probabilities are zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import WeightError

__all__ = ["MaskedExpert", "log_product"]


@dataclass(frozen=True, eq=False)
class MaskedExpert:
    """A denoiser of masked sequences: the law of each position's clean token given the revealed ones.

    Attributes:
        predict: tokens (B, L) int64, some of them ``mask_id`` -> logits (B, L, V) on any device; with ``timed`` also
            told the time, (B,) float64, 1 where all is masked and 0 at the data.
        mask_id: of the absorbing state; may lie outside 0..V-1. If inside, its logit is ignored.
        timed: whether ``predict`` takes the time.
        length: L, if known.
    """

    predict: Callable[..., Tensor]
    mask_id: int
    timed: bool = False
    length: int | None = None

    def __post_init__(self) -> None:
        if self.mask_id < 0:
            raise ValueError(f"mask_id: got {self.mask_id}, expected a token id >= 0")

    @torch.no_grad()
    def log_probs(self, tokens: Tensor, time: float, where: Tensor) -> Tensor:
        """Log-probabilities (N, V) float64 at the N positions ``where`` (B, L) bool is true, row by row.

        Raises:
            ValueError: logits of another shape than (B, L, V), or that leave no token possible.
        """
        if self.timed:
            logits = self.predict(tokens, torch.full((len(tokens),), time, dtype=torch.float64))
        else:
            logits = self.predict(tokens)
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise ValueError(f"predict: gave shape {tuple(logits.shape)}, expected {(*tokens.shape, 'V')}")
        values = logits[where.to(logits.device)].to(device=tokens.device, dtype=torch.float64)
        if self.mask_id < values.shape[1]:
            values = values.index_fill(1, torch.tensor([self.mask_id], device=values.device), -torch.inf)
        logs = values.log_softmax(dim=1)
        if bool(logs.isnan().any()):
            raise ValueError("predict: gave logits that are not a number, or a position where no token is possible")
        return logs


def log_product(logs: Sequence[Tensor], powers: Sequence[float]) -> Tensor:
    """Log of a product of powers, sum of ``powers``_i ``logs``_i, for logs that may be -inf.

    Zero to the power zero is one. A factor that is zero makes the product zero, whatever it is divided by.

    Raises:
        WeightError: a division by zero of something that is not zero; the expert is named.
    """
    result = torch.zeros_like(logs[0])
    impossible = torch.zeros_like(result, dtype=torch.bool)
    for values, power in zip(logs, powers, strict=True):
        if power > 0.0:
            impossible |= values == -torch.inf
    for i, (values, power) in enumerate(zip(logs, powers, strict=True)):
        if power == 0.0:
            continue
        if power < 0.0 and bool(((values == -torch.inf) & ~impossible).any()):
            raise WeightError(
                f"experts[{i}]: gives probability 0 to a token that the others allow, and has the negative exponent "
                f"{power:g}: the target is infinite there"
            )
        result = result + power * values
    return result.masked_fill(impossible, -torch.inf)
