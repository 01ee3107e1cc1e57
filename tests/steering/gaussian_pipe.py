"""A real DDIMPipeline whose law is known: one pixel of Gaussian data, an exact denoiser, 20 steps."""

import torch
from diffusers import DDIMPipeline, DDIMScheduler

from feynkac.steering import attach
from feynkac.steering.testing import GaussianDenoiser, QuadraticReward, affine_law

__all__ = ["CASES", "STEPS", "ddim", "gaussian_chain", "gaussian_pipe", "moments", "run_pipe", "steered"]

STEPS = 20
CASES = {
    "L1": (QuadraticReward(beta=1.0), 1.0),
    "L3": (QuadraticReward(beta=1.0), 3.0),
    "Q1": (QuadraticReward(kappa=1.0, y=2.0), 2.0),
    "Q4": (QuadraticReward(kappa=4.0, y=-1.0), 2.0),
}


def ddim(**options):
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=False,
        timestep_spacing="leading",
        **options,
    )


def gaussian_pipe():
    made = DDIMPipeline(GaussianDenoiser(mean=0.5, std=0.8), ddim())
    made.set_progress_bar_config(disable=True)
    return made


def gaussian_chain():
    grid = ddim()
    grid.set_timesteps(STEPS)
    return affine_law(grid, mean=0.5, std=0.8, eta=1.0)


def run_pipe(pipe, rows, seed=1, eta=1.0, **options):
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        batch_size=rows, num_inference_steps=STEPS, eta=eta, generator=generator, output_type="np", **options
    ).images


def steered(pipe, *controls, particles, populations, seed=3, noise=1, eta=1.0, **options):
    candidates = max([c.candidates for c in controls] + [1])
    with attach(pipe, *controls, particles=particles, seed=seed, **options) as run:
        run_pipe(pipe, populations * particles * candidates, noise, eta)
    return run


def moments(run):
    """Weighted mean and variance (P,) of the one pixel."""
    weights = run.weights
    x = run.samples().double().reshape(weights.shape)
    mean = (weights * x).sum(dim=1)
    return mean, (weights * (x - mean[:, None]).square()).sum(dim=1)
