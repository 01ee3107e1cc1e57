"""Importance sampling against closed forms, its bookkeeping, and resuming."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch

from feynkac.fkc import CheckpointError, NonFiniteWeightWarning, PopulationCollapsed
from feynkac.fkc.testing.ztest import ZTest
from feynkac.flows import ParetoWarning, ProposalFacts, WithCentroidFactor, importance_sample


class GaussianProposal:
    """N(0, scale^2 I) over any event shape."""

    def __init__(self, event_shape, scale=1.0):
        self.event_shape, self.scale = tuple(event_shape), scale
        self.facts = ProposalFacts("euclidean", "nm", "exact", fingerprint=f"gaussian {scale}")

    def sample_and_log_prob(self, n, *, generator, context=None):
        x = self.scale * torch.randn(n, *self.event_shape, generator=generator, dtype=torch.float64)
        return x, self.log_prob(x)

    def log_prob(self, x, *, context=None):
        flat = x.flatten(1).double() / self.scale
        return -0.5 * flat.square().sum(-1) - flat.shape[1] * math.log(self.scale * math.sqrt(2 * math.pi))


class GaussianEnergy:
    """U = kT |x - mean|^2 / (2 scale^2); counts its calls."""

    kT = 2.5

    def __init__(self, scale=1.0, mean=0.0):
        self.scale, self.mean, self.n_calls = scale, mean, 0

    def __call__(self, positions):
        self.n_calls += len(positions)
        return self.kT * 0.5 * ((positions - self.mean) / self.scale).square().flatten(1).sum(-1)


# d, proposal scale, target scale, mean, exact ESS fraction [sp sqrt(2 sq^2 - sp^2) / sq^2 exp(-mu^2 / D)]^d
CASES = [
    (1, 1.0, 1.0, 1.0, 0.367879),
    (1, 1.0, 1.0, 0.5, 0.778801),
    (1, 1.5, 1.0, 0.0, 0.831479),
    (2, 1.3, 1.0, 0.7, 0.552047),
    (10, 1.2, 1.0, 0.0, 0.612582),
    (66, 1.1, 1.0, 0.0, 0.364486),
]


@pytest.mark.parametrize(("d", "sq", "sp", "mu", "ess"), CASES)
def test_gaussians_have_their_exact_ess_and_evidence(d, sq, sp, mu, ess):
    n = 40_000
    width = 2 * sq**2 - sp**2
    assert (sp * math.sqrt(width) / sq**2 * math.exp(-(mu**2) / width)) ** d == pytest.approx(ess, abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParetoWarning)
        result = importance_sample(GaussianProposal((d,), sq), GaussianEnergy(sp, mu), n, seed=1, chunk_size=10_000)
    assert result.ess_fraction == pytest.approx(ess, rel=0.05)
    exact = 0.5 * d * math.log(2 * math.pi * sp**2)
    assert abs(result.log_evidence - exact) < 4 * math.sqrt((1 / ess - 1) / n)
    assert result.log_evidence_std_error == pytest.approx(math.sqrt((1 / ess - 1) / n), rel=0.1)
    mean, error = result.mean(lambda x: x), result.std_error(lambda x: x)
    assert mean.shape == (d,)
    assert bool(((mean - mu).abs() < 5 * error).all())
    assert result.n_energy_calls == n


def test_evidence_and_error_bars_hold_over_repeats():
    """Unbiased in Z (not log Z); the stated errors are the spread of repeats. Negative control: a wrong log q."""
    proposal, energy = GaussianProposal((2,), 1.3), GaussianEnergy(1.0, 0.7)
    runs = [importance_sample(proposal, energy, 500, seed=seed) for seed in range(400)]
    z = torch.tensor([math.exp(r.log_evidence) for r in runs], dtype=torch.float64)
    assert ZTest.from_samples(z, 2 * math.pi).passed
    stated = sum(r.log_evidence_std_error for r in runs) / len(runs)
    assert z.log().std().item() == pytest.approx(stated, rel=0.12)
    scores = torch.tensor([((r.mean(lambda x: x[:, 0]) - 0.7) / r.std_error(lambda x: x[:, 0])).item() for r in runs])
    assert scores.std().item() == pytest.approx(1.0, abs=0.15)
    proposal.log_prob = lambda x, context=None: GaussianProposal.log_prob(proposal, x) + 0.1
    wrong = torch.tensor([math.exp(importance_sample(proposal, energy, 500, seed=s).log_evidence) for s in range(400)])
    assert not ZTest.from_samples(wrong, 2 * math.pi).passed


@pytest.mark.parametrize(("sp", "exact"), [(1.3, 0.408), (1.5, 0.556), (2.2, 0.793)])
def test_khat_finds_the_tail_index(sp, exact):
    """Between Gaussians the weights have tail index 1 - sq^2/sp^2: the mean fails at 1, the variance at 1/2."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = importance_sample(GaussianProposal((1,)), GaussianEnergy(sp), 100_000, seed=2, chunk_size=50_000)
    assert 1 - 1 / sp**2 == pytest.approx(exact, abs=1e-3)
    assert result.pareto.khat == pytest.approx(exact, abs=0.15)
    warned = [w for w in caught if w.category is ParetoWarning]
    assert len(warned) == (result.pareto.khat > 0.7)


def test_tails_that_are_too_light_are_warned_of():
    with pytest.warns(ParetoWarning, match="k-hat"):
        importance_sample(GaussianProposal((5,)), GaussianEnergy(2.5), 20_000, seed=2)


class ShapeEnergy:
    """U/kT = 1/2 sum |x_i - centroid|^2: blind to where the molecule is."""

    kT = 2.5

    def __call__(self, positions):
        return self.kT * 0.5 * (positions - positions.mean(1, keepdim=True)).square().flatten(1).sum(-1)


def test_gaussian_centroid_factor_is_exact():
    """22 atoms: ESS 1 and the exact log Z; another width costs draws; without a factor nothing holds."""
    n, exact = 22, 62.5297
    base = GaussianProposal((n, 3))
    result = importance_sample(WithCentroidFactor(base, std=1 / math.sqrt(n)), ShapeEnergy(), 4000, seed=3)
    assert result.ess_fraction == pytest.approx(1.0, abs=1e-9)
    assert result.log_evidence == pytest.approx(1.5 * (n - 1) * math.log(2 * math.pi) + 1.5 * math.log(n), abs=1e-9)
    assert result.log_evidence == pytest.approx(exact, abs=1e-4)
    assert result.facts.base_measure == "modulo_translation"
    narrow = importance_sample(WithCentroidFactor(base, std=0.7 / math.sqrt(n)), ShapeEnergy(), 20_000, seed=3)
    assert abs(narrow.log_evidence - exact) < 5 * narrow.log_evidence_std_error
    assert narrow.ess_fraction < 0.9
    with pytest.warns(ParetoWarning):  # negative control: without a factor the weights have no mean
        importance_sample(base, ShapeEnergy(), 4000, seed=3)
    with pytest.raises(ValueError, match="euclidean density"):
        WithCentroidFactor(GaussianProposal((5,)), std=1.0)


class Holes(GaussianEnergy):
    """+inf, NaN and -inf in places."""

    def __call__(self, positions):
        energy = super().__call__(positions)
        energy[positions[:, 0] > 2.0] = math.inf
        energy[positions[:, 0] < -2.0] = math.nan
        energy[positions[:, 1] < -2.5] = -math.inf
        return energy


def test_nonfinite_energies_weigh_nothing_and_are_counted_once():
    with pytest.warns(NonFiniteWeightWarning) as caught:
        result = importance_sample(GaussianProposal((2,)), Holes(), 4000, seed=4, chunk_size=100)
    assert len(caught) == 1
    bad = (result.x[:, 0].abs() > 2.0) | (result.x[:, 1] < -2.5)
    assert result.n_nonfinite == int(bad.sum()) > 0
    assert bool((result.log_weights[bad] == -math.inf).all())
    assert bool(result.log_weights[~bad].isfinite().all())
    weights = result.resampled(1000, torch.Generator().manual_seed(1))
    assert bool((weights[:, 0].abs() <= 2.0).all())
    # f may be anything where the weight is zero
    f = lambda x: torch.where(x[:, 0].abs() > 2.0, math.nan, x[:, 0])  # noqa: E731
    assert result.mean(f).isfinite()
    assert result.std_error(f).isfinite()


def test_all_dead_is_an_error():
    class Dead(GaussianEnergy):
        def __call__(self, positions):
            return torch.full((len(positions),), math.nan)

    with pytest.raises(PopulationCollapsed, match="all 300 of 300"):
        importance_sample(GaussianProposal((2,)), Dead(), 300, seed=1)


def test_raw_smoothed_and_truncated_weights_stand_side_by_side():
    with pytest.warns(ParetoWarning):
        result = importance_sample(GaussianProposal((5,)), GaussianEnergy(2.5), 5000, seed=5)
    raw = result.log_weights
    assert torch.equal(raw, -result.energies / result.kT - result.log_q)
    assert result.pareto.log_weights.max() < raw.max() + 1e-12
    assert result.truncated.n_truncated > 0
    assert result.truncated.log_weights.max() < raw.max()
    assert result.ess == pytest.approx((raw.exp().sum() ** 2 / raw.exp().square().sum()).item())


def test_temperature_of_the_target_can_be_set():
    energy = GaussianEnergy()
    hot = importance_sample(GaussianProposal((2,), 2.0), energy, 20_000, seed=6, kT=5.0)
    assert hot.kT == 5.0
    assert abs(hot.log_evidence - math.log(2 * math.pi * 2.0)) < 5 * hot.log_evidence_std_error


@pytest.mark.parametrize("n", [500, 1000, 2500])
def test_resampling_gives_equal_weights(n):
    result = importance_sample(GaussianProposal((1,), 1.5), GaussianEnergy(1.0, 0.5), 1000, seed=7)
    draws = result.resampled(n, torch.Generator().manual_seed(1))
    assert draws.shape == (n, 1)
    expected = result.mean(lambda x: x)
    assert (draws.mean(0) - expected).abs().item() < 4.0 / math.sqrt(min(n, 1000))


class Interrupted(Exception):
    pass


def test_a_run_goes_on_where_it_stopped_with_the_same_bits(tmp_path):
    proposal, energy = GaussianProposal((4, 3), 1.2), GaussianEnergy()
    settings = {"seed": 8, "chunk_size": 256}
    whole = importance_sample(proposal, energy, 1000, **settings)
    folder = tmp_path / "draws"
    seen = []

    def stop(done, n, ess, calls):
        seen.append((done, n, calls))
        assert 0 < ess <= done
        if done >= 512:
            raise Interrupted

    with pytest.raises(Interrupted):
        importance_sample(proposal, energy, 1000, **settings, checkpoint=folder, progress=stop)
    assert seen == [(256, 1000, 256), (512, 1000, 512)]
    (folder / "chunk-000002.tmp").mkdir()  # what a kill may leave behind
    before = energy.n_calls
    resumed = importance_sample(proposal, energy, 1000, **settings, checkpoint=folder)
    assert energy.n_calls - before == 1000 - 512
    assert resumed.n_energy_calls == 1000
    for name in ("x", "log_q", "energies", "log_weights"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name))


def test_a_folder_of_another_run_is_refused_and_damage_named(tmp_path):
    proposal, energy = GaussianProposal((2,)), GaussianEnergy()
    importance_sample(proposal, energy, 300, seed=1, chunk_size=100, checkpoint=tmp_path)
    base = {"n": 300, "seed": 1, "chunk_size": 100}
    for change, field in (({"seed": 2}, "seed"), ({"n": 400}, "n"), ({"chunk_size": 50}, "chunk_size")):
        settings = base | change
        with pytest.raises(CheckpointError, match=f"with {field} = "):
            importance_sample(proposal, energy, settings.pop("n"), **settings, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="with kT = "):
        importance_sample(proposal, energy, 300, seed=1, chunk_size=100, kT=1.0, checkpoint=tmp_path)
    other = GaussianProposal((2,))
    other.facts = dataclasses.replace(other.facts, fingerprint="trained further")
    with pytest.raises(CheckpointError, match=r"with proposal = .*trained further"):
        importance_sample(other, energy, 300, seed=1, chunk_size=100, checkpoint=tmp_path)
    damaged = next((tmp_path / "chunk-000001").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=damaged.name):
        importance_sample(proposal, energy, 300, seed=1, chunk_size=100, checkpoint=tmp_path)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        importance_sample(GaussianProposal((2,)), GaussianEnergy(), 0, seed=1)

    class Scalar(GaussianEnergy):
        def __call__(self, positions):
            return super().__call__(positions).sum()

    with pytest.raises(ValueError, match="energy of 10 draws must have shape"):
        importance_sample(GaussianProposal((2,)), Scalar(), 10, seed=1)


def test_harmonic_molecule_from_a_trained_start(molecules, thermal):
    """Peroxide with harmonic bonds and angles and a periodic torsion: log Z by quadrature, through the whole chain."""
    coordinates = molecules["peroxide"]
    kT, kb, ka, kt = 2.5, 2.0e4, 250.0, 4.0

    class Peroxide:
        def __init__(self):
            self.kT = kT

        def __call__(self, x):
            y, _ = coordinates.forward(x.double())
            bonds, angles, torsion = y[:, :3], y[:, 3:5], y[:, 5]
            stretch = 0.5 * kb * (bonds - 0.12).square().sum(-1) + 0.5 * ka * (angles - 1.9).square().sum(-1)
            return stretch + kt * (1 + torch.cos(2 * torsion - 0.4))

    from feynkac.flows import InternalCoordinateFlow

    r = torch.linspace(1e-4, 0.4, 100_001, dtype=torch.float64)
    a = torch.linspace(1e-4, math.pi - 1e-4, 100_001, dtype=torch.float64)
    t = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)
    radial = torch.trapezoid(r * r * torch.exp(-0.5 * kb / kT * (r - 0.12) ** 2), r)
    angular = torch.trapezoid(a.sin() * torch.exp(-0.5 * ka / kT * (a - 1.9) ** 2), a)
    turning = torch.trapezoid(torch.exp(-kt / kT * (1 + torch.cos(2 * t - 0.4))), t)
    exact = (math.log(8 * math.pi**2) + 3 * radial.log() + 2 * angular.log() + turning.log()).item()

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(5000, 6, generator=generator, dtype=torch.float64)
    y = torch.cat([0.12 + 0.0118 * noise[:, :3], 1.9 + 0.105 * noise[:, 3:5], noise[:, 5:] % 6.28], -1)
    flow = InternalCoordinateFlow.from_data(coordinates, coordinates.wrap(y), hidden=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParetoWarning)
        result = importance_sample(flow, Peroxide(), 20_000, seed=9)
    assert result.ess_fraction > 0.2
    assert abs(result.log_evidence - exact) < 4 * result.log_evidence_std_error
    assert result.log_evidence_std_error < 0.02
    # observable: <cos 2 phi> by quadrature
    weight = torch.exp(-kt / kT * (1 + torch.cos(2 * t - 0.4)))
    cosine = (torch.trapezoid(weight * torch.cos(2 * t), t) / torch.trapezoid(weight, t)).item()
    torsion = lambda x: torch.cos(2 * coordinates.forward(x)[0][:, 5])  # noqa: E731
    assert abs(result.mean(torsion).item() - cosine) < 4 * result.std_error(torsion).item()
