"""Both branches of guidance, read off an unmodified Stable Diffusion pipeline, are good enough for exact weights.

With Gaussian branches p_u = N(0, 1/4) and p_c = N(1/2, 1/16) guidance at scale 2 means p_c^2 / p_u = N(0.571, 0.189^2).
Sampling with the guided score misses it; the guided stochastic differential equation with the weights

    d log w = g (g - 1)/2 G |s_u - s_c|^2,      x' = (alpha'/alpha) (x + G s_g + sqrt(G) z),

G = sigma^2 - (alpha/alpha')^2 sigma'^2, meets it (Skreta et al. 2025, Feynman-Kac correctors, in discrete time).
"""

import math

import diffusers
import pytest
import torch

from feynkac.fkc import Population
from feynkac.steering import FKSteering, Guidance, SteeringError, Weighed, attach
from feynkac.steering.denoiser import DenoiserTap
from feynkac.steering.gather import gather_arguments
from feynkac.steering.hook import listening
from feynkac.steering.predictions import clean_prediction
from feynkac.steering.schedulers import rule_for, step_position
from feynkac.steering.testing import GaussianDenoiser

pytestmark = pytest.mark.slow

G = 2.0
STEPS, K = 200, 8000
PRECISION = G / 0.25**2 - (G - 1.0) / 0.5**2
MEAN, STD = G * 0.5 / 0.25**2 / PRECISION, PRECISION**-0.5


class TwoPriors(GaussianDenoiser):
    """N(1/2, 1/16) where the first entry of the prompt embedding is one, N(0, 1/4) where it is zero."""

    def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True, **conditioning):
        given = encoder_hidden_states[:, 0, 0].reshape(-1, 1, 1, 1)
        alpha, sigma = self.levels(timestep)
        x = sample.double()
        mean, variance = 0.5 * given, 0.25 - 0.1875 * given
        clean = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        output = ((x - alpha * clean) / sigma).to(sample.dtype)
        return (output,)  # the pipeline asks for tuples


def pipeline():
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, timestep_spacing="trailing")
    names = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    unet = TwoPriors.for_scheduler(scheduler)
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet, scheduler=scheduler, requires_safety_checker=False, **dict.fromkeys(names)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def called(pipe, eta=0.0):
    ones, zeros = torch.ones(1, 4, 8), torch.zeros(1, 4, 8)
    return pipe(
        prompt_embeds=ones,
        negative_prompt_embeds=zeros,
        num_images_per_prompt=K,
        num_inference_steps=STEPS,
        guidance_scale=G,
        eta=eta,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images.double()


class Corrected:
    """Guided moves, weighted (``weighted``) or not."""

    def __init__(self, tap, weighted):
        self.tap, self.weighted = tap, weighted

    def on_run(self, scheduler):
        self.population = Population.uniform(1, K)
        self.generator = torch.Generator().manual_seed(1)

    def on_step(self, scheduler, base_step, bound):
        arguments = {k: v for k, v in bound.arguments.items() if k != "self"}
        x, output = arguments["sample"].double(), arguments["model_output"]
        levels = rule_for(scheduler).levels(scheduler)
        place = step_position(scheduler, arguments["timestep"]).move
        here, there = levels[place], levels[place + 1]
        branches = self.tap.branches(output)
        assert branches.coefficients == pytest.approx((1 - G, G), abs=1e-4)
        scores = [-b.double() / here.sigma for b in (branches.unconditional, branches.conditional)]
        moved = clean_prediction(x, output.double(), here, "epsilon", exploding=False)
        if place < STEPS - 1:
            rate = here.sigma**2 - (here.alpha / there.alpha) ** 2 * there.sigma**2
            guided = scores[0] + G * (scores[1] - scores[0])
            moved = x + rate * guided + math.sqrt(rate) * torch.randn(x.shape, generator=self.generator).double()
            moved = there.alpha / here.alpha * moved
            if self.weighted:
                gain = 0.5 * G * (G - 1) * rate * (scores[0] - scores[1]).square().flatten(1).sum(dim=1)
                self.population = self.population.reweighted(gain[None])
                self.population, ancestors = self.population.resampled(self.generator)
                if ancestors is not None:
                    moved = moved[ancestors[0]]
                    arguments = gather_arguments(arguments, ancestors[0])
        result = base_step(scheduler, **arguments)
        self.tap.end_step()
        return (moved.to(result[0].dtype), *result[1:])


def moments(x, weights):
    mean = (weights * x.flatten()).sum()
    return mean.item(), (weights * (x.flatten() - mean).square()).sum().sqrt().item()


@pytest.mark.parametrize("weighted", [True, False])
def test_weights_from_both_branches_meet_the_guided_law(weighted):
    pipe = pipeline()
    tap = DenoiserTap(pipe, record=True)
    corrected = Corrected(tap, weighted)
    with listening(pipe.scheduler, corrected), tap.attached():
        x = called(pipe)
    mean, std = moments(x, corrected.population.weights[0])
    met = abs(mean - MEAN) < 0.02 and abs(std - STD) < 0.01
    assert met == weighted  # without weights the guided equation alone misses the mean


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_guided_sampling_alone_misses_it(eta):
    x = called(pipeline(), eta)
    mean, std = moments(x, torch.full((K,), 1.0 / K, dtype=torch.float64))
    assert abs(mean - MEAN) > 0.04
    assert abs(std - STD) > 0.02


# --- as a control ----------------------------------------------------------------------------------------------------


def attached(*controls, **options):
    pipe = pipeline()
    options = {"particles": K, "seed": 0, "transition": "stochastic"} | options
    with attach(pipe, *controls, **options) as run:
        called(pipe)
    return run


def truth_of_evidence():
    """Integral of N(x; 1/2, 1/16)^2 / N(x; 0, 1/4)."""
    log_z = 0.5 * math.log(2 * math.pi / PRECISION) + 0.5 * PRECISION * MEAN**2
    log_z -= 0.5 * G * (math.log(2 * math.pi * 0.25**2) + 0.25 / 0.25**2)
    return log_z + 0.5 * (G - 1.0) * math.log(2 * math.pi * 0.5**2)


def test_guidance_as_a_control_meets_the_guided_law():
    run = attached(Guidance())
    mean, std = moments(run.samples().double(), run.weights[0])
    assert abs(mean - MEAN) < 0.02
    assert abs(std - STD) < 0.01
    assert run.log_evidence.item() == pytest.approx(truth_of_evidence(), abs=0.15)  # 200 steps of denoising kernels
    assert run.scales == {}


def test_guidance_composes_with_a_reward():
    """Times exp(2 x): the Gaussian's mean moves by twice its variance."""
    run = attached(Guidance(), FKSteering(lambda x: x.flatten(1).mean(dim=1), scale=2.0, on="latents"))
    mean, std = moments(run.samples().double(), run.weights[0])
    assert abs(mean - (MEAN + 2.0 * STD**2)) < 0.03
    assert abs(std - STD) < 0.012


def test_guidance_without_its_weight_is_another_law(monkeypatch):
    """Negative control: the same moves, weight one."""
    honest = Guidance.weigh

    def weightless(self, context, memory):
        weighed = honest(self, context, memory)
        return None if weighed is None else Weighed(torch.zeros_like(weighed.log_potential), memory)

    monkeypatch.setattr(Guidance, "weigh", weightless)
    run = attached(Guidance())
    mean, _ = moments(run.samples().double(), run.weights[0])
    assert abs(mean - MEAN) > 0.04


def test_guidance_needs_the_move_that_its_weight_belongs_to():
    with pytest.raises(SteeringError, match="kernel_eta=1"):
        attached(Guidance(), kernel_eta=0.5)
    with pytest.raises(SteeringError, match="stochastic"):
        attached(Guidance(), transition="native")
