"""Decoding without running the pipeline: a few lines for each way of turning latents into pictures.

Tested to equal the pipeline's own ending (:class:`.tail.TailDecoder`). What a safety checker would black out is not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .call import PipelineCall, running_call

__all__ = ["FamilyDecoder", "has_family"]

Decode = Callable[[Any, Tensor, PipelineCall], Tensor]
Finish = Callable[[Any, Tensor, str], Any]


# --- latents to pictures in [-1, 1]
# ------------------------------------------------------------------------------------


def _vae(pipe: Any, latents: Tensor) -> Tensor:
    image: Tensor = pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]
    return image


def _pixels(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    return latents


def _scaled(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    return _vae(pipe, latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor)


def _scaled_and_binned(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    image = _scaled(pipe, latents, call)
    if call.get("use_resolution_binning", False) and call.get("orig_height") is not None:
        image = pipe.image_processor.resize_and_crop_tensor(image, call.get("orig_width"), call.get("orig_height"))
    return image


def _inverse_scaled(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    """Multiplied by 1/factor, which rounds differently from a division."""
    return _vae(pipe, 1 / pipe.vae.config.scaling_factor * latents.to(pipe.vae.dtype))


def _scaled_and_shifted(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    config = pipe.vae.config
    return _vae(pipe, latents.to(pipe.vae.dtype) / config.scaling_factor + (config.shift_factor or 0.0))


def _upcast(pipe: Any, latents: Tensor, decode: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """SDXL's autoencoder overflows in float16."""
    overflows = pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast
    if overflows:
        pipe.vae.to(dtype=torch.float32)
    try:
        return decode(pipe, latents.to(pipe.vae.dtype))
    finally:
        if overflows:
            pipe.vae.to(dtype=torch.float16)


def _sdxl(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    def decode(pipe: Any, latents: Tensor) -> Tensor:
        config = pipe.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return _vae(pipe, latents / config.scaling_factor)
        return _vae(pipe, latents * _channels(std, latents) / config.scaling_factor + _channels(mean, latents))

    return _upcast(pipe, latents, decode)


def _auraflow(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    return _upcast(pipe, latents, lambda pipe, x: _vae(pipe, x / pipe.vae.config.scaling_factor))


def _flux(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    side = pipe.default_sample_size * pipe.vae_scale_factor
    height, width = call.get("height", side), call.get("width", side)
    unpacked = pipe._unpack_latents(latents.to(pipe.vae.dtype), height, width, pipe.vae_scale_factor)
    return _scaled_and_shifted(pipe, unpacked, call)


def _channels(values: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(values).view(1, -1, *[1] * (like.ndim - 2)).to(like.device, like.dtype)


def _standardised(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    """Wan, Qwen-Image: latents have unit variance; divided by 1/std as the pipelines do, to round alike."""
    latents = latents.to(pipe.vae.dtype)
    inverse = 1.0 / _channels(pipe.vae.config.latents_std, latents)
    return _vae(pipe, latents / inverse + _channels(pipe.vae.config.latents_mean, latents))


def _qwen(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    side = pipe.default_sample_size * pipe.vae_scale_factor
    height, width = call.get("height", side), call.get("width", side)
    return _standardised(pipe, pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor), call)[:, :, 0]


def _ltx(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    height, width, frames = call.get("height", 512), call.get("width", 704), call.get("num_frames", 161)
    unpacked = pipe._unpack_latents(
        latents,
        (frames - 1) // pipe.vae_temporal_compression_ratio + 1,
        height // pipe.vae_spatial_compression_ratio,
        width // pipe.vae_spatial_compression_ratio,
        pipe.transformer_spatial_patch_size,
        pipe.transformer_temporal_patch_size,
    )
    plain = pipe._denormalize_latents(
        unpacked, pipe.vae.latents_mean, pipe.vae.latents_std, pipe.vae.config.scaling_factor
    )
    video: Tensor = pipe.vae.decode(plain.to(pipe.vae.dtype), None, return_dict=False)[0]
    return video


def _by_method(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    video: Tensor = pipe.decode_latents(latents.to(pipe.vae.dtype))
    return video


def _svd(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    frames = latents.shape[1]
    video: Tensor = pipe.decode_latents(latents.to(pipe.vae.dtype), frames, call.get("decode_chunk_size", frames))
    return video


def _vqgan(pipe: Any, latents: Tensor, call: PipelineCall) -> Tensor:
    """In [0, 1] already."""
    image: Tensor = pipe.vqgan.decode(pipe.vqgan.config.scale_factor * latents).sample.clamp(0, 1)
    return image


# --- pictures to what is returned ------------------------------------------------------------------------------------


def _processed(pipe: Any, image: Tensor, output: str) -> Any:
    return pipe.image_processor.postprocess(image, output_type=output)


def _video(pipe: Any, video: Tensor, output: str) -> Any:
    return pipe.video_processor.postprocess_video(video, output_type=output)


def _halved(pipe: Any, image: Tensor, output: str) -> Any:
    return _unit(pipe, (image / 2 + 0.5).clamp(0, 1), output)


def _unit(pipe: Any, image: Tensor, output: str) -> Any:
    if output == "pt":
        return image
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor.numpy_to_pil(image.cpu().permute(0, 2, 3, 1).float().numpy())


_FAMILIES: dict[str, tuple[Decode, Finish]] = {}


def _register(names: str, decode: Decode, finish: Finish) -> None:
    for name in names.split():
        _FAMILIES[name] = (decode, finish)


_register("DDPMPipeline DDIMPipeline ConsistencyModelPipeline ClassConditionalPixelPipeline", _pixels, _halved)
_register(
    "StableDiffusionPipeline StableDiffusionImg2ImgPipeline StableDiffusionInstructPix2PixPipeline "
    "StableDiffusionInpaintPipeline LatentConsistencyModelPipeline LatentConsistencyModelImg2ImgPipeline",
    _scaled,
    _processed,
)
_register("PixArtAlphaPipeline PixArtSigmaPipeline SanaPipeline", _scaled_and_binned, _processed)
_register(
    "StableDiffusionXLPipeline StableDiffusionXLImg2ImgPipeline StableDiffusionXLModularPipeline", _sdxl, _processed
)
_register(
    "StableDiffusion3Pipeline StableDiffusion3Img2ImgPipeline StableDiffusion3ModularPipeline",
    _scaled_and_shifted,
    _processed,
)
_register("FluxPipeline FluxImg2ImgPipeline", _flux, _processed)
_register("AuraFlowPipeline", _auraflow, _processed)
_register("QwenImagePipeline", _qwen, _processed)
_register("DiTPipeline", _inverse_scaled, _halved)
_register("StableCascadeDecoderPipeline", _vqgan, _unit)
_register("LTXPipeline", _ltx, _video)
_register("WanPipeline WanModularPipeline", _standardised, _video)
_register("CogVideoXPipeline AnimateDiffPipeline", _by_method, _video)
_register("StableVideoDiffusionPipeline", _svd, _video)

_PACKED = ("FluxPipeline", "FluxImg2ImgPipeline", "QwenImagePipeline", "LTXPipeline")


def blends_background(pipe: Any) -> bool:
    """Inpainting without a mask among the denoiser's inputs: the known region is put back after every step."""
    channels = getattr(getattr(getattr(pipe, "unet", None), "config", None), "in_channels", None)
    return "Inpaint" in type(pipe).__name__ and channels != 9


def has_family(pipe: Any) -> bool:
    """Is there a fast decoder for this pipeline in this setting?"""
    name = type(pipe).__name__
    if blends_background(pipe):
        return False
    if name == "LTXPipeline" and pipe.vae.config.timestep_conditioning:
        return False  # decodes with fresh noise
    if name == "CogVideoXPipeline" and pipe.transformer.config.patch_size_t is not None:
        return False  # drops padding frames
    if getattr(pipe, "watermark", None) is not None:
        return False
    return name in _FAMILIES


class FamilyDecoder:
    """Clean latents (n, ...) -> images, by the pipeline's family.

    Args:
        pipe: the pipeline; ``has_family(pipe)`` is True.
        call: arguments of the call (sizes are read off it); by default those of the running call.
        chunk_size: samples decoded at a time.
        output: ``"pil"``: a list of images (of lists of frames); ``"pt"``: (n, C, H, W) in [0, 1] (frames before C).
    """

    def __init__(
        self, pipe: Any, *, call: dict[str, Any] | None = None, chunk_size: int | None = None, output: str = "pil"
    ) -> None:
        self.pipe, self.chunk_size, self.output = pipe, chunk_size, output
        self.calls = 0
        self._decode, self._finish = _FAMILIES[type(pipe).__name__]
        self._call = PipelineCall.of(call or {})
        self._sized = type(pipe).__name__ in _PACKED or self._decode in (_scaled_and_binned, _svd)
        self._running = pipe

    def begin(self) -> None:
        """Note the sizes of the running call."""
        if self._sized:
            self._call = running_call(self._running, self._call) or self._call

    @property
    def differentiable(self) -> Callable[[Tensor], Tensor] | None:
        """Clean latents (n, ...) -> images (n, C, H, W), black 0 and white 1, not clipped, with a graph; None for
        videos."""
        if self._finish not in (_processed, _halved):
            return None

        def decode(latents: Tensor) -> Tensor:
            self.calls += len(latents)
            chunks = torch.split(latents, max(self.chunk_size or len(latents), 1))
            parts = [checkpoint(self._decode, self.pipe, chunk, self._call, use_reentrant=False) for chunk in chunks]
            return torch.cat(parts) / 2 + 0.5

        return decode

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Any:
        """Decode."""
        self.begin()
        parts = []
        for chunk in torch.split(latents, max(self.chunk_size or len(latents), 1)):
            picture = self._decode(self.pipe, chunk, self._call)
            parts.append(self._finish(self.pipe, picture, self.output))
        self.calls += len(latents)
        return torch.cat(parts) if self.output == "pt" else [image for part in parts for image in part]
