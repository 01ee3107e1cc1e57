"""Steering of every pipeline of the zoo, resampled at every step: weights multiply to exactly exp(lambda r) along every
lineage, the reward at the end is that of the images returned, and nothing is left behind."""

import numpy as np
import pytest
import torch

from feynkac.steering import (
    Annealed,
    FKSteering,
    Guidance,
    Product,
    SoftValueGuidance,
    SteeringError,
    attach,
    expert_of,
)
from feynkac.steering.particles import Particles

from .zoo import MODULAR_ROWS, ROWS, media, row

pytestmark = pytest.mark.slow

K, STEPS = 3, 4
SCALE = 3000.0  # rewards of random weights differ in the third digit
ALL = [*ROWS, *MODULAR_ROWS]


def brightness(images):
    """Mean of the pixels of PIL images, of lists of frames, or of arrays."""
    return [
        float(np.mean([np.asarray(frame, dtype=np.float64) / 255.0 for frame in (x if isinstance(x, list) else [x])]))
        for x in images
    ]


def transition(case):
    return "native" if case.stochastic else "stochastic"


def lineage_sums(run):
    """Sum of all increments along the path of each final particle (P, K), the last correction included."""
    last = run.records[-1]
    carried = last.population.log_weights if last.ancestors is None else torch.zeros_like(run.log_weights)
    summed = run.log_weights - carried
    place = torch.arange(summed.shape[1]).expand_as(summed)
    for record in reversed(run.records):
        if record.ancestors is not None:
            place = record.ancestors.gather(1, place)
        if record.log_potential is not None:
            summed = summed + record.log_potential.gather(1, place)
    return summed


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_weights_multiply_to_the_tilt_on_every_pipeline(case):
    pipe = case.build()
    base = type(pipe.scheduler)
    control = FKSteering(brightness, scale=SCALE)
    with attach(pipe, control, particles=K, seed=1, ess_threshold=1.1, transition=transition(case)) as run:
        out = media(pipe(**case.call(K, STEPS, output_type="pil")))
    assert type(pipe.scheduler) is base
    assert len(out) == K
    identity = torch.arange(K)[None]
    assert any(not torch.equal(ancestors, identity) for ancestors in run.ancestors)
    assert torch.allclose(lineage_sums(run), run.log_tilt, atol=1e-9)
    assert torch.allclose(run.log_tilt, SCALE * run.rewards)
    assert run.rewards.flatten().tolist() == pytest.approx(brightness(list(out)), abs=2e-6)
    assert run.calls.reward == K * (len(run.records) + 1)
    assert run.calls.decoder == run.calls.reward


def test_memories_that_stay_behind_are_noticed(monkeypatch):
    """Negative control: what was applied to a path is not permuted with its particle."""
    honest = Particles._permute

    def forgetful(self, ancestors, child, live):
        applied = list(self.applied)
        rows = honest(self, ancestors, child, live)
        self.applied = applied
        return rows

    monkeypatch.setattr(Particles, "_permute", forgetful)
    with pytest.raises(AssertionError):
        test_weights_multiply_to_the_tilt_on_every_pipeline(row("sd_eta1"))


@pytest.mark.parametrize(
    "name", ["sd_eta1", "sdxl", "sd3", "flux_true_cfg", "pixart", "dit", "auraflow", "ltx", "wan", "cogvideox"]
)
def test_guidance_is_weighed_on_pipelines(name):
    """Both branches are found whatever their order and batching; every noisy move adds a positive weight (g > 1)."""
    case = row(name)
    pipe = case.build()
    with attach(pipe, Guidance(), particles=K, seed=1, transition="stochastic", ess_threshold=0.0) as run:
        pipe(**case.call(K, STEPS, output_type="pil"))
    gains = [record.log_potential for record in run.records]
    weighed = [gain for gain in gains if gain is not None]  # a last move without noise has no weight
    assert len(weighed) >= STEPS - 1
    assert all(bool((gain > 0.0).all()) for gain in weighed)
    assert torch.allclose(run.log_weights, torch.stack(weighed).sum(dim=0))


NOISY_STARTS = {"sd": 12, "sd_eta1": 12, "sdxl": 12, "sd_inpaint9": 12, "modular_sdxl": 12}
"""Steps from which on the first noise level of their schedules is noise and little else."""

ANNEALED = [
    *("ddpm", "ddim", "sd", "sd_eta1", "sdxl", "sd_inpaint9", "sd3", "flux", "flux_true_cfg", "pixart", "dit"),
    *("auraflow", "cascade", "sana", "ltx", "wan", "cogvideox", "cogvideox_dpm", "animatediff"),
    *("modular_sd3", "modular_sdxl", "modular_wan"),
]


def weighed_composition(control, case, pipe):
    """A run together with a reward, resampled at every step, whose weights multiply along every lineage."""
    steps = NOISY_STARTS.get(case.name, STEPS)
    reward = FKSteering(lambda x: x.flatten(1).mean(dim=1), scale=0.5, on="latents")
    with attach(pipe, control, reward, particles=K, seed=1, ess_threshold=1.1, transition="stochastic") as run:
        out = media(pipe(**case.call(K, steps, output_type="pil")))
    assert len(out) == K == len(run.samples())
    assert run.log_weights.isfinite().all()
    assert run.log_evidence.isfinite().all()
    assert run.samples().isfinite().all()
    assert len(run.records) == steps
    size = run.log_tilt.abs().max().item()
    assert torch.allclose(lineage_sums(run), run.log_tilt, atol=1e-9, rtol=1e-10)
    assert size > 0.0
    return run


@pytest.mark.parametrize("name", ANNEALED)
def test_annealed_pipelines_of_every_kind(name):
    case = row(name)
    run = weighed_composition(Annealed(1.1), case, case.build())
    assert run.calls.denoiser == K * len(run.records)


@pytest.mark.parametrize("name", ["ddpm", "sd", "sdxl", "sd3", "flux", "flux_true_cfg", "pixart", "dit", "wan", "ltx"])
def test_products_of_two_prompts_of_one_pipeline(name):
    """The other prompt (or label) is asked through the same pipeline, two rows at a time, and counts as calls."""
    case = row(name)
    pipe = case.build()
    other = {key: value for key, value in case.arguments.items() if key != "num_inference_steps"}
    if "prompt" in other:
        other["prompt"] = "a blue car"
    if case.many_by == "class_labels":
        other["class_labels"] = 3
    run = weighed_composition(Product(expert_of(pipe, rows=2, **other), exponents=(0.8, 0.4)), case, pipe)
    assert run.calls.denoiser == 2 * K * len(run.records)
    alone = weighed_composition(Annealed(1.2), case, case.build())
    assert not torch.equal(alone.samples(), run.samples())


def moved_by(case, control, pipe):
    """Samples of a run with the composition's moves alone."""
    with attach(pipe, control, particles=K, seed=1, ess_threshold=0.0, transition="stochastic") as run:
        pipe(**case.call(K, 12, output_type="pil"))
    return run.samples().double()


@pytest.mark.parametrize(
    "name",
    [
        *("ddpm", "sd", "sdxl", "sd3", "flux", "flux_true_cfg", "pixart", "dit", "auraflow", "sana", "ltx", "wan"),
        *("cogvideox", "animatediff", "modular_sd3"),
    ],
)
def test_a_pipeline_as_an_expert_says_what_it_says_itself(name):
    """q^0.7 q^0.5 with the second q asked as an expert moves as q^1.2 does: conditioning, times, guidance are met."""
    case = row(name)
    pipe = case.build()
    settings = dict(case.arguments) | ({"class_labels": 7} if case.many_by == "class_labels" else {})
    expert = expert_of(pipe, rows=2, **settings)
    assert "forward" not in vars(getattr(pipe, "unet", None) or pipe.transformer)
    mixed = moved_by(case, Product(expert, exponents=(0.7, 0.5)), pipe)
    plain = moved_by(case, Annealed(1.2), case.build())
    limit = 5e-3 if name == "sana" else 1e-4  # its schedule is not that of its timesteps
    assert (mixed - plain).norm() < limit * plain.norm()
    other = moved_by(case, Annealed(1.1), case.build())
    assert (other - plain).norm() > 3.0 * limit * plain.norm()


@pytest.mark.parametrize(
    ("name", "more", "match"),
    [
        ("sd_img2img", {"strength": 0.95, "num_inference_steps": 20}, "begins at noise-to-signal"),
        ("sd_inpaint4", {}, "blends a background"),
        ("sd_pix2pix", {}, "3 branches"),
        ("svd", {}, "changes over the frames"),
        ("qwen", {}, "not linear"),
        ("lcm", {}, "posterior mean"),
        ("consistency", {}, "posterior mean"),
    ],
)
def test_pipelines_whose_law_is_no_power_are_refused(name, more, match):
    case = row(name)
    pipe = case.build()
    with (
        pytest.raises(SteeringError, match=match),
        attach(pipe, Annealed(1.1), particles=K, seed=1, transition="stochastic"),
    ):
        pipe(**case.call(K, STEPS, output_type="pil") | more)


@pytest.mark.parametrize("name", ["sd_eta1", "flux", "dit", "wan", "cogvideox_dpm"])
def test_candidates_on_pipelines(name):
    case = row(name)
    pipe = case.build()
    control = SoftValueGuidance(lambda x: x.flatten(1).mean(dim=1), temperature=0.1, candidates=2, on="latents")
    with attach(pipe, control, particles=K, seed=1, transition=transition(case)) as run:
        out = media(pipe(**case.call(2 * K, STEPS, output_type="pil")))
    assert len(out) == K == len(run.samples())
    assert run.calls.denoiser == 2 * K * len(run.records)


@pytest.mark.parametrize("name", ["sd_eta1", "sd3", "ltx"])
def test_the_same_seed_gives_the_same_images(name):
    case = row(name)

    def once(seed):
        pipe = case.build()
        control = FKSteering(brightness, scale=SCALE)
        with attach(pipe, control, particles=K, seed=seed, ess_threshold=1.1, transition=transition(case)) as run:
            out = media(pipe(**case.call(K, STEPS, output_type="np", seed=seed)))
        return np.asarray(out), run

    first, run = once(1)
    again, run_again = once(1)
    other, _ = once(2)
    np.testing.assert_array_equal(first, again)
    assert torch.equal(run.log_weights, run_again.log_weights)
    assert np.abs(first - other).max() > 1e-4
