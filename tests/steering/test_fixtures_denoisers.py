"""Closed-form denoisers: the four predictions agree, and real pipelines around them sample the law they must."""

import pytest
import torch

from feynkac.fkc.testing import ZTest
from feynkac.steering.predictions import clean_prediction
from feynkac.steering.schedulers import Level, rule_for
from feynkac.steering.testing import affine_law, kernel_quadrature, mixture_posterior_mean

diffusers = pytest.importorskip("diffusers")
from feynkac.steering.testing import GaussianDenoiser, MixtureDenoiser  # noqa: E402

MODES = {"weights": (0.7, 0.3), "means": (-0.4, 0.4), "stds": (0.1, 0.1)}
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sampled(pipe, steps, *, batch_size=2, seed=3):
    """Pixels before the pipeline maps [-1, 1] to [0, 1]."""
    pipe.set_progress_bar_config(disable=True)
    out = pipe(batch_size=batch_size, num_inference_steps=steps, generator=generator(seed), output_type="pt")
    return (2.0 * out.images - 1.0).double().flatten()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("make", "prior"), [(GaussianDenoiser, {"mean": 0.5, "std": 0.8}), (MixtureDenoiser, MODES)], ids=["one", "two"]
)
def test_every_prediction_gives_the_posterior_mean(make, prior, prediction):
    denoiser = make(prediction=prediction, **prior)
    x, t = torch.randn(3, 1, 2, 2, generator=generator(), dtype=torch.float64), 371
    alpha, sigma = denoiser.levels(t)
    output = denoiser(x, t).sample
    clean = clean_prediction(x, output, Level(float(alpha), float(sigma)), prediction, exploding=False)
    if make is GaussianDenoiser:
        expected = 0.5 + alpha * 0.64 / (alpha**2 * 0.64 + sigma**2) * (x - alpha * 0.5)
    else:
        expected = mixture_posterior_mean(**prior)(x, Level(float(alpha), float(sigma)))
    torch.testing.assert_close(clean, expected, rtol=0, atol=1e-10)


def test_levels_are_those_of_the_schedulers():
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    alpha, sigma = GaussianDenoiser.for_scheduler(scheduler).levels(torch.tensor([0, 500, 999]))
    kept = scheduler.alphas_cumprod.double()[[0, 500, 999]]
    torch.testing.assert_close(torch.stack([alpha, sigma]), torch.stack([kept.sqrt(), (1 - kept).sqrt()]))
    flow = GaussianDenoiser.for_scheduler(diffusers.FlowMatchEulerDiscreteScheduler())
    assert [float(v) for v in flow.levels(250.0)] == [0.75, 0.25]


def test_fractional_timesteps_of_an_exploding_scheduler():
    """Euler hands over the scaled sample at a fractional time: the same level as its own sigma."""
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="linspace")
    denoiser = GaussianDenoiser.for_scheduler(scheduler, mean=0.5, std=0.8)
    scheduler.set_timesteps(7)
    for t, level in zip(scheduler.timesteps, rule_for(scheduler).levels(scheduler)[:-1], strict=True):
        alpha, sigma = denoiser.levels(t)
        assert float(sigma / alpha) == pytest.approx(level.sigma, rel=2e-6)


def test_ddpm_pipeline_samples_the_affine_law():
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    prior = {"mean": 0.1, "std": 0.15}
    denoiser = GaussianDenoiser.for_scheduler(scheduler, **prior, sample_size=64)
    law = affine_law(scheduler, **prior, num_inference_steps=10)
    x = sampled(diffusers.DDPMPipeline(denoiser, scheduler), 10)
    assert ZTest.from_samples(x, law.mean).passed
    assert ZTest.from_samples((x - law.mean).square(), law.variance).passed
    assert not ZTest.from_samples((x - law.mean).square(), prior["std"] ** 2).passed  # finite steps are not the data


def test_flow_pipeline_samples_the_affine_law():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    prior = {"mean": 0.1, "std": 0.15}
    denoiser = GaussianDenoiser.for_scheduler(scheduler, **prior, sample_size=64)
    law = affine_law(scheduler, **prior, num_inference_steps=10)
    x = sampled(diffusers.DDPMPipeline(denoiser, scheduler), 10)
    assert ZTest.from_samples(x, law.mean).passed
    assert ZTest.from_samples((x - law.mean).square(), law.variance).passed


def test_ddpm_pipeline_samples_the_law_of_two_modes():
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    denoiser = MixtureDenoiser.for_scheduler(scheduler, **MODES, sample_size=64)
    x = sampled(diffusers.DDPMPipeline(denoiser, scheduler), 20)
    scheduler.set_timesteps(20)
    levels = rule_for(scheduler).levels(scheduler)
    law = kernel_quadrature(levels, mixture_posterior_mean(**MODES), eta=1.0, n_points=2001)
    for f in (lambda v: (v > 0).double(), lambda v: v, torch.square):
        test = ZTest.from_samples(f(x), law.mean(f))
        assert test.passed, str(test)
    assert not ZTest.from_samples((x > 0).double(), 0.3).passed  # the share in the data is not the sampler's


def test_stable_diffusion_takes_the_denoiser_for_its_unet():
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    prior = {"mean": 0.5, "std": 0.8}
    denoiser = GaussianDenoiser.for_scheduler(scheduler, **prior, in_channels=4, sample_size=16)
    pipe = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=denoiser, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        prompt_embeds=torch.zeros(2, 4, 8), num_images_per_prompt=4, num_inference_steps=10, eta=1.0,
        guidance_scale=1.0, generator=generator(), output_type="latent",
    ).images.double().flatten()  # fmt: skip
    law = affine_law(scheduler, **prior, num_inference_steps=10, eta=1.0)
    assert ZTest.from_samples(latents, law.mean).passed
    assert ZTest.from_samples((latents - law.mean).square(), law.variance).passed


def test_one_prior_a_channel():
    denoiser = GaussianDenoiser(mean=[0.0, 5.0], std=[1.0, 1e-6], in_channels=2, prediction="sample")
    clean = denoiser(torch.zeros(1, 2, 3, 3), 500).sample
    assert clean[0, 1].numpy() == pytest.approx(5.0, abs=1e-4)
    assert clean[0, 0].numpy() == pytest.approx(0.0, abs=1e-7)


def test_the_dtype_of_the_sample_is_kept_and_rows_may_have_their_own_time():
    denoiser = MixtureDenoiser(**MODES).to(torch.bfloat16)
    assert denoiser.dtype == torch.bfloat16
    assert denoiser(torch.zeros(2, 1, 1, 1, dtype=torch.bfloat16), 10, return_dict=False)[0].dtype == torch.bfloat16
    denoiser = MixtureDenoiser(**MODES)
    x = torch.randn(2, 1, 1, 1, generator=generator())
    both = denoiser(x, torch.tensor([10, 700])).sample
    assert torch.equal(both[1:], denoiser(x[1:], 700).sample)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_saved_and_loaded(tmp_path):
    denoiser = MixtureDenoiser(**MODES, sample_size=3)
    denoiser.save_pretrained(tmp_path)
    again = MixtureDenoiser.from_pretrained(tmp_path)
    x = torch.randn(2, 1, 3, 3, generator=generator())
    assert torch.equal(again(x, 400).sample, denoiser(x, 400).sample)
    assert again.config.sample_size == 3


def test_bad_priors_are_refused_by_name():
    with pytest.raises(ValueError, match="prediction: got 'score'"):
        GaussianDenoiser(prediction="score")
    with pytest.raises(ValueError, match="mean: got 2 numbers"):
        GaussianDenoiser(mean=[0.0, 1.0])
    with pytest.raises(ValueError, match="weights, means, stds"):
        MixtureDenoiser(weights=(1.0,))
    with pytest.raises(ValueError, match="trained_betas"):
        GaussianDenoiser.for_scheduler(diffusers.DDPMScheduler(trained_betas=[0.1, 0.2]))
