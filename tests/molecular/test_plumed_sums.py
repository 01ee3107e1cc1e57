"""Sums of hills against PLUMED's definition: a summer in plain Python, and ``plumed sum_hills`` where it is installed.

The summer reads the text of the file by itself, inverts covariances instead of their factors, and looks for the
nearest image among several instead of rounding.
"""

import itertools
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch

from feynkac.molecular.io import (
    evaluate_hills,
    grid_axis,
    hills_free_energy,
    hills_value_and_gradient,
    read_fes,
    read_hills,
    write_hills,
)

from .test_io_hills import make_table

PI = math.pi
PLUMED = shutil.which("plumed")
KINDS = list(itertools.product([False, True], ["gaussian", "stretched-gaussian"]))


def sum_by_hand(text, points, *, biasf=True, images=(-1, 0, 1)):
    """-F at the points from the text of a HILLS file; V with ``biasf``."""
    words = [line.split() for line in text.splitlines()]
    fields = words[0][2:]
    constants = {w[2]: w[3] for w in words if w[:2] == ["#!", "SET"]}
    rows = [dict(zip(fields, map(float, w), strict=True)) for w in words if w[0] != "#!"]
    names = [name for name in fields if f"sigma_{name}" in fields or f"sigma_{name}_{name}" in fields]
    pi = {"pi": PI, "-pi": -PI}
    total = np.zeros(len(points))
    for row in rows:
        lower = np.zeros((len(names), len(names)))
        for (i, a), (j, b) in itertools.product(enumerate(names), repeat=2):
            if constants["multivariate"] == "true":
                lower[i, j] = row.get(f"sigma_{a}_{b}", 0.0)
            elif i == j:
                lower[i, i] = row[f"sigma_{a}"]
        precision = np.linalg.inv(lower @ lower.T)
        height = row["height"]
        if biasf and row["biasf"] > 1:
            height *= (row["biasf"] - 1) / row["biasf"]
        for n, point in enumerate(points):
            difference = np.array([point[i] - row[name] for i, name in enumerate(names)])
            for i, name in enumerate(names):
                if f"min_{name}" in constants:
                    period = pi[constants[f"max_{name}"]] - pi[constants[f"min_{name}"]]
                    difference[i] = min((difference[i] + k * period for k in images), key=abs)
            q = 0.5 * difference @ precision @ difference
            if q < 6.25:
                stretch = constants["kerneltype"] == "stretched-gaussian"
                a = 1.00193418799744762399 if stretch else 1.0
                total[n] += height * (a * math.exp(-q) - (a - 1.0))
    return total


def some_points(n=200):
    generator = torch.Generator().manual_seed(7)
    points = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return torch.stack([(2 * points[:, 0] - 1) * PI, 3 * points[:, 1] - 0.5], dim=1)


@pytest.mark.parametrize(("multivariate", "kernel"), KINDS)
def test_sum_is_plumeds(tmp_path, multivariate, kernel):
    write_hills(tmp_path / "HILLS", make_table(30, multivariate=multivariate, kernel=kernel, biasf=5.0))
    text, table, points = (tmp_path / "HILLS").read_text(), read_hills(tmp_path / "HILLS"), some_points()
    found = evaluate_hills(table, points)
    assert found.max() > 1
    np.testing.assert_allclose(found, sum_by_hand(text, points.tolist()), rtol=0, atol=1e-12)
    free_energy = hills_free_energy(table, points)
    np.testing.assert_allclose(-free_energy, sum_by_hand(text, points.tolist(), biasf=False), rtol=0, atol=1e-12)
    torch.testing.assert_close(free_energy, -5 / 4 * found, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("multivariate", "kernel"), KINDS)
def test_sum_notices_what_is_forgotten(tmp_path, multivariate, kernel):
    write_hills(tmp_path / "HILLS", make_table(30, multivariate=multivariate, kernel=kernel, biasf=5.0))
    text, table, points = (tmp_path / "HILLS").read_text(), read_hills(tmp_path / "HILLS"), some_points()
    found = evaluate_hills(table, points).numpy()
    other = {"gaussian": "stretched-gaussian", "stretched-gaussian": "gaussian"}[kernel]
    forgotten = {
        "bias factor": sum_by_hand(text, points.tolist(), biasf=False),
        "circle": sum_by_hand(text, points.tolist(), images=(0,)),
        "kernel": sum_by_hand(text.replace(f"kerneltype {kernel}", f"kerneltype {other}"), points.tolist()),
    }
    if multivariate:
        columns = text.replace("sigma_phi_phi", "swap").replace("sigma_d_d", "sigma_phi_phi")
        forgotten["order of the widths"] = sum_by_hand(columns.replace("swap", "sigma_d_d"), points.tolist())
    for what, wrong in forgotten.items():
        assert np.abs(wrong - found).max() > 1e-3, what


@pytest.mark.parametrize(("multivariate", "kernel"), KINDS)
def test_gradient_is_that_of_the_sum(multivariate, kernel):
    table, points = make_table(30, multivariate=multivariate, kernel=kernel), some_points(500)
    _, gradient = hills_value_and_gradient(table, points)
    step = 1e-6
    away = torch.ones(len(points), dtype=torch.bool)  # from the cutoff, where plain Gaussians jump
    for k in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[k] = step
        slope = (evaluate_hills(table, points + shift) - evaluate_hills(table, points - shift)) / (2 * step)
        smooth = (slope - gradient[:, k]).abs() < 1e-3 * table.heights.max() / step * math.exp(-6.25)
        away &= smooth
        torch.testing.assert_close(slope[smooth], gradient[smooth, k], rtol=1e-6, atol=1e-7)
    assert away.float().mean() > 0.98


def test_chunks_give_the_same_sum(monkeypatch):
    from feynkac.molecular.io import hills_sum

    table, points = make_table(30, multivariate=True), some_points(50)
    whole = hills_value_and_gradient(table, points)
    monkeypatch.setattr(hills_sum, "_ELEMENTS_AT_ONCE", 333)
    for a, b in zip(whole, hills_value_and_gradient(table, points), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_diagonal_covariances_equal_plain_widths():
    plain = make_table(30)
    full = type(plain)(**{**plain.__dict__, "sigmas": torch.diag_embed(plain.sigmas)})
    for a, b in zip(
        hills_value_and_gradient(plain, some_points()), hills_value_and_gradient(full, some_points()), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("multivariate", [False, True])
def test_odd_points(multivariate):
    table = make_table(3, multivariate=multivariate)
    value, gradient = hills_value_and_gradient(table, torch.tensor([[math.nan, 0.0], [0.0, 50.0]]).double())
    assert value[0].isnan()
    assert gradient[0].isnan().any()
    assert float(value[1]) == 0.0
    assert gradient[1].tolist() == [0.0, 0.0]
    value, gradient = hills_value_and_gradient(table.rows(slice(0, 0)), some_points(4))
    assert value.tolist() == [0.0] * 4
    assert gradient.shape == (4, 2)
    with pytest.raises(ValueError, match=r"points must be \(B, 2\)"):
        evaluate_hills(table, torch.zeros(4, 3))


# --- PLUMED itself --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(PLUMED is None, reason="needs the executable plumed (www.plumed.org) on the PATH")
@pytest.mark.slow
@pytest.mark.parametrize(("multivariate", "kernel"), KINDS)
@pytest.mark.parametrize("dimension", [1, 2])
def test_sum_hills_of_plumed(tmp_path, multivariate, kernel, dimension):
    table = make_table(30, multivariate=multivariate, kernel=kernel, biasf=5.0)
    ends, bins = [("-pi", "pi"), ("-1", "3")], [40, 30]
    axes = [grid_axis("phi", -PI, PI, 40, periodic=True), grid_axis("d", -1.0, 3.0, 31, periodic=False)]
    if dimension == 1:
        sigmas = table.sigmas[:, :1, :1] if multivariate else table.sigmas[:, :1]
        parts = {"names": ("phi",), "domains": table.domains[:1], "centers": table.centers[:, :1], "sigmas": sigmas}
        table = type(table)(**{**table.__dict__, **parts})
    write_hills(tmp_path / "HILLS", table)
    low, high = (",".join(end[k] for end in ends[:dimension]) for k in (0, 1))
    counts = ",".join(map(str, bins[:dimension]))
    command = [PLUMED, "sum_hills", "--hills", "HILLS", "--outfile", "fes.dat", "--min", low, "--max", high]
    subprocess.run([*command, "--bin", counts], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    grid = read_fes(tmp_path / "fes.dat")
    for axis, wanted in zip(grid.axes, axes[:dimension], strict=True):
        torch.testing.assert_close(axis.points(), wanted.points(), rtol=0, atol=1e-6)
    points = torch.stack(torch.meshgrid(*(axis.points() for axis in axes[:dimension]), indexing="ij"), -1)
    found = hills_free_energy(table, points.reshape(-1, dimension)).reshape(points.shape[:-1])
    torch.testing.assert_close(grid.free_energy, found, rtol=0, atol=1e-6)
