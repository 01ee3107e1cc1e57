"""Steering of every pipeline of the zoo, resampled at every step: weights multiply to exactly exp(lambda r) along every
lineage, the reward at the end is that of the images returned, and nothing is left behind."""

import numpy as np
import pytest
import torch

from feynkac.steering import FKSteering, Guidance, SoftValueGuidance, attach
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
