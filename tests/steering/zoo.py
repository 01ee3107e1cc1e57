"""Tiny diffusers pipelines that tests run over: one row a pipeline, with its way of making K particles and its quirks."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers as d
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from . import zoo_parts as parts

__all__ = ["ROWS", "Row", "generators", "row"]

PROMPT = "a red fox on the snow"
NEGATIVE = "the sea"
GUIDANCE = 4.0

ManyBy = Literal["batch_size", "class_labels", "prompt", "num_images_per_prompt", "num_videos_per_prompt"]


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    """One generator a particle."""
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(count)]


@dataclass(frozen=True, eq=False)
class Row:
    """A pipeline and how it is called.

    Attributes:
        name: short name of the row.
        make: () -> pipeline, weights from the global generator.
        arguments: of the call, besides particles, steps and generator.
        many_by: the argument that sets the number of particles K.
        tiles: ``step`` sees ``tiles * K`` rows.
        stochastic: the pipeline's own step adds noise.
        passes_generator: the pipeline hands its generator to ``step``.
        supported: steerable: its scheduler has known noise levels.
        native_x0: ``step`` returns ``pred_original_sample``.
        media: what the output holds.
        rows_are_bound: background noise is tied to the slot, not to the particle (4-channel inpainting).
        branches: coefficients of the denoiser's branches in the model output, in the order the pipeline runs them.
    """

    name: str
    make: Callable[[], Any]
    arguments: dict[str, Any]
    many_by: ManyBy = "num_images_per_prompt"
    tiles: int = 1
    stochastic: bool = False
    passes_generator: bool = True
    supported: bool = True
    native_x0: bool = True
    media: Literal["images", "videos"] = "images"
    rows_are_bound: bool = False
    branches: tuple[float, ...] = (1.0 - GUIDANCE, GUIDANCE)

    def build(self) -> Any:
        """A fresh pipeline; the same weights every time, no progress bar."""
        pipe = parts.seeded(self.make)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, particles: int = 3, steps: int = 4, *, seed: int = 0, **more: Any) -> dict[str, Any]:
        """Keyword arguments of a call with one generator a particle."""
        call = dict(self.arguments) | {"num_inference_steps": steps, "generator": generators(particles, seed)}
        if self.many_by == "prompt":
            for name in ("prompt", "negative_prompt", "image"):
                if name in call:
                    call[name] = [call[name]] * particles
        elif self.many_by == "class_labels":
            call["class_labels"] = [7] * particles
        else:
            call[self.many_by] = particles
        return call | more

    @functools.cached_property
    def pipe(self) -> Any:
        """A shared pipeline, for tests that leave it as they found it."""
        return self.build()


def media(output: Any) -> Any:
    """The images or frames of a pipeline's output, whatever its output class."""
    return output.images if hasattr(output, "images") else output.frames


def _sd_betas(**more: Any) -> dict[str, Any]:
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"} | more


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(**_sd_betas(clip_sample=False, set_alpha_to_one=False, steps_offset=1))


def _ddpm() -> d.DDPMPipeline:
    return d.DDPMPipeline(unet=parts.pixel_unet(), scheduler=DDPMScheduler())


def _ddim_pixels() -> d.DDIMPipeline:
    return d.DDIMPipeline(unet=parts.pixel_unet(), scheduler=DDIMScheduler(clip_sample=False))


def sd_parts(in_channels: int = 4, **unet: Any) -> dict[str, Any]:
    """Components of the Stable Diffusion 1.x family."""
    return {
        "vae": parts.vae(),
        "text_encoder": parts.clip(),
        "tokenizer": parts.tokenizer(),
        "unet": parts.text_unet(in_channels, **unet),
        "scheduler": _ddim(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _sd() -> d.StableDiffusionPipeline:
    return d.StableDiffusionPipeline(**sd_parts())


def _sdxl() -> d.StableDiffusionXLPipeline:
    return d.StableDiffusionXLPipeline(
        vae=parts.vae(),
        text_encoder=parts.clip(),
        text_encoder_2=parts.clip_projected(),
        tokenizer=parts.tokenizer(),
        tokenizer_2=parts.tokenizer(),
        unet=parts.text_unet(
            cross_attention_dim=2 * parts.TEXT_WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=parts.TEXT_WIDTH + 6 * 8,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(**_sd_betas(timestep_spacing="leading", steps_offset=1)),
        add_watermarker=False,
    )


def _shifted_vae() -> AutoencoderKL:
    return parts.vae(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False)


def _sd3() -> d.StableDiffusion3Pipeline:
    return d.StableDiffusion3Pipeline(
        transformer=d.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=parts.T5_WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=2 * parts.TEXT_WIDTH,
            out_channels=4,
            pos_embed_max_size=16,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_shifted_vae(),
        text_encoder=parts.clip_projected(),
        tokenizer=parts.tokenizer(),
        text_encoder_2=parts.clip_projected(),
        tokenizer_2=parts.tokenizer(),
        text_encoder_3=parts.t5(),
        tokenizer_3=parts.tokenizer(16),
    )


def _flux() -> d.FluxPipeline:
    return d.FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_shifted_vae(),
        text_encoder=parts.clip(),
        tokenizer=parts.tokenizer(),
        text_encoder_2=parts.t5(),
        tokenizer_2=parts.tokenizer(16),
        transformer=d.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=parts.T5_WIDTH,
            pooled_projection_dim=parts.TEXT_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
    )


def _pixart() -> d.PixArtSigmaPipeline:
    return d.PixArtSigmaPipeline(
        tokenizer=parts.tokenizer(16),
        text_encoder=parts.t5(),
        vae=parts.vae(),
        transformer=d.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=8,
            patch_size=2,
            caption_channels=parts.T5_WIDTH,
            use_additional_conditions=False,
        ).eval(),
        scheduler=DDIMScheduler(clip_sample=True),
    )


def _dit() -> d.DiTPipeline:
    return d.DiTPipeline(
        transformer=d.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=1000,
        ).eval(),
        vae=parts.vae(),
        scheduler=DDIMScheduler(clip_sample=False),
    )


_TEXT = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE}

ROWS: tuple[Row, ...] = (
    Row("ddpm", _ddpm, {}, "batch_size", stochastic=True, branches=(1.0,)),
    Row("ddim", _ddim_pixels, {"eta": 0.0}, "batch_size", branches=(1.0,)),
    Row("sd", _sd, _TEXT),
    Row("sd_eta1", _sd, _TEXT | {"eta": 1.0}, stochastic=True),
    Row("sdxl", _sdxl, _TEXT | {"height": 16, "width": 16}),
    Row("sd3", _sd3, _TEXT | {"max_sequence_length": 16}, passes_generator=False, native_x0=False),
    Row(
        "flux",
        _flux,
        {"prompt": PROMPT, "max_sequence_length": 16, "height": 16, "width": 16},
        passes_generator=False,
        native_x0=False,
        branches=(1.0,),
    ),
    Row(
        "flux_true_cfg",
        _flux,
        {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "true_cfg_scale": GUIDANCE,
            "max_sequence_length": 16,
            "height": 16,
            "width": 16,
        },
        passes_generator=False,
        native_x0=False,
        branches=(GUIDANCE, 1.0 - GUIDANCE),
    ),
    Row("pixart", _pixart, _TEXT | {"use_resolution_binning": False, "max_sequence_length": 16, "clean_caption": False}),
    Row(
        "dit",
        _dit,
        {"guidance_scale": GUIDANCE},
        "class_labels",
        tiles=2,
        passes_generator=False,
        branches=(GUIDANCE, 1.0 - GUIDANCE),
    ),
)


def row(name: str) -> Row:
    """The row of that name."""
    return next(row for row in ROWS if row.name == name)
