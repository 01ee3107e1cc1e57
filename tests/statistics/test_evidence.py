"""Unbiased evidence of a bootstrap filter, and standard errors from one run, against the Kalman filter's exact numbers.

Unbiasedness is a statement on Z, not on log Z, and is tested there, over 400 populations.
"""

import math
from dataclasses import replace

import pytest
import torch

from feynkac.fkc import (
    SCHEMES,
    FunctionModel,
    Scheme,
    distinct_roots,
    evidence_std_error,
    generator_for,
    log_evidence_std_error,
    mean_std_error,
    normal,
    smc,
)
from feynkac.fkc import collectors as collect
from feynkac.fkc.testing import ConformanceError, ZTest, calibration, check_resampler

RUNS = 400
DECAY, NOISE, BLUR, STEPS = 0.9, 0.5, 0.6, 15


def observations():
    """A path drawn from the model itself, so that no observation is a surprise."""
    noise = torch.randn((2, STEPS + 1), generator=generator_for(22, 0), dtype=torch.float64).tolist()
    x, seen = noise[0][0], []
    for t in range(STEPS + 1):
        x = DECAY * x + NOISE * noise[0][t] if t else x
        seen.append(x + BLUR * noise[1][t])
    return seen


SEEN = observations()


def kalman():
    """Log-evidence and mean of the last state given all observations."""
    mean, variance, log_z = 0.0, 1.0, 0.0
    for t, y in enumerate(SEEN):
        if t:
            mean, variance = DECAY * mean, DECAY**2 * variance + NOISE**2
        total = variance + BLUR**2
        log_z -= (math.log(2 * math.pi * total) + (y - mean) ** 2 / total) / 2
        gain = variance / total
        mean, variance = mean + gain * (y - mean), variance * (1 - gain)
    return log_z, mean


LOG_Z, LAST_MEAN = kalman()

MODEL = FunctionModel(
    sample=lambda g, k: normal(g, (k,)),
    kernel=lambda g, t, x: DECAY * x + NOISE * normal(g, x.shape[1:]),
    log_g=lambda t, before, x: -(((x - SEEN[t]) / BLUR).square() + math.log(2 * math.pi * BLUR**2)) / 2,
    n_steps=STEPS,
)


def run(scheme="systematic", *, particles=100, threshold=0.5, seed=1, model=MODEL, collectors=()):
    return smc(
        model,
        particles=particles,
        populations=RUNS,
        seed=seed,
        resampler=scheme,
        ess_threshold=threshold,
        collectors=collectors,
    )


def unbiased(result):
    return ZTest.from_samples((result.log_evidence - LOG_Z).exp(), 1.0)


@pytest.mark.parametrize("threshold", [0.5, 1.1])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_evidence_is_unbiased(scheme, threshold):
    test = unbiased(run(scheme, threshold=threshold))
    assert test.passed, str(test)


def test_the_logarithm_is_biased_which_is_why_z_is_tested():
    result = run(particles=30)
    assert not ZTest.from_samples(result.log_evidence - LOG_Z, 0.0).passed
    assert unbiased(result).passed


def test_negative_control_dropping_the_carried_weights_is_caught():
    result = run()
    dropped = (result.population.log_base - LOG_Z).exp()  # what a loop that forgets them would report
    assert not ZTest.from_samples(dropped, 1.0).passed


def test_negative_control_forgetting_a_step_is_caught():
    late = replace(MODEL, log_g=lambda t, before, x: MODEL.log_g(t, before, x) * (t < STEPS))
    assert not unbiased(run(model=late)).passed


def _without_offset(weights, uniforms):
    return SCHEMES["systematic"].ancestors(weights, torch.zeros_like(uniforms))


def _rounds(weights, uniforms):
    """Copies the heaviest particle too often: keeps those above the mean weight in turn."""
    k = weights.shape[-1]
    order = weights.argsort(dim=-1, descending=True)
    return order[:, torch.arange(k) // 2]


WRONG = {
    "systematic without a random offset": Scheme(
        "no offset", lambda k: 1, _without_offset, SCHEMES["systematic"].copy_variance
    ),
    "best half twice": Scheme("best half", lambda k: 1, _rounds, SCHEMES["systematic"].copy_variance),
}


@pytest.mark.parametrize("name", WRONG)
def test_negative_control_wrong_resamplers_break_the_law_of_resampling(name):
    log_weights = torch.randn(7, generator=generator_for(3, 0), dtype=torch.float64)
    with pytest.raises(ConformanceError, match="biased"):
        check_resampler(WRONG[name], log_weights, seed=1)


def test_negative_control_a_wrong_resampler_biases_the_evidence():
    assert not unbiased(run(WRONG["best half twice"])).passed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_laws_of_resampling(scheme):
    log_weights = 1.5 * torch.randn(9, generator=generator_for(4, 0), dtype=torch.float64)
    log_weights[2] = -math.inf
    tests = check_resampler(scheme, log_weights, seed=2, repeats=20_000)
    assert len(tests) == 10
    check_resampler(scheme, torch.zeros(5), seed=2)


@pytest.mark.parametrize("threshold", [0.5, 1.1])
def test_genealogical_variance_is_unbiased_with_multinomial_resampling(threshold):
    """Lee and Whiteley: the mean of Z^2 V is the variance of Z."""
    result = run("multinomial", particles=300, threshold=threshold, seed=2)
    z = (result.log_evidence - LOG_Z).exp()
    difference = z.square() * result.log_evidence_std_error.square() - (z - 1).square()
    test = ZTest.from_samples(difference, 0.0)
    assert test.passed, str(test)
    assert test.std_error < 0.15 * float((z - 1).square().mean())  # the test is sharp: 15 % of the variance


@pytest.mark.parametrize("threshold", [0.5, 1.1])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_genealogical_standard_errors_are_calibrated(scheme, threshold):
    result = run(scheme, particles=600, threshold=threshold, seed=3)
    evidence = calibration((result.log_evidence - LOG_Z) / result.log_evidence_std_error)
    assert evidence.passed, str(evidence)
    mean = calibration((result.mean(lambda x: x) - LAST_MEAN) / result.std_error(lambda x: x))
    assert mean.passed, str(mean)


def test_negative_control_errors_that_ignore_the_genealogy_are_not_calibrated():
    result = run(particles=600, seed=3)
    naive = log_evidence_std_error(result.log_weights).clamp_min(1e-3)
    assert not calibration((result.log_evidence - LOG_Z) / naive).passed
    without = replace(result.population, roots=torch.arange(600).expand(RUNS, 600))
    error = mean_std_error(without, result.x)
    assert calibration((result.mean(lambda x: x) - LAST_MEAN) / error).estimate > 1.3


def test_negative_control_the_multinomial_correction_is_wrong_for_systematic():
    """Subtracting 1/K a resampling, as if copies were independent, underestimates the error of a systematic run."""
    result = run("systematic", particles=600, threshold=1.1, seed=3)
    forged = replace(
        result.population,
        log_coalescence=-result.population.n_resamplings * math.log1p(-1 / 600),
    )
    right = calibration((result.log_evidence - LOG_Z) / result.log_evidence_std_error)
    wrong = calibration((result.log_evidence - LOG_Z) / evidence_std_error(forged))
    assert right.passed
    assert not wrong.passed


def test_without_resampling_it_is_the_error_of_a_mean():
    result = run(threshold=0.0, seed=4)
    torch.testing.assert_close(result.log_evidence_std_error, log_evidence_std_error(result.log_weights))


def test_error_of_many_populations_covers_the_truth():
    evidence = run(seed=5).evidence()
    assert ZTest(evidence.log_evidence, evidence.std_error, LOG_Z).passed
    assert evidence.std_error < 0.05


def test_one_common_root_leaves_nothing_to_estimate_an_error_from():
    result = run("multinomial", particles=5, threshold=1.1)
    single = distinct_roots(result.population) == 1
    assert bool(single.any())
    assert bool(single.logical_not().any())
    assert bool((result.log_evidence_std_error[single] == math.inf).all())
    assert bool((result.std_error(lambda x: x)[single] == math.inf).all())
    assert bool(result.log_evidence_std_error[~single].isfinite().all())


def test_fewer_roots_survive_with_multinomial_than_with_ssp():
    roots = {
        scheme: run(scheme, threshold=1.1, collectors=[collect.DistinctRoots()]).collected["distinct_roots"]
        for scheme in ("multinomial", "ssp")
    }
    assert bool((roots["ssp"].diff(dim=0) <= 0).all())
    assert float(roots["ssp"][-1].double().mean()) > float(roots["multinomial"][-1].double().mean())
