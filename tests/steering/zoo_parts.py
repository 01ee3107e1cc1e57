"""Tiny random-weight parts of diffusers pipelines, built from configs: offline, a fraction of a second each."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

_WORDS = ("[PAD]", "[UNK]", "[BOS]", "a", "red", "blue", "fox", "boat", "on", "the", "sea", "snow", "[EOS]")
VOCABULARY = len(_WORDS)
_LENGTH = 8
TEXT_WIDTH = 16
T5_WIDTH = 32

Built = TypeVar("Built")


def seeded(build: Callable[[], Built], seed: int = 0) -> Built:
    """``build()`` with the weights' random numbers set, the global generator untouched afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def tokenizer(length: int = _LENGTH) -> PreTrainedTokenizerFast:
    """Word-level, fixed vocabulary; [EOS] has the highest id, as CLIP's pooling expects."""
    ids = {word: i for i, word in enumerate(_WORDS)}
    words = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", ids["[BOS]"]), ("[EOS]", ids["[EOS]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
    )


def _clip_config(projection: int = TEXT_WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=_LENGTH,
        projection_dim=projection,
        bos_token_id=2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=0,
    )


def clip() -> CLIPTextModel:
    """Text encoder without projection."""
    return CLIPTextModel(_clip_config()).eval()


def clip_projected(projection: int = TEXT_WIDTH) -> CLIPTextModelWithProjection:
    """Text encoder with a projected pooled output."""
    return CLIPTextModelWithProjection(_clip_config(projection)).eval()


def t5() -> T5EncoderModel:
    """T5 encoder of width 32; without eval() its dropout stays on."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=VOCABULARY - 1,
        dropout_rate=0.1,
    )
    return T5EncoderModel(config).eval()


def vae(latent_channels: int = 4, **config: Any) -> AutoencoderKL:
    """Image autoencoder, factor 2."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=16,
        **config,
    ).eval()


def pixel_unet(**config: Any) -> UNet2DModel:
    """Unconditional, 8 x 8 pixels."""
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        **config,
    ).eval()


def text_unet(in_channels: int = 4, cross_attention_dim: int = TEXT_WIDTH, **config: Any) -> UNet2DConditionModel:
    """Text-conditional, 8 x 8 latents of 4 channels."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=cross_attention_dim,
        **config,
    ).eval()


def picture(size: int = 16, seed: int = 5) -> Image.Image:
    """A random RGB image."""
    values = torch.randint(0, 256, (size, size, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(values.to(torch.uint8).numpy())


def mask(size: int = 16) -> Image.Image:
    """White left half: the part to be painted."""
    values = torch.zeros((size, size), dtype=torch.uint8)
    values[:, : size // 2] = 255
    return Image.fromarray(values.numpy())


def spread(count: int, low: float, high: float) -> torch.Tensor:
    """``count`` evenly spaced numbers, to make means and deviations of latents visible."""
    return torch.linspace(low, high, count)
