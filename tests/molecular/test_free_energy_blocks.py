"""Blocks: labels, their length, the error against it, and calibration of errors from them."""

import math
from itertools import pairwise

import pytest
import torch

from feynkac.fkc.testing import calibration
from feynkac.molecular.free_energy import (
    Axis,
    ShortSeriesWarning,
    block_error_curve,
    block_groups,
    block_length,
    free_energy_difference,
    free_energy_surface,
    influence,
    integrated_autocorrelation,
)

from .free_energy_walkers import autoregressive, biased_walkers, double_well, exact_difference, log_weights

REPEATS = 200


def test_labels_of_blocks():
    groups = block_groups(7, 3, 2).reshape(7, 3)
    assert groups.tolist() == [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2 + [[6, 7, 8]] * 3
    assert block_groups(5, 2, 5).tolist() == [0, 1] * 5
    assert block_groups(4, 2, 1).unique().numel() == 8
    for steps, walkers, block in ((5, 2, 6), (5, 2, 0), (0, 1, 1), (5, 0, 1)):
        with pytest.raises(ValueError, match="do not fit"):
            block_groups(steps, walkers, block)


def test_length_of_blocks():
    assert block_length(0.0, 1000, 4) == 1
    assert block_length(5.0, 10000, 4) == 50
    assert block_length(100.0, 1000, 40) == 1000  # walkers are the blocks
    with pytest.warns(ShortSeriesWarning, match="fewer than 8 blocks"):
        assert block_length(100.0, 1000, 2) == 250
    with pytest.raises(ValueError, match="no blocks"):
        block_length(math.nan, 100, 1)


def test_error_curve_rises_to_the_exact_error():
    """Autoregressive chain with g = 19: the first point is too small by its root, the plateau is right."""
    generator = torch.Generator().manual_seed(1)
    curves = [block_error_curve(autoregressive(generator, 0.9, 4000, 4)) for _ in range(40)]
    exact = math.sqrt(19 / 16000)
    single = torch.stack([c.std_error[0] for c in curves])
    plateau = torch.tensor([c.plateau for c in curves])
    assert float(single.mean()) * math.sqrt(19) == pytest.approx(exact, rel=0.05)
    assert float(plateau.mean()) == pytest.approx(exact, rel=0.05)
    spread = torch.tensor([c.plateau_spread for c in curves])
    assert float(plateau.std()) == pytest.approx(float(spread.mean()), rel=0.35)
    curve = curves[0]
    assert curve.lengths[0] == 1
    assert curve.lengths[-1] == 4000
    assert curve.blocks[-1] == 4
    assert 20 < curve.plateau_length < 1000


def test_error_curve_is_flat_without_correlation():
    x = torch.randn(4096, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    curve = block_error_curve(x)
    assert curve.plateau_length < 64
    assert float(((curve.std_error - curve.std_error[0]) / curve.spread)[:8].abs().max()) < 4
    chosen = block_error_curve(x, torch.zeros_like(x), lengths=[16, 4])
    assert chosen.lengths.tolist() == [4, 16]
    assert float(chosen.std_error[0]) == pytest.approx(float(curve.std_error[2]))
    with pytest.raises(ValueError, match="fewer than two blocks"):
        block_error_curve(x[:, 0], lengths=[4096])


@pytest.fixture(scope="module")
def walkers() -> torch.Tensor:
    """(1500, REPEATS, 6) flattened walkers."""
    return biased_walkers(torch.Generator().manual_seed(3), 1500, REPEATS * 6).reshape(1500, REPEATS, 6)


def automatic_length(x: torch.Tensor) -> int:
    series = influence((x > 0).double(), log_weights(x))
    return block_length(integrated_autocorrelation(series, warn=False).memory, *x.shape, warn=False)


def difference_scores(walkers: torch.Tensor, block: int | None, bootstrap: int = 0) -> torch.Tensor:
    truth, scores = exact_difference(), []
    for r in range(REPEATS):
        x = walkers[:, r]
        length = block or automatic_length(x)
        found = free_energy_difference(
            (x > 0).flatten(),
            log_weights(x).flatten(),
            kT=1.0,
            bootstrap=bootstrap,
            seed=r,
            groups=block_groups(*x.shape, length),
        )
        scores.append((found.value - truth) / found.std_error)
    return torch.tensor(scores)


def test_differences_by_blocks_are_calibrated_and_by_frames_are_not(walkers):
    z = difference_scores(walkers, None)
    assert abs(float(z.mean())) < 5 / math.sqrt(REPEATS)
    assert calibration(z).passed
    assert calibration(difference_scores(walkers, 250, bootstrap=100)).passed
    assert float(difference_scores(walkers, 1).square().mean()) > 5


def test_surfaces_by_blocks_are_calibrated_and_by_frames_are_not(walkers):
    axis = Axis(name="x", lower=-1.5, upper=1.5, bins=10, periodic=False)
    fine = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    p = torch.exp(-double_well(fine))
    edges = axis.edges()
    inside = torch.stack([p[(fine >= a) & (fine < b)].sum() for a, b in pairwise(edges)])
    truth = -torch.log(inside / p.sum() / axis.width)
    z: dict[int, list[torch.Tensor]] = {250: [], 1: []}
    for r in range(0, REPEATS, 2):
        x = walkers[:, r]
        for block, scores in z.items():
            surface = free_energy_surface(
                x.flatten(),
                log_weights(x).flatten(),
                kT=1.0,
                axes=[axis],
                bootstrap=40,
                seed=r,
                groups=block_groups(*x.shape, block),
            )
            scores.append((surface.free_energy + surface.offset - truth) / surface.std_error)
    by_block, by_frame = (torch.stack(scores)[:, 1:-1] for scores in z.values())
    assert float(by_block.mean(0).abs().max()) < 5 / math.sqrt(REPEATS / 2) * 1.3
    # 36 blocks and 40 replicates make the square of z about 1.1; cells are correlated, so the limits are wide
    assert 0.8 < float(by_block.square().mean()) < 1.5
    assert float(by_frame.square().mean()) > 3
