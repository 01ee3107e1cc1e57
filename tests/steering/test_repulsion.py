"""Repulsion as a control: the biased law, its evidence and the undone weights against closed form.

The truth is the law of a real DDIMPipeline at its 20 steps, N(0.49997, 0.43825), times exp(-V/kT), by quadrature.
"""

import dataclasses
import math
from importlib.resources import files

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from feynkac.fkc import NonFiniteWeightWarning
from feynkac.fkc.bias import BiasVariable, GridAxis, RepulsionBias
from feynkac.fkc.testing import ZTest
from feynkac.steering import FKSteering, Gradient, SoftValueGuidance, SteeringError, attach, every
from feynkac.steering.pixel_pipeline import load_pipeline
from feynkac.steering.repulsion import Repulsion
from feynkac.steering.resume import described
from feynkac.steering.rewards import Brightness
from feynkac.steering.testing import EnumeratedDenoiser, EnumeratedMaskedModel

from .gaussian_pipe import CASES, gaussian_chain, gaussian_pipe, run_pipe, steered

KT = 1.5
PIXEL = BiasVariable("pixel", sigma=0.35)
NODES = torch.linspace(-5.0, 5.0, 6001, dtype=torch.float64)
CENTERS = torch.tensor([[0.3], [0.5], [0.9], [1.1]], dtype=torch.float64)


def empty(**options):
    settings = {"kT": KT, "bias_factor": 8.0, "height": 3.0, "grid": [GridAxis(-5.0, 5.0, 150)]} | options
    return RepulsionBias.well_tempered([PIXEL], **settings)


def grown():
    """A bias of about two kT where the samples are."""
    return empty().deposited(CENTERS).deposited(CENTERS)


def pixel(x):
    return x.double().flatten(1)


def repulsion(bias=None, **options):
    return Repulsion(grown() if bias is None else bias, pixel, on="latents", **options)


@pytest.fixture(scope="module")
def pipe():
    return gaussian_pipe()


def law(bias, tilt=None):
    """log Z and the mean of the biased law, and of the one without bias."""
    chain = gaussian_chain()
    log_p = -0.5 * (NODES - chain.mean).square() / chain.variance
    log_p = log_p.log_softmax(0) + (0.0 if tilt is None else tilt(NODES))
    log_w = log_p - bias(NODES[:, None]) / KT
    means = [float((log.softmax(0) * NODES).sum()) for log in (log_w, log_p)]
    return float(log_w.logsumexp(0)), float(log_p.logsumexp(0)), *means


def means_of(run, log_weights):
    """(P,) weighted means of the pixel."""
    x = run.samples().double().reshape(log_weights.shape)
    return (log_weights.softmax(dim=1) * x).sum(dim=1)


def agrees(values, exact, particles):
    """Within five standard errors, and ten times the bias of order 1/K that ratios have."""
    error = float(values.std()) / math.sqrt(len(values))
    return abs(float(values.mean()) - exact) < 5 * error + 10 / particles


CONTROLS = {
    "difference": (lambda: repulsion(), {}),
    "every 3": (lambda: repulsion(when=every(3)), {}),
    "max": (lambda: repulsion(potential="max", when=every(4)), {}),
    "sum": (lambda: repulsion(potential="sum", when=every(5)), {}),
    "lag": (lambda: repulsion(lag=1), {}),
    "end alone": (lambda: repulsion(when=()), {}),
    "resampled": (lambda: repulsion(), {"final": "resampled"}),
    "gradient": (
        lambda: repulsion(gradient=Gradient(data_variance=0.64)), {"transition": "stochastic", "eta": 0.0}
    ),
    "gradient through the denoiser": (
        lambda: repulsion(gradient=Gradient(through="denoiser")), {"transition": "stochastic", "eta": 0.0}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTROLS)
def test_the_law_its_evidence_and_the_way_back(pipe, name):
    make, options = CONTROLS[name]
    control = make()
    log_z, _, mean, plain = law(control.bias)
    assert abs(mean - plain) > 0.1  # what is told apart
    run = steered(pipe, control, particles=300, populations=40, **options)
    assert ZTest.from_samples((run.log_evidence - log_z).exp(), 1.0).passed
    assert agrees(means_of(run, run.log_weights), mean, 300)
    back = control.reweight(run)
    assert agrees(means_of(run, back), plain, 300)
    assert ZTest.from_samples(back.exp().mean(dim=1), 1.0).passed  # the plain law has evidence 1


def test_forgetting_to_undo_and_undoing_by_the_next_bias_are_caught(pipe):
    control = repulsion()
    _, _, _, plain = law(control.bias)
    run = steered(pipe, control, particles=300, populations=40)
    assert agrees(means_of(run, control.reweight(run)), plain, 300)
    assert not agrees(means_of(run, run.log_weights), plain, 300)
    later = control.deposited(run).bias
    wrong = later.reweight(control.values(run).flatten(0, 1), run.log_weights.flatten()).reshape(40, 300)
    assert not agrees(means_of(run, wrong), plain, 300)
    wrong = wrong + run.population.log_base[:, None]
    assert not ZTest.from_samples(wrong.exp().mean(dim=1), 1.0).passed


def test_composed_with_a_reward_it_leaves_the_rewards_law(pipe):
    reward, scale = CASES["Q1"]
    control = repulsion()
    log_z, log_plain, mean, plain = law(control.bias, lambda x: scale * reward(x[:, None]))
    run = steered(pipe, FKSteering(reward, scale=scale, on="latents"), control, particles=300, populations=60)
    assert ZTest.from_samples((run.log_evidence - log_z).exp(), 1.0).passed
    assert agrees(means_of(run, run.log_weights), mean, 300)
    back = control.reweight(run)
    assert agrees(means_of(run, back), plain, 300)
    assert ZTest.from_samples((back - log_plain).exp().mean(dim=1), 1.0).passed


def test_two_repulsions_of_the_same_variable_are_told_apart(pipe):
    one, two = repulsion(), repulsion(empty(height=1.0).deposited(CENTERS - 1.0))
    run = steered(pipe, one, two, particles=20, populations=2)
    names = list(run.rewards_by_control)
    for control, name in zip((one, two), names, strict=True):
        energies = run.rewards_by_control[name]
        values = control.values(run)
        assert torch.allclose(-control.bias(values.flatten(0, 1)).reshape(2, 20) / KT, energies, atol=1e-12)
        undone = run.log_weights + run.population.log_base[:, None] - energies
        assert torch.equal(control.reweight(run), undone)


def test_the_bias_of_soft_values_children(pipe):
    """Candidates are chosen and permuted; the features stay with their samples."""
    soft = SoftValueGuidance(CASES["L1"][0], temperature=1.0, candidates=3, on="latents")
    control = repulsion()
    run = steered(pipe, soft, control, particles=15, populations=3, final="resampled")
    assert torch.equal(control.values(run).flatten(), run.samples().double().flatten())


# --- what is carried -------------------------------------------------------------------------------------------------


class Counted:
    """Features that differ at every call: to measure twice would be seen."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        noise = torch.rand(len(x), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(self.calls))
        return pixel(x) + 1e-3 * noise


@pytest.mark.parametrize("final", ["weighted", "resampled"])
def test_values_are_those_measured_and_never_asked_for_again(pipe, final):
    features = Counted()
    control = Repulsion(grown(), features, on="latents", chunk_size=7)
    run = steered(pipe, control, particles=16, populations=2, final=final)
    calls = features.calls
    values = control.values(run)
    after = control.deposited(run, time=4.0).bias
    control.reweight(run)
    assert features.calls == calls
    energies = -control.bias(values.flatten(0, 1)).reshape(2, 16) / KT
    assert torch.equal(energies, run.rewards_by_control[control.name])
    weights = control.log_weights(run).flatten()
    by_hand = control.bias.deposited(values.flatten(0, 1), weights)
    assert torch.equal(by_hand(NODES[:, None]), after(NODES[:, None]))
    assert after.counts.batches == control.bias.counts.batches + 1


def test_populations_count_by_their_evidence(pipe):
    control = repulsion()
    run = steered(pipe, control, particles=8, populations=3, ess_threshold=1.1)
    weights = control.log_weights(run)
    assert torch.allclose(weights.exp().mean(dim=1).log(), run.log_evidence)
    assert float((run.log_evidence.max() - run.log_evidence.min()).abs()) > 0.01
    equal = control.bias.deposited(control.values(run).flatten(0, 1), run.log_weights.flatten())
    assert float((equal(NODES[:, None]) - control.deposited(run).bias(NODES[:, None])).abs().max()) > 1e-4


def test_an_empty_bias_is_the_plain_pipeline(pipe):
    features = Counted()
    control = Repulsion(empty(), features, on="latents")
    plain = run_pipe(pipe, 12)
    with attach(pipe, control, particles=4, seed=0) as run:
        assert (run_pipe(pipe, 12) == plain).all()
    assert features.calls == 1  # at the end alone
    assert float(run.log_weights.abs().max()) == 0.0
    assert float(control.reweight(run).abs().max()) == 0.0
    with attach(pipe, control.deposited(run), particles=4, seed=0, ess_threshold=1.1):
        assert (run_pipe(pipe, 12) != plain).any()


def test_samples_without_features_weigh_nothing(pipe):
    def broken(x):
        return torch.where(pixel(x) > 1.0, math.nan, pixel(x))

    control = Repulsion(grown(), broken, on="latents")
    with pytest.warns(NonFiniteWeightWarning, match=r"repulsion\(pixel\)"):
        run = steered(pipe, control, particles=200, populations=2)
    high = run.samples().double().reshape(2, 200) > 1.0
    assert bool(high.any())
    assert bool((run.log_weights[high] == -math.inf).all())
    assert bool((control.reweight(run)[high] == -math.inf).all())
    assert bool(control.values(run)[..., 0].isnan().eq(high).all())
    counts = control.deposited(run).bias.counts
    assert counts.invalid == int(high.sum())
    assert any("impossible" in note for note in run.notes)


def test_a_sample_for_which_features_raise_is_contained(pipe):
    def fails(x):
        if bool((pixel(x) > 1.2).any()):
            raise RuntimeError("no face found")
        return pixel(x)

    control = Repulsion(grown(), fails, on="latents", when=())
    with pytest.warns(NonFiniteWeightWarning, match="no face found"):
        run = steered(pipe, control, particles=60, populations=1)
    high = run.samples().double().reshape(1, 60) > 1.2
    assert bool(control.values(run)[..., 0].isnan().eq(high).all())


def test_what_cannot_be_asked_is_refused(pipe):
    control = repulsion()
    run = steered(pipe, control, particles=4, populations=1)
    other = steered(pipe, repulsion(), particles=4, populations=1, seed=9, noise=5)
    with pytest.raises(SteeringError, match="not measured by this control"):
        control.values(other)
    with pytest.raises(SteeringError, match="was not attached"):
        control.reweight(steered(pipe, FKSteering(CASES["L1"][0], scale=1.0, on="latents"), particles=4, populations=1))
    best = repulsion()
    with pytest.raises(SteeringError, match="no exact weights"):
        best.reweight(steered(pipe, best, particles=4, populations=1, final="best"))
    with pytest.raises(ValueError, match="expected a RepulsionBias"):
        Repulsion(lambda s: s, pixel)
    with pytest.raises(ValueError, match="callable of samples"):
        Repulsion(grown(), 3.0)
    with pytest.raises(ValueError, match=r"returned \(4, 2\) for 4 samples, expected \(4, 1\)"):
        steered(pipe, Repulsion(grown(), lambda x: x.flatten(1).repeat(1, 2), on="latents"), particles=4, populations=1)
    assert described(control) == described(repulsion())
    assert described(control) != described(control.deposited(run))  # a checkpoint of another bias is another run
    assert dataclasses.is_dataclass(control)


# --- images ---------------------------------------------------------------------------------------------------------


def decoded(latents):
    """As the pipeline does; PIL images cannot have a single pixel."""
    return (latents / 2 + 0.5).clamp(0.0, 1.0)


@pytest.mark.parametrize("gradient", [None, Gradient(data_variance=0.64)])
def test_features_of_images_as_the_pipeline_decodes_them(pipe, gradient):
    """Brightness of the decoded pixel, which is clipped: the law by quadrature through the clipping."""
    variable = BiasVariable("brightness", sigma=0.1)
    bias = RepulsionBias.well_tempered([variable], kT=KT, bias_factor=8.0, height=4.0, grid=[GridAxis(-0.5, 1.5, 100)])
    bias = bias.deposited(torch.tensor([[0.7], [0.8], [0.95]], dtype=torch.float64))
    control = Repulsion(bias, Brightness(), gradient=gradient)
    options = {} if gradient is None else {"transition": "stochastic", "eta": 0.0}
    run = steered(pipe, control, particles=300, populations=40, decode=decoded, **options)
    chain = gaussian_chain()
    log_p = (-0.5 * (NODES - chain.mean).square() / chain.variance).log_softmax(0)
    seen = (NODES / 2 + 0.5).clamp(0.0, 1.0)
    log_z = float((log_p - bias(seen[:, None]) / KT).logsumexp(0))
    assert abs(log_z) > 0.2
    assert ZTest.from_samples((run.log_evidence - log_z).exp(), 1.0).passed
    assert agrees(means_of(run, control.reweight(run)), chain.mean, 300)
    assert not agrees(means_of(run, run.log_weights), chain.mean, 300)
    x = run.samples().double().flatten()
    assert torch.allclose(control.values(run).flatten(), (x / 2 + 0.5).clamp(0.0, 1.0), atol=0.003)


@pytest.mark.parametrize("gradient", [None, Gradient()])
def test_what_features_of_images_are_given(gradient):
    """A list of PIL images, whatever the output; for a gradient a tensor besides."""
    digits = load_pipeline(files("feynkac.data") / "digits_diffusion")
    digits.set_progress_bar_config(disable=True)
    given = set()

    def ink(images):
        if isinstance(images, torch.Tensor):
            given.add(("tensor", tuple(images.shape[1:]), images.requires_grad))
            return images.flatten(1).mean(dim=1)
        given.update((type(images).__name__, image.mode, image.size) for image in images)
        return torch.tensor([np.asarray(image).mean() / 255 for image in images])

    bias = RepulsionBias.well_tempered([BiasVariable("ink", sigma=0.02)], kT=1.0, bias_factor=10.0, height=3.0)
    control = Repulsion(bias.deposited(torch.tensor([[0.3]], dtype=torch.float64)), ink, gradient=gradient)
    with attach(digits, control, particles=3, seed=0, transition="stochastic") as run:
        digits(class_labels=[3], num_images_per_label=3, num_inference_steps=3, output_type="pt")
    assert torch.isfinite(control.values(run)).all()
    graph = set() if gradient is None else {("tensor", (1, 8, 8), True)}
    assert given == {("list", "L", (8, 8))} | graph


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_against_the_enumerated_law():
    """Masked diffusion repelled by the number of twos: the whole law of 27 sequences, biased and undone."""
    from feynkac.steering.discrete import MaskedDiffusionPipeline, MaskedDiffusionScheduler

    model = EnumeratedMaskedModel()
    pipe = MaskedDiffusionPipeline(EnumeratedDenoiser(), MaskedDiffusionScheduler(3))
    pipe.set_progress_bar_config(disable=True)

    def twos(tokens):
        return (tokens == 2).sum(dim=1).double()

    variable = BiasVariable("twos", sigma=0.5)
    bias = RepulsionBias.well_tempered([variable], kT=1.0, bias_factor=5.0, height=3.0)
    bias = bias.deposited(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    control = Repulsion(bias, twos, on="tokens")
    with attach(pipe, control, particles=400, populations=30, seed=1) as run:
        pipe(batch_size=12000, num_inference_steps=6, generator=torch.Generator().manual_seed(1))
    every_one = torch.cartesian_prod(*[torch.arange(3)] * 3)
    order = model.sequence_index(every_one)
    energies = torch.zeros(27, dtype=torch.float64).index_copy(0, order, -bias(twos(every_one)[:, None]))
    exact = (model.sampler_law.log() + energies).exp()
    assert ZTest.from_samples(run.log_evidence.exp(), float(exact.sum())).passed
    index = model.sequence_index(run.samples()).reshape(30, 400)

    def distance(log_weights, law):
        weights = log_weights.softmax(dim=1)
        found = torch.zeros(30, 27, dtype=torch.float64).scatter_add(1, index, weights).mean(dim=0)
        return float(0.5 * (found - law).abs().sum())

    assert distance(run.log_weights, exact / exact.sum()) < 0.04
    assert distance(control.reweight(run), model.sampler_law) < 0.04
    assert distance(run.log_weights, model.sampler_law) > 0.1
