"""Steering masked diffusion through the real pipeline, against the enumerated target."""

import math

import pytest
import torch

from feynkac.fkc.testing import ZTest
from feynkac.steering import Draws, FKSteering, SoftValueGuidance, attach
from feynkac.steering.testing import EnumeratedMaskedModel, total_variation, twos_and_ends

diffusers = pytest.importorskip("diffusers")
from feynkac.steering.discrete import MaskedDiffusionPipeline, MaskedDiffusionScheduler  # noqa: E402
from feynkac.steering.testing import EnumeratedDenoiser  # noqa: E402

MODEL = EnumeratedMaskedModel()


def steered(control, *, particles, populations, seed=0, candidates=1):
    """Evidence (P,), weighted law of each population (P, 27), and the run."""
    pipe = PIPE
    rows = particles * populations * candidates
    with attach(pipe, control, particles=particles, populations=populations, seed=seed) as run:
        out = pipe(batch_size=rows, num_inference_steps=6, generator=torch.Generator().manual_seed(seed))
    if candidates == 1:
        assert torch.equal(out.tokens, run.samples())
    index = MODEL.sequence_index(run.samples()).reshape(populations, particles)
    law = torch.zeros(populations, 27, dtype=torch.float64).scatter_add(1, index, run.weights)
    return run.log_evidence.exp(), law, run


PIPE = MaskedDiffusionPipeline(EnumeratedDenoiser(), MaskedDiffusionScheduler(3))
PIPE.set_progress_bar_config(disable=True)


def fk(scale, draws=0, potential="difference", **options):
    value = Draws(draws) if draws else "denoised"
    return FKSteering(twos_and_ends, scale, potential=potential, value=value, on="tokens", **options)


@pytest.mark.parametrize("draws", [0, 4])
@pytest.mark.parametrize(("potential", "scale"), [("difference", 2.0), ("max", 1.0)])  # max has heavy tails at 2
def test_fk_steering_of_tokens(draws, potential, scale):
    target = MODEL.tilted(twos_and_ends, scale)
    K, P = 500, 24
    evidence, laws, run = steered(fk(scale, draws, potential), particles=K, populations=P)
    assert ZTest.from_samples(evidence, target.evidence).passed
    spread = float((target.law * (1 - target.law)).sqrt().sum())
    distances = torch.tensor([total_variation(law, target.law) for law in laws])
    assert float(distances.mean()) <= 2 * 2.5 * 0.4 * spread / math.sqrt(K)
    pooled = (evidence[:, None] * laws).sum(dim=0) / evidence.sum()  # as one population of P K particles would have it
    assert total_variation(pooled, target.law) <= 0.05
    assert total_variation(laws.mean(dim=0), MODEL.sampler_law) > 0.2  # what an unsteered run would give
    assert any(ancestors is not None for ancestors in run.ancestors)


def test_evidence_of_small_populations_is_unbiased():
    evidence, _, _ = steered(fk(1.0), particles=4, populations=3000)
    assert ZTest.from_samples(evidence, MODEL.tilted(twos_and_ends, 1.0).evidence).passed


@pytest.mark.parametrize(("particles", "candidates", "populations"), [(1, 8, 2000), (4, 4, 1000), (100, 4, 30)])
def test_soft_value_guidance_of_tokens(particles, candidates, populations):
    control = SoftValueGuidance(twos_and_ends, temperature=1.0, candidates=candidates, on="tokens")
    evidence, _, _ = steered(control, particles=particles, populations=populations, candidates=candidates)
    test = ZTest.from_samples(evidence, MODEL.tilted(twos_and_ends, 1.0).evidence)
    assert test.passed, str(test)


def test_the_pipeline_returns_the_chosen_candidates():
    control = SoftValueGuidance(twos_and_ends, temperature=1.0, candidates=3, on="tokens")
    with attach(PIPE, control, particles=4, populations=2, seed=0) as run:
        out = PIPE(batch_size=24, num_inference_steps=6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out.tokens, run.samples())
    assert len(out.tokens) == 8


def test_draws_of_a_population_are_its_own():
    """The same population alone or beside another: its random completions, and so its ancestors, do not change."""
    _, _, one = steered(fk(1.0, draws=4), particles=8, populations=1)
    _, _, two = steered(fk(1.0, draws=4), particles=8, populations=2)
    first = two.records[0].rewards["twos_and_ends"]
    assert torch.equal(one.records[0].rewards["twos_and_ends"][0], first[0])
    assert not torch.equal(first[0], first[1])


def test_scale_zero_is_the_unsteered_pipeline():
    plain = PIPE(batch_size=6, num_inference_steps=6, generator=torch.Generator().manual_seed(1)).tokens
    with attach(PIPE, fk(0.0), particles=6, seed=3):
        again = PIPE(batch_size=6, num_inference_steps=6, generator=torch.Generator().manual_seed(1)).tokens
    assert torch.equal(plain, again)


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="n: got 0"):
        Draws(0)
    with pytest.raises(ValueError, match="scale: got inf"):
        fk(math.inf)
