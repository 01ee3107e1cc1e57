"""Replica exchange between noise levels and Langevin correctors, against laws known at every rung: chains that start
from them must keep them, chains that start elsewhere must find them, and wrong acceptances must do neither."""

import math
import warnings

import pytest
import torch

from feynkac.fkc import (
    Annealed,
    Checkpoint,
    CheckpointError,
    Diffusion,
    Expert,
    GeometricAverage,
    NonFiniteWeightWarning,
    Product,
    RefinedModel,
    Streams,
    corrected_model,
    sample_exchanged,
    smc,
)
from feynkac.fkc.correctors import LowAcceptanceWarning, ladder, langevin
from feynkac.fkc.correctors.model import cloud_of
from feynkac.fkc.correctors.tallies import Kept, Tally, batched_error
from feynkac.fkc.testing import ZTest, calibration
from feynkac.fkc.testing.experts import MixtureLaw, gaussian_expert, gaussian_product

PATHS = {"ve": Diffusion.ve(0.01, 20.0), "vp": Diffusion.vp()}
VE = PATHS["ve"]
LAW = MixtureLaw(torch.tensor([[-2.0], [2.0]], dtype=torch.float64), (0.3, 0.7), (0.3, 1.0))
STATISTICS = {
    "left": lambda x: (x[..., 0] < 0).double(),
    "mean": lambda x: x[..., 0],
    "square": lambda x: x[..., 0].square(),
}


class Grid:
    """A one-dimensional law prop. to prod_i q_i,h^a_i at noise variance h, by quadrature."""

    def __init__(self, laws, powers, h):
        width = 40.0 + 12.0 * math.sqrt(h)
        self.x = torch.linspace(-width, width, 200_001, dtype=torch.float64)
        one, sigma = torch.ones_like(self.x), torch.full_like(self.x, math.sqrt(h))
        log = sum(
            a * q.score_and_log_density(self.x[:, None], one, sigma)[1] for q, a in zip(laws, powers, strict=True)
        )
        mass = (log - log.max()).exp()
        self.mass = mass / mass.sum()

    def mean(self, function):
        return float((self.mass * function(self.x[:, None])).sum())

    def sample(self, shape, generator):
        total = self.mass.cumsum(0)
        u = torch.rand(shape, generator=generator, dtype=torch.float64) * total[-1]
        return self.x[torch.searchsorted(total, u).clamp(max=len(self.x) - 1)][..., None]


def exact_start(laws, powers, levels, shape, seed=1):
    """(R, *shape, 1) independent draws of every rung's law, and the laws."""
    generator = torch.Generator().manual_seed(seed)
    grids = [Grid(laws, powers, h) for h in levels]
    return torch.stack([grid.sample(shape, generator) for grid in grids]), grids


def rung_levels(target, chains, steps):
    model = corrected_model(target, steps=steps, noise=1.0)
    return [model.levels[round(model.n_steps * r / (chains - 1))].h for r in range(chains)]


def worst(x, grids):
    """Largest |z| over rungs and statistics of chains (R, P, K, 1) that are independent along P and K."""
    found = []
    for values, grid in zip(x, grids, strict=True):
        scale = math.sqrt(grid.mean(STATISTICS["square"]))
        for function in (STATISTICS["mean"], STATISTICS["square"], lambda y, s=scale: torch.cos(2.0 * y[..., 0] / s)):
            found.append(abs(ZTest.from_samples(function(values).flatten(), grid.mean(function)).z))
    return max(found)


def from_exact(target, laws, powers, *, sweeps=16, chains=4, steps=12, particles=6000, **options):
    levels = rung_levels(target, chains, steps)
    start, grids = exact_start(laws, powers, levels, (1, particles))
    settings = {"seed": 0, "burn_in": 0, "moves": 1} | options
    samples = sample_exchanged(
        target, sweeps=sweeps, chains=chains, steps=steps, particles=particles, start=start, **settings
    )
    return worst(samples.last, grids), samples


# --- the rungs' laws are kept ----------------------------------------------------------------------------------------


def claimed(path, known=True):
    """Two Gaussians that claim other moments than they have, with their laws."""
    parts = ((-1.0, 1.0), (1.5, 0.25))
    experts = [
        gaussian_expert(PATHS[path], mean=m, variance=v, reference=(0.3, 1.4), known_density=known) for m, v in parts
    ]
    laws = [MixtureLaw(torch.full((1, 1), m, dtype=torch.float64), (1.0,), v**0.5) for m, v in parts]
    return Product(*experts), laws, (1.0, 1.0)


def mixture(path="ve", known=True, beta=2.0):
    return Annealed(LAW.expert(PATHS[path], known_density=known), beta), [LAW], (beta,)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", [claimed, mixture])
def test_chains_at_the_laws_of_their_rungs_stay_there(case, path):
    """At four moves between rungs: no law of a small step is involved."""
    z, samples = from_exact(*case(path))
    assert z < 4.5
    assert 0.05 < samples.acceptance.min() < 0.98


@pytest.mark.parametrize("noise", [0.5, 3.0])
@pytest.mark.parametrize("gauge", ["reference", "plain"])
def test_whatever_the_kernels(noise, gauge):
    z, _ = from_exact(*mixture(), noise=noise, gauge=gauge, steps=24, particles=2000)
    assert z < 4.5


def test_guidance_and_rewards_keep_their_laws():
    first = MixtureLaw(torch.tensor([[-2.0], [2.0]], dtype=torch.float64), (0.5, 0.5), 1.0)
    second = MixtureLaw(torch.tensor([[-2.0], [2.0]], dtype=torch.float64), (0.2, 0.8), (0.8, 0.6))
    guided = GeometricAverage(first.expert(VE), second.expert(VE), 2.0)
    assert from_exact(guided, [first, second], (-1.0, 2.0), particles=2000)[0] < 4.5

    tilted = Annealed(gaussian_expert(VE, mean=0.0), 1.0).tilted(lambda x: 2.0 * x[..., 0], lambda u: u**3)
    levels = [level.h for level in corrected_model(tilted, steps=12).levels]
    laws = [gaussian_product((1.0, 0.0, 1.0 + h), linear=2.0 * (i / 12) ** 3) for i, h in enumerate(levels)]
    generator = torch.Generator().manual_seed(0)
    start = torch.stack(
        [
            law.mean + law.variance**0.5 * torch.randn(1, 2000, 1, generator=generator, dtype=torch.float64)
            for law in laws[::3]
        ]
    )
    samples = sample_exchanged(
        tilted, sweeps=6, chains=5, steps=12, particles=2000, start=start, seed=0, burn_in=0, noise=1.0
    )
    for x, law in zip(samples.last, laws[::3], strict=True):
        z = (x.flatten() - law.mean) / law.variance**0.5
        assert ZTest.from_samples(z, 0.0, limit=4.5).passed
        assert ZTest.from_samples(z.square(), 1.0, limit=4.5).passed


@pytest.mark.parametrize("wrong", ["always accepted", "weight of the way up", "weight of the way down"])
@pytest.mark.parametrize("case", [claimed, mixture])
def test_a_wrong_acceptance_leaves_the_laws(case, wrong, monkeypatch):
    """Negative control of all of the above: no test, or one path's weight the same for all."""
    if wrong == "always accepted":
        monkeypatch.setattr(ladder, "uniform", lambda g, shape: torch.zeros((len(g), *shape), dtype=torch.float64))
    else:
        name = "_up" if wrong.endswith("up") else "_down"
        right = getattr(ladder, name)

        def forgetful(*given):
            cloud, weight = right(*given)
            return cloud, torch.full_like(weight, weight.mean())

        monkeypatch.setattr(ladder, name, forgetful)
    assert from_exact(*case("ve"))[0] > 5.0


@pytest.mark.slow
@pytest.mark.parametrize("case", [claimed, mixture])
def test_with_scores_only_the_laws_are_kept_to_the_error_of_the_tracker(case):
    """Which is small at 50 moves between rungs and is not at four."""
    options = {"sweeps": 8, "particles": 4000}
    assert from_exact(*case("ve", known=False), steps=150, **options)[0] < 4.5
    assert from_exact(*case("ve", known=False), steps=12, **options)[0] > 6.0


def test_with_scores_only_no_density_at_a_rung_matters(monkeypatch):
    from feynkac.fkc.correctors import model

    target, _, _ = mixture(known=False)
    options = {"sweeps": 6, "chains": 4, "steps": 12, "particles": 20, "seed": 0}
    plain = sample_exchanged(target, **options)
    claim = model.gaussian_log_q
    monkeypatch.setattr(model, "gaussian_log_q", lambda y, level: claim(y, level) + 50.0 * torch.sin(y))
    torch.testing.assert_close(sample_exchanged(target, **options).last, plain.last)


# --- and found -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_an_annealed_mixture_is_found(path):
    """0.3 N(-2, 0.09) + 0.7 N(2, 1) squared, from one mode alone; errors from 400 independent ladders."""
    target, laws, powers = mixture(path)
    samples = sample_exchanged(
        target,
        sweeps=120,
        burn_in=40,
        chains=9,
        steps=40,
        particles=200,
        populations=2,
        start=torch.full((9, 2, 200, 1), 2.0, dtype=torch.float64),
        seed=0,
        functions=STATISTICS,
    )
    truth = Grid(laws, powers, samples.levels[-1])
    for name, function in STATISTICS.items():
        found = samples.estimates[name]
        test = ZTest(float(found.mean), float(found.std_error), truth.mean(function), 4.5)
        assert test.passed, f"{name}: {test}"
    assert float(samples.estimates["left"].mean) == pytest.approx(0.3815, abs=0.03)
    assert float(samples.estimates["left"].std_error) < 0.01
    assert samples.round_trips.sum() > 400


def test_chains_begin_near_the_target():
    """Where a weighted, resampled descent takes them; the moves alone go to 0.19."""
    samples = sample_exchanged(
        mixture()[0], sweeps=1, burn_in=0, chains=9, steps=40, particles=4000, seed=0, functions=STATISTICS
    )
    assert float(samples.estimates["left"].mean) == pytest.approx(0.3815, abs=0.06)


@pytest.mark.slow
def test_with_scores_only_it_is_found_nearly():
    samples = sample_exchanged(
        mixture(known=False)[0],
        sweeps=160,
        burn_in=60,
        chains=11,
        steps=100,
        particles=300,
        start=torch.full((11, 1, 300, 1), 2.0, dtype=torch.float64),
        seed=0,
        functions=STATISTICS,
    )
    assert float(samples.estimates["left"].mean) == pytest.approx(0.3815, abs=0.03)
    assert float(samples.estimates["mean"].mean) == pytest.approx(0.480, abs=0.12)
    assert float(samples.estimates["square"].mean) == pytest.approx(4.327, abs=0.05)


# --- Langevin moves --------------------------------------------------------------------------------------------------


def after_langevin(known, level, relative, moves=40, particles=10_000):
    """z of the laws after Langevin moves from the exact law at a level, and the change of P(x < 0)."""
    target, laws, powers = mixture(known=known)
    model = corrected_model(target, steps=40, noise=1.0, weights="kernel")
    start, (grid,) = exact_start(laws, powers, [model.levels[level].h], (1, particles))
    streams = Streams.from_seed(0, 1)
    cloud = cloud_of(model.evaluated(streams.noise, start[0], model.levels[level], None), {})
    size = torch.tensor([langevin.reference_step(model, level, relative)], dtype=torch.float64)
    moved, accepted, _ = langevin.langevin_moves(model, streams.noise, level, cloud, size, moves)
    assert 0.2 < accepted.mean() < 0.99
    return worst(moved.x[None], [grid]), (moved.x < 0).double().mean() - (cloud.x < 0).double().mean()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("level", [20, 40])
def test_langevin_moves_keep_the_law(known, level):
    """With scores only too, at steps that reach from mode to mode."""
    z, change = after_langevin(known, level, 0.3)
    assert z < 4.5
    assert abs(change) < 0.03


def test_langevin_moves_without_their_test_do_not(monkeypatch):
    """Negative control: the unadjusted chain, and segments across a valley on which Simpson's rule is taken as it
    comes."""
    monkeypatch.setattr(langevin, "_TOLERANCE", math.inf)
    assert after_langevin(False, 40, 0.3)[1] < -0.1

    class Unadjusted(langevin.MALA):
        def __call__(self, generators, point, path, step_size):
            new, _ = langevin_proposal(generators, point, path, step_size)
            mask = torch.rand(new.x.shape[:2], generator=generators[0]) < 0.98
            return metropolis(generators, point, new, torch.where(mask, torch.inf, -torch.inf))

    from feynkac.fkc.kernels import langevin_proposal
    from feynkac.fkc.kernels.base import metropolis

    monkeypatch.setattr(langevin, "MALA", Unadjusted)
    assert after_langevin(True, 20, 0.3)[0] > 6.0


def test_what_a_particle_carries_after_langevin_moves_is_what_its_place_gives():
    target, _, _ = mixture()
    model = corrected_model(target.tilted(lambda x: x.square().sum(dim=-1).neg(), lambda u: u), steps=10, noise=1.0)
    streams = Streams.from_seed(0, 2)
    level = model.levels[6]
    y = torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cloud = cloud_of(model.evaluated(streams.noise, y, level, None), {})
    moved, accepted, _ = langevin.langevin_moves(model, streams.noise, 6, cloud, torch.tensor([0.05, 0.5]).double(), 3)
    fresh = cloud_of(model.evaluated(streams.noise, moved.x, level, None), {})
    assert 0 < accepted.mean() < 1
    assert not torch.equal(moved.x, cloud.x)
    assert fresh.carried.keys() == moved.carried.keys()
    for name, value in fresh.carried.items():
        torch.testing.assert_close(moved.carried[name], value)


# --- inside the sequential sampler -----------------------------------------------------------------------------------


class WeighedAtTheMovedPoint(RefinedModel):
    """Wrong: the particle moves at its new level, and the kernels' ratio is taken there."""

    def move(self, generators, step, cloud, population):
        moved = self.model.move(generators, step, cloud, population)
        size = torch.full((cloud.n_populations,), self.step_sizes[step], dtype=torch.float64)
        return langevin.langevin_moves(self.model, generators, step, moved, size, self.moves)[0]

    def log_potential(self, step, previous, cloud):
        return self.model.log_potential(step, previous, cloud)


class WeighedFromTheOldPoint(RefinedModel):
    """Wrong: the particle moves before it leaves, and the kernels' ratio starts where it was."""

    def log_potential(self, step, previous, cloud):
        return self.model.log_potential(step, previous, cloud)


def evidence_test(kind, populations=400):
    """A Gaussian that claims other moments, in ten steps."""
    model = corrected_model(Annealed(gaussian_expert(VE, reference=(0.2, 1.3)), 1.5), steps=10)
    result = smc(kind(model, moves=2, step_size=0.5), particles=60, populations=populations, seed=3)
    truth = gaussian_product((1.5, 0.0, 1.0 + model.levels[-1].h))
    return ZTest.from_samples((result.log_evidence - truth.log_evidence).exp(), 1.0, limit=4.5), result


def test_the_evidence_with_langevin_moves_is_unbiased():
    """And not if either end of the step is weighed at the wrong place."""
    test, result = evidence_test(RefinedModel)
    assert test.passed, str(test)
    assert test.std_error < 0.003
    assert 0.2 < result.cloud.carried["accepted"].mean() < 0.99
    for wrong in (WeighedAtTheMovedPoint, WeighedFromTheOldPoint):
        assert abs(evidence_test(wrong)[0].z) > 50.0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"weights": "rate"}, {"control": "least_squares"}, {"gauge": "fitted"}])
def test_langevin_moves_with_rates_and_adaptive_moves(options):
    """Scores only: the law within the tolerance of rates."""
    model = corrected_model(mixture(known=False)[0], steps=100, noise=2.0, **options)
    result = smc(RefinedModel(model, step_size=0.02), particles=4000, populations=2, seed=0)
    assert float(result.mean(STATISTICS["left"]).mean()) == pytest.approx(0.3815, abs=0.05)


def test_refined_settings():
    model = corrected_model(mixture()[0], steps=4)
    with pytest.raises(ValueError, match="moves: got 0"):
        RefinedModel(model, moves=0)
    with pytest.raises(ValueError, match=r"step_size: got -1\.0"):
        RefinedModel(model, step_size=lambda level: -1.0 if level == 2 else 0.1)


# --- seeds, checkpoints, memory --------------------------------------------------------------------------------------

SMALL = {"chains": 4, "steps": 12, "particles": 3, "burn_in": 5, "functions": STATISTICS, "keep": 8}


def same(a, b):
    assert torch.equal(a.last, b.last)
    assert torch.equal(a.chain, b.chain)
    assert torch.equal(a.acceptance, b.acceptance)
    assert torch.equal(a.step_sizes, b.step_sizes)
    for name in STATISTICS:
        assert torch.equal(a.estimates[name].mean, b.estimates[name].mean)
        assert torch.equal(a.estimates[name].std_error, b.estimates[name].std_error)


def test_the_same_seed_gives_the_same_bits_and_populations_do_not_meet():
    target = mixture()[0]
    both = sample_exchanged(target, sweeps=20, populations=2, seed=7, **SMALL)
    same(both, sample_exchanged(target, sweeps=20, populations=2, seed=7, **SMALL))
    alone = sample_exchanged(target, sweeps=20, populations=1, seed=7, **SMALL)
    assert torch.equal(both.last[:, :1], alone.last)
    assert not torch.equal(both.last[:, 0], both.last[:, 1])
    other = sample_exchanged(target, sweeps=20, populations=1, seed=8, **SMALL)
    assert not torch.equal(other.last, alone.last)


class Killed(Exception):
    pass


@pytest.mark.parametrize("known", [True, False])
def test_a_run_that_was_killed_goes_on_with_the_same_bits_and_a_finished_one_further(known, tmp_path):
    target = mixture(known=known)[0]
    whole = sample_exchanged(target, sweeps=40, populations=2, seed=7, **SMALL)

    def killer(sweep, x):
        if sweep == 17:
            raise Killed

    place = Checkpoint(tmp_path / "run", every=4)
    with pytest.raises(Killed):
        sample_exchanged(target, sweeps=40, populations=2, seed=7, checkpoint=place, on_sweep=killer, **SMALL)
    options = {"populations": 2, "seed": 7, "checkpoint": place, "resume": True, **SMALL}
    half = sample_exchanged(target, sweeps=25, **options)
    assert half.estimates["left"].sweeps == 20
    same(sample_exchanged(target, sweeps=40, **options), whole)
    same(sample_exchanged(target, sweeps=40, **options), whole)
    with pytest.raises(ValueError, match="sweeps: got 30, but the checkpoint has made 40"):
        sample_exchanged(target, sweeps=30, **options)
    with pytest.raises(CheckpointError, match=r"moves: 1 there, 2 here"):
        sample_exchanged(target, sweeps=50, **options, moves=2)
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        sample_exchanged(target, sweeps=50, **options | {"resume": False})


def test_memory_does_not_grow_and_what_is_kept_is_evenly_spaced():
    kept, tally = Kept((), 8), Tally.empty(torch.zeros(2, 1))
    for sweep in range(1000):
        kept = kept.added(torch.tensor([float(sweep)]))
        tally = tally.added(torch.tensor([[float(sweep)], [2.0]]))
        assert len(kept.states) <= 8
        assert tally.sums.shape == (2, 64, 1)
    found = torch.cat(kept.states)
    assert found[0] == 0
    assert len(found) > 4
    assert len(set(found.diff().tolist())) == 1
    torch.testing.assert_close(tally.estimate().mean, torch.tensor([0.5 * (499.5 + 2.0)], dtype=torch.float64))


@pytest.mark.parametrize("series", [1, 8, 40])
def test_error_bars_know_of_the_correlation_in_time(series):
    """AR(1) with coefficient 0.8; errors as if independent would be three times too small."""
    generator = torch.Generator().manual_seed(0)
    runs, length, a = 200, 1500, 0.8
    x = torch.randn(runs, series, generator=generator, dtype=torch.float64) / math.sqrt(1 - a * a)
    values = []
    for _ in range(length):
        x = a * x + torch.randn(runs, series, generator=generator, dtype=torch.float64)
        values.append(x)
    walks = torch.stack(values, dim=2)
    z = torch.stack([walk.mean() / batched_error(walk) for walk in walks])
    assert 0.7 < z.square().mean() < 1.5
    naive = walks.mean(dim=(1, 2)) / (walks.std(dim=(1, 2)) / math.sqrt(series * length))
    assert not calibration(naive).passed
    assert naive.square().mean() > 5.0


@pytest.mark.slow
def test_error_bars_of_few_ladders_are_the_spread_of_many_runs():
    """And not that of independent sweeps."""
    samples = sample_exchanged(
        mixture()[0], sweeps=300, burn_in=50, chains=7, steps=21, populations=60, particles=2, seed=2, keep=250
    )
    spread = float(samples.mean(STATISTICS["left"]).std())
    assert float(samples.std_error(STATISTICS["left"]).square().mean().sqrt()) == pytest.approx(spread, rel=0.3)
    naive = STATISTICS["left"](samples.x).std(dim=1).mean() / samples.x.shape[1] ** 0.5
    assert naive < 0.6 * spread


def test_calls_are_counted():
    calls = 0
    law = LAW.expert(VE)

    def predict(x, t):
        nonlocal calls
        calls += len(x)
        return law.predict(x, t)

    for known in (True, False):
        calls = 0
        expert = Expert(predict, VE, std=2.0, log_density=law.log_density if known else None, shape=(1,))
        samples = sample_exchanged(Annealed(expert, 2.0), sweeps=7, particles=2, chains=5, steps=9, seed=0)
        assert calls == 2 * samples.calls


def test_float32_and_chunks():
    target = mixture()[0]
    small = sample_exchanged(target, sweeps=6, seed=0, dtype=torch.float32, **SMALL)
    assert small.last.dtype == torch.float32
    whole = sample_exchanged(target, sweeps=6, seed=0, **SMALL)
    parts = sample_exchanged(target, sweeps=6, seed=0, chunk_size=2, **SMALL)
    torch.testing.assert_close(parts.last, whole.last)


# --- what is said to the user ----------------------------------------------------------------------------------------


def test_rungs_too_far_apart_are_warned_of_with_others_that_are_not():
    expert = gaussian_expert(VE, mean=3.0, variance=0.01, dimension=8, reference=(0.0, 1.0))
    options = {"sweeps": 15, "steps": 60, "particles": 20, "seed": 0}
    with pytest.warns(LowAcceptanceWarning, match="accepted less than one time in ten; try chains="):
        poor = sample_exchanged(Annealed(expert, 3.0), chains=3, **options)
    suggested = poor.suggested_rungs()
    assert suggested[0] == 0
    assert suggested[-1] == 60
    assert len(suggested) >= 3
    assert poor.acceptance.min() < 0.1


def test_samples_and_their_means():
    samples = sample_exchanged(mixture()[0], sweeps=20, populations=2, seed=0, **SMALL)
    assert samples.x.shape == (2, samples.chain.shape[0] * 3, 1)
    assert samples.mean(lambda x: x).shape == (2, 1)
    assert samples.std_error(lambda x: x).shape == (2, 1)
    assert samples.std_error(STATISTICS["left"]).isfinite().all()
    assert samples.barrier >= 0.0


def test_predictions_that_are_not_numbers_are_rejected_counted_and_told():
    law = LAW.expert(VE)

    def predict(x, t):
        return torch.where(x > 2.5, torch.nan, law.predict(x, t))

    expert = Expert(predict, VE, std=2.0, log_density=law.log_density, shape=(1,))
    start = torch.zeros(4, 1, 50, 1, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        samples = sample_exchanged(
            Annealed(expert, 2.0), sweeps=10, chains=4, steps=12, particles=50, start=start, seed=0, burn_in=0
        )
    assert [w.category for w in told].count(NonFiniteWeightWarning) == 1
    assert samples.invalid.sum() > 0
    assert samples.last.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sweeps": 0}, "sweeps: got 0"),
        ({"sweeps": 5, "burn_in": 5}, "burn_in: got 5, expected 0 to 4"),
        ({"sweeps": 5, "chains": 1}, "chains: got 1, expected 2 to 13"),
        ({"sweeps": 5, "chains": (0, 5, 5, 12)}, r"chains: got \(0, 5, 5, 12\)"),
        ({"sweeps": 5, "moves": -1}, "moves: got -1"),
        ({"sweeps": 5, "step_size": 0.0}, "step_size: got 0.0"),
        ({"sweeps": 5, "keep": 1}, "keep: got 1"),
        ({"sweeps": 5, "gauge": "fitted"}, "weights: got 'kernel'"),
        ({"sweeps": 5, "noise": 0.0}, "noise: got 0"),
        ({"sweeps": 5, "start": torch.zeros(2, 1, 1, 1)}, r"start: got shape \(2, 1, 1, 1\)"),
        ({"sweeps": 5, "resume": True, "burn_in": None}, "burn_in: got None"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    settings = {"chains": 4, "steps": 12, "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        sample_exchanged(mixture()[0], **settings)


def test_exponents_that_move_need_densities():
    expert = LAW.expert(VE, known_density=False)
    with pytest.raises(ValueError, match="exponents that move along the path need experts that know their log_density"):
        sample_exchanged(Annealed(expert, lambda u: 1.0 + u), sweeps=5)
    law, _ = mixture()[0], None
    moving = Annealed(law.experts[0], lambda u: 1.0 + u)
    assert sample_exchanged(moving, sweeps=4, seed=0, chains=4, steps=12).last.isfinite().all()
