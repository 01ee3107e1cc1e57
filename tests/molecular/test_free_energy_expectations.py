"""Several expectations with control variates: unbiased, calibrated, smaller errors, and controls that must fail."""

import math

import pytest
import torch

from feynkac.fkc.errors import WeightError
from feynkac.fkc.testing import calibration
from feynkac.molecular.free_energy import block_groups, expectations, free_energy_difference

from .free_energy_walkers import autoregressive

REPEATS = 300
WIDTH = 1.5


def drawn(generator: torch.Generator, n: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of N(0, WIDTH^2) and their log-weights under N(0, 1), times a constant."""
    x = WIDTH * torch.randn(n, generator=generator, dtype=torch.float64)
    return x, 5.0 - 0.5 * x * x + 0.5 * (x / WIDTH) ** 2


def functions(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.exp(0.5 * x), torch.cos(x), (x > 0.5).double()], 1)


EXACT = torch.tensor([math.exp(0.125), math.exp(-0.5), 0.5 * math.erfc(0.5 / math.sqrt(2))], dtype=torch.float64)


def target_controls(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, x * x - 1], 1)


def sampling_controls(x: torch.Tensor) -> torch.Tensor:
    """Mean zero under the law that is sampled."""
    y = x / WIDTH
    return torch.stack([y, torch.exp(0.5 * y) - math.exp(0.125)], 1)


def scores(**options) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z, gain = [], []
    for _ in range(REPEATS):
        x, log_weights = drawn(generator)
        given = {name: control(x) for name, control in options.items() if callable(control)}
        found = expectations(functions(x), log_weights, folds=options.get("folds", 1), **given)
        z.append((found.values - EXACT) / found.std_errors)
        gain.append(found.variance_reduction)
    return torch.stack(z), torch.stack(gain)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"controls": target_controls},
        {"sampling_controls": sampling_controls},
        {"controls": target_controls, "sampling_controls": sampling_controls},
        {"controls": target_controls, "folds": 5},
    ],
)
def test_values_and_errors_are_calibrated(options):
    z, gain = scores(**options)
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(REPEATS)
    for column in z.T:
        assert calibration(column).passed
    if "controls" in options:
        assert float(gain.mean(0)[0]) > 5
        assert float(gain.mean(0)[2]) > 1.5
    if not options:
        assert gain == pytest.approx(torch.ones_like(gain))


def test_a_control_whose_mean_is_not_zero_is_noticed():
    z, _ = scores(controls=lambda x: target_controls(x) + 0.2)
    assert float(z.mean(0).abs().max()) > 3
    z, _ = scores(sampling_controls=target_controls)  # mean zero under the other law
    assert float(z.mean(0).abs().max()) > 3


def test_covariance_is_joint():
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(REPEATS):
        x, log_weights = drawn(generator)
        found.append(expectations(functions(x), log_weights, controls=target_controls(x)))
    values = torch.stack([f.values for f in found])
    correlation = torch.corrcoef(values.T)
    estimated = torch.stack([f.covariance / torch.outer(f.std_errors, f.std_errors) for f in found]).mean(0)
    assert correlation == pytest.approx(estimated, abs=0.25)
    assert float(correlation[0, 2].abs() + correlation[1, 2].abs()) > 0.2
    # of the sum of two means, from the covariance and without it
    joint = torch.stack([(f.values - EXACT)[1:].sum() / f.covariance[1:, 1:].sum().sqrt() for f in found])
    assert calibration(joint).passed


def test_plain_values_are_self_normalised_means():
    x, log_weights = drawn(torch.Generator().manual_seed(3))
    found = expectations((x > 0).double(), log_weights)
    difference = free_energy_difference(x > 0, log_weights, kT=1.0, bootstrap=0)
    assert float(found.values) == pytest.approx(difference.probability)
    assert float(found.std_errors) == pytest.approx(difference.probability_std_error, rel=1e-6)
    assert found.n_controls == 0
    controlled = expectations((x > 0).double(), log_weights, controls=target_controls(x))
    assert float(controlled.plain_values) == pytest.approx(difference.probability)
    assert float(controlled.plain_std_errors) == pytest.approx(difference.probability_std_error, rel=1e-6)


def test_correlated_frames_need_groups():
    generator = torch.Generator().manual_seed(4)
    by_walker, by_frame = [], []
    labels = block_groups(200, 40, 200)
    for _ in range(200):
        x = WIDTH * autoregressive(generator, 0.97, 200, 40).flatten()
        log_weights = -0.5 * x * x + 0.5 * (x / WIDTH) ** 2
        for z, groups in ((by_walker, labels), (by_frame, None)):
            found = expectations(functions(x)[:, 2], log_weights, controls=x[:, None], groups=groups)
            z.append(float((found.values - EXACT[2]) / found.std_errors))
    assert calibration(torch.tensor(by_walker)).passed
    assert not calibration(torch.tensor(by_frame)).passed


def test_samples_without_weight_may_hold_anything():
    x, log_weights = drawn(torch.Generator().manual_seed(5))
    values, controls = functions(x), target_controls(x)
    log_weights[7] = -math.inf
    values[7], controls[7] = math.nan, math.inf
    found = expectations(values, log_weights, controls=controls)
    assert found.values.isfinite().all()
    for wrong, message in (
        ({"functions": values[:-1]}, "functions must be"),
        ({"controls": controls[:, 0, None, None]}, "controls must be"),
        ({"log_weights": torch.zeros_like(log_weights)}, "finite"),
    ):
        arguments = {"functions": values, "log_weights": log_weights, "controls": controls} | wrong
        with pytest.raises(ValueError, match=message):
            expectations(arguments.pop("functions"), arguments.pop("log_weights"), **arguments)
    with pytest.raises(WeightError):
        expectations(values, torch.full_like(log_weights, -math.inf))
