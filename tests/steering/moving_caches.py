"""Tiny pipelines whose denoisers keep feature caches, set so that blocks are really skipped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers as d
import torch
from torch import nn

from . import zoo_parts as parts
from .zoo import row

__all__ = ["CACHES", "ROWS_OF_CACHES", "STEPS", "cached_pipeline", "counting_layers"]

STEPS = 6
_PIPELINES = ("flux", "wan", "ltx", "cogvideox")


def _first_block(pipe: Any) -> Any:
    return d.hooks.FirstBlockCacheConfig(threshold=10.0)


def _pyramid(pipe: Any) -> Any:
    return d.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=STEPS,
        cross_attention_block_skip_range=STEPS,
        spatial_attention_timestep_skip_range=(-1, 1001),
        cross_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def _taylor(pipe: Any) -> Any:
    """In full at steps 0, 1 and 3; predicted to first order at 2, 4 and 5."""
    return d.hooks.TaylorSeerCacheConfig(
        cache_interval=5,
        disable_cache_before_step=2,
        max_order=1,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r".*blocks\.\d+\.attn\d?"],
    )


def _magnitude(pipe: Any) -> Any:
    return d.hooks.MagCacheConfig(
        threshold=1.0, max_skip_steps=STEPS, num_inference_steps=STEPS, mag_ratios=torch.ones(STEPS)
    )


def _faster(pipe: Any) -> Any:
    """Attention approximated, and guidance's second branch too where the two run as one batch."""
    everywhere = (-1, 990)  # but at the first step, where it would read an empty cache
    return d.hooks.FasterCacheConfig(
        spatial_attention_block_skip_range=STEPS,
        spatial_attention_timestep_skip_range=everywhere,
        unconditional_batch_skip_range=STEPS,
        unconditional_batch_timestep_skip_range=everywhere,
        low_frequency_weight_callback=lambda _: 1.1,
        high_frequency_weight_callback=lambda _: 1.2,
        attention_weight_callback=lambda _: 0.5,
        spatial_attention_block_identifiers=("blocks", "transformer_blocks"),
        tensor_format="BFCHW",
        is_guidance_distilled=not hasattr(pipe.transformer.config, "sample_frames"),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def _spectral(pipe: Any) -> Any:
    return d.hooks.SeaCacheConfig(threshold=100.0, max_consecutive_cached=2, cache_end_steps=0)


CACHES: dict[str, Callable[[Any], Any]] = {
    "first_block": _first_block,
    "pyramid": _pyramid,
    "taylor": _taylor,
    "magnitude": _magnitude,
    "faster": _faster,
    "spectral": _spectral,
}
ROWS_OF_CACHES = (
    *((name, cache) for name in _PIPELINES for cache in ("first_block", "pyramid", "taylor", "magnitude")),
    *((name, "faster") for name in ("flux", "cogvideox")),
    ("wan", "spectral"),
)


def cached_pipeline(name: str, cache: str | None) -> Any:
    """A fresh pipeline of the zoo with a denoiser of three blocks (of each kind) and a cache."""
    pipe = row(name).build()
    config = dict(pipe.transformer.config) | {"num_layers": 3}
    pipe.transformer = parts.seeded(lambda: type(pipe.transformer).from_config(config)).eval()
    if cache is not None:
        pipe.transformer.enable_cache(CACHES[cache](pipe))
    return pipe


@contextmanager
def counting_layers(module: nn.Module) -> Iterator[list[int]]:
    """How many linear layers were run inside the block, as the one entry of a list."""
    count = [0]

    def add(*_: Any) -> None:
        count[0] += 1

    handles = [layer.register_forward_hook(add) for layer in module.modules() if isinstance(layer, nn.Linear)]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
