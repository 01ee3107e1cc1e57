"""Masked (absorbing-state) discrete diffusion: a scheduler, a small denoiser and a pipeline on diffusers' base
classes."""

from .blocks import steer_blocks
from .denoiser import MaskedDenoiser, MaskedDenoiserOutput
from .experts import masked_expert
from .pipeline import MaskedDiffusionPipeline, MaskedDiffusionPipelineOutput
from .scheduler import MaskedDiffusionScheduler, MaskedDiffusionSchedulerOutput
from .tokens import clean_tokens, draw_tokens, token_log_probs

__all__ = [
    "MaskedDenoiser",
    "MaskedDenoiserOutput",
    "MaskedDiffusionPipeline",
    "MaskedDiffusionPipelineOutput",
    "MaskedDiffusionScheduler",
    "MaskedDiffusionSchedulerOutput",
    "clean_tokens",
    "draw_tokens",
    "masked_expert",
    "token_log_probs",
    "steer_blocks",
]
