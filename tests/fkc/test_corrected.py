"""Correctors against closed form: annealed, multiplied, averaged, divided and tilted Gaussians and mixtures, on several
kinds of path, with exact kernel weights and with rates; and the laws without weights, which are others."""

import math

import pytest
import torch

from feynkac.fkc import (
    Annealed,
    Diffusion,
    Expert,
    GeometricAverage,
    PathCollapsed,
    Product,
    Target,
    UnstableNoise,
    sample_corrected,
)
from feynkac.fkc.correctors import CorrectedModel, noise_bound
from feynkac.fkc.testing import ZTest
from feynkac.fkc.testing.experts import MixtureLaw, gaussian_expert, gaussian_product

pytestmark = pytest.mark.slow

PATHS = {
    "ve": Diffusion.ve(0.01, 20.0),
    "vp": Diffusion.vp(),
    "flow": Diffusion.flow(),
    "edm": Diffusion.edm(0.01, 20.0),
}
VE = PATHS["ve"]
GUESS = (0.0, 1.0)  # a reference that is not the truth


def first(x):
    return x[..., 0]


def moments(samples):
    """Mean and variance (P,) of the first coordinate."""
    mean = samples.mean(first)
    return mean, samples.mean(lambda x: first(x).square()) - mean.square()


def check(samples, truth, *, mean=0.03, variance=0.06, z=True):
    """Means over populations within the tolerances, and the evidence unbiased (kernel weights) in z-scores."""
    m, v = moments(samples)
    error = m.std().item() / math.sqrt(len(m))
    assert abs(m.mean().item() - truth.mean) < mean + 4 * error
    assert v.mean().item() == pytest.approx(truth.variance, rel=variance)
    if z:
        ratios = (samples.log_evidence - truth.log_evidence).exp()
        test = ZTest.from_samples(ratios, 1.0)
        assert test.passed or (ratios - 1.0).abs().max() < 1e-9, str(test)


def sampled(target, **options):
    return sample_corrected(target, **({"particles": 1000, "populations": 20, "seed": 0} | options))


# --- annealing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("gauge", ["reference", "plain"])
def test_annealed_gaussian_by_kernel_weights(path, gauge):
    """Unbiased evidence, whatever the path, the moves and the number of steps."""
    for steps in (25, 100):
        expert = gaussian_expert(PATHS[path], mean=0.0, reference=(0.2, 1.3))
        samples = sampled(Annealed(expert, 1.5), gauge=gauge, steps=steps)
        last = samples.levels[-1]
        check(samples, gaussian_product((1.5, 0.0, 1.0 + last)), mean=0.04, variance=0.08)


@pytest.mark.parametrize("beta", [1.5, 2.0])
@pytest.mark.parametrize("kappa", [1.0, 2.0])
def test_annealed_gaussian_by_rates(beta, kappa):
    expert = gaussian_expert(VE, reference=GUESS, known_density=False)
    samples = sampled(Annealed(expert, beta), gauge="plain", noise=kappa, steps=1000, particles=5000, populations=4)
    truth = gaussian_product((beta, 0.0, 1.0))
    check(samples, truth, mean=0.03, variance=0.05, z=False)
    assert samples.log_evidence.mean().item() == pytest.approx(truth.log_evidence, abs=0.1)


@pytest.mark.parametrize("dimension", [5, 39])
def test_many_dimensions(dimension):
    expert = gaussian_expert(VE, dimension=dimension, reference=(0.0, 1.05))
    samples = sampled(Annealed(expert, 1.5), steps=200, particles=2000, populations=4)
    truth = gaussian_product((1.5, 0.0, 1.0 + 1e-4), dimension=dimension)
    assert samples.mean(lambda x: x.square().mean(dim=-1)).mean().item() == pytest.approx(truth.variance, rel=0.05)
    assert samples.log_evidence.mean().item() == pytest.approx(truth.log_evidence, abs=0.02 * dimension)


@pytest.mark.parametrize(
    ("path", "beta", "kappa"),
    [("ve", 2.0, 0.5), ("ve", 2.0, 1.0), ("vp", 2.0, 3.0), ("ve", 3.0, 1 / 3), ("vp", 3.0, 1.0)],
)
def test_without_weights_the_law_is_another_and_known(path, beta, kappa):
    """Limit kappa/(beta(1 + kappa) - 1) of the variance: that is why the weights are needed."""
    expert = gaussian_expert(PATHS[path], reference=GUESS)
    samples = sampled(
        Annealed(expert, beta), gauge="plain", weights="none", noise=kappa, steps=2000, particles=20_000, populations=1
    )
    assert moments(samples)[1].item() == pytest.approx(kappa / (beta * (1 + kappa) - 1), rel=0.03)


def test_an_exact_reference_leaves_nothing_to_the_weights():
    expert = gaussian_expert(VE, mean=0.7, variance=2.0)
    for beta in (0.5, 1.5, 3.0):
        samples = sampled(Annealed(expert, beta), steps=20, particles=1000, populations=4)
        assert samples.ess.min().item() > 0.999 * 1000
        truth = gaussian_product((beta, 0.7, 2.0 + 1e-4))
        assert samples.log_evidence.mean().item() == pytest.approx(truth.log_evidence, abs=1e-6)


# --- stability -------------------------------------------------------------------------------------------------------


def test_noise_at_which_the_truth_repels_is_refused_with_its_bound():
    expert = gaussian_expert(VE, reference=GUESS)
    with pytest.raises(UnstableNoise, match=r"noise: got 0.333333, expected more than 0.6667") as caught:
        sample_corrected(Annealed(expert, 3.0), particles=10, noise=1 / 3, gauge="plain", seed=0)
    assert caught.value.bound == pytest.approx(2 / 3, rel=1e-4)
    levels = [s * s for s in VE.levels(10)]

    def bound(target, **settings):
        return noise_bound(CorrectedModel(target, levels, (1,), noise=1.0, **settings))

    assert bound(Annealed(expert, 3.0), gauge="plain") == pytest.approx(2 / 3, rel=1e-4)
    assert bound(Annealed(expert, 3.0), gauge="reference") == 0.0
    assert bound(Annealed(expert, 3.0), gauge="plain", control="score") == 0.0
    assert bound(GeometricAverage(expert, expert, 2.0), gauge="plain") == 0.0


def test_forced_it_is_as_wrong_as_predicted():
    """Weighted particles at kappa = 1/3 and beta = 3 fall to kappa/(beta - 1), half of the truth."""
    expert = gaussian_expert(VE, reference=GUESS, known_density=False)
    samples = sampled(
        Annealed(expert, 3.0), noise=1 / 3, gauge="plain", weights="rate", force=True, steps=500,
        particles=20_000, populations=1, ess_threshold=0.5,
    )  # fmt: skip
    assert 0.45 < moments(samples)[1].item() / (1 / 3) < 0.58
    steady = sampled(
        Annealed(expert, 3.0), noise=2.0, gauge="plain", weights="rate", steps=500, particles=20_000, populations=1
    )
    assert moments(steady)[1].item() / (1 / 3) == pytest.approx(1.0, abs=0.08)


# --- compositions ----------------------------------------------------------------------------------------------------


def parts(*triples, reference=None, path=VE):
    experts = [gaussian_expert(path, mean=m, variance=v, reference=reference) for _, m, v in triples]
    return Target(tuple(experts), tuple(a for a, _, _ in triples)), triples


CASES = {
    "average, equal variances": [(-1.0, 0.0, 1.0), (2.0, 2.0, 1.0)],
    "average": [(-1.0, 0.0, 4.0), (2.0, 2.0, 1.0)],
    "product": [(1.0, -1.0, 1.0), (1.0, 1.5, 0.25)],
    "product, equal variances": [(1.0, -1.0, 1.0), (1.0, 1.5, 1.0)],
    "annealed product": [(1.5, -1.0, 1.0), (1.5, 1.5, 0.49)],
    "ratio": [(1.0, -1.0, 1.0), (1.0, 1.0, 1.0), (-1.0, 0.0, 9.0)],
    "softened": [(0.5, 1.0, 2.0)],
}


@pytest.mark.parametrize("reference", [None, GUESS], ids=["known moments", "guessed moments"])
@pytest.mark.parametrize("path", ["ve", "vp", "flow"])
@pytest.mark.parametrize("case", CASES)
def test_compositions(case, path, reference):
    target, triples = parts(*CASES[case], reference=reference, path=PATHS[path])
    samples = sampled(target, steps=150 if reference else 40)
    last = samples.levels[-1]
    check(samples, gaussian_product(*[(a, m, v + last) for a, m, v in triples]), mean=0.05, variance=0.08)


@pytest.mark.parametrize("case", ["average", "product", "annealed product", "ratio"])
def test_compositions_by_rates(case):
    target, triples = parts(*CASES[case], reference=GUESS)
    samples = sampled(target, weights="rate", steps=400)
    truth = gaussian_product(*triples)
    check(samples, truth, mean=0.05, variance=0.08, z=False)
    assert samples.log_evidence.mean().item() == pytest.approx(truth.log_evidence, abs=0.1)


@pytest.mark.parametrize(("case", "mean", "variance"), [("average", 2.50, 0.44), ("product", 0.795, 0.146)])
def test_compositions_without_weights_are_others(case, mean, variance):
    target, _ = parts(*CASES[case], reference=GUESS)
    samples = sampled(target, weights="none", gauge="plain", noise=1.0, steps=500, particles=20_000, populations=1)
    m, v = moments(samples)
    assert m.item() == pytest.approx(mean, abs=0.03)
    assert v.item() == pytest.approx(variance, rel=0.06)


def test_guidance_of_equal_variances_has_equal_weights():
    target, _ = parts(*CASES["average, equal variances"])
    samples = sampled(target, steps=50, weights="rate", gauge="plain", noise=1.0)
    assert samples.ess.min().item() == pytest.approx(1000.0, rel=1e-6)


# --- rewards, moving exponents, churn --------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["kernel", "rate"])
@pytest.mark.parametrize(("beta", "slope"), [(1.0, 2.0), (1.5, 1.5)])
def test_a_linear_reward_switched_on_along_the_path(weights, beta, slope):
    expert = gaussian_expert(VE, reference=None)
    target = Annealed(expert, beta).tilted(lambda y: slope * y.sum(dim=1), lambda u: u)
    samples = sampled(target, weights=weights, steps=300)
    truth = gaussian_product((beta, 0.0, 1.0 + 1e-4), linear=slope)
    check(samples, truth, mean=0.06, variance=0.08, z=weights == "kernel")


def test_a_quadratic_reward():
    target = Annealed(gaussian_expert(VE), 1.0).tilted(lambda y: -(y - 2.0).square().sum(dim=1) / 2, lambda u: u)
    check(sampled(target, steps=300), gaussian_product((1.0, 0.0, 1.0 + 1e-4), (1.0, 2.0, 1.0)), z=False, mean=0.05)


@pytest.mark.parametrize("known", [True, False])
def test_moving_exponents(known):
    """1 at the noise, 2 at the data; log-densities known, or tracked along the path (kappa = 1)."""
    expert = gaussian_expert(VE, reference=(0.0, 1.2), known_density=known)
    target = Annealed(expert, lambda u: 1.0 + u)
    samples = sampled(target, noise=1.0, weights="kernel" if known else "rate", steps=200 if known else 800)
    check(samples, gaussian_product((2.0, 0.0, 1.0 + 1e-4)), z=known)


@pytest.mark.parametrize("weights", ["kernel", "rate"])
@pytest.mark.parametrize("churn", [0.0, 1.0])
def test_churn_changes_nothing(churn, weights):
    target, triples = parts(*CASES["average"], reference=GUESS)
    samples = sampled(target, weights=weights, noise=1.0, steps=200, churn=churn)
    truth = gaussian_product(*triples)
    check(samples, truth, mean=0.05, variance=0.08, z=weights == "kernel")
    assert samples.log_evidence.mean().item() == pytest.approx(truth.log_evidence, abs=0.1)


def test_churn_without_the_weight_of_the_way_up_is_noticed(monkeypatch):
    """Negative control: only falls are weighted."""
    from feynkac.fkc.correctors.moves import Transition

    honest = Transition.rate_weight

    def only_down(self, before, after):
        weight = honest(self, before, after)
        return torch.zeros_like(weight) if self.fall < 0 else weight

    monkeypatch.setattr(Transition, "rate_weight", only_down)
    target, triples = parts(*CASES["average"], reference=GUESS)
    samples = sampled(target, weights="rate", gauge="plain", noise=1.0, steps=200, churn=1.0)
    truth = gaussian_product(*triples)
    wrong = abs(moments(samples)[0].mean().item() - truth.mean) > 0.1
    assert wrong or abs(samples.log_evidence.mean().item() - truth.log_evidence) > 0.3


# --- paths that do not exist -----------------------------------------------------------------------------------------


def test_a_target_that_cannot_be_normalised_on_the_way_raises_before_sampling():
    """Exponents 2 and -1, data variances 1 and 2: fine at the data, not where the first expert is far noisier."""
    calls = [0]

    def counting(x, t):
        calls[0] += 1
        return -x

    early = Expert(counting, Diffusion.ve(0.01, 100.0), std=1.0, clock=lambda h: min(50.0 * h, 1e4), shape=(1,))
    late = gaussian_expert(VE, variance=2.0)
    with pytest.raises(PathCollapsed, match="cannot be normalised at noise variance"):
        sample_corrected(Target((early, late), (2.0, -1.0)), particles=10, steps=50, levels=VE.levels(50), seed=0)
    assert calls[0] == 0


# --- mixtures --------------------------------------------------------------------------------------------------------


def test_masses_of_separated_modes():
    """w_k^beta / sum, for equal widths."""
    law = MixtureLaw(torch.tensor([[-4.0], [0.0], [4.0]]).double(), (0.5, 0.3, 0.2), 0.4)
    samples = sampled(Annealed(law.expert(VE), 2.0), noise=2.0, steps=200, particles=5000, populations=8)
    truth = torch.tensor([0.25, 0.09, 0.04]).double() / 0.38
    masses = [samples.mean(lambda x, k=k: ((first(x) - 4.0 * (k - 1)).abs() < 2).double()) for k in range(3)]
    for mass, expected in zip(masses, truth.tolist(), strict=True):
        assert abs(mass.mean().item() - expected) < 0.02
    exact, log_integral = law.power(2)
    assert samples.log_evidence.mean().item() == pytest.approx(log_integral, abs=0.03)
    assert exact.dimension == 1


@pytest.mark.parametrize(
    ("beta", "mass", "mean", "square", "log_z"), [(2.0, 0.3815, 0.480, 4.327, None), (3.0, 0.4670, 0.133, 4.191, None)]
)
def test_annealed_mixture_of_unequal_widths(beta, mass, mean, square, log_z):
    law = MixtureLaw(torch.tensor([[-2.0], [2.0]]).double(), (0.3, 0.7), (0.3, 1.0))
    samples = sampled(Annealed(law.expert(VE), beta), noise=4.0, steps=200, particles=4000, populations=6)
    assert samples.mean(lambda x: (first(x) < 0).double()).mean().item() == pytest.approx(mass, abs=0.02)
    assert samples.mean(first).mean().item() == pytest.approx(mean, abs=0.06)
    assert samples.mean(lambda x: first(x).square()).mean().item() == pytest.approx(square, abs=0.1)
    plain = sampled(
        Annealed(law.expert(VE), beta), weights="none", gauge="plain", noise=1.0, steps=1000, particles=20_000,
        populations=1,
    )  # fmt: skip
    forgotten = plain.mean(lambda x: (first(x) < 0).double()).item()
    assert forgotten == pytest.approx({2.0: 0.194, 3.0: 0.118}[beta], abs=0.02)


def test_product_and_guidance_of_mixtures():
    first_law = MixtureLaw(torch.tensor([[-2.0], [2.0]]).double(), (0.3, 0.7), (0.3, 1.0))
    second = MixtureLaw(torch.tensor([[-2.0], [2.0]]).double(), (0.5, 0.5), (0.6, 0.6))
    samples = sampled(Product(first_law.expert(VE), second.expert(VE)), steps=200, particles=5000, populations=8)
    assert samples.mean(lambda x: (first(x) < 0).double()).mean().item() == pytest.approx(0.4278, abs=0.03)
    assert samples.mean(first).mean().item() == pytest.approx(0.290, abs=0.08)
    wide = MixtureLaw(torch.tensor([[-2.0], [2.0]]).double(), (0.5, 0.5), (1.0, 1.0))
    narrow = MixtureLaw(torch.tensor([[-2.0], [2.0]]).double(), (0.2, 0.8), (0.8, 0.6))
    guided = sampled(
        GeometricAverage(wide.expert(VE), narrow.expert(VE), 2.0), steps=200, particles=5000, populations=8
    )
    assert guided.mean(lambda x: (first(x) < 0).double()).mean().item() == pytest.approx(0.0487, abs=0.006)
    assert guided.log_evidence.mean().item() == pytest.approx(0.5551, abs=0.02)


# --- convergence -----------------------------------------------------------------------------------------------------


def test_errors_fall_like_the_root_of_the_particles():
    target, triples = parts(*CASES["product"], reference=GUESS)
    truth = gaussian_product(*[(a, m, v + 1e-4) for a, m, v in triples])
    errors = []
    for particles in (100, 1000, 10_000):
        populations = 40_000 // particles if particles < 10_000 else 20
        samples = sampled(target, steps=40, particles=particles, populations=max(populations, 20))
        errors.append((moments(samples)[0] - truth.mean).square().mean().sqrt().item())
    slope = math.log(errors[2] / errors[0]) / math.log(100.0)
    assert slope == pytest.approx(-0.5, abs=0.15)


def test_the_error_of_rates_falls_with_the_steps():
    """Slope -1 of log Z at 50 to 400 Euler moves; kernel weights have no such error (below)."""
    expert = gaussian_expert(VE, reference=GUESS, known_density=False)
    truth = gaussian_product((1.5, 0.0, 1.0)).log_evidence
    errors = []
    for steps in (50, 400):
        samples = sampled(
            Annealed(expert, 1.5),
            gauge="plain",
            weights="rate",
            noise=1.0,
            steps=steps,
            particles=20_000,
            populations=4,
        )
        errors.append(samples.log_evidence.mean().item() - truth)
    assert errors[0] > 0.1
    assert math.log(errors[1] / errors[0]) / math.log(8.0) == pytest.approx(-1.0, abs=0.15)


def test_exact_kernel_weights_are_unbiased_at_25_steps():
    target, triples = parts(*CASES["annealed product"], reference=GUESS)
    samples = sampled(target, steps=25, particles=500, populations=400)
    truth = gaussian_product(*[(a, m, v + 1e-4) for a, m, v in triples])
    assert ZTest.from_samples((samples.log_evidence - truth.log_evidence).exp(), 1.0).passed
    rates = sampled(target, steps=25, particles=500, populations=400, weights="rate")
    assert not ZTest.from_samples((rates.log_evidence - truth.log_evidence).exp(), 1.0).passed  # a rate is no kernel
