"""A diffusers scheduler as the path of a corrector: the same alpha and sigma, and the same annealed law."""

import math

import diffusers
import pytest
import torch

from feynkac.fkc import Annealed, Expert, sample_corrected
from feynkac.fkc.testing.experts import gaussian_product
from feynkac.steering.schedulers import diffusion_of
from feynkac.steering.testing import GaussianDenoiser

SCHEDULERS = {
    "ddpm": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "cosine": lambda: diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
    "euler": lambda: diffusers.EulerDiscreteScheduler(),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_table_is_the_schedulers(name):
    scheduler = SCHEDULERS[name]()
    path = diffusion_of(scheduler)
    ratios = [float(path.noise(t)) for t in (0.0, 0.5, 1.0)]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 50.0
    if name == "ddpm":
        kept = scheduler.alphas_cumprod.double()
        expected = ((1 - kept) / kept).sqrt()
        assert ratios[0] == pytest.approx(expected[0].item(), rel=1e-6)
        assert ratios[-1] == pytest.approx(expected[-1].item(), rel=1e-6)
    if name == "flow":
        assert float(path.alpha(torch.tensor(0.5).double()) + path.sigma(torch.tensor(0.5).double())) == pytest.approx(
            1.0, abs=1e-3
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm", "cosine"])
def test_a_denoiser_of_diffusers_is_annealed(name):
    """N(0.5, 0.64) squared, from the network that a pipeline would call."""
    scheduler = SCHEDULERS[name]()
    denoiser = GaussianDenoiser.for_scheduler(scheduler, mean=0.5, std=0.8)
    path = diffusion_of(scheduler)
    kept = scheduler.alphas_cumprod.double()
    ratios = ((1 - kept) / kept).sqrt()

    def noise(x, t):
        ratio = path.noise(t[0])
        step = torch.searchsorted(ratios, ratio).clamp(1, len(ratios) - 1)
        part = (ratio - ratios[step - 1]) / (ratios[step] - ratios[step - 1])
        return denoiser(x, step - 1 + part, return_dict=False)[0]

    expert = Expert(noise, path, "noise", mean=0.4, std=0.9, shape=(1, 1, 1))
    samples = sample_corrected(Annealed(expert, 2.0), particles=1000, populations=10, steps=300, seed=0)
    truth = gaussian_product((2.0, 0.5, 0.64))
    assert samples.mean(lambda x: x[..., 0, 0, 0]).mean().item() == pytest.approx(truth.mean, abs=0.03)
    second = samples.mean(lambda x: x[..., 0, 0, 0].square()).mean().item()
    assert second - truth.mean**2 == pytest.approx(truth.variance, rel=0.08)
    assert samples.log_evidence.mean().item() == pytest.approx(truth.log_evidence, abs=0.05)
    assert math.isfinite(samples.log_evidence_std_error[0].item())
