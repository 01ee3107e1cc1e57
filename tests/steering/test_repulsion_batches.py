"""Batch after batch of a pipeline: the rare mode of a lopsided mixture, all batches undone; projections."""

import math

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from diffusers import DDIMPipeline  # noqa: E402

from feynkac.fkc.bias import BiasVariable, GridAxis, RepulsionBias  # noqa: E402
from feynkac.fkc.testing import ZTest  # noqa: E402
from feynkac.steering import FKSteering, SteeringError  # noqa: E402
from feynkac.steering.projection import Projection  # noqa: E402
from feynkac.steering.repel import repel, repelled_batches  # noqa: E402
from feynkac.steering.repulsion import Repulsion  # noqa: E402
from feynkac.steering.schedulers import rule_for  # noqa: E402
from feynkac.steering.testing import MixtureDenoiser, kernel_quadrature, mixture_posterior_mean  # noqa: E402

from .gaussian_pipe import STEPS, ddim  # noqa: E402

MODES = ((0.04, 0.96), (-1.5, 1.2), (0.3, 0.4))
PIXEL = BiasVariable("pixel", sigma=0.3)
CALL = {"num_inference_steps": STEPS, "eta": 1.0, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe():
    made = DDIMPipeline(MixtureDenoiser(*MODES), ddim())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def share():
    """Of the rare mode, in the sampler's own law at its 20 steps."""
    scheduler = ddim()
    scheduler.set_timesteps(STEPS)
    law = kernel_quadrature(
        rule_for(scheduler).levels(scheduler), mixture_posterior_mean(*MODES), eta=1.0, n_points=2001
    )
    return law.mean(lambda x: (x < -0.3).double())


def pixel(x):
    return x.double().flatten(1)


def empty(**options):
    settings = {"kT": 1.0, "bias_factor": 20.0, "height": 2.5, "grid": [GridAxis(-4.0, 4.0, 120)]} | options
    return RepulsionBias.well_tempered([PIXEL], **settings)


def repulsion(**options):
    return Repulsion(empty(**options), pixel, on="latents")


def rare(values):
    return (values[..., 0] < -0.3).double()


@pytest.fixture(scope="module")
def batches(pipe):
    return repel(pipe, repulsion(), batches=8, frozen_batches=3, particles=60, populations=4, seed=2, **CALL)


def test_what_the_batches_hold(batches):
    assert len(batches.batches) == len(batches.outputs) == 11
    assert batches.values.shape == (11, 4, 60, 1)
    assert batches.log_weights.shape == (11, 4, 60)
    assert [one.bias.counts.batches for one in batches.batches] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    assert batches.bias.counts.batches == 8
    assert float(batches.batches[0].log_weights.abs().max()) == 0.0
    assert batches.outputs[0].images.shape == (240, 1, 1, 1)
    occupied = batches.occupied()
    assert occupied == sorted(occupied)
    evidence = torch.cat([one.log_evidence.exp() for one in batches.batches])
    assert ZTest.from_samples(evidence, 1.0).passed


def test_the_rare_mode_is_reached_and_weighs_what_it_should(batches, share):
    biased = [
        float((one.round.drawn.log_weights.softmax(0) * rare(one.values).flatten()).sum()) for one in batches.batches
    ]
    assert biased[0] < 0.12
    assert sum(biased[-3:]) / 3 > 0.25
    for how in ("mixture", "sequential"):
        pooled = batches.pooled(how)
        f = rare(pooled.values)
        assert ZTest(float(pooled.mean(f)), float(pooled.std_error(f)), share, limit=4.0).passed
        raw = float(torch.tensor(biased).mean())
        assert abs(raw - share) > 6 * float(pooled.std_error(f))  # not undone: the negative control
    plain_error = math.sqrt(share * (1 - share) / batches.values.numel())
    assert float(batches.pooled().std_error(rare(pooled.values))) < 1.5 * plain_error


def test_coverage_grows_beyond_that_of_plain_draws(pipe, batches):
    plain = repel(pipe, repulsion(), batches=0, frozen_batches=11, particles=60, populations=4, seed=2, **CALL)
    assert plain.bias.counts.batches == 0
    assert batches.occupied([0.1])[-1] > plain.occupied([0.1])[-1] + 3


@pytest.mark.slow
def test_every_round_is_unbiased_over_repeats(pipe, share):
    """Mean of undone weights times the share, batch by batch, over 40 independent repeats of the whole."""
    found = []
    for seed in range(40):
        made = repel(pipe, repulsion(), batches=4, particles=40, populations=1, seed=100 + seed, **CALL)
        found.append((made.log_weights.exp() * rare(made.values)).mean(dim=(1, 2)))
    found = torch.stack(found)
    assert ZTest.from_samples(found.mean(dim=1), share).passed
    assert ZTest.from_samples(found[:, -1], share).passed


def test_stopped_and_gone_on_has_the_same_bits(pipe, batches):
    settings = {"batches": 8, "frozen_batches": 3, "particles": 60, "populations": 4, "seed": 2}
    kept = RepulsionBias.from_state_dict(batches.batches[6].following.state_dict())
    rest = list(repelled_batches(pipe, repulsion().with_bias(kept), first=7, **settings, **CALL))
    assert [one.index for one in rest] == [7, 8, 9, 10]
    for one, two in zip(batches.batches[7:], rest, strict=True):
        assert (one.output.images == two.output.images).all()
        assert torch.equal(one.log_weights, two.log_weights)
    wrong = list(repelled_batches(pipe, repulsion(), first=9, **settings, **CALL))
    assert not torch.equal(wrong[0].log_weights, rest[2].log_weights)


def test_with_another_control_and_opes(pipe):
    """OPES, and a reward beside it: evidences stay those of the reward's own law."""
    reward = FKSteering(lambda x: -x.double().flatten(), scale=0.5, on="latents")
    bias = RepulsionBias.opes([PIXEL], kT=1.0, barrier=4.0)
    made = repel(
        pipe, Repulsion(bias, pixel, on="latents"), reward, batches=5, particles=100, populations=6, seed=4, **CALL
    )
    first = made.batches[0].log_evidence
    rest = torch.cat([one.log_evidence for one in made.batches[1:]])
    difference = float(rest.exp().mean() - first.exp().mean())
    error = math.sqrt(float(rest.exp().var()) / len(rest) + float(first.exp().var()) / len(first))
    assert abs(difference) < 5 * error


def test_a_pipeline_that_cannot_be_steered_is_refused(pipe):
    call = CALL | {"eta": 0.0}
    with pytest.raises(SteeringError):
        repel(pipe, repulsion(), batches=1, particles=4, populations=1, seed=0, **call)
    with pytest.raises(ValueError, match="rounds"):
        repel(pipe, repulsion(), batches=0, particles=4, populations=1, seed=0, **CALL)


# --- projections -----------------------------------------------------------------------------------------------------


def cloud(n=600):
    """Three classes in five dimensions, apart along two directions; large noise along a third."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(n) % 3
    centers = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    x[:, :2] += centers[classes]
    x[:, 2] *= 20.0
    return x, classes


def identity(x):
    return x


def test_pca_is_whitened_and_ordered():
    x, _ = cloud()
    found = Projection.pca(identity, x, 3)
    values = found(x)
    assert torch.allclose(values.T.cov(), torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(values.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert found.matrix[:, 0].abs().argmax() == 2  # the widest direction first
    assert bool((found.matrix.gather(0, found.matrix.abs().argmax(dim=0, keepdim=True)) > 0).all())
    with pytest.raises(ValueError, match="dimension: got 6"):
        Projection.pca(identity, x, 6)


def test_the_discriminant_looks_past_the_noise():
    x, classes = cloud()
    found = Projection.discriminant(identity, x, classes, 2)
    values = found(x)
    within = torch.cat([values[classes == c] - values[classes == c].mean(dim=0) for c in range(3)])
    assert torch.allclose(within.T @ within / (len(x) - 3), torch.eye(2, dtype=torch.float64), atol=0.03)
    assert float(found.matrix[2].abs().max()) < 0.02
    means = torch.stack([values[classes == c].mean(dim=0) for c in range(3)])
    assert float(torch.pdist(means).min()) > 3.0
    plain = Projection.pca(identity, x, 2)(x)
    blurred = torch.stack([plain[classes == c].mean(dim=0) for c in range(3)])
    assert float(torch.pdist(blurred).min()) < 3.0
    with pytest.raises(ValueError, match="fewer dimensions"):
        Projection.discriminant(identity, x, classes, 3)


def test_a_projection_is_kept_and_differentiable(tmp_path):
    x, classes = cloud()
    found = Projection.discriminant(identity, x, classes, 2)
    found.save(tmp_path / "plane.safetensors")
    again = Projection.load(tmp_path / "plane.safetensors", identity)
    assert torch.equal(again(x), found(x))
    leaf = x[:4].clone().requires_grad_()
    (slope,) = torch.autograd.grad(found(leaf)[:, 0].sum(), leaf)
    assert torch.allclose(slope, found.matrix[:, 0].expand(4, -1))
    with pytest.raises(ValueError, match="expected"):
        Projection(identity, found.matrix, found.mean[:2])
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="holds"):
        Projection.load(tmp_path / "other.safetensors", identity)
