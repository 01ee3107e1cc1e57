"""Kernels: they keep their target, from exact samples; the unadjusted one only with its weight."""

import math
from dataclasses import dataclass

import pytest
import torch

from feynkac.fkc import GeometricPath, generator_for, normal
from feynkac.fkc.kernels import MALA, Move, RandomWalk, UnadjustedLangevin
from feynkac.fkc.testing import ConformanceError, DoubleWell, Gaussian, check_kernel

KERNELS = {"random walk": (RandomWalk(), 0.8), "mala": (MALA(), 0.3), "unadjusted": (UnadjustedLangevin(), 0.1)}
TARGET = Gaussian(2, mean=0.5, scale=0.8, normalized=False)  # not centred: a wrong sign of the score shows


def exact_samples(n, seed=0):
    return TARGET.sample(n, generator=generator_for(seed, 0))


def functions():
    return {
        "mean": (lambda x: x[:, 0], 0.5),
        "variance": (lambda x: (x[:, 1] - 0.5) ** 2, 0.64),
        "covariance": (lambda x: (x[:, 0] - 0.5) * (x[:, 1] - 0.5), 0.0),
        "tail": (lambda x: (x[:, 0] > 1.3).double(), 0.5 * math.erfc(1 / math.sqrt(2))),
    }


def run(kernel, step, n=40_000, moves=5):
    return check_kernel(kernel, TARGET, exact_samples(n), step_size=step, moves=moves, seed=5, functions=functions())


@pytest.mark.parametrize("name", KERNELS)
def test_target_is_kept(name):
    tests = run(*KERNELS[name])
    assert len(tests) >= 4


@dataclass(frozen=True)
class Unweighted:
    """Negative control: Langevin without the backward-kernel weight, sold as exact."""

    needs_score: bool = True
    exact: bool = True

    def __call__(self, generators, point, path, step_size):
        moved = UnadjustedLangevin()(generators, point, path, step_size)
        return type(moved)(moved.point, torch.zeros_like(moved.log_weight), moved.accepted, moved.n_invalid)


@dataclass(frozen=True)
class AlwaysAccepts:
    """Negative control: a random walk without the Metropolis step."""

    needs_score: bool = False
    exact: bool = True

    def __call__(self, generators, point, path, step_size):
        noise = normal(generators, point.x.shape[1:])
        new = path.evaluate(point.x + step_size * noise, score=False)
        zero = torch.zeros(noise.shape[:2], dtype=torch.float64)
        return Move(new, zero, zero == 0, zero.sum(-1).long())


@pytest.mark.parametrize(("kernel", "step"), [(Unweighted(), 0.1), (AlwaysAccepts(), 0.8)])
def test_negative_controls_are_caught(kernel, step):
    with pytest.raises(ConformanceError, match="variance"):
        run(kernel, step)


@dataclass(frozen=True)
class StandsStill:
    needs_score: bool = False
    exact: bool = True

    def __call__(self, generators, point, path, step_size):
        return RandomWalk()(generators, point, path, 0 * step_size)


def test_a_kernel_that_does_not_move_is_caught():
    with pytest.raises(ConformanceError, match="does not move"):
        run(StandsStill(), 1.0, n=100, moves=1)


def test_the_weight_of_a_langevin_move_is_the_formula():
    """-U(y) + U(x) + log N(x; y - h grad U(y), 2h) - log N(y; x - h grad U(x), 2h), written out with torch's normal."""
    h, well = 0.03, DoubleWell()
    x = torch.randn((1, 20, 2), generator=generator_for(1, 0), dtype=torch.float64)
    path = GeometricPath.single(well, 1)
    moved = UnadjustedLangevin()(
        [generator_for(2, 0)], path.evaluate(x, score=True), path, torch.tensor([h], dtype=torch.float64)
    )
    y = moved.point.x

    def step(a, b):
        drift = a + h * well.log_prob_and_score(a[0])[1][None]
        return torch.distributions.Normal(drift, math.sqrt(2 * h)).log_prob(b).sum(-1)

    expected = well.log_prob(y) - well.log_prob(x) + step(y, x) - step(x, y)
    torch.testing.assert_close(moved.log_weight, expected)


@pytest.mark.parametrize("name", ["random walk", "mala"])
def test_proposals_of_density_nan_are_rejected_and_counted(name):
    class Fenced(Gaussian):
        def log_prob(self, x):
            return torch.where(x[..., 0] > 0, super().log_prob(x), math.nan)

    kernel, step = KERNELS[name]
    path = GeometricPath.single(Fenced(1), 1)
    x = torch.full((1, 500, 1), 0.05, dtype=torch.float64)
    moved = kernel([generator_for(3, 0)], path.evaluate(x, score=True), path, torch.tensor([step]).double())
    assert int(moved.n_invalid) > 100
    assert bool((moved.point.x > 0).all())
    assert not bool(moved.point.log_prob.isnan().any())


def test_each_population_uses_its_own_step_and_exponents():
    path = GeometricPath((Gaussian(1), Gaussian(1, 3.0)), torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    x = torch.zeros((2, 4000, 1), dtype=torch.float64)
    point = path.evaluate(x, score=True)
    sizes = torch.tensor([1e-6, 0.2], dtype=torch.float64)
    moved = UnadjustedLangevin()([generator_for(4, p) for p in range(2)], point, path, sizes)
    assert float(moved.point.x[0].abs().max()) < 0.01
    assert float(moved.point.x[1].mean()) == pytest.approx(0.2 * 3.0, abs=0.05)


def test_a_component_with_exponent_zero_does_not_count_even_at_minus_infinity():
    class Nowhere(Gaussian):
        def log_prob(self, x):
            return torch.full(x.shape[:-1], -math.inf, dtype=x.dtype)

    path = GeometricPath((Gaussian(1), Nowhere(1)), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    point = path.evaluate(torch.zeros((1, 3, 1), dtype=torch.float64), score=True)
    assert bool(path.log_prob(point).isfinite().all())
    with pytest.raises(ValueError, match="without scores"):
        path.score(path.evaluate(point.x, score=False))


def test_float32_particles_stay_float32_and_weights_are_float64():
    x = exact_samples(100).float()[None]
    path = GeometricPath.single(TARGET, 1)
    moved = MALA()([generator_for(5, 0)], path.evaluate(x, score=True), path, torch.tensor([0.1]).double())
    assert moved.point.x.dtype == torch.float32
    assert moved.point.log_prob.dtype == torch.float64
