"""Rows of the zoo that make images."""

from typing import Any

import diffusers as d
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import PaellaVQModel
from transformers import Gemma2Config, Gemma2Model

from . import zoo_parts as parts
from .zoo_row import GUIDANCE, NEGATIVE, PROMPT, Row

__all__ = ["IMAGE_ROWS", "sd_betas", "sd_parts"]


def sd_betas(**more: Any) -> dict[str, Any]:
    """Betas of Stable Diffusion 1.x."""
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"} | more


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(**sd_betas(clip_sample=False, set_alpha_to_one=False, steps_offset=1))


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
        scheduler=EulerDiscreteScheduler(**sd_betas(timestep_spacing="leading", steps_offset=1)),
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


def _img2img() -> d.StableDiffusionImg2ImgPipeline:
    return d.StableDiffusionImg2ImgPipeline(**sd_parts())


def _inpaint(in_channels: int) -> d.StableDiffusionInpaintPipeline:
    return d.StableDiffusionInpaintPipeline(**sd_parts(in_channels))


def _pix2pix() -> d.StableDiffusionInstructPix2PixPipeline:
    return d.StableDiffusionInstructPix2PixPipeline(**sd_parts(8))


def _lcm() -> d.LatentConsistencyModelPipeline:
    components = sd_parts(time_cond_proj_dim=16)
    components["scheduler"] = d.LCMScheduler(**sd_betas(clip_sample=False))
    return d.LatentConsistencyModelPipeline(**components)


def _consistency() -> d.ConsistencyModelPipeline:
    scheduler = d.CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0)
    return d.ConsistencyModelPipeline(unet=parts.pixel_unet(), scheduler=scheduler)


def _auraflow() -> d.AuraFlowPipeline:
    return d.AuraFlowPipeline(
        tokenizer=parts.tokenizer(16),
        text_encoder=parts.t5(),
        vae=parts.vae(),
        transformer=d.AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=parts.T5_WIDTH,
            caption_projection_dim=16,
            out_channels=4,
            pos_embed_max_size=64,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.7),
    )


def _cascade() -> d.StableCascadeDecoderPipeline:
    blocks = ["SDCascadeResBlock", "SDCascadeTimestepBlock"]
    decoder = d.models.StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=16,
        block_out_channels=(8, 16),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(blocks, [*blocks, "SDCascadeAttnBlock"]),
        clip_text_pooled_in_channels=parts.TEXT_WIDTH,
        effnet_in_channels=4,
        patch_size=2,
        dropout=(0.0, 0.0),
        timestep_ratio_embedding_dim=8,
    )
    return d.StableCascadeDecoderPipeline(
        decoder=decoder.eval(),
        tokenizer=parts.tokenizer(),
        text_encoder=parts.clip_projected(),
        scheduler=d.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=4, embed_dim=8).eval(),
        latent_dim_scale=4,
    )


def _sana() -> d.SanaPipeline:
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=parts.VOCABULARY,
            hidden_size=parts.T5_WIDTH,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=parts.VOCABULARY - 1,
        )
    )
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = d.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.41,
    )
    transformer = d.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=parts.T5_WIDTH,
        sample_size=8,
    )
    scheduler = d.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
    )
    return d.SanaPipeline(parts.tokenizer(16), text_encoder.eval(), vae.eval(), transformer.eval(), scheduler)


def _qwen() -> d.QwenImagePipeline:
    return d.QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=d.AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 0.8, 1.1, 2.0],
        ).eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=d.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=parts.T5_WIDTH,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
    )


def _embedding(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


_TEXT = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE}

IMAGE_ROWS: tuple[Row, ...] = (
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
    Row(
        "pixart", _pixart, _TEXT | {"use_resolution_binning": False, "max_sequence_length": 16, "clean_caption": False}
    ),
    Row(
        "dit",
        _dit,
        {"guidance_scale": GUIDANCE},
        "class_labels",
        tiles=2,
        passes_generator=False,
        branches=(GUIDANCE, 1.0 - GUIDANCE),
    ),
    Row("sd_img2img", _img2img, _TEXT | {"image": parts.picture(), "strength": 0.75}),
    Row(
        "sd_inpaint4",
        lambda: _inpaint(4),
        _TEXT | {"image": parts.picture(), "mask_image": parts.mask(), "height": 16, "width": 16},
        rows_are_bound=True,
    ),
    Row(
        "sd_inpaint9",
        lambda: _inpaint(9),
        _TEXT | {"image": parts.picture(), "mask_image": parts.mask(), "height": 16, "width": 16},
    ),
    Row(
        "sd_pix2pix",
        _pix2pix,
        _TEXT | {"image": parts.picture(), "image_guidance_scale": 1.5},
        "prompt",
        branches=(GUIDANCE, 1.5 - GUIDANCE, -0.5),
    ),
    Row(
        "auraflow",
        _auraflow,
        _TEXT | {"height": 16, "width": 16, "max_sequence_length": 16},
        passes_generator=False,
        native_x0=False,
    ),
    Row("lcm", _lcm, {"prompt": PROMPT}, stochastic=True, native_x0=False, branches=(1.0,)),
    Row(
        "consistency",
        _consistency,
        {},
        "batch_size",
        stochastic=True,
        native_x0=False,
        branches=(1.0,),
    ),
    Row(
        "cascade",
        _cascade,
        {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "guidance_scale": 2.0,
            "image_embeddings": _embedding(3, 1, 4, 4, 4),
        },
        "image_embeddings",
        stochastic=True,
        native_x0=False,
        branches=(2.0, -1.0),
    ),
    Row(
        "sana",
        _sana,
        _TEXT
        | {
            "height": 32,
            "width": 32,
            "max_sequence_length": 16,
            "complex_human_instruction": None,
            "use_resolution_binning": False,
            "clean_caption": False,
        },
        native_x0=False,
    ),
    Row(
        "qwen",
        _qwen,
        {
            "prompt_embeds": _embedding(1, 1, 6, parts.T5_WIDTH),
            "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
            "negative_prompt_embeds": _embedding(2, 1, 6, parts.T5_WIDTH),
            "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
            "true_cfg_scale": GUIDANCE,
            "height": 32,
            "width": 32,
        },
        passes_generator=False,
        native_x0=False,
        branches=(),
    ),
)
