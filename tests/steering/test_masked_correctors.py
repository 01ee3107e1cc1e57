"""Correctors on the models of real masked diffusion pipelines, against enumeration."""

import pytest
import torch

from feynkac.fkc import Annealed, GeometricAverage
from feynkac.fkc.masked import MaskedExpert, sample_corrected_masked
from feynkac.fkc.testing import ZTest
from feynkac.fkc.testing.chains import MaskedPathLaw

pytest.importorskip("diffusers")
from feynkac.steering.discrete import MaskedDenoiser, MaskedDiffusionPipeline, MaskedDiffusionScheduler
from feynkac.steering.discrete.experts import masked_expert
from feynkac.steering.testing import EnumeratedDenoiser, EnumeratedMaskedModel


def network(seed, length=3, vocab=3):
    """A small transformer with random weights, sharpened: no joint law has its conditionals."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MaskedDenoiser(vocab, length, width=16, layers=1, heads=2).eval()
        with torch.no_grad():
            model.head.weight.mul_(3.0)
    return model


def pipeline(model, mask=3):
    pipe = MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(mask))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def agrees(samples, masses):
    """Evidence, and the probability of each of the five likeliest sequences, in z-scores."""
    share = (samples.log_evidence - masses.sum().log()).exp()
    exact = torch.allclose(share, torch.ones(()).double(), atol=1e-9)  # no spread but rounding
    tests = [] if exact else [ZTest.from_samples(share, 1.0)]
    digits = torch.tensor([9, 3, 1])
    for i in masses.argsort(descending=True)[:5].tolist():
        found = share * samples.mean(lambda x, i=i: ((x * digits).sum(-1) == i).double())
        tests.append(ZTest.from_samples(found, float(masses[i] / masses.sum())))
    return all(test.passed for test in tests)


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("reveal", ["even", "independent"])
def test_an_annealed_network_meets_its_path_law(steps, reveal):
    """The truth is the average over patterns' paths of prod_l p(x_l | revealed before)^2: for a network the order of
    the positions matters, and the square of its samples' law is another."""
    expert = masked_expert(pipeline(network(0)))
    law = MaskedPathLaw([expert], [2.0], 3, 3, steps, reveal)
    samples = sample_corrected_masked(
        Annealed(expert, 2.0), particles=100, populations=100, steps=steps, reveal=reveal, seed=1
    )
    assert agrees(samples, law.masses())
    own = MaskedPathLaw([expert], [1.0], 3, 3, steps, reveal).masses()
    assert not agrees(samples, own.square())
    uncorrected = sample_corrected_masked(
        Annealed(expert, 2.0), particles=100, populations=100, steps=steps, reveal=reveal, seed=1, weights="none"
    )
    assert not agrees(uncorrected, law.masses())


def test_guidance_between_two_networks():
    first, second = masked_expert(pipeline(network(1))), masked_expert(pipeline(network(2)))
    target = GeometricAverage(first, second, 2.0)
    samples = sample_corrected_masked(target, particles=200, populations=100, seed=2)
    assert agrees(samples, MaskedPathLaw([first, second], [-1.0, 2.0], 3, 3, 3).masses())
    assert not agrees(samples, MaskedPathLaw([second], [2.0], 3, 3, 3).masses())


@pytest.mark.parametrize("weights", ["kernel", "adapted"])
def test_an_exact_denoiser_gives_the_power_of_the_data_law(weights):
    expert = masked_expert(pipeline(EnumeratedDenoiser()))
    samples = sample_corrected_masked(Annealed(expert, 2.0), particles=100, populations=100, seed=3, weights=weights)
    data = EnumeratedMaskedModel().data_law
    assert agrees(samples, data.square())
    assert not agrees(samples, data)


def test_exponent_one_is_the_pipeline_itself():
    """All weights one, and the law of the pipeline's own sampler at as many steps."""
    expert = masked_expert(pipeline(EnumeratedDenoiser()))
    samples = sample_corrected_masked(
        Annealed(expert, 1.0), particles=200, populations=100, seed=4, steps=2, reveal="independent"
    )
    assert torch.allclose(samples.log_weights, torch.zeros(()).double(), atol=1e-12)
    assert agrees(samples, EnumeratedMaskedModel(num_steps=2).sampler_law)
    assert not agrees(samples, EnumeratedMaskedModel().data_law)


def test_the_pipeline_is_called_as_it_calls_itself():
    """The mask, the length and the time come from the pipeline."""

    class Timed(EnumeratedDenoiser):
        times: list = []  # noqa: RUF012

        def forward(self, tokens, timestep):
            self.times.append(float(timestep))
            return super().forward(tokens)

    expert = masked_expert(pipeline(Timed()))
    assert isinstance(expert, MaskedExpert)
    assert (expert.mask_id, expert.length) == (3, 3)
    sample_corrected_masked(Annealed(expert, 2.0), particles=2, steps=4, seed=0)
    assert Timed.times == [1.0, 1.0, 0.75, 0.5, 0.25]
