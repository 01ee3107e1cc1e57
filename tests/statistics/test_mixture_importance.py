"""Mixture importance sampling against closed form: means, evidence, error bars, and the wrong variants beside them."""

import math
from dataclasses import dataclass

import pytest
import torch

from feynkac.fkc import generator_for, normal, regress_controls, sample_mixture
from feynkac.fkc.testing import DoubleWell, Gaussian, ZTest, calibration

RUNS = 200
TARGET = Gaussian(1, normalized=False)


def beyond(a):
    """P(x > a) of the standard Gaussian."""
    return math.erfc(a / math.sqrt(2)) / 2


@dataclass(frozen=True)
class Normals:
    """Independent Gaussians with their own means and widths."""

    means: tuple[float, ...]
    scales: tuple[float, ...]

    def _law(self):
        return torch.tensor(self.means).double(), torch.tensor(self.scales).double()

    def sample(self, n, *, generator):
        mean, scale = self._law()
        return mean + scale * normal([generator], (n, len(mean)))[0]

    def log_prob(self, x):
        mean, scale = self._law()
        return (-((x - mean) / scale).square() / 2 - scale.log() - math.log(2 * math.pi) / 2).sum(dim=-1)


TAILS = [Gaussian(1), Gaussian(1, 3.5), Gaussian(1, -2.5), Gaussian(1, 0.0, 3.0)]
TAIL_FUNCTIONS = {
    "right": lambda x: (x[:, 0] > 3).double(),
    "left": lambda x: (x[:, 0] < -2).double(),
    "mean": lambda x: x[:, 0],
    "square": lambda x: x[:, 0].square(),
}
TAIL_TRUTH = torch.tensor([beyond(3), beyond(2), 0.0, 1.0], dtype=torch.float64)

WELL = DoubleWell()
WELL_PARTS = [
    Normals((-1.7, 0.0), (0.35, 1.1)),
    Normals((1.75, 0.0), (0.35, 1.1)),
    Normals((0.0, 0.0), (1.6, 1.5)),
]
WELL_FUNCTIONS = {
    "left": lambda x: (x[:, 0] < 0).double(),
    "mean": lambda x: x[:, 0],
    "square": lambda x: x[:, 0].square(),
    "narrow": lambda x: x[:, 1].square(),
}
WELL_TRUTH = torch.tensor([WELL.probability_left, WELL.mean, WELL.second_moment, 1.0], dtype=torch.float64)

CASES = {
    "tails": (TAILS, TARGET, TAIL_FUNCTIONS, TAIL_TRUTH),
    "double well": (WELL_PARTS, WELL, WELL_FUNCTIONS, WELL_TRUTH),
}


def run(case, seed, **options):
    components, target, functions, _ = CASES[case]
    return sample_mixture(
        components, target.log_prob, functions, **({"draws": 800, "rounds": 3, "seed": seed} | options)
    )


def standardised(values, errors, truth):
    return (values - truth) / errors


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_estimate_is_calibrated(case):
    """Two hundred runs: means unbiased, squared z-values of mean one, for each kind of estimate, jointly too."""
    _, target, _, truth = CASES[case]
    known = target.log_normalizer
    zs, joint, evidence = {}, [], []
    for seed in range(RUNS):
        found = run(case, seed)
        unbiased = found.unbiased()
        exact = truth * math.exp(known - unbiased.log_scale)
        normalised = found.normalised(known)
        estimates = {
            "self-normalised": standardised(found.estimate.means, found.estimate.std_errors, truth),
            "plain": standardised(found.plain_estimate.means, found.plain_estimate.std_errors, truth),
            "normalised": standardised(normalised.means, normalised.std_errors, truth),
            "unbiased": standardised(unbiased.values, unbiased.covariance.diagonal().sqrt(), exact),
        }
        for name, z in estimates.items():
            zs.setdefault(name, []).append(z)
        error = found.estimate.means - truth
        joint.append(error @ torch.linalg.solve(found.estimate.covariance, error))
        evidence.append((found.log_evidence - known) / max(found.log_evidence_std_error, 1e-12))
    for name, found in zs.items():
        for column, function in zip(torch.stack(found).T, CASES[case][2], strict=True):
            assert ZTest.from_samples(column, 0.0, limit=4.0).passed, (name, function)
            assert calibration(column, limit=4.0).passed, (name, function, str(calibration(column)))
    # chi-squared of as many degrees of freedom as functions
    chi = torch.stack(joint) / len(truth)
    assert abs(float(chi.mean()) - 1) < 4 * math.sqrt(2 / (RUNS * len(truth)))
    if case == "double well":  # with the target among the components there is nothing to test
        assert calibration(torch.tensor(evidence), limit=4.0).passed
        assert ZTest.from_samples(torch.tensor(evidence), 0.0).passed


@pytest.mark.parametrize("case", CASES)
def test_one_run_agrees_with_the_truth(case):
    found = run(case, 11, draws=4000)
    estimate, truth = found.estimate, CASES[case][3]
    for mean, error, exact in zip(estimate.means, estimate.std_errors, truth, strict=True):
        assert ZTest(float(mean), float(error), float(exact)).passed
    assert bool((found.khat < 0.7).all())


def squared_errors(runs, truth):
    return torch.stack([(found - truth).square() for found in runs])


@pytest.mark.slow
def test_controls_pay_off():
    """Never worse beyond noise; ten times better where the integrand is close to a combination of the components."""
    tilt = 2.0
    functions = TAIL_FUNCTIONS | {"exponential": lambda x: (tilt * x[:, 0]).exp() * (1 + 0.1 * x[:, 0].sin())}
    wave = math.exp(-1 / 2) * math.sin(tilt)  # E[sin] under N(2, 1)
    truth = torch.cat([TAIL_TRUTH, torch.tensor([math.exp(tilt**2 / 2) * (1 + 0.1 * wave)]).double()])
    parts = [*TAILS, Gaussian(1, tilt)]
    known, plain = [], []
    for seed in range(100):
        found = sample_mixture(
            parts, TARGET.log_prob, functions, draws=1000, rounds=2, seed=seed, log_evidence=TARGET.log_normalizer
        )
        known.append(found.estimate.means)
        plain.append(found.plain_estimate.means)
    gain = squared_errors(plain, truth).mean(dim=0) / squared_errors(known, truth).mean(dim=0)
    assert float(gain[-1]) > 10
    assert bool((gain > 0.8).all())
    assert float(found.variance_reduction[-1]) == pytest.approx(float(gain[-1]), rel=0.6)


def test_an_integrand_that_is_a_component_has_no_error():
    """exp(2x) under N(0, 1) is N(2, 1) times a constant: exact, evidence known or not. A wave on it is not."""
    parts = [Gaussian(1), Gaussian(1, 2.0), Gaussian(1, 0.0, 2.0)]
    functions = {"exp": lambda x: (2 * x[:, 0]).exp(), "wave": lambda x: (2 * x[:, 0]).exp() * x[:, 0].cos()}
    found = sample_mixture(parts, TARGET.log_prob, functions, draws=500, rounds=2, seed=3)
    mean, error = found.estimate["exp"]
    assert mean == pytest.approx(math.exp(2), rel=1e-12)
    assert error < 1e-11
    assert float(found.variance_reduction[0]) > 1e20
    assert found.estimate["wave"][1] > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::feynkac.fkc.ParetoWarning")
@pytest.mark.parametrize("objective", ["max", "sum"])
def test_an_adapted_mixture_beats_the_equal_one(objective):
    """Eight components, five of them of no use: errors of three rare probabilities, relative to their sizes."""
    parts = [Gaussian(1), Gaussian(1, 4.2), Gaussian(1, -3.3)]
    parts += [Gaussian(1, m, 0.7) for m in (12.0, -12.0, 20.0)] + [Gaussian(1, 0.0, s) for s in (6.0, 9.0)]
    functions = {a: (lambda x, a=a: (x[:, 0] > a).double()) for a in (3.5, 4.0)}
    functions = {f"above {a}": f for a, f in functions.items()} | {"below": lambda x: (x[:, 0] < -3).double()}
    truth = torch.tensor([beyond(3.5), beyond(4), beyond(3)]).double()
    errors = {"adapted": [], "equal": []}
    for seed in range(60):
        for name, defensive in (("adapted", 0.1), ("equal", 1.0)):
            found = sample_mixture(
                parts,
                TARGET.log_prob,
                functions,
                draws=960,
                rounds=3,
                seed=seed,
                objective=objective,
                defensive=defensive,
            )
            errors[name].append((found.estimate.means / truth - 1).square())
    assert torch.equal(found.mixtures, torch.full((3, 8), 0.125).double())
    adapted, equal = (torch.stack(errors[name]).mean(dim=0) for name in ("adapted", "equal"))
    gain = equal.max() / adapted.max() if objective == "max" else equal.sum() / adapted.sum()
    assert float(gain) > 1.5, gain


# bias of the evidence

SKEWED = [Gaussian(1), Gaussian(1, 3.5), Gaussian(1, -3.5), Gaussian(1, 0.0, 3.0)]
quiet = pytest.mark.filterwarnings("ignore::feynkac.fkc.ParetoWarning")


def evidences(runs, **options):
    """Over the truth, of x^2 exp(-x^2 / 2) with few draws of a component that matters: unbiased, and pooled."""
    unbiased, pooled = [], []
    for seed in range(runs):
        found = sample_mixture(SKEWED, lambda x: x[:, 0].square().log() + TARGET.log_prob(x), {}, seed=seed, **options)
        part = found.unbiased()
        unbiased.append(part.evidence * math.exp(part.log_scale - TARGET.log_normalizer))
        pooled.append(math.exp(found.log_evidence - TARGET.log_normalizer))
    return torch.tensor(unbiased).double(), torch.tensor(pooled).double()


@pytest.mark.slow
@quiet
def test_the_cross_fitted_evidence_has_no_bias_and_the_pooled_one_has():
    """The second is the negative control: coefficients of the very draws that they correct, 6% off at N = 100."""
    unbiased, pooled = evidences(2000, draws=100, rounds=1, initial=[0.04, 0.32, 0.56, 0.08])
    test = ZTest.from_samples(unbiased, 1.0)
    assert abs(test.z) < 4, str(test)
    assert test.std_error < 0.01
    assert not ZTest.from_samples(pooled, 1.0).passed


@pytest.mark.slow
@quiet
def test_adapted_rounds_leave_the_evidence_unbiased():
    unbiased, _ = evidences(400, draws=60, rounds=2, initial=[0.1, 0.32, 0.5, 0.08])
    test = ZTest.from_samples(unbiased, 1.0)
    assert abs(test.z) < 4, str(test)
    assert test.std_error < 0.015


# variants that are wrong


@dataclass(frozen=True)
class Box:
    """Uniform on an interval."""

    lower: float
    upper: float

    def sample(self, n, *, generator):
        noise = torch.rand((n, 1), generator=generator, dtype=torch.float64)
        return self.lower + (self.upper - self.lower) * noise

    def log_prob(self, x):
        inside = (x[:, 0] >= self.lower) & (x[:, 0] < self.upper)
        return torch.where(inside, -math.log(self.upper - self.lower), -math.inf)


BOXES = [Box(-6.0, 0.5), Box(0.0, 6.0)]
SPLIT = beyond(6)  # what the boxes leave out: 1e-9


def boxed(seed=5):
    return sample_mixture(
        BOXES, TARGET.log_prob, {"square": lambda x: x[:, 0] ** 2}, draws=4000, rounds=2, seed=seed, initial=[3, 1]
    )


def evidence_test(terms, controls, own):
    found = regress_controls(terms, controls, strata=own)
    return ZTest(float(found.means[0]), float(found.std_errors[0]), math.exp(TARGET.log_normalizer))


def test_components_that_cover_the_target_only_together():
    found = boxed()
    mean, error = found.estimate["square"]
    assert ZTest(mean, error, 1.0).passed
    assert ZTest(found.log_evidence, found.log_evidence_std_error, TARGET.log_normalizer).passed
    sample = found.sample
    assert evidence_test(sample.log_weights.exp(), sample.controls, sample.component).passed


def test_negative_control_each_draw_weighted_by_its_own_component():
    """No balance: a component's own draws know of the target inside its own box only."""
    sample = boxed().sample
    own = sample.log_densities[torch.arange(len(sample.component)), sample.component]
    terms = (sample.log_target - own).exp()
    assert not evidence_test(terms, sample.controls[:, :0], sample.component).passed


@pytest.mark.parametrize("wrong", ["equal shares", "own density"])
def test_negative_control_controls_that_are_not_over_the_mixture(wrong):
    sample = boxed().sample
    densities = sample.log_densities.exp()
    own = densities[torch.arange(len(sample.component)), sample.component]
    if wrong == "equal shares":
        controls = densities / densities.mean(dim=1, keepdim=True) - 1
    else:
        controls = densities / own[:, None] - 1
    assert not evidence_test(sample.log_weights.exp(), controls, sample.component).passed


def test_a_target_with_a_wall():
    """Weight zero left of 0.5: a conditional mean, and the evidence of the part."""
    parts = [Gaussian(1), Gaussian(1, 1.0, 0.8)]
    found = sample_mixture(
        parts,
        lambda x: torch.where(x[:, 0] > 0.5, TARGET.log_prob(x), -math.inf),
        {"mean": lambda x: x[:, 0]},
        draws=4000,
        rounds=2,
        seed=8,
    )
    mass = beyond(0.5)
    expected = math.exp(-0.125) / math.sqrt(2 * math.pi) / mass
    assert ZTest(*found.estimate["mean"], expected).passed
    exact = math.log(mass) + TARGET.log_normalizer
    assert ZTest(found.log_evidence, found.log_evidence_std_error, exact).passed
    assert found.n_zero > 1000


# weighted frames of correlated walkers


def walkers(seed, n=60, length=20, memory=0.8):
    """Chains N(0, 1.5^2) with weights towards N(0, 1): values (n length,), their log-weights and walkers."""
    noise = normal([generator_for(seed, 7)], (length, n))[0]
    x = [noise[0]]
    for step in noise[1:]:
        x.append(memory * x[-1] + math.sqrt(1 - memory**2) * step)
    values = 1.5 * torch.stack(x)
    return values.reshape(-1), (-(values**2) * (1 - 1 / 2.25) / 2).reshape(-1), torch.arange(n).repeat(length)


def reweighted(seed, grouped=True):
    x, log_weights, walker = walkers(seed)
    controls = torch.stack([x, x**2 - 1], dim=1)  # of mean zero under N(0, 1)
    groups = walker if grouped else None
    return regress_controls(torch.stack([x.exp(), x**4], dim=1), controls, weights=log_weights.exp(), groups=groups)


TRUTH = torch.tensor([math.exp(0.5), 3.0]).double()


def test_weighted_frames_of_correlated_walkers_are_calibrated():
    found = [reweighted(seed) for seed in range(400)]
    z = torch.stack([(f.means - TRUTH) / f.std_errors for f in found])
    plain = torch.stack([(f.plain_means - TRUTH) / f.plain_std_errors for f in found])
    assert bool(((z.square().mean(dim=0) - 1).abs() < 0.35).all())
    assert bool((plain.square().mean(dim=0) > 0.7).all())
    errors = torch.stack([f.means - TRUTH for f in found]).square().mean(dim=0)
    before = torch.stack([f.plain_means - TRUTH for f in found]).square().mean(dim=0)
    assert bool((before / errors > 3).all())


def test_negative_control_walkers_taken_for_independent_frames():
    z = torch.stack([(f.means - TRUTH) / f.std_errors for f in (reweighted(s, grouped=False) for s in range(400))])
    assert bool((z.square().mean(dim=0) > 1.5).all())
