"""Free-energy surfaces against quadrature, calibration of their errors, and controls that must fail."""

import math

import pytest
import torch

from feynkac.molecular.free_energy import Axis, free_energy_surface

KT = 2.494
SHORT = Axis(name="d", lower=0, upper=1, bins=5, periodic=False)


def torsion_density(x: torch.Tensor) -> torch.Tensor:
    """An asymmetric, unnormalised density on the circle with a minimum near each of -1.2 and 0.9 rad."""
    return torch.exp(2.5 * torch.cos(x + 1.2)) + 0.35 * torch.exp(4.0 * torch.cos(x - 0.9))


def draw_torsion(generator: torch.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of a von Mises-like proposal, made by wrapping a Gaussian, and raw log-weights."""
    x = -0.8 + 1.5 * torch.randn(n, generator=generator, dtype=torch.float64)
    images = 2 * math.pi * torch.arange(-4, 5, dtype=torch.float64)
    wrapped = torch.remainder(x + math.pi, 2 * math.pi) - math.pi
    q = torch.exp(-0.5 * ((wrapped[:, None] + images + 0.8) / 1.5) ** 2).sum(1)
    return wrapped, torch.log(torsion_density(wrapped) / q) - 3.0


def exact_cells(axis: Axis) -> torch.Tensor:
    """Cell-averaged normalised density (bins,) by quadrature."""
    fine = 400
    edges = axis.edges()
    x = edges[:-1, None] + axis.width * (torch.arange(fine, dtype=torch.float64) + 0.5) / fine
    p = torsion_density(x).mean(1)
    return p / (p.sum() * axis.width)


def histogram_scores(use_weights: bool, repeats: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(21)
    axis = Axis.torsion("phi", 24)
    truth = -KT * torch.log(exact_cells(axis))
    scores = []
    for repeat in range(repeats):
        x, log_weights = draw_torsion(generator, 4000)
        surface = free_energy_surface(
            x,
            log_weights if use_weights else torch.zeros(4000),
            kT=KT,
            axes=[axis],
            bootstrap=60,
            seed=repeat,
        )
        scores.append((surface.free_energy + surface.offset - truth) / surface.std_error)
    return torch.stack(scores)


def test_histogram_and_its_errors_are_right_over_repeats():
    z = histogram_scores(use_weights=True, repeats=100)
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(100)
    assert 0.9 < float(z.std()) < 1.12
    assert float(z.std(0).min()) > 0.7
    assert float(z.std(0).max()) < 1.4


def test_ignoring_the_weights_is_noticed():
    assert float(histogram_scores(use_weights=False, repeats=5).mean(0).abs().max()) > 10


def test_kde_is_right_up_to_its_stated_smoothing():
    """The expectation of a kernel estimate is the density smoothed by the kernel, by quadrature."""
    axis, h, n = Axis.torsion("phi", 40), 0.15, 4000
    fine = -math.pi + 2 * math.pi * torch.arange(4000, dtype=torch.float64) / 4000
    p = torsion_density(fine)
    p = p / (p.sum() * 2 * math.pi / 4000)
    kernel = torch.exp((torch.cos(axis.points()[:, None] - fine) - 1) / h**2)
    kernel = kernel / (kernel.sum(1, keepdim=True) * 2 * math.pi / 4000)
    smoothed = (kernel * p).sum(1) * 2 * math.pi / 4000
    generator, scores = torch.Generator().manual_seed(22), []
    for repeat in range(60):
        x, log_weights = draw_torsion(generator, n)
        surface = free_energy_surface(
            x, log_weights, kT=KT, axes=[axis], method="kde", bandwidth=[h], bootstrap=60, seed=repeat
        )
        scores.append((surface.free_energy_kT + surface.offset / KT + torch.log(smoothed)) / surface.std_error_kT)
    z = torch.stack(scores)
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(60)
    assert 0.88 < float(z.std()) < 1.15


def coupled_energy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Reduced energy with a periodic and an open variable that depend on each other."""
    return -1.5 * torch.cos(x - 0.5) + 0.5 * ((y - 0.6 * torch.sin(x)) / 0.5) ** 2


@pytest.mark.parametrize("method", ["histogram", "kde"])
def test_two_dimensions_periodic_and_open(method):
    generator = torch.Generator().manual_seed(23)
    n = 60000
    x = (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1) * math.pi
    y = 0.8 * torch.randn(n, generator=generator, dtype=torch.float64)
    log_weights = -coupled_energy(x, y) + 0.5 * (y / 0.8) ** 2
    axes = [
        Axis.torsion("phi", 16),
        Axis(name="d", lower=-1.5, upper=1.5, bins=10, periodic=False, unit="nm"),
    ]
    bandwidth = None if method == "histogram" else (0.12, 0.08)
    surface = free_energy_surface(
        torch.stack([x, y], 1),
        log_weights,
        kT=KT,
        axes=axes,
        method=method,
        bandwidth=bandwidth,
        bootstrap=40,
        seed=0,
    )
    # Truth: cell averages for the histogram, point values for the kernel (whose smoothing costs up to ~0.1
    # kT).
    fx, fy = (
        (
            axes[0].width * ((torch.arange(40) + 0.5) / 40 - 0.5),
            axes[1].width * ((torch.arange(40) + 0.5) / 40 - 0.5),
        )
        if method == "histogram"
        else (torch.zeros(1), torch.zeros(1))
    )
    gx = (surface.grid[0][:, None] + fx).reshape(-1, 1)
    gy = (surface.grid[1][:, None] + fy).reshape(1, -1)
    p = torch.exp(-coupled_energy(gx, gy)).reshape(16, len(fx), 10, len(fy)).mean((1, 3))
    # Normalise over the whole y axis: the Gaussian factor integrates to 0.5 sqrt(2 pi) for every x.
    norm = 2 * math.pi * float(torch.special.i0(torch.tensor(1.5))) * 0.5 * math.sqrt(2 * math.pi)
    truth = -torch.log(p / norm)
    difference = surface.free_energy_kT + surface.offset / KT - truth
    well_sampled = surface.ess > 40
    assert int(well_sampled.sum()) > 60
    z = difference[well_sampled] / surface.std_error_kT[well_sampled]
    if method == "histogram":
        assert float(z.abs().max()) < 5
        assert 0.8 < float(z.std()) < 1.2
        assert surface.n_outside == int((y.abs() > 1.5).sum())
    else:
        assert float(difference[well_sampled].abs().median()) < 0.1
    assert surface.free_energy.shape == (16, 10)
    assert float(surface.free_energy.min()) == 0


def test_periodic_cells_reach_around_the_end():
    axis = Axis.torsion("phi", 4)
    points = axis.points().tolist()
    assert points == pytest.approx([-math.pi, -math.pi / 2, 0, math.pi / 2])
    values = torch.tensor([math.pi - 0.1, -math.pi + 0.1, 0.1, -0.1, math.pi / 2, 3 * math.pi])
    assert axis.cell(values).tolist() == [0, 0, 2, 2, 3, 0]
    open_axis = Axis(name="d", lower=0.0, upper=1.0, bins=4, periodic=False)
    assert open_axis.points().tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert open_axis.cell(torch.tensor([0.0, 0.99, 1.0, 1.01, -0.01])).tolist() == [0, 3, 3, -1, -1]


@pytest.mark.parametrize("method", ["histogram", "kde"])
def test_a_shift_along_the_circle_shifts_the_surface(method):
    x, log_weights = draw_torsion(torch.Generator().manual_seed(24), 2000)
    axis = Axis.torsion("phi", 20)
    bandwidth = [0.2] if method == "kde" else None
    arguments = {
        "kT": KT,
        "axes": [axis],
        "method": method,
        "bandwidth": bandwidth,
        "bootstrap": 20,
        "seed": 0,
    }
    first = free_energy_surface(x, log_weights, **arguments)
    shifted = free_energy_surface(x + 3 * axis.width, log_weights, **arguments)
    torch.testing.assert_close(shifted.free_energy.roll(-3), first.free_energy, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shifted.std_error.roll(-3), first.std_error, rtol=1e-6, atol=1e-9)


def test_empty_cells_are_infinite_with_a_nan_error():
    x = torch.linspace(-1, 1, 100)
    surface = free_energy_surface(x, torch.zeros(100), kT=KT, axes=[Axis.torsion("phi", 36)], bootstrap=20, seed=0)
    empty = torch.isinf(surface.free_energy)
    assert 0 < int(empty.sum()) < 36
    assert torch.equal(empty, torch.isnan(surface.std_error))
    assert torch.equal(empty, surface.ess == 0)
    assert float((surface.density * surface.axes[0].width).sum()) == pytest.approx(1)


def test_groups_widen_the_error():
    x, log_weights = draw_torsion(torch.Generator().manual_seed(25), 1000)
    axis = Axis.torsion("phi", 12)
    x9, w9, groups = (
        x.repeat_interleave(9),
        log_weights.repeat_interleave(9),
        torch.arange(1000).repeat_interleave(9),
    )
    single = free_energy_surface(x, log_weights, kT=KT, axes=[axis], bootstrap=400, seed=0)
    grouped = free_energy_surface(x9, w9, kT=KT, axes=[axis], bootstrap=400, seed=1, groups=groups)
    naive = free_energy_surface(x9, w9, kT=KT, axes=[axis], bootstrap=400, seed=1)
    torch.testing.assert_close(grouped.free_energy, single.free_energy)
    assert float((grouped.std_error / single.std_error).mean()) == pytest.approx(1, abs=0.1)
    assert float((naive.std_error / single.std_error).mean()) == pytest.approx(1 / 3, abs=0.05)


def test_same_seed_same_bits_and_no_bootstrap_no_error():
    x, log_weights = draw_torsion(torch.Generator().manual_seed(26), 500)
    axis = Axis.torsion("phi", 12)
    first = free_energy_surface(x, log_weights, kT=KT, axes=[axis], seed=3)
    again = free_energy_surface(x, log_weights, kT=KT, axes=[axis], seed=3)
    assert torch.equal(first.std_error, again.std_error)
    assert torch.isnan(free_energy_surface(x, log_weights, kT=KT, axes=[axis], bootstrap=0).std_error).all()


def test_samples_of_zero_weight_may_have_any_value():
    x = torch.tensor([0.1, 0.2, math.nan, 0.3])
    log_weights = torch.tensor([0.0, 0.0, -math.inf, 0.0])
    surface = free_energy_surface(x, log_weights, kT=KT, axes=[Axis.torsion("phi", 12)], bootstrap=0)
    assert float((surface.density * surface.axes[0].width).sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match="must be finite"):
        free_energy_surface(x, torch.zeros(4), kT=KT, axes=[Axis.torsion("phi", 12)], bootstrap=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "kde"}, "no default"),
        ({"method": "kde", "bandwidth": [-1.0]}, "positive bandwidth"),
        ({"bandwidth": [0.1]}, "a histogram has no bandwidth"),
        ({"method": "spline"}, "'histogram' or 'kde'"),
        ({"seed": None}, "needs a seed"),
        ({"values": torch.zeros(50, 2)}, r"\(n, d\) = \(50, 1\)"),
        ({"axes": []}, "1 or 2 axes"),
        ({"values": torch.full((50,), 9.0), "axes": [SHORT]}, "inside the axes"),
    ],
)
def test_bad_input_is_refused(changes, message):
    arguments = {"values": torch.zeros(50), "log_weights": torch.zeros(50), "kT": KT, "seed": 0}
    arguments |= {"axes": [Axis.torsion("phi", 12)]} | changes
    with pytest.raises(ValueError, match=message):
        free_energy_surface(**arguments)


def test_bad_axes_are_refused():
    with pytest.raises(ValueError, match="at least 2 bins"):
        Axis.torsion("phi", 1)
    with pytest.raises(ValueError, match="finite and in order"):
        Axis(name="d", lower=1.0, upper=0.0, bins=5, periodic=False)
