"""Runs that must agree bit for bit, and what does not change with precision, compilation or offloading.

Beyond the identities of ``test_steering_exact.py``, which are about one pixel: tiny Stable Diffusion with rewards on
images, masked diffusion, soft values, ancestors.
"""

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")
accelerate = pytest.importorskip("accelerate")

from feynkac.steering import Draws, FKSteering, Gradient, SoftValueGuidance, attach, every  # noqa: E402
from feynkac.steering import particles as particles_module  # noqa: E402
from feynkac.steering.discrete import MaskedDiffusionPipeline, MaskedDiffusionScheduler  # noqa: E402
from feynkac.steering.testing import EnumeratedDenoiser, QuadraticReward, twos_and_ends  # noqa: E402

from .gaussian_pipe import STEPS, gaussian_pipe  # noqa: E402
from .zoo import row  # noqa: E402

K, P = 4, 2
TOKENS = MaskedDiffusionPipeline(EnumeratedDenoiser(), MaskedDiffusionScheduler(3))
TOKENS.set_progress_bar_config(disable=True)
PIXEL = gaussian_pipe()
SD = row("sd_eta1").build().to(torch.float64)
PROMPTS = ["a red fox on the snow", "the blue boat"]
SOFT = SoftValueGuidance


def brightness(images):
    """Of PIL images, a tensor of 0 to 255."""
    return torch.tensor([float(np.asarray(image, dtype=np.float64).mean()) for image in images])


def contrast(latents):
    return latents.double().flatten(1).std(dim=1)


def level(states):
    return states.double().flatten(1).mean(dim=1)


def generators(populations, rows, first=0):
    """One a row, that of row i of population p the same whatever else is in the batch."""
    return [torch.Generator().manual_seed(1000 * (first + p) + i) for p in range(populations) for i in range(rows)]


def run_tokens(rows, populations=P, first=0):
    return TOKENS(
        batch_size=rows * populations, num_inference_steps=6, generator=generators(populations, rows, first)
    ).tokens


def run_pixel(rows, populations=P, first=0):
    return PIXEL(
        batch_size=rows * populations, num_inference_steps=STEPS, eta=1.0,
        generator=generators(populations, rows, first), output_type="pt",
    ).images  # fmt: skip


def run_sd(rows, populations=P, first=0, pipe=SD, **call):
    options = {"num_inference_steps": 4, "eta": 1.0, "guidance_scale": 3.0, "output_type": "pt"}
    return pipe(
        prompt=PROMPTS[first : first + populations], num_images_per_prompt=rows,
        generator=generators(populations, rows, first), **(options | call),
    ).images  # fmt: skip


def on_tokens(**options):
    return FKSteering(twos_and_ends, **({"scale": 2.0, "on": "tokens"} | options))


def on_pixels(**options):
    return FKSteering(QuadraticReward(beta=1.0), **({"scale": 3.0, "on": "latents"} | options))


CASES = {  # pipeline, run, control
    "pixel": (PIXEL, run_pixel, on_pixels),
    "pixel, soft": (PIXEL, run_pixel, lambda: SOFT(QuadraticReward(beta=1.0), 0.5, 3, on="latents")),
    "pixel, shrinking": (
        PIXEL,
        run_pixel,
        lambda: SOFT(QuadraticReward(beta=1.0), 0.5, candidates=4, then=(2, 1), on="latents"),
    ),
    "pixel, draws": (PIXEL, run_pixel, lambda: on_pixels(value=Draws(3, data_variance=0.64))),
    "tokens": (TOKENS, run_tokens, on_tokens),
    "tokens, draws": (TOKENS, run_tokens, lambda: on_tokens(value=Draws(3))),
    "images": (SD, run_sd, lambda: FKSteering(brightness, scale=1.0)),
    "images, soft": (SD, run_sd, lambda: SOFT(brightness, 1.0, 2)),
    "latents, max": (SD, run_sd, lambda: FKSteering(contrast, scale=20.0, on="latents", potential="max")),
}


def steered(case, populations=P, first=0, **options):
    pipe, call, make = CASES[case]
    control = make()
    options = {"seed": 5, "ess_threshold": 0.95} | options
    with attach(pipe, control, particles=K, populations=populations, **options) as run:
        images = call(K * control.candidates, populations, first)
    return images, run


def same_ancestors(one, two):
    for a, b in zip(one.ancestors, two.ancestors, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.equal(a, b)
    assert any(a is not None for a in one.ancestors)


# --- nothing to do ---------------------------------------------------------------------------------------------------

IDLE = {
    "scale 0": (K, lambda on: FKSteering(level, scale=0.0, on=on)),
    "nothing scheduled": (K, lambda on: FKSteering(level, scale=3.0, on=on, when=())),
    "one particle": (1, lambda on: FKSteering(level, scale=3.0, on=on)),
    "one particle, one child": (1, lambda on: SOFT(level, 0.3, 1, on=on)),
    "one particle, best of one child": (1, lambda on: SOFT(level, 0.0, 1, on=on)),
}


@pytest.mark.parametrize("idle", IDLE)
@pytest.mark.parametrize("case", ["pixel", "tokens", "images"])
def test_idle_controls_leave_the_pipeline_bit_for_bit(case, idle):
    pipe, call, _ = CASES[case]
    particles, make = IDLE[idle]
    plain = call(K)
    with attach(pipe, make("tokens" if case == "tokens" else "latents"), particles=particles, seed=0) as run:
        inside = call(K)
    assert torch.equal(plain, inside)
    assert run.log_weights.shape == (P * K // particles, particles)
    busy, _ = steered(case)
    assert not torch.equal(plain, busy)


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_same_seed_same_images_and_ancestors(case):
    (images, one), (again, two) = steered(case), steered(case)
    assert torch.equal(images, again)
    assert torch.equal(one.log_weights, two.log_weights)
    same_ancestors(one, two)
    other, _ = steered(case, seed=6)
    assert not torch.equal(images, other)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_a_prompt_is_the_same_alone_and_in_a_batch(case, which):
    """Streams are numbered by prompt. Images in float64 differ by the rounding of other batch sizes."""
    together, both = steered(case)
    alone, one = steered(case, populations=1, first=which, first_population=which)
    close = {"rtol": 0.0, "atol": 1e-9} if case.startswith(("images", "latents")) else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(together[which * K : (which + 1) * K], alone, **close)
    torch.testing.assert_close(both.log_weights[which : which + 1], one.log_weights, rtol=0.0, atol=1e-6)
    assert any(b is not None for b in one.ancestors)
    for a, b in zip(both.ancestors, one.ancestors, strict=True):
        if b is not None:
            assert torch.equal(a[which : which + 1], b)
        elif a is not None:  # the other prompt alone was resampled
            assert torch.equal(a[which], torch.arange(K))


@pytest.mark.parametrize(
    "case",
    [
        "pixel",
        "pixel, soft",
        "pixel, shrinking",
        "tokens",
        "images",
        pytest.param("images, soft", marks=pytest.mark.slow),
    ],
)
def test_chunks_change_nothing(case):
    """Denoiser, decoder and reward see 1, 2 or K samples at a time."""
    images, whole = steered(case)
    for size in (1, 2, K):
        again, run = steered(case, chunk_size=size)
        same_ancestors(whole, run)
        if case.startswith("images"):  # of 8-bit pictures; convolutions of other batch sizes round differently
            torch.testing.assert_close(again, images, rtol=0.0, atol=1e-9)
        else:
            assert torch.equal(again, images)
            assert torch.equal(run.log_weights, whole.log_weights)


def test_chunks_are_seen_by_all_three(monkeypatch):
    """Negative control of the above: without a chunk size they see the whole batch."""
    largest = {}

    def watch(name, function):
        def watched(x, *args, **kwargs):
            largest[name] = max(largest.get(name, 0), len(x))
            return function(x, *args, **kwargs)

        return watched

    handle = SD.unet.register_forward_pre_hook(
        lambda module, args: largest.__setitem__("denoiser", max(largest.get("denoiser", 0), len(args[0])))
    )
    monkeypatch.setattr(SD.vae, "decode", watch("decoder", SD.vae.decode))
    try:
        for size, expected in ((None, P * K), (1, 1), (2, 2)):
            largest.clear()
            with attach(SD, FKSteering(watch("reward", brightness), scale=1.0), particles=K, seed=0, chunk_size=size):
                run_sd(K, output_type="latent")
            assert largest["decoder"] == largest["reward"] == expected
            assert largest["denoiser"] <= 2 * expected  # with both branches of guidance
    finally:
        handle.remove()


def test_a_constant_in_the_reward_moves_the_evidence_alone():
    """Of images: by lambda times the constant. A power of two, so that the sums are exact."""

    def run_with(constant):
        with attach(SD, FKSteering(lambda x: brightness(x) + constant, scale=1.0), particles=K, seed=5) as run:
            return run_sd(K), run

    (images, base), (again, moved) = run_with(0.0), run_with(1024.0)
    assert torch.equal(images, again)
    same_ancestors(base, moved)
    assert torch.allclose(moved.log_evidence - base.log_evidence, torch.full((P,), 1024.0, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("candidates", [1, 3])
def test_huge_rewards_of_tokens_stay_finite(size, candidates):
    def reward(tokens):
        return size * (1.0 + twos_and_ends(tokens))

    control = FKSteering(reward, 50.0, on="tokens") if candidates == 1 else SOFT(reward, 0.02, candidates, on="tokens")
    with attach(TOKENS, control, particles=K, seed=0) as run:
        run_tokens(K * candidates)
    for values in (run.log_weights, run.log_evidence, run.log_tilt, run.ess):
        assert bool(values.isfinite().all())
    assert bool((run.weights.sum(dim=1) - 1.0).abs().max() < 1e-12)


def test_equal_rewards_never_resample():
    control = FKSteering(lambda x: torch.full((len(x),), 7.0), scale=50.0, on="tokens")
    with attach(TOKENS, control, particles=K, seed=0, ess_threshold=0.999) as run:
        tokens = run_tokens(K)
    assert all(ancestors is None for ancestors in run.ancestors)
    assert torch.allclose(run.ess, torch.full((P,), float(K), dtype=torch.float64))
    assert torch.equal(tokens, run_tokens(K))


@pytest.mark.parametrize("size", [1e8, -1e8])
def test_an_extreme_prompt_leaves_the_other_alone(size, monkeypatch):
    def run_with(factor, first=1.0):
        rewards = [lambda images: first * brightness(images), lambda images: factor * brightness(images)]
        with attach(
            SD, FKSteering(rewards, scale=1.0), particles=K, seed=5, ess_threshold=0.95, resampler="multinomial"
        ) as run:
            return run_sd(K), run

    (images, calm), (extreme, wild) = run_with(1.0), run_with(size)
    assert torch.equal(images[:K], extreme[:K])
    assert torch.equal(calm.log_weights[0], wild.log_weights[0])
    assert torch.equal(calm.log_evidence[0], wild.log_evidence[0])
    assert not torch.equal(images[K:], extreme[K:])
    assert bool(wild.log_weights.isfinite().all())

    # negative control: one threshold for all prompts, as if they were one population
    honest = particles_module.Population.resampled

    def together(self, generators, *, scheme, threshold):
        if bool((self.ess < threshold * K).any()):
            threshold = 1.1
        return honest(self, generators, scheme=scheme, threshold=threshold)

    monkeypatch.setattr(particles_module.Population, "resampled", together)
    (images, _), (extreme, _) = run_with(1e-9, first=1e-3), run_with(size, first=1e-3)
    assert not torch.equal(images[:K], extreme[:K])


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_half_and_weights_stay_double(dtype):
    pipe = row("sd_eta1").build().to(dtype)
    seen = set()

    def judge(latents):
        seen.add(latents.dtype)
        return contrast(latents)

    control = FKSteering(judge, scale=20.0, on="latents", value="denoised")
    with attach(pipe, control, particles=K, populations=P, seed=0, ess_threshold=1.1) as run:
        latents = run_sd(K, pipe=pipe, output_type="latent")
    assert latents.dtype == dtype
    assert latents.isfinite().all()
    assert torch.equal(latents, run.samples())
    assert seen == {torch.float32, dtype}  # x0-hat on the way, the pipeline's own in the end
    assert {run.log_weights.dtype, run.log_evidence.dtype, run.rewards.dtype} == {torch.float64}
    assert next(pipe.unet.parameters()).dtype == dtype
    again = run_sd(K, pipe=pipe, output_type="latent")
    with attach(pipe, FKSteering(judge, scale=0.0, on="latents"), particles=K, seed=0):
        assert torch.equal(run_sd(K, pipe=pipe, output_type="latent"), again)


def test_the_stochastic_step_returns_the_dtype_of_the_pipeline():
    pipe = row("sd_eta1").build().to(torch.bfloat16)
    control = FKSteering(contrast, scale=5.0, on="latents", gradient=Gradient())
    with attach(pipe, control, particles=K, populations=P, seed=0, transition="stochastic") as run:
        latents = run_sd(K, pipe=pipe, output_type="latent")
    assert latents.dtype == torch.bfloat16
    assert run.log_weights.dtype == torch.float64
    assert bool(run.log_weights.isfinite().all())


# --- compiled and offloaded denoisers --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_compiled_denoiser_is_compiled_once(chunk):
    """Resampling, children and chunks leave it one shape. Negative control: another batch costs another graph."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append([tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)])
        return graph.forward

    pipe = row("ddim").build()
    plain = row("ddim").build()
    pipe.unet = torch.compile(pipe.unet, backend=backend, dynamic=False)
    kinds = {
        "resampled": FKSteering(contrast, scale=20.0, on="latents"),
        "soft": SOFT(contrast, 0.05, candidates=2, then=(1,), on="latents", when=every(2)),
    }
    counts = {}
    for name, control in kinds.items():
        images = []
        for made in (plain, pipe):
            with attach(made, control, particles=16 // control.candidates // 2, seed=0, ess_threshold=1.1,
                        chunk_size=chunk) as run:  # fmt: skip
                images.append(
                    made(batch_size=16, num_inference_steps=6, eta=1.0, generator=torch.Generator().manual_seed(0),
                         output_type="pt").images
                )  # fmt: skip
            assert any(a is not None for a in run.ancestors)
        torch.testing.assert_close(*images, rtol=0, atol=1e-5)
        counts[name] = len(graphs)
    assert counts["resampled"] >= 1
    assert counts["soft"] == counts["resampled"]  # the same batch: no further graph
    if chunk is None:
        pipe(batch_size=6, num_inference_steps=2, eta=1.0, output_type="pt")
        assert len(graphs) > counts["soft"]
    torch._dynamo.reset()


@pytest.mark.parametrize("chunk", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_offloaded_weights(chunk):
    """Parameters live elsewhere and are fetched by hooks at each call; the steered run has the same bits."""
    images, plain = steered("images", chunk_size=chunk)
    pipe = row("sd_eta1").build().to(torch.float64)
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    accelerate.cpu_offload(pipe.vae, execution_device=torch.device("cpu"))
    assert next(pipe.unet.parameters()).device.type == "meta"
    control = FKSteering(brightness, scale=1.0)
    with attach(pipe, control, particles=K, populations=P, seed=5, ess_threshold=0.95, chunk_size=chunk) as run:
        again = run_sd(K, pipe=pipe)
    assert torch.equal(images, again)
    same_ancestors(plain, run)
    assert next(pipe.unet.parameters()).device.type == "meta"
    assert torch.equal(run_sd(K, pipe=pipe), run_sd(K))  # and after the block
