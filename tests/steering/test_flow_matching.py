"""The stochastic step on flow matching, through a real StableDiffusion3Pipeline with an exact velocity; and other
stochastic schedulers through the StableDiffusionPipeline. No weights, no VAE, exact answers."""

import functools
import math

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from diffusers.configuration_utils import register_to_config  # noqa: E402

from feynkac.fkc.testing import ZTest  # noqa: E402
from feynkac.steering import DeterministicStep, FKSteering, Gradient, attach, every  # noqa: E402
from feynkac.steering.schedulers import rule_for  # noqa: E402
from feynkac.steering.testing import (  # noqa: E402
    GaussianDenoiser,
    MixtureDenoiser,
    QuadraticReward,
    affine_law,
    flow_levels,
    kernel_law,
    kernel_quadrature,
    mixture_posterior_mean,
)

from .gaussian_pipe import moments  # noqa: E402

PRIOR = {"mean": 0.5, "std": 0.8}
STEPS = 20
TILTS = {"linear": (QuadraticReward(beta=1.0), 2.0), "quadratic": (QuadraticReward(kappa=1.0, y=2.0), 2.0)}
VARIANCES = {  # of the law at T = 10, 20, 50, 200 on a uniform grid
    0.0: (0.492503, 0.561631, 0.607444, 0.631702),
    1.0: (0.407880, 0.501601, 0.576841, 0.622832),
}
SLOW = pytest.mark.slow
RENOISED = 0.279637  # stochastic_sampling=True, T = 20


class FlowTransformer(diffusers.ModelMixin, diffusers.ConfigMixin):
    """The velocity of N(0.5, 0.64) behind the signature of an SD3 transformer."""

    @register_to_config
    def __init__(self, in_channels: int = 1, sample_size: int = 1, patch_size: int = 1) -> None:
        super().__init__()
        self.velocity = GaussianDenoiser(**PRIOR, prediction="flow", in_channels=in_channels)

    def forward(self, hidden_states, timestep, encoder_hidden_states=None, return_dict=True, **conditioning):
        return self.velocity(hidden_states, timestep, return_dict=return_dict)


def sd3(**scheduler):
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3", "vae")
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=FlowTransformer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**scheduler),
        **dict.fromkeys(names),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_sd3(pipe, particles, populations, *controls, steps=STEPS, seed=0, **options):
    with attach(pipe, *controls, particles=particles, populations=populations, seed=seed, **options) as run:
        latents = pipe(
            prompt_embeds=torch.zeros(populations, 4, 8),
            pooled_prompt_embeds=torch.zeros(populations, 8),
            num_images_per_prompt=particles,
            sigmas=torch.linspace(1.0, 1.0 / steps, steps).tolist(),
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed + 1),
            output_type="latent",
        ).images
    assert torch.equal(latents, run.samples())
    return run


def check(run, truth, particles):
    test = ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0)
    assert test.passed, str(test)
    for found, exact in zip(moments(run), (truth.mean, truth.variance), strict=True):
        error = found.std().item() / math.sqrt(len(found))
        assert abs(found.mean().item() - exact) < 5 * error + 10 / particles


def steering(case, **options):
    reward, scale = TILTS[case]
    return FKSteering(reward, scale=scale, on="latents", **options)


# --- flow matching ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", VARIANCES)
@pytest.mark.parametrize(
    ("index", "steps"), [(0, 10), (1, 20), pytest.param(2, 50, marks=SLOW), pytest.param(3, 200, marks=SLOW)]
)
def test_the_stochastic_step_samples_the_law_of_the_kernel(index, steps, eta):
    """A pipeline steered by a reward without effect moves by the stochastic step alone."""
    law = kernel_law(flow_levels(steps), **PRIOR, eta=eta)
    assert law.variance == pytest.approx(VARIANCES[eta][index], abs=1e-6)
    nothing = FKSteering(QuadraticReward(), scale=1.0, on="latents", when=())
    run = run_sd3(sd3(), min(4000, 200_000 // steps), 1, nothing, steps=steps, transition="stochastic", kernel_eta=eta)
    x = run.samples().double().flatten()
    assert ZTest.from_samples(x, law.mean).passed
    assert ZTest.from_samples((x - law.mean).square(), law.variance).passed
    assert not ZTest.from_samples((x - law.mean).square(), RENOISED).passed


OPTIONS = {
    "difference": {},
    "max": {"potential": "max", "when": every(4)},
    "tempered": {"value": "tempered"},
    "gradient": {"gradient": Gradient(data_variance=0.64)},
    "gradient through the denoiser": {"gradient": Gradient(through="denoiser")},
    "weights only": {"when": ()},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", TILTS)
def test_steered_flow_matching_has_the_tilted_law(case, options):
    truth = kernel_law(flow_levels(STEPS), **PRIOR, eta=1.0).tilted(*TILTS[case])
    run = run_sd3(sd3(), 150, 60, steering(case, **OPTIONS[options]), transition="stochastic")
    check(run, truth, 150)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_any_amount_of_noise_will_do(eta):
    chain = kernel_law(flow_levels(STEPS), **PRIOR, eta=eta)
    run = run_sd3(sd3(), 100, 50, steering("linear"), transition="stochastic", kernel_eta=eta)
    check(run, chain.tilted(*TILTS["linear"]), 100)
    renoised = chain.tilted(*TILTS["linear"]).log_evidence + 2.0 * (RENOISED - chain.variance)  # lambda^2 / 2 = 2
    assert not ZTest.from_samples((run.log_evidence - renoised).exp(), 1.0).passed


@pytest.mark.parametrize("options", [{}, {"transition": "stochastic", "kernel_eta": 0.0}], ids=["native", "kernel"])
def test_steps_without_noise_are_refused(options):
    """Copies of a particle would stay copies."""
    with pytest.raises(DeterministicStep, match="stochastic"):
        run_sd3(sd3(), 4, 1, steering("linear"), **options)
    run = run_sd3(sd3(), 4, 1, steering("linear", when=()), **options)  # nothing is copied: fine
    assert len(run.samples().unique()) == 4


@pytest.mark.slow
def test_the_step_is_chosen_by_itself():
    """``transition="auto"``: the kernel in the ODE's place, and a note."""
    run = run_sd3(sd3(), 100, 50, steering("linear"), transition="auto")
    check(run, kernel_law(flow_levels(STEPS), **PRIOR, eta=1.0).tilted(*TILTS["linear"]), 100)
    assert len(run.notes) == 1
    own = run_sd3(sd3(stochastic_sampling=True), 100, 2, steering("linear"), transition="auto")
    assert "stochastic_sampling" in own.notes[0]


@pytest.mark.slow
def test_full_renoising_is_a_law_of_its_own():
    """diffusers' ``stochastic_sampling=True`` does not keep the marginals: what is steered natively is the sampler's
    own law, and a note says so. The stochastic step in its place has the model's."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1.0 / STEPS, STEPS).tolist())
    own = affine_law(scheduler, **PRIOR)
    assert own.variance == pytest.approx(RENOISED, abs=2e-6)
    run = run_sd3(sd3(stochastic_sampling=True), 100, 60, steering("linear"))
    check(run, own.tilted(*TILTS["linear"]), 100)
    kept = kernel_law(flow_levels(STEPS), **PRIOR, eta=1.0).tilted(*TILTS["linear"])
    assert not ZTest.from_samples((run.log_evidence - kept.log_evidence).exp(), 1.0).passed
    assert any("stochastic_sampling" in note for note in run.notes)
    run = run_sd3(sd3(stochastic_sampling=True), 100, 60, steering("linear"), transition="stochastic")
    check(run, kept, 100)
    assert not run.notes


# --- other stochastic schedulers -------------------------------------------------------------------------------------


def stable_diffusion(scheduler, unet):
    names = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet, scheduler=scheduler, requires_safety_checker=False, **dict.fromkeys(names)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_sd(pipe, particles, populations, *controls, steps, seed=0, eta=0.0, **options):
    with attach(pipe, *controls, particles=particles, populations=populations, seed=seed, **options) as run:
        pipe(
            prompt_embeds=torch.zeros(populations, 4, 8),
            num_images_per_prompt=particles,
            num_inference_steps=steps,
            eta=eta,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed + 1),
            output_type="latent",
        )
    return run


DDPM = functools.partial(diffusers.DDPMScheduler, clip_sample=False, steps_offset=1)
ANCESTRAL = functools.partial(diffusers.EulerAncestralDiscreteScheduler, steps_offset=1)
SCHEDULERS = {
    "DDPM": DDPM,
    "DDPM, v": lambda: DDPM(prediction_type="v_prediction"),
    "DDPM, large variance": lambda: DDPM(variance_type="fixed_large"),
    "Euler ancestral": lambda: ANCESTRAL(timestep_spacing="trailing"),
    "Euler ancestral, v": lambda: ANCESTRAL(prediction_type="v_prediction"),
    "DDIM, eta 0.7": lambda: diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("case", TILTS)
def test_native_steps_of_other_schedulers(name, case):
    """The tilt of the very law that the scheduler's own steps have."""
    scheduler = SCHEDULERS[name]()
    eta = {"eta": 0.7} if "eta" in name else {}
    truth = affine_law(scheduler, **PRIOR, num_inference_steps=STEPS, **eta).tilted(*TILTS[case])
    unet = GaussianDenoiser.for_scheduler(scheduler, **PRIOR)
    run = run_sd(stable_diffusion(scheduler, unet), 300, 60, steering(case), steps=STEPS, **eta)
    check(run, truth, 300)
    assert not ZTest.from_samples((run.log_evidence - truth.log_evidence - 0.1).exp(), 1.0).passed


MODES = {"weights": (0.7, 0.3), "means": (-0.4, 0.4), "stds": (0.1, 0.1)}


def identity(x):
    return x.double().flatten()


@pytest.mark.slow
def test_a_rare_mode_found_by_few_particles():
    """exp(5x) turns a share of 0.3 of the right mode into 0.959, mean 0.417 (for the data; the sampler's law by
    quadrature); 125 prompts of 64 particles reach it, prompts of 4 fall short."""
    scheduler, steps = DDPM(), 100
    scheduler.set_timesteps(steps)
    levels = rule_for(scheduler).levels(scheduler)
    law, _ = kernel_quadrature(levels, mixture_posterior_mean(**MODES), eta=1.0, n_points=2001).tilted(lambda x: x, 5.0)
    share, mean = law.mean(lambda x: (x > 0).double()), law.mean(lambda x: x)
    assert (share, mean) == pytest.approx((0.959, 0.417), abs=0.04)
    pipe = stable_diffusion(scheduler, MixtureDenoiser.for_scheduler(scheduler, **MODES))
    found = {}
    for particles, populations in ((64, 125), (4, 2000)):
        control = FKSteering(identity, scale=5.0, on="latents")
        run = run_sd(pipe, particles, populations, control, steps=steps, final="resampled")
        x = run.samples().double().flatten()
        found[particles] = ((x > 0).double().mean().item(), x.mean().item())
    assert found[64] == pytest.approx((share, mean), abs=0.025)
    assert found[4][0] < share - 0.05
