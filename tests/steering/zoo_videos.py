"""Rows of the zoo that make videos."""

import diffusers as d
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from . import zoo_parts as parts
from .zoo_row import NEGATIVE, PROMPT, Row

__all__ = ["VIDEO_ROWS"]


def _ltx() -> d.LTXPipeline:
    vae = d.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    vae.latents_mean.copy_(parts.spread(8, 0.0, 0.3))
    vae.latents_std.copy_(parts.spread(8, 0.8, 1.4))
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return d.LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=parts.t5(),
        tokenizer=parts.tokenizer(16),
        transformer=d.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=parts.T5_WIDTH,
        ).eval(),
    )


def _wan() -> d.WanPipeline:
    return d.WanPipeline(
        tokenizer=parts.tokenizer(16),
        text_encoder=parts.t5(),
        vae=d.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=d.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=parts.T5_WIDTH,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        ).eval(),
    )


def _cogvideox(scheduler: type) -> d.CogVideoXPipeline:
    return d.CogVideoXPipeline(
        tokenizer=parts.tokenizer(16),
        text_encoder=parts.t5(),
        vae=d.AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        ).eval(),
        transformer=d.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=4,
            text_embed_dim=parts.T5_WIDTH,
            num_layers=1,
            sample_width=4,
            sample_height=4,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=16,
        ).eval(),
        scheduler=scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    )


def _animatediff() -> d.AnimateDiffPipeline:
    return d.AnimateDiffPipeline(
        vae=parts.vae(),
        text_encoder=parts.clip(),
        tokenizer=parts.tokenizer(),
        unet=parts.text_unet(),
        motion_adapter=d.MotionAdapter(
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_norm_num_groups=4,
            motion_num_attention_heads=2,
            use_motion_mid_block=False,
        ),
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )


def _svd() -> d.StableVideoDiffusionPipeline:
    return d.StableVideoDiffusionPipeline(
        vae=d.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            latent_channels=4,
        ).eval(),
        image_encoder=CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                projection_dim=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=224,
                patch_size=112,
            )
        ).eval(),
        unet=d.UNetSpatioTemporalConditionModel(
            sample_size=8,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=16,
            num_attention_heads=2,
            projection_class_embeddings_input_dim=24,
            addition_time_embed_dim=8,
            num_frames=3,
        ).eval(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            interpolation_type="linear",
            prediction_type="v_prediction",
            sigma_max=700.0,
            sigma_min=0.002,
            steps_offset=1,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        ),
        feature_extractor=CLIPImageProcessor(crop_size=224, size=224),
    )


_TEXT = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "max_sequence_length": 16}

VIDEO_ROWS: tuple[Row, ...] = (
    Row(
        "ltx",
        _ltx,
        _TEXT | {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 3.0},
        "num_videos_per_prompt",
        passes_generator=False,
        native_x0=False,
        media="videos",
        branches=(-2.0, 3.0),
    ),
    Row(
        "wan",
        _wan,
        _TEXT | {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 4.0},
        "num_videos_per_prompt",
        passes_generator=False,
        native_x0=False,
        media="videos",
        branches=(4.0, -3.0),
    ),
    Row(
        "cogvideox",
        lambda: _cogvideox(d.CogVideoXDDIMScheduler),
        _TEXT | {"height": 32, "width": 32, "num_frames": 8, "guidance_scale": 4.0},
        "prompt",
        media="videos",
        branches=(-3.0, 4.0),
    ),
    Row(
        "cogvideox_dpm",
        lambda: _cogvideox(d.CogVideoXDPMScheduler),
        _TEXT | {"height": 32, "width": 32, "num_frames": 8, "guidance_scale": 4.0},
        "prompt",
        stochastic=True,
        media="videos",
        branches=(-3.0, 4.0),
    ),
    Row(
        "animatediff",
        _animatediff,
        {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "height": 16,
            "width": 16,
            "num_frames": 2,
            "guidance_scale": 4.0,
        },
        "prompt",
        media="videos",
        branches=(-3.0, 4.0),
    ),
    Row(
        "svd",
        _svd,
        {"image": parts.picture(), "height": 16, "width": 16, "num_frames": 3, "max_guidance_scale": 2.5},
        "num_videos_per_prompt",
        passes_generator=False,
        media="videos",
        branches=(),
    ),
)
