"""A molecule as a diffusers pipeline: symmetry of the denoiser, noise levels, training, sampling, steering."""

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from feynkac.fkc.errors import CheckpointError
from feynkac.molecular.diffusion import (
    FitSettings,
    Invariants,
    MoleculeDenoiser,
    MoleculeMismatch,
    MoleculePipeline,
    MoleculeTopology,
    bonded_quadruples,
    fit_denoiser,
    log_uniform_betas,
    molecule_scheduler,
    new_denoiser,
)
from feynkac.molecular.diffusion.levels import vp_ratios
from feynkac.molecular.diffusion.targets import target_of
from feynkac.molecular.diffusion.training import DenoiserFit
from feynkac.steering import FKSteering, attach

pytestmark = [  # diffusers' sigma tables hand tensors to numpy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::feynkac.steering.SteeringWarning"),
]
SHIPPED = Path(__file__).parents[2] / "data" / "alanine_dipeptide_diffusion"

# a chiral centre with four different neighbours, one of which has a neighbour of its own
TOPOLOGY = MoleculeTopology(
    ("C", "H", "N", "O", "C", "H"),
    ("CA", "HA", "N", "O", "CB", "HB"),
    ("ONE",) * 4 + ("TWO",) * 2,
    (0, 0, 0, 0, 1, 1),
    ((0, 1), (0, 2), (0, 3), (0, 4), (4, 5)),
)
SHAPE = torch.tensor(
    [[0.0, 0, 0], [0.6, 0.6, 0.6], [-0.8, -0.8, 0.8], [-0.7, 0.7, -0.7], [0.9, -0.9, -0.9], [1.9, -1.2, -0.9]],
    dtype=torch.float64,
)
SHAPE = SHAPE - SHAPE.mean(0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def centred(x):
    return x - x.mean(-2, keepdim=True)


def rotations(n, seed=0):
    """(n, 3, 3) random rotations."""
    q, r = torch.linalg.qr(torch.randn(n, 3, 3, generator=seeded(seed), dtype=torch.float64))
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    return q * torch.linalg.det(q).sign()[:, None, None]


def jittered(n, width, seed=0):
    """The shape with Gaussian jitter of every degree of freedom, turned at random, float64."""
    noise = centred(torch.randn(n, 6, 3, generator=seeded(seed), dtype=torch.float64))
    return (SHAPE + width * noise) @ rotations(n, seed + 1).transpose(1, 2)


def network(seed=0, quadruples=None, **sizes):
    """Of random weights everywhere, so that no part of it is silent, with the statistics of the jittered shape."""
    made = new_denoiser(TOPOLOGY, 0.15, seed=seed, **{"width": 32, "blocks": 1} | sizes)
    if quadruples is not None:
        made = MoleculeDenoiser.from_config({**made.config, "quadruples": quadruples})
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    made.invariants.fit(jittered(2000, 0.05))
    return made.double().eval()


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture
def pipe(net):
    made = MoleculePipeline(net, molecule_scheduler(net))
    made.set_progress_bar_config(disable=True)
    return made


# --- symmetry -------------------------------------------------------------------------------------------------------


def mirror_error(model, y, w):
    """How far the prediction of the mirror image is from the mirror image of the prediction."""
    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=y.dtype)
    return (model.denoised(y * mirror, w) - model.denoised(y, w) * mirror).abs().max()


@pytest.mark.parametrize("w", [0.003, 0.1, 1.0, 20.0])
def test_rotations_and_translations_commute_with_the_denoiser(net, w):
    y = jittered(8, 0.05) + w * torch.randn(8, 6, 3, generator=seeded(2), dtype=torch.float64)
    clean = net.denoised(y, w)
    assert (clean - y / (1 + w * w)).abs().max() > 1e-3 * w  # it does something
    turn = rotations(1, 7)[0]
    torch.testing.assert_close(net.denoised(y @ turn.T, w), clean @ turn.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(net.denoised(y + torch.tensor([3.0, -1.0, 2.0]), w), clean, rtol=0, atol=1e-9)
    torch.testing.assert_close(clean.mean(1), torch.zeros(8, 3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_single_precision_is_equivariant_to_1e_5(net):
    single = network().float()
    y = jittered(8, 0.3).float()
    turn = rotations(1, 7)[0].float()
    torch.testing.assert_close(single.denoised(y @ turn.T, 0.3), single.denoised(y, 0.3) @ turn.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("w", [0.003, 0.1, 1.0])
def test_mirror_images_are_told_apart(net, w):
    y = jittered(8, 0.05) + w * torch.randn(8, 6, 3, generator=seeded(2), dtype=torch.float64)
    assert mirror_error(net, y, w) > 1e-3 * w
    # negative control: without volumes the network cannot tell, and the same measure says so
    assert mirror_error(network(quadruples=[]), y, w) < 1e-9


def test_rows_do_not_touch_each_other(net):
    y = jittered(5, 0.3)
    w = torch.tensor([0.01, 0.1, 0.5, 1.0, 10.0])
    alone = torch.cat([net.denoised(y[i : i + 1], w[i]) for i in range(5)])
    torch.testing.assert_close(net.denoised(y, w), alone, rtol=0, atol=1e-12)


# --- invariants -----------------------------------------------------------------------------------------------------


def test_quadruples_of_a_small_molecule():
    found = bonded_quadruples(TOPOLOGY.bonds)
    chains = [(1, 0, 4, 5), (2, 0, 4, 5), (3, 0, 4, 5)]
    assert list(found[:3]) == chains
    assert set(found[3:]) == {(0, 1, 2, 3), (0, 1, 2, 4), (0, 1, 3, 4), (0, 2, 3, 4)}


@pytest.mark.parametrize("w", [0.01, 0.3, 30.0])
def test_invariants_are_standardised_at_every_noise_level(w):
    """Volumes exactly, distances nearly: their moments are approximate between the two limits."""
    frames = jittered(40_000, 0.1)
    invariants = Invariants(6, bonded_quadruples(TOPOLOGY.bonds)).double()
    invariants.fit(frames)
    y = frames + w * torch.randn(frames.shape, generator=seeded(5), dtype=torch.float64)
    signal = torch.full((1, 1), 1 / math.sqrt(1 + w * w), dtype=torch.float64)
    z, _ = invariants(y * signal, signal, w * signal)
    pairs, volumes = z.split([invariants.n_pairs, invariants.n_volumes], 1)
    assert volumes.mean(0).abs().max() < 0.04
    assert (volumes.std(0) - 1).abs().max() < 0.06
    assert pairs.mean(0).abs().max() < 0.15
    assert (pairs.std(0) - 1).abs().max() < 0.15
    # negative control: the statistics of another noise level
    z, _ = invariants(y * signal, signal, 0.3 * w * signal)
    assert (z.std(0) - 1).abs().max() > 0.06 or w < 0.05


def test_forces_are_gradients_of_the_invariants():
    invariants = Invariants(6, bonded_quadruples(TOPOLOGY.bonds)).double()
    u = jittered(1, 0.1).requires_grad_()
    level = torch.tensor([[0.8]], dtype=torch.float64), torch.tensor([[0.6]], dtype=torch.float64)
    z, vectors = invariants(u, *level)
    for index in (3, invariants.n_pairs + 1):
        (slope,) = torch.autograd.grad(z[0, index], u, retain_graph=True)
        force = invariants.forces(torch.eye(invariants.size, dtype=torch.float64)[index : index + 1], vectors)
        along = torch.nn.functional.cosine_similarity(force.flatten(), slope.flatten(), dim=0)
        torch.testing.assert_close(along, torch.ones_like(along), rtol=0, atol=1e-6)


# --- noise levels ---------------------------------------------------------------------------------------------------


def test_the_table_is_that_of_the_schedulers(net):
    ratios = vp_ratios(net.betas)
    assert len(ratios) == 1000
    even = torch.logspace(math.log10(0.002), math.log10(30.0), 1000, dtype=torch.float64)
    torch.testing.assert_close(ratios, even, rtol=0.03, atol=0)  # the schedulers' float32 rounds the lowest
    scheduler = molecule_scheduler(net)
    kept = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(((1 - kept) / kept).sqrt(), ratios, rtol=0, atol=0)
    euler = EulerDiscreteScheduler.from_config(scheduler.config)
    euler.set_timesteps(37)
    level = net.level_of(euler.timesteps, "epsilon")
    torch.testing.assert_close((level.sigma / level.alpha).flatten(), euler.sigmas[:-1].double(), rtol=1e-4, atol=0)


def test_a_table_that_falls_is_refused():
    with pytest.raises(ValueError, match=r"noise range: got 2\.0 to 1\.0"):
        log_uniform_betas(2.0, 1.0, 10)


@pytest.mark.parametrize("t", [0, 250, 700, 999])
def test_forms_of_a_prediction_agree(net, t):
    x = jittered(4, 0.3) + 0.2  # with a centre, which is all noise
    alpha, sigma = net.level_of(torch.tensor([t]), "epsilon")
    clean = net(x, t, prediction_type="sample").sample
    epsilon = net(x, torch.tensor(t)).sample
    v = net(x, t, prediction_type="v_prediction", return_dict=False)[0]
    torch.testing.assert_close(alpha * clean + sigma * epsilon, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(alpha * epsilon - sigma * clean, v, rtol=0, atol=1e-9)
    torch.testing.assert_close(net.denoised(x / alpha, (sigma / alpha).item()), clean, rtol=0, atol=1e-9)
    assert (net.denoised(x / alpha, 1.1 * (sigma / alpha).item()) - clean).abs().max() > 1e-6  # negative control


@pytest.mark.parametrize("t", [10.0, 500.0, 990.0])
def test_flow_and_table_meet_at_the_same_ratio(net, t):
    y = jittered(4, 0.3) + 0.2
    s = t / 1000
    w = s / (1 - s)
    x = (1 - s) * y
    velocity = net(x, t, prediction_type="flow").sample
    torch.testing.assert_close(x - s * velocity, net.denoised(y, w), rtol=0, atol=1e-9)


def test_pure_noise_and_no_noise_are_finite(net):
    x = torch.randn(2, 6, 3, generator=seeded(), dtype=torch.float64)
    for t in (0.0, 1000.0):
        assert net(x, t, prediction_type="flow").sample.isfinite().all()


def test_unknown_forms_and_other_molecules_are_refused(net):
    with pytest.raises(ValueError, match="prediction_type: got 'score'"):
        net(jittered(2, 0.1), 3, prediction_type="score")
    with pytest.raises(ValueError, match=r"sample: got shape \(2, 5, 3\), expected \(B, 6, 3\)"):
        net(jittered(2, 0.1)[:, :5], 3)


# --- training -------------------------------------------------------------------------------------------------------


def test_targets_of_frames_and_of_forces_have_the_same_mean():
    """Of variance v, E[F | u] = (v - 1) s c / (v c^2 + s^2) u for a Gaussian law, with c, s signal and noise of u."""
    v, n = 0.09, 200_000
    x = centred(math.sqrt(v) * torch.randn(n, 4, 3, generator=seeded(1), dtype=torch.float64))
    noise = centred(torch.randn(n, 4, 3, generator=seeded(2), dtype=torch.float64))
    scores = -x / v
    stiffness = float(scores.square().sum((1, 2)).mean() / 9)
    assert stiffness == pytest.approx(1 / v, rel=0.01)
    for w in (0.03, 0.3, 3.0):
        width = torch.full((1, 1, 1), w, dtype=torch.float64)
        c, s = 1 / math.sqrt(1 + w * w), w / math.sqrt(1 + w * w)
        u = c * (x + w * noise)
        exact = (v - 1) * s * c / (v * c * c + s * s)
        spreads = []
        for given in (None, scores):
            target = target_of(x, given, noise, width, stiffness)
            slope = float((target * u).sum() / u.square().sum())
            assert slope == pytest.approx(exact, abs=4e-3 / math.sqrt(v * c * c + s * s))
            spreads.append(float((target - exact * u).square().mean()))
        assert spreads[1] < 1e-2 * spreads[0]  # one variance alone: the mixture has no noise at all
        wrong = target_of(x, 0.5 * scores, noise, width, stiffness)  # negative control
        if w < 1:
            assert abs(float((wrong * u).sum() / u.square().sum()) - exact) > 0.02


def exact_denoiser(y, w, width):
    """Of the jittered shape, for noise well below its size: y moves to the shape along its vibrations alone."""
    turned = aligned(y)
    off = y - turned
    axes = torch.eye(3, dtype=y.dtype)
    spins = torch.stack([torch.linalg.cross(axis.expand_as(turned), turned, dim=-1) for axis in axes], 1).flatten(2)
    basis = torch.linalg.qr(spins.transpose(1, 2)).Q
    flat = off.flatten(1)
    vibration = flat - (basis @ (basis.transpose(1, 2) @ flat[:, :, None]))[:, :, 0]
    return y - (w * w / (w * w + width * width)) * vibration.reshape(y.shape)


def aligned(y):
    """The shape laid over each y by the best rotation (Kabsch 1976)."""
    u, _, vt = torch.linalg.svd(torch.einsum("bni,nj->bij", y, SHAPE))
    sign = torch.linalg.det(u @ vt).sign()
    u = u * torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)[:, None]
    return SHAPE @ (u @ vt).transpose(1, 2)


@torch.no_grad()
def relative_error(model, width, w):
    """Mean square error of the denoised shift, over its own mean square."""
    y = jittered(2000, width, 50) + w * centred(torch.randn(2000, 6, 3, generator=seeded(9), dtype=torch.float64))
    exact = exact_denoiser(y, w, width)
    found = model.denoised(y.float(), w).double()
    return float((found - exact).square().sum() / (exact - y).square().sum())


@pytest.mark.slow
def test_training_finds_the_exact_denoiser_of_a_jittered_shape():
    width = 0.05
    frames = jittered(20_000, width)
    turned = aligned(frames)
    made = new_denoiser(TOPOLOGY, 0.15, seed=1, width=64, blocks=1)
    untrained = MoleculeDenoiser.from_config(made.config)
    settings = FitSettings(
        steps=800, batch_size=256, highest=1.0, centre=0.05, spread=1.0, evaluate_every=800, ema_decay=0.99, seed=3
    )
    reports = fit_denoiser(made, frames.float(), settings)
    assert [r.step for r in reports] == [800]
    untrained.invariants.load_state_dict(made.invariants.state_dict())
    for w in (0.03, 0.06, 0.12):
        assert relative_error(made, width, w) < 0.08
        assert relative_error(untrained.eval(), width, w) > 0.5  # negative control
    # the same with scores of the data, which have less noise where w is small
    sharp = new_denoiser(TOPOLOGY, 0.15, seed=1, width=64, blocks=1)
    fit_denoiser(sharp, frames.float(), settings, scores=((turned - frames) / width**2).float())
    assert relative_error(sharp, width, 0.02) < 0.03


def tiny_fit(folder=None, stop_at=None, seed=5):
    """A short fit; stopped after ``stop_at`` reports."""

    class Stop(Exception):
        pass

    seen = []

    def progress(report):
        seen.append(report.step)
        if len(seen) == stop_at:
            raise Stop

    made = new_denoiser(TOPOLOGY, 0.15, seed=1, width=16, blocks=1)
    frames = jittered(500, 0.05).float()
    settings = FitSettings(steps=12, batch_size=32, warmup=2, evaluate_every=3, seed=seed)
    try:
        reports = fit_denoiser(made, frames, settings, checkpoint=folder, progress=progress)
    except Stop:
        return None, None
    return made.state_dict(), reports


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_stopped_fit_ends_with_the_same_bits(tmp_path):
    whole, reports = tiny_fit()
    tiny_fit(tmp_path / "ck", stop_at=3)
    parts, resumed = tiny_fit(tmp_path / "ck")
    assert same(whole, parts)
    assert [r.step for r in resumed] == [3, 6, 9, 12]
    assert [r.held_out for r in resumed] == [r.held_out for r in reports]
    assert not same(whole, tiny_fit(seed=6)[0])  # negative control
    with pytest.raises(CheckpointError, match="of another fit"):
        tiny_fit(tmp_path / "ck", seed=6)


def test_the_state_saved_before_a_report_is_the_one_after_it(tmp_path):
    """The report raises before the save above, so that steps 7 to 9 are made twice: one saved at its own step, too."""
    made = new_denoiser(TOPOLOGY, 0.15, seed=1, width=16, blocks=1)
    settings = FitSettings(steps=6, batch_size=32, warmup=2, evaluate_every=3, seed=5)
    frames = jittered(500, 0.05).float()
    run = DenoiserFit(made, frames, None, settings)
    for _ in range(3):
        run.advance()
    run.save(tmp_path)
    other = DenoiserFit(new_denoiser(TOPOLOGY, 0.15, seed=2, width=16, blocks=1), frames, None, settings)
    other.restore(tmp_path)
    for _ in range(3):
        run.advance()
        other.advance()
    assert same(made.state_dict(), other.network.state_dict())


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    tiny_fit()
    assert torch.equal(torch.get_rng_state(), before)


def test_frames_of_another_shape_are_refused():
    made = new_denoiser(TOPOLOGY, 0.15, seed=1, width=16, blocks=1)
    settings = FitSettings(steps=1)
    with pytest.raises(ValueError, match=r"frames: got shape \(5, 3\)"):
        fit_denoiser(made, torch.zeros(5, 3), settings)
    with pytest.raises(ValueError, match="scores: got 2, expected one a frame, 5"):
        fit_denoiser(made, torch.zeros(5, 6, 3), settings, scores=torch.zeros(2, 6, 3))


# --- the pipeline ---------------------------------------------------------------------------------------------------


def test_save_and_load_keep_the_bits(pipe, tmp_path):
    single = MoleculePipeline(network().float(), molecule_scheduler(pipe.transformer))
    single.save_pretrained(tmp_path / "full")
    loaded = MoleculePipeline.from_pretrained(str(tmp_path / "full"), local_files_only=True)
    assert same(loaded.transformer.state_dict(), single.transformer.state_dict())
    assert loaded.topology == TOPOLOGY
    for one in (single, loaded):
        one.set_progress_bar_config(disable=True)
    a, b = (one(3, 4, seeded()).positions for one in (single, loaded))
    assert torch.equal(a, b)
    single.save_pretrained(tmp_path / "half", half=True)
    rounded = MoleculePipeline.from_pretrained(str(tmp_path / "half"), local_files_only=True).transformer
    assert rounded.dtype == torch.float32
    assert same(rounded.invariants.state_dict(), single.transformer.invariants.state_dict())
    for (name, kept), (_, full) in zip(rounded.named_parameters(), single.transformer.named_parameters(), strict=True):
        assert torch.equal(kept, full.half().float()), name
        assert full.dtype == torch.float32
    size = [sum(f.stat().st_size for f in (tmp_path / k).rglob("*.safetensors")) for k in ("full", "half")]
    assert size[1] < 0.6 * size[0]


def test_output_forms(pipe):
    result = pipe(2, 3, seeded())
    assert result.positions.shape == (2, 6, 3)
    assert result.topology is pipe.topology
    latent = pipe(2, 3, seeded(), output_type="latent", return_dict=False)[0]
    assert torch.equal(latent * 0.15, result.positions)
    rows = [pipe(1, 3, seeded(s)).positions for s in (4, 5)]
    together = pipe(2, 3, [seeded(4), seeded(5)]).positions
    torch.testing.assert_close(together, torch.cat(rows), rtol=0, atol=1e-12)
    assert not torch.allclose(pipe(2, 3, seeded(1)).positions, result.positions)


@pytest.mark.parametrize("kind", [DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler])
def test_a_weak_start_from_positions_stays_near_them(pipe, kind):
    """Of the last step alone, the clean prediction of the frames with that step's noise."""
    flow = kind is FlowMatchEulerDiscreteScheduler
    pipe.scheduler = flow_scheduler(pipe.scheduler) if flow else kind.from_config(pipe.scheduler.config)
    frames = 0.15 * jittered(4, 0.05)
    noise = torch.randn(4, 6, 3, generator=seeded(), dtype=torch.float64)
    found = pipe(4, 10, seeded(), latents=noise, positions=frames + 1.0, strength=0.1).positions
    last = pipe.scheduler.timesteps[-1]
    alpha, sigma = pipe.transformer.level_of(last.reshape(1), "flow" if flow else "sample")
    w = (sigma / alpha).item()
    torch.testing.assert_close(found, 0.15 * pipe.transformer.denoised(frames / 0.15 + w * noise, w), rtol=0, atol=1e-4)
    other = pipe(4, 10, seeded(), latents=noise, positions=1.2 * frames, strength=0.1).positions  # negative control
    assert (other - found).abs().max() > 0.01


SCHEDULERS = [
    (DDPMScheduler, {}),
    (DDPMScheduler, {"prediction_type": "epsilon"}),
    (DDIMScheduler, {"prediction_type": "sample"}),
    (EulerDiscreteScheduler, {}),
    (EulerAncestralDiscreteScheduler, {"prediction_type": "epsilon"}),
    (DPMSolverMultistepScheduler, {}),
]


def flow_scheduler(scheduler):
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=scheduler.config.num_train_timesteps)


@pytest.mark.parametrize(("kind", "changes"), SCHEDULERS)
def test_every_scheduler_ends_at_the_clean_prediction(pipe, kind, changes):
    """Of one step the result is the clean prediction from pure noise, whatever form the scheduler takes."""
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **changes)
    noise = torch.randn(2, 6, 3, generator=seeded(), dtype=torch.float64)
    found = pipe(2, 1, seeded(), latents=noise, output_type="latent").positions
    alpha, sigma = pipe.transformer.level_of(torch.tensor([999]), "sample")
    start = noise * float(pipe.scheduler.init_noise_sigma) if "Euler" in kind.__name__ else noise / alpha
    expected = pipe.transformer.denoised(start, (sigma / alpha).item())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_flow_matching_ends_at_the_clean_prediction(pipe):
    pipe.scheduler = flow_scheduler(pipe.scheduler)
    noise = torch.randn(2, 6, 3, generator=seeded(), dtype=torch.float64)
    found = pipe(2, 1, seeded(), latents=noise, output_type="latent").positions
    expected = pipe.transformer(noise, 1000.0, prediction_type="flow").sample
    torch.testing.assert_close(found, noise - expected, rtol=1e-6, atol=1e-6)


def test_another_table_is_refused(pipe):
    pipe.scheduler = DDPMScheduler(clip_sample=False)
    with pytest.raises(ValueError, match=r"its table of betas is not the denoiser's"):
        pipe(1, 2, seeded())
    pipe.scheduler = DDPMScheduler.from_config(molecule_scheduler(pipe.transformer).config, clip_sample=True)
    with pytest.raises(ValueError, match="clip_sample is on"):
        pipe(1, 2, seeded())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"generator": [seeded()]}, "generator: got a list of 1, expected one a frame, 2"),
        ({"output_type": "np"}, "output_type: got 'np'"),
        ({"latents": torch.zeros(1, 6, 3)}, r"latents: got shape \(1, 6, 3\), expected \(2, 6, 3\)"),
        ({"positions": torch.zeros(2, 5, 3)}, r"positions: got shape \(2, 5, 3\)"),
        ({"strength": 0.5}, "strength: got 0.5, expected above 0 and at most 1; below 1 only with positions"),
    ],
)
def test_mistakes_are_named(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"batch_size": 2, "num_inference_steps": 2, "generator": seeded()} | options)


def test_the_topology_makes_a_pdb_and_knows_its_molecule(tmp_path):
    pytest.importorskip("openmm")
    pytest.importorskip("mdtraj")
    from feynkac.molecular.io import write_trajectory

    openmm = TOPOLOGY.to_openmm()
    assert MoleculeTopology.from_openmm(openmm) == TOPOLOGY
    TOPOLOGY.check(openmm)
    write_trajectory(tmp_path / "x.dcd", tmp_path / "x.pdb", 0.15 * jittered(2, 0.05), openmm)
    assert " CB  TWO " in (tmp_path / "x.pdb").read_text()
    other = MoleculeTopology(
        ("C", "H", "N", "O", "C", "H"),
        ("CA", "HA", "N", "O", "CB", "HX"),
        *(TOPOLOGY.residue_names, TOPOLOGY.residue_indices, TOPOLOGY.bonds),
    )
    with pytest.raises(MoleculeMismatch, match=r"atom 5 is TWO-HX \(H\), in the model TWO-HB \(H\)"):
        TOPOLOGY.check(other)
    with pytest.raises(ValueError, match="bonds: got \\[0, 9\\]"):
        MoleculeTopology.from_lists(
            *(getattr(TOPOLOGY, n) for n in ("elements", "atom_names", "residue_names")),
            TOPOLOGY.residue_indices,
            [(0, 9)],
        )


# --- steering -------------------------------------------------------------------------------------------------------


@pytest.fixture
def calm():
    """An untrained pipeline, whose samples are Gaussian and finite."""
    made = new_denoiser(TOPOLOGY, 0.15, seed=0, width=16, blocks=1)
    made.invariants.fit(jittered(2000, 0.05))
    calm = MoleculePipeline(made.double().eval(), molecule_scheduler(made))
    calm.set_progress_bar_config(disable=True)
    return calm


def extent(x):
    """Mean distance from the centre."""
    return torch.stack([p.square().sum(-1).sqrt().mean() for p in x])


def test_steering_sees_latents_in_the_models_unit(calm):
    seen = []

    def reward(x):
        seen.append(x)
        return extent(x)

    with attach(calm, FKSteering(reward, 2.0, on="latents"), particles=4, seed=0) as run:
        positions = calm(8, 6, [seeded(i) for i in range(8)]).positions
    assert run.log_weights.shape == (2, 4)
    assert all(x.shape[1:] == (6, 3) for x in seen)
    torch.testing.assert_close(run.samples() * 0.15, positions, rtol=0, atol=1e-12)
    torch.testing.assert_close(run.rewards.flatten(), extent(run.samples()).double(), rtol=1e-6, atol=1e-6)


def test_steering_on_images_sees_positions_in_nm(calm):
    with attach(calm, FKSteering(lambda x: extent(torch.stack(list(x))), 2.0), particles=4, seed=0) as run:
        positions = calm(4, 6, [seeded(i) for i in range(4)]).positions
    torch.testing.assert_close(run.rewards.flatten(), extent(positions).double(), rtol=1e-6, atol=1e-6)


# --- the shipped model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    made = MoleculePipeline.from_pretrained(str(SHIPPED), local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


def test_the_folder_is_small_and_plain():
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 5_000_000
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    card = json.loads((SHIPPED / "card.json").read_text())
    assert card["temperature_K"] == 600.0
    quality = json.loads((SHIPPED / "quality.json").read_text())
    assert [entry["steps"] for entry in quality] == [100, 300]


def test_the_shipped_molecule_is_alanine_dipeptide(shipped):
    app = pytest.importorskip("openmm.app")
    pdb = app.PDBFile(str(SHIPPED.parent / "molecules" / "alanine_dipeptide.pdb"))
    shipped.topology.check(pdb.topology)


def bond_lengths(positions, bonds):
    i, j = torch.tensor(bonds).T
    return (positions[:, i] - positions[:, j]).square().sum(-1).sqrt()


@pytest.mark.slow
def test_steering_to_a_rare_basin_has_the_evidence_of_the_unsteered_law(shipped):
    """E[exp(2 [phi in (0, 2)])] = 1 + P (e^2 - 1), P from unsteered draws of the same sampler."""
    pytest.importorskip("openmm")
    from feynkac.molecular.cvs import Torsion

    phi = Torsion(4, 6, 8, 14)

    def inside(x):
        return ((phi(x) > 0) & (phi(x) < 2)).double()

    shipped.scheduler = molecule_scheduler(shipped.transformer)
    plain = inside(shipped(1024, 40, seeded(1)).positions)
    with attach(shipped, FKSteering(inside, 2.0, on="latents"), particles=64, seed=2) as run:
        positions = shipped(1024, 40, [seeded(100 + i) for i in range(1024)]).positions
    estimates = run.log_evidence.exp()
    gain = math.exp(2.0) - 1.0
    error = math.hypot(float(estimates.std()) / 4.0, gain * float(plain.std()) / 32.0)
    assert abs(float(estimates.mean()) - (1.0 + gain * float(plain.mean()))) < 4.0 * error
    assert float(inside(positions).mean()) > float(plain.mean()) + 0.05  # negative control: steered draws, unweighted
    torch.testing.assert_close(run.rewards.flatten(), inside(positions), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (DDPMScheduler, 100),
        (EulerAncestralDiscreteScheduler, 100),
        (EulerDiscreteScheduler, 100),
        (DPMSolverMultistepScheduler, 50),
        (FlowMatchEulerDiscreteScheduler, 300),
    ],
)
def test_bond_lengths_under_several_schedulers(shipped, kind, steps):
    """Against the structure file, which is a minimum: means move by less than 3 pm at 600 K."""
    app = pytest.importorskip("openmm.app")
    pdb = app.PDBFile(str(SHIPPED.parent / "molecules" / "alanine_dipeptide.pdb"))
    start = torch.tensor(pdb.getPositions(asNumpy=True)._value)[None]
    own = molecule_scheduler(shipped.transformer)
    shipped.scheduler = flow_scheduler(own) if "Flow" in kind.__name__ else kind.from_config(own.config)
    found = bond_lengths(shipped(128, steps, seeded(1)).positions.double(), shipped.topology.bonds)
    expected = bond_lengths(start, shipped.topology.bonds)[0]
    assert (found.median(0).values - expected).abs().max() < 4e-3
    spread = (found - found.median(0).values).abs().median(0).values / 0.6745
    assert spread.min() > 2e-3
    assert spread.max() < 6e-3
    shipped.scheduler = own
