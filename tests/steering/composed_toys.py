"""A real Stable Diffusion pipeline whose latents have a known law, with any scheduler."""

import diffusers
import torch

from feynkac.steering import attach
from feynkac.steering.schedulers import rule_for
from feynkac.steering.testing import GaussianDenoiser, MixtureDenoiser

__all__ = ["SCHEDULERS", "TwoPriors", "call", "called", "composed", "last_noise", "moments", "sd", "z_score"]

SCHEDULERS = {
    "ddpm": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
    "ddim, not to one": lambda: diffusers.DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=False
    ),
    "ddim, v": lambda: diffusers.DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"
    ),
    "euler": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
    "euler ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing"),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing"),
    "dpm, karras": lambda: diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(timestep_spacing="trailing"),
    "flow": lambda: _flow(),
}


def _flow():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.init_noise_sigma = 1.0  # Stable Diffusion asks for it
    return scheduler


class TwoPriors(GaussianDenoiser):
    """N(1/2, 1/16) where the first entry of the prompt embedding is one, N(0, 1/4) where it is zero."""

    def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True, **conditioning):
        given = encoder_hidden_states[:, 0, 0].reshape(-1, 1, 1, 1)
        alpha, sigma = self.levels(timestep)
        x = sample.double()
        mean, variance = 0.5 * given, 0.25 - 0.1875 * given
        clean = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        return (((x - alpha * clean) / sigma).to(sample.dtype),)


def sd(scheduler="ddim", kind=GaussianDenoiser, **prior):
    """The pipeline; ``scheduler`` a name of ``SCHEDULERS`` or a scheduler."""
    made = SCHEDULERS[scheduler]() if isinstance(scheduler, str) else scheduler
    if made.config.get("steps_offset") == 0:
        made.register_to_config(steps_offset=1)  # the pipeline warns of anything else
    kind = MixtureDenoiser if "weights" in prior else kind
    names = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    pipe = diffusers.StableDiffusionPipeline(
        unet=kind.for_scheduler(made, **prior), scheduler=made, requires_safety_checker=False, **dict.fromkeys(names)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(populations=1, guidance=1.0, side=1):
    """What one prompt is, for ``populations`` of them."""
    return {
        "prompt_embeds": torch.ones(populations, 4, 8),
        "negative_prompt_embeds": torch.zeros(populations, 4, 8),
        "guidance_scale": guidance,
        "output_type": "latent",
        "height": 8 * side,
        "width": 8 * side,
    }


def called(pipe, rows, populations, steps, *, noise=1, guidance=1.0, side=1):
    """``rows`` latents of each prompt."""
    generator = torch.Generator().manual_seed(noise)
    return pipe(
        **call(populations, guidance, side),
        num_images_per_prompt=rows,
        num_inference_steps=steps,
        generator=generator,
    ).images


def composed(pipe, *controls, particles, populations=1, steps=25, seed=0, noise=1, guidance=1.0, side=1, **options):
    """A run of the pipeline with controls."""
    candidates = max([c.candidates for c in controls] + [1])
    options = {"transition": "stochastic"} | options
    with attach(pipe, *controls, particles=particles, seed=seed, **options) as run:
        called(pipe, particles * candidates, populations, steps, noise=noise, guidance=guidance, side=side)
    return run


def last_noise(pipe, steps):
    """(sigma/alpha)^2 of the last noisy level."""
    pipe.scheduler.set_timesteps(steps)
    level = rule_for(pipe.scheduler).levels(pipe.scheduler)[-2]
    return (level.sigma / level.alpha) ** 2


def moments(run):
    """Weighted mean and variance (P,) of all pixels."""
    w = run.weights
    x = run.samples().double().reshape(*w.shape, -1)
    mean = (w[..., None] * x).sum(dim=1).mean(dim=1)
    return mean, (w[..., None] * (x - mean[:, None, None]).square()).sum(dim=1).mean(dim=1)


def z_score(values, truth):
    """How many standard errors the mean of independent ``values`` is off."""
    return ((values.mean() - truth) / (values.std() / len(values) ** 0.5)).item()
