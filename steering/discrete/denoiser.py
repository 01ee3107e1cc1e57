"""A small bidirectional transformer from masked tokens to logits."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._diffusers import BaseOutput, ConfigMixin, ModelMixin, register_to_config

__all__ = ["MaskedDenoiser", "MaskedDenoiserOutput"]


@dataclass
class MaskedDenoiserOutput(BaseOutput):  # type: ignore[misc]
    """``logits`` (B, L, V) of the clean tokens."""

    logits: Tensor


class MaskedDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Transformer encoder over tokens and an absorbing mask; saved and loaded as any diffusers model.

    It is not told the time: for masked diffusion the exact posterior given the revealed tokens does not depend on it
    (Ou et al. 2025, "Your absorbing discrete diffusion secretly models the conditional distributions of clean data").

    Args:
        vocab_size: number V of real tokens, ids 0..V-1.
        max_length: longest sequence.
        width: of the embedding; a multiple of ``heads``.
        layers: number of encoder layers.
        heads: of the attention.
        mask_token_id: of the absorbing state; None for V, the first id after the real tokens.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        mask_token_id: int | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width: got {width}, expected a multiple of heads = {heads}")
        if mask_token_id is None:
            mask_token_id = vocab_size
            self.register_to_config(mask_token_id=mask_token_id)
        self.tokens = nn.Embedding(max(vocab_size, mask_token_id + 1), width)
        self.positions = nn.Embedding(max_length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor, return_dict: bool = True) -> MaskedDenoiserOutput | tuple[Tensor]:
        """Logits (B, L, V) of the clean token at every position, given tokens (B, L) int64.

        Raises:
            ValueError: longer than ``max_length``.
        """
        length = tokens.shape[-1]
        if length > self.config.max_length:
            raise ValueError(f"tokens: got {length} positions, expected at most max_length = {self.config.max_length}")
        places = torch.arange(length, device=tokens.device)
        logits = self.head(self.encoder(self.tokens(tokens) + self.positions(places)))
        return MaskedDenoiserOutput(logits=logits) if return_dict else (logits,)
