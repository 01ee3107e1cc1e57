"""Correctors: what experts may predict, what paths are, identities, refusals."""

import math

import pytest
import torch

from feynkac.fkc import (
    Annealed,
    AnnealedProduct,
    Diffusion,
    Expert,
    GeometricAverage,
    Product,
    RewardTilt,
    Target,
    sample_corrected,
)
from feynkac.fkc.testing.experts import gaussian_expert

PATHS = {
    "ve": Diffusion.ve(0.01, 20.0),
    "vp": Diffusion.vp(),
    "flow": Diffusion.flow(),
    "edm": Diffusion.edm(0.01, 20.0),
}
VE = PATHS["ve"]


def sampled(target, **options):
    return sample_corrected(target, **({"particles": 1000, "populations": 20, "seed": 0} | options))


def test_faces_are_targets():
    a, b = gaussian_expert(VE), gaussian_expert(VE, mean=1.0)
    assert Annealed(a, 2.0).powers(0.3) == (2.0,)
    assert Product(a, b).powers(0.3) == (1.0, 1.0)
    assert AnnealedProduct([a, b], 1.5).powers(0.3) == (1.5, 1.5)
    assert GeometricAverage(a, b, 3.0).powers(0.3) == (-2.0, 3.0)
    assert GeometricAverage(a, b, lambda u: 1 + u).powers(0.5) == (-0.5, 1.5)
    assert Product(a, b).reward_scale(1.0) == 0.0
    plain = Product(a, b).tilted(lambda y: y.sum(dim=1))
    assert plain.tilt is not None
    assert [plain.reward_scale(u, signal=0.3) for u in (0.25, 1.0)] == [0.3, 1.0]
    assert plain.tilt.value_and_gradient(torch.ones(2, 1).double())[0].tolist() == [1.0, 1.0]
    assert plain.experts == (a, b)
    tilted = Product(a, b).tilted(lambda y: 3.0 * y.sum(dim=1), lambda u: 2.0 * u)
    assert tilted.powers(0.3) == (1.0, 1.0)
    assert tilted.reward_scale(0.25) == 0.5
    value, gradient = tilted.tilt.value_and_gradient(torch.ones(2, 1).double())
    assert value.tolist() == [3.0, 3.0]
    assert gradient.tolist() == [[3.0], [3.0]]


# --- what experts may predict ----------------------------------------------------------------------------------------


KINDS = [(path, kind) for path in PATHS for kind in ("noise", "denoised", "velocity")] + [("vp", "v")]


@pytest.mark.parametrize(("path", "kind"), KINDS)
def test_experts_may_predict_anything(path, kind):
    diffusion = PATHS[path]
    scored = gaussian_expert(diffusion, mean=0.5, variance=0.3)

    def predict(x, t):
        alpha, sigma = diffusion.alpha(t)[:, None], diffusion.sigma(t)[:, None]
        score = scored.predict(x, t)
        clean = (x + sigma**2 * score) / alpha
        noise = -sigma * score
        if kind == "velocity":
            h = 1e-6
            slopes = [(f(t + h) - f(t - h))[:, None] / (2 * h) for f in (diffusion.alpha, diffusion.sigma)]
            return slopes[0] * clean + slopes[1] * noise
        return {"noise": noise, "denoised": clean, "v": alpha * noise - sigma * clean}[kind]

    other = Expert(predict, diffusion, kind, mean=0.5, std=0.3**0.5, shape=(1,))
    y = torch.linspace(-2, 2, 7).double()[:, None]
    for sigma in diffusion.levels(5)[1:-1]:
        torch.testing.assert_close(other.score(y, sigma**2), scored.score(y, sigma**2), rtol=1e-4, atol=1e-5)


def test_rates_of_the_paths():
    """dx = f x dt + g dW must carry alpha and sigma: finite differences of the variance say so."""
    for diffusion in PATHS.values():
        for t in (0.2, 0.5, 0.8):
            f, square = diffusion.rates(t)
            time, h = torch.tensor(t).double(), 1e-5
            alpha, sigma2 = diffusion.alpha, lambda s, d=diffusion: d.sigma(s).square()
            assert f == pytest.approx(float((alpha(time + h).log() - alpha(time - h).log()) / (2 * h)), abs=1e-5)
            slope = float((sigma2(time + h) - sigma2(time - h)) / (2 * h))
            assert square == pytest.approx(slope - 2 * f * float(sigma2(time)), rel=1e-4, abs=1e-6)
    assert Diffusion.vp().rates(0.5)[1] == pytest.approx(0.1 + 0.5 * 19.9, rel=1e-6)


def test_a_table_is_a_path():
    grid = torch.linspace(1e-3, 1, 1001).double()
    vp = Diffusion.vp()
    table = Diffusion.table(vp.alpha(grid).tolist(), vp.sigma(grid).tolist())
    for t in (0.1, 0.5, 0.9):
        assert float(table.noise(t)) == pytest.approx(float(vp.noise(1e-3 + t * (1 - 1e-3))), rel=1e-3)
    with pytest.raises(ValueError, match="rising"):
        Diffusion.table([1.0, 1.0], [0.5, 0.4])


# --- identities and refusals -----------------------------------------------------------------------------------------


def test_the_same_seed_and_a_population_alone():
    target = Product(gaussian_expert(VE, mean=-1.0), gaussian_expert(VE, mean=1.5, variance=0.25))
    both = sampled(target, steps=20, populations=2, particles=100)
    again = sampled(target, steps=20, populations=2, particles=100)
    alone = sampled(target, steps=20, populations=1, particles=100)
    assert torch.equal(both.x, again.x)
    assert torch.equal(both.x[:1], alone.x)
    assert torch.equal(both.log_weights[:1], alone.log_weights)
    chunked = sampled(target, steps=20, populations=1, particles=100, chunk_size=7)
    torch.testing.assert_close(chunked.x, alone.x)


def test_draws_by_weight():
    samples = sampled(Annealed(gaussian_expert(VE, reference=(0.5, 2.0)), 2.0), steps=30)
    for n in (None, 500, 5000):
        drawn = samples.resampled(n)
        assert drawn.shape == (20, n or 1000, 1)
        assert drawn.var().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Target((), ()), "expected one for each"),
        (lambda: Annealed(gaussian_expert(VE), math.nan), r"exponents\[0\]: got nan"),
        (lambda: Expert(lambda x, t: x, VE, "drift"), "kind: got 'drift'"),
        (lambda: Expert(lambda x, t: x, VE, std=0.0), "std: got 0.0"),
        (lambda: Diffusion.ve(2.0, 1.0), "0 < min < max"),
        (lambda: VE.levels(0), "steps: got 0"),
        (lambda: VE.time(100.0), "noise: got 100"),
        (lambda: sampled(Annealed(gaussian_expert(VE), 2.0), noise=-1.0), "noise: got -1.0"),
        (lambda: sampled(Annealed(gaussian_expert(VE), 2.0), noise=0.0, weights="kernel"), "deterministic move"),
        (lambda: sampled(Annealed(gaussian_expert(VE), 2.0), churn=-1.0), "churn: got -1.0"),
        (lambda: sampled(Annealed(Expert(lambda x, t: -x, VE), 2.0)), "shape: is not known"),
        (
            lambda: sampled(
                Target((gaussian_expert(VE),), (1.0,), RewardTilt(lambda y: y.sum(1))), weights="rate", churn=1.0
            ),
            "churn needs kernel weights",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
