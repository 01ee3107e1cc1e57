"""Regressed values against closed form: what the two losses converge to, that steering with them is exact whatever the
network says, and that a good one is worth its price where r(x0-hat) over-sharpens."""

import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers import DDIMPipeline, DDIMScheduler

from feynkac.fkc.testing import ZTest
from feynkac.steering import FKSteering, SoftValueGuidance, SteeringError, attach
from feynkac.steering.learned import (
    Fitting,
    LearnedValue,
    Rollouts,
    ValueNetwork,
    assess,
    collect_rollouts,
    fit_network,
    fit_value,
    regression_loss,
)
from feynkac.steering.learned.quality import binned, predictions
from feynkac.steering.testing import GaussianDenoiser, QuadraticReward, affine_law

STEPS = 20
REWARD, SCALE = QuadraticReward(kappa=4.0, y=-1.0), 2.0  # r(x0-hat) over-sharpens here
CALL = {"num_inference_steps": STEPS, "eta": 1.0, "output_type": "np"}
SMALL = Fitting(steps=30, batch_size=32, width=8, blocks=1, evaluate_every=10, warmup=5)


def scheduler():
    return DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="leading")


@pytest.fixture(scope="module")
def pipe():
    made = DDIMPipeline(GaussianDenoiser(mean=0.5, std=0.8), scheduler())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def chain():
    grid = scheduler()
    grid.set_timesteps(STEPS)
    return affine_law(grid, mean=0.5, std=0.8, eta=1.0)


def collected(pipe, n, seed=1, **options):
    options = {"call": CALL, "batch_size": 5000, "on": "latents", "progress": False} | options
    return collect_rollouts(pipe, REWARD, n, seed=seed, **options)


@pytest.fixture(scope="module")
def rollouts(pipe):
    return collected(pipe, 20_000)


@pytest.fixture(scope="module")
def fresh(pipe):
    """Trajectories that no fit has seen: the sampler's own law."""
    return collected(pipe, 4000, seed=2, baseline=True)


@pytest.fixture(scope="module")
def values(rollouts):
    """The fit with each loss."""
    return {
        loss: fit_network(rollouts, temperature=1 / SCALE, seed=3, loss=loss, progress=False)[0]
        for loss in ("exp", "mean")
    }


def truths(chain, rollouts):
    """Soft values and conditional means of the reward (n, L), exact."""
    soft, mean = [], []
    for i in range(STEPS):
        x = rollouts.states[:, i].flatten()
        soft.append(chain.log_value(i, x, REWARD, SCALE) / SCALE)
        a, b, w = chain.posterior(i)
        mean.append(REWARD(a * x[:, None].double() + b) - 0.5 * REWARD.kappa * w)
    return {"exp": torch.stack(soft, dim=1), "mean": torch.stack(mean, dim=1)}


def rmse(a, b):
    return (a - b).square().mean().sqrt().item()


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_rollouts_have_the_law_of_the_sampler(rollouts, chain, pipe):
    assert rollouts.states.shape == (20_000, STEPS, 1, 1, 1)
    assert rollouts.states.dtype == torch.float32
    assert rollouts.levels[:, 0].diff().gt(0).all()
    for i in (0, 7, STEPS - 1):
        mean, variance = chain.marginal(i)
        x = rollouts.states[:, i].flatten().double()
        assert abs(x.mean().item() - mean) < 5 * math.sqrt(variance / len(x))
        assert abs(x.var().item() / variance - 1) < 5 * math.sqrt(2 / len(x))
    truth = chain.tilted(REWARD, 0.0).reward
    assert ZTest.from_samples(rollouts.rewards, truth).passed
    # negative control: the law of the data is another
    data = QuadraticReward(kappa=4.0, y=-1.0)
    assert not ZTest.from_samples(rollouts.rewards, -0.5 * data.kappa * ((0.5 - data.y) ** 2 + 0.64)).passed


def test_recording_changes_nothing(pipe):
    """The trajectories of a chunk end where the plain pipeline ends."""
    from feynkac.fkc.streams import generator_for

    seen = []
    collected(pipe, 6, batch_size=6, call=lambda n, g: seen.append(pipe(batch_size=n, generator=g, **CALL).images))
    plain = pipe(batch_size=6, generator=generator_for(1, 0), **CALL).images
    assert (seen[0] == plain).all()


def test_rollouts_go_on_where_they_stopped(pipe, tmp_path):
    whole = collected(pipe, 10, batch_size=4, clean=True, baseline=True)
    asked = []

    def call(rows, generator):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(rows)
        return pipe(batch_size=rows, generator=generator, **CALL)

    options = {"batch_size": 4, "clean": True, "baseline": True, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        collected(pipe, 10, call=call, **options)
    asked.clear()
    rest = collected(pipe, 10, call=call, **options)
    assert asked == [2]
    assert all(torch.equal(a, b) for a, b in zip(rest.tensors().values(), whole.tensors().values(), strict=True))
    assert not torch.equal(collected(pipe, 10, seed=5, batch_size=4).states, whole.states)
    with pytest.raises(ValueError, match="rollouts with another seed: 1, expected 2"):
        collected(pipe, 10, seed=2, **options)


def test_chosen_moves_and_deterministic_samplers(pipe):
    found = collected(pipe, 4, when=(3, 9), call=CALL | {"eta": 0.0})
    assert found.moves.tolist() == [3, 9]
    assert found.states.shape == (4, 2, 1, 1, 1)
    with pytest.raises(SteeringError, match="nothing was recorded"):
        collected(pipe, 4, when=())


# --- the losses ------------------------------------------------------------------------------------------------------


def test_minimisers_of_the_losses():
    """The best constant is the soft value of "exp", the mean of "mean": the gradient vanishes there, not elsewhere."""
    rewards = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    soft = 0.5 * ((rewards / 0.5).logsumexp(0) - math.log(500))

    def slope(at, loss):
        f = at.clone().requires_grad_()
        regression_loss(f.expand(500), rewards, loss=loss, temperature=0.5).backward()
        return abs(f.grad.item())

    assert slope(soft, "exp") < 1e-9
    assert slope(rewards.mean(), "mean") < 1e-9
    assert slope(rewards.mean(), "exp") > 0.1
    assert slope(soft, "mean") > 0.1


def test_the_loss_does_not_see_a_constant_and_stays_finite():
    r, f = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradient(f, r):
        f = f.clone().requires_grad_()
        value = regression_loss(f, r, loss="exp", temperature=0.3)
        value.backward()
        assert value.isfinite()
        assert f.grad.isfinite().all()
        return f.grad

    assert torch.allclose(gradient(f + 1e4, r + 1e4), gradient(f, r))
    gradient(f.float(), 1e6 * r.float())
    impossible = torch.where(r > 0, r, -torch.inf)
    assert (gradient(f, impossible)[r <= 0] > 0).all()  # an impossible sample pulls its value down


@pytest.mark.slow
def test_each_loss_converges_to_its_own_value(values, chain, fresh):
    """RMSE over the sampler's own law; the values spread by 2.1, and the two truths are 3.5 apart."""
    truth = truths(chain, fresh)
    found = {loss: predictions(value, fresh) for loss, value in values.items()}
    assert rmse(found["exp"], truth["exp"]) < 0.2
    assert rmse(found["mean"], truth["mean"]) < 0.2
    # negative control: neither is the other's, nor is r(x0-hat)
    assert rmse(found["mean"], truth["exp"]) > 1.0
    assert rmse(found["exp"], truth["mean"]) > 1.0
    assert rmse(fresh.denoised_rewards, truth["exp"]) > 1.0


@pytest.mark.slow
def test_quality_on_fresh_trajectories(values, fresh):
    for loss, value in values.items():
        levels = assess(value, fresh)
        assert [level.move for level in levels] == list(range(STEPS))
        assert levels[-1].explained > 0.9 > levels[0].explained > -0.05
        assert max(abs(level.bias) for level in levels) < (0.25 if loss == "exp" else 0.15)
        predicted, observed = binned(value, fresh)
        assert rmse(predicted, observed) < 0.2
    # negative control: values that are off by one are seen to be
    shifted = ValueNetwork.from_config(
        dict(values["mean"].network.config) | {"offset": 1.0 + values["mean"].network.config.offset}
    )
    shifted.load_state_dict(values["mean"].network.state_dict())
    assert all(level.bias < -0.8 for level in assess(LearnedValue(shifted), fresh))


@pytest.mark.slow
def test_values_of_tokens_against_enumeration():
    """The masked model of 27 sequences: log h_k of every state that rollouts reach, by the backward product."""
    from feynkac.steering.discrete import MaskedDiffusionPipeline, MaskedDiffusionScheduler
    from feynkac.steering.testing import EnumeratedDenoiser, EnumeratedMaskedModel, twos_and_ends

    model = EnumeratedMaskedModel()
    tokens = MaskedDiffusionPipeline(EnumeratedDenoiser(), MaskedDiffusionScheduler(3))
    tokens.set_progress_bar_config(disable=True)
    found = collect_rollouts(
        tokens,
        twos_and_ends,
        6000,
        seed=1,
        call={"num_inference_steps": 6},
        batch_size=2000,
        on="tokens",
        clean=True,
        progress=False,
    )
    assert found.states.dtype == torch.int64
    assert found.clean is None
    fitting = Fitting(steps=600, width=32)
    exact = model.values(twos_and_ends, 2.0).log() / 2.0  # (moves + 1, states)
    truth = torch.stack([exact[i, model.state_index(found.states[:, i])] for i in range(6)], dim=1)
    soft, mean = (
        fit_network(found, temperature=0.5, seed=1, loss=loss, fitting=fitting, progress=False)[0]
        for loss in ("exp", "mean")
    )
    assert soft.network.config.tokens == 4
    narrow, _ = fit_network(found, temperature=0.5, seed=1, tokens=5, fitting=SMALL, progress=False)
    assert narrow.network.config.tokens == 5
    few = LearnedValue(ValueNetwork.drawn(torch.Generator().manual_seed(0), shape=[3], tokens=3))
    with (
        pytest.raises(SteeringError, match="fitted to 3 tokens, got token 3"),
        attach(tokens, FKSteering(twos_and_ends, 1.0, on="tokens", value=few), particles=4, seed=0),
    ):
        tokens(batch_size=4, num_inference_steps=6)
    assert rmse(predictions(soft, found), truth) < 0.1
    assert rmse(predictions(mean, found), truth) > 0.3  # negative control


# --- steering with them ----------------------------------------------------------------------------------------------


def steered(pipe, control, particles, populations, seed=4, **options):
    rows = particles * populations * control.candidates
    with attach(pipe, control, particles=particles, seed=seed, **options) as run:
        pipe(batch_size=rows, generator=torch.Generator().manual_seed(seed), **CALL)
    return run


@torch.no_grad()
def shaken(network):
    """Its parameters with noise added, so that nothing starts at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def bad_value():
    """A network that points the wrong way: its values fall by 0.9 where x grows by one."""
    network = ValueNetwork.drawn(torch.Generator().manual_seed(0), shape=[1, 1, 1], width=16, scale=0.5)
    with torch.no_grad():
        network.head.weight.normal_(generator=torch.Generator().manual_seed(1))
        network.head.bias.fill_(2.0)
    value = LearnedValue(network)
    x = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    low, high = value.evaluate(x, torch.tensor([[0.6, 0.8]]).expand(2, 2)).tolist()
    assert high - low == pytest.approx(-1.8, abs=0.1)
    return value


def mean_error(run, truth):
    """z-score of the weighted means of the populations, and their number."""
    x = run.samples().double().reshape(run.weights.shape)
    means = (run.weights * x).sum(dim=1)
    return abs(means.mean().item() - truth) / (means.std().item() / math.sqrt(len(means)) + 2 / run.weights.shape[1])


class TakesItForTheTruth(FKSteering):
    """The target is what the value said last: the network's error stays in the weights."""

    def target(self, final, memory):
        return replace(super().target(final, memory), log_tilt=memory["value"])


def test_a_bad_network_does_not_touch_law_or_evidence(pipe, chain):
    """Not without a price: the further it misleads, the heavier the tail of the evidence."""
    reward, scale = QuadraticReward(kappa=1.0, y=2.0), 1.0
    truth = chain.tilted(reward, scale)
    fk = FKSteering(reward, scale, on="latents", value=bad_value())
    svdd = SoftValueGuidance(reward, 1 / scale, candidates=4, on="latents", intermediate=bad_value())
    for control, particles in ((fk, 300), (svdd, 100)):
        run = steered(pipe, control, particles, 60)
        assert ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0).passed
        assert mean_error(run, truth.mean) < 5
        assert any(ancestors is not None for ancestors in run.ancestors)
    # negative control: without the last correction it does
    run = steered(pipe, TakesItForTheTruth(reward, scale, on="latents", value=bad_value()), 300, 60)
    assert mean_error(run, truth.mean) > 5
    assert not ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0).passed


@pytest.mark.slow
def test_a_good_network_is_worth_more_than_the_denoised_reward(pipe, chain, values):
    """Same particles, same draws: the evidence of the learned value is less noisy, its family tree wider, and it is
    nearly as good as the exact value."""

    def exact(context):
        return chain.log_value(context.index, context.sample.flatten(), REWARD, SCALE) / SCALE

    truth = chain.tilted(REWARD, SCALE)
    noise, roots, least = {}, {}, {}
    for name, value in (("learned", values["exp"]), ("denoised", "denoised"), ("exact", exact)):
        run = steered(pipe, FKSteering(REWARD, SCALE, on="latents", value=value), 300, 60)
        noise[name] = run.log_evidence.std().item()
        roots[name] = run.distinct_roots.double().mean().item()
        least[name] = run.ess_trace.amin(dim=0).mean().item()
        if name != "denoised":  # whose weights have too heavy a tail for 60 populations
            assert ZTest.from_samples((run.log_evidence - truth.log_evidence).exp(), 1.0).passed
            assert mean_error(run, truth.mean) < 5
    assert noise["learned"] < 0.5 * noise["denoised"]
    assert roots["learned"] > 1.5 * roots["denoised"]
    assert least["learned"] > 1.7 * least["denoised"]
    assert noise["learned"] < 1.5 * noise["exact"]


# --- determinism, saving, refusals -----------------------------------------------------------------------------------


def parameters(value):
    return torch.cat([p.flatten() for p in value.network.parameters()])


def test_a_fit_is_deterministic_and_goes_on_where_it_stopped(pipe, tmp_path):
    found = collected(pipe, 64)
    options = {"temperature": 0.5, "fitting": SMALL, "progress": False}
    torch.manual_seed(0)
    whole, history = fit_network(found, seed=1, **options)
    torch.manual_seed(1)  # the global generator has no say
    again, same = fit_network(found, seed=1, **options)
    assert torch.equal(parameters(whole), parameters(again))
    assert history == same
    assert not torch.equal(parameters(whole), parameters(fit_network(found, seed=2, **options)[0]))

    def stop(entry):
        if entry.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_network(found, seed=1, checkpoint=tmp_path, report=stop, **options)
    reports = []
    resumed, story = fit_network(found, seed=1, checkpoint=tmp_path, report=reports.append, **options)
    assert [entry.step for entry in reports] == [30]
    assert torch.equal(parameters(resumed), parameters(whole))
    assert story == history
    with pytest.raises(ValueError, match="another seed"):
        fit_network(found, seed=2, checkpoint=tmp_path, **options)


def test_the_best_held_out_parameters_are_kept(pipe):
    """Eight trajectories are soon known by heart: the last parameters are not the best ones."""
    value, history = fit_network(
        collected(pipe, 8),
        temperature=0.5,
        seed=1,
        loss="mean",
        fitting=replace(SMALL, steps=300, learning_rate=1e-2, held_out=0.5),
        progress=False,
    )
    best = min(entry.held_out for entry in history)
    assert history[-1].held_out > best
    held_out = collected(pipe, 8).split(4)[1]
    scale = value.network.config.scale
    again = ((predictions(value, held_out) - held_out.rewards[:, None]) / scale).square().mean().item()
    assert again == pytest.approx(best, rel=1e-4)


def test_saved_values_say_the_same(pipe, tmp_path):
    value, _ = fit_value(
        pipe, REWARD, temperature=0.5, rollouts=32, seed=1, call=CALL, on="latents", fitting=SMALL, progress=False
    )
    value.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = LearnedValue.from_pretrained(tmp_path)
    assert torch.equal(parameters(loaded), parameters(value))
    assert (loaded.temperature, loaded.network.config.reward) == (0.5, "QuadraticReward")
    runs = [steered(pipe, FKSteering(REWARD, 2.0, on="latents", value=v), 8, 2) for v in (value, loaded)]
    assert torch.equal(runs[0].log_weights, runs[1].log_weights)
    chunked = steered(pipe, FKSteering(REWARD, 2.0, on="latents", value=loaded), 8, 2, chunk_size=3)
    assert torch.allclose(chunked.log_weights, runs[0].log_weights, atol=1e-5)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        LearnedValue.from_pretrained(tmp_path / "nowhere")


def test_states_that_do_not_fit_are_refused(pipe):
    for config, message in (
        ({"shape": [3, 8, 8]}, r"fitted to states of shape \(3, 8, 8\), got \(1, 1, 1\)"),
        ({"shape": [1, 1, 1], "tokens": 4}, "fitted to tokens, got states of torch.float32"),
    ):
        value = LearnedValue(ValueNetwork.drawn(torch.Generator().manual_seed(0), **config))
        with pytest.raises(SteeringError, match=message):
            steered(pipe, FKSteering(REWARD, 1.0, on="latents", value=value), 4, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature: got 0.0"),
        ({"loss": "squared"}, "loss: got 'squared'"),
        ({"fitting": replace(SMALL, held_out=0.99)}, "held_out: got 8 of 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(pipe, change, message):
    with pytest.raises(ValueError, match=message):
        fit_network(collected(pipe, 8), **({"temperature": 1.0, "seed": 0, "progress": False} | change))


def test_impossible_samples_need_the_soft_value():
    states = torch.randn(16, 2, 3, generator=torch.Generator().manual_seed(0))
    rewards = torch.where(torch.arange(16) % 4 == 0, -torch.inf, 0.0).double()
    found = Rollouts(states, torch.tensor([[0.1, 1.0], [0.9, 0.4]], dtype=torch.float64), torch.arange(2), rewards)
    with pytest.raises(ValueError, match=r"4 are minus infinity.*loss='exp'"):
        fit_network(found, temperature=1.0, seed=0, loss="mean", progress=False)
    value, _ = fit_network(found, temperature=1.0, seed=0, fitting=SMALL, progress=False)
    assert value.network.config.offset == pytest.approx(math.log(0.75), abs=0.1)


@pytest.mark.parametrize("shape", [(5,), (7, 3), (1, 1, 1), (2, 8, 8), (1, 9, 6), (3, 32, 16), (2, 3, 8, 8)])
@pytest.mark.parametrize("denoised", [False, True])
def test_networks_of_every_shape(shape, denoised):
    """One value a row; at the start the offset; and no row sees another."""
    network = ValueNetwork.drawn(
        torch.Generator().manual_seed(0), shape=list(shape), denoised=denoised, width=8, blocks=1, offset=2.5
    ).eval()
    x, clean = torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(1))
    levels = torch.tensor([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [1.0, 80.0]])
    assert network.convolves == (len(shape) == 3 and min(shape[1:]) >= 4)
    assert torch.equal(network(x, levels, clean).detach(), torch.full((4,), 2.5))
    with torch.no_grad():
        shaken(network)
        values = network(x, levels, clean)
        assert values.isfinite().all()
        assert torch.allclose(values[1:2], network(x[1:2], levels[1:2], clean[1:2]), atol=1e-5)
        assert not torch.allclose(values[1], network(x[1:2], levels[:1], clean[1:2]))  # the level matters


@pytest.mark.slow
def test_a_classifier_s_verdict_on_digits():
    """At high noise x0-hat says nothing of the class, and the classifier is sure of itself all the same: as a soft
    value it is worse than a constant, and the learned one is not."""
    from pathlib import Path

    from feynkac.steering.pixel_pipeline import load_pipeline
    from feynkac.steering.rewards import ClassLogProb

    data = Path(__file__).parents[2] / "data"
    digits = load_pipeline(data / "digits_diffusion")
    digits.set_progress_bar_config(disable=True)
    found = collect_rollouts(
        digits,
        ClassLogProb(data / "digits_classifier", 3),
        800,
        seed=1,
        call={"class_labels": None, "num_inference_steps": 10, "eta": 1.0, "output_type": "pt"},
        batch_size=200,
        clean=True,
        baseline=True,
        progress=False,
    )
    fitting = Fitting(steps=150, batch_size=64, width=16, blocks=1, held_out=0.5, evaluate_every=25, warmup=20)
    value, _ = fit_network(found, temperature=1.0, seed=1, fitting=fitting, progress=False)
    levels = assess(value, found.split(400)[1])
    for level in levels[:6]:
        assert level.explained > level.denoised_explained + 0.5
        assert level.denoised_explained < 0.0
    assert levels[8].correlation > 0.4 > abs(levels[0].correlation)  # and it learns what there is to see
