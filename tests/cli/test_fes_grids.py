"""`feynkac fes` on OPES's files, grids that are drawn again, and OpenMM's biases."""

import json
import math

import numpy as np
import pytest
import torch

from feynkac.fkc.bias import BiasVariable, RepulsionBias
from feynkac.molecular.io import (
    grid_axis,
    opes_kernels_of,
    opes_table_of,
    write_bias_grid,
    write_colvar,
    write_opes_kernels,
    write_opes_state,
)

from .fes_files import PI, numbers, read_table, run, write

KT = 2.5
HEADER = """\
#! FIELDS x {}
#! SET min_x 0
#! SET max_x 2
#! SET nbins_x 3
#! SET periodic_x false
"""
VARIABLES = (BiasVariable("phi", 0.3, 2 * PI), BiasVariable("d", 0.1))


def opes(explore=False, batches=4):
    generator = torch.Generator().manual_seed(2)
    bias = RepulsionBias.opes(VARIABLES, kT=KT, barrier=20.0, explore=explore)
    for _ in range(batches):
        draw = torch.rand(30, 2, generator=generator, dtype=torch.float64)
        bias = bias.deposited(torch.stack([2 * draw[:, 0] - 1, draw[:, 1]], dim=1))
    return bias


# --- OPES -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explore", [False, True])
def test_state_is_the_bias_s_own_estimate(tmp_path, explore):
    bias = opes(explore)
    write_opes_state(tmp_path / "STATE", opes_table_of(bias))
    output = run(tmp_path, "STATE", "--kt", KT, "--bin", "30,20", "--no-plots")
    columns, settings = read_table(tmp_path / "fes.dat")
    points = torch.tensor(np.stack([columns["phi"], columns["d"]], 1))
    np.testing.assert_allclose(columns["file.free"], bias.free_energy(points).numpy(), rtol=0, atol=1e-9)
    slope = bias.value_and_gradient(points)[1] * -(1 / (1 - 1 / bias.bias_factor))
    for k, name in enumerate(("phi", "d")):
        np.testing.assert_allclose(columns[f"der_{name}"], slope[:, k].numpy(), rtol=0, atol=1e-7)
    assert settings["periodic_phi"] == "true"
    assert "merged, of a STATE file" in output
    assert "no error bar" in output
    assert np.ptp(columns["file.free"]) > 5


def test_kernels_are_the_density_of_all_that_was_deposited(tmp_path):
    bias = opes(batches=2)
    draw = torch.rand(50, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    hills = bias.hills(draw)
    table = opes_kernels_of(bias, hills)
    write_opes_kernels(tmp_path / "KERNELS", table)
    run(tmp_path, "KERNELS", "--kt", KT, "--bin", "60,40", "--mintozero", "--min", "-pi,-0.5", "--max", "pi,1.5")
    columns, _ = read_table(tmp_path / "fes.dat")
    points = np.stack([columns["phi"], columns["d"]], 1)
    density = np.zeros(len(points))
    cut = table.kernel_cutoff**2 / 2
    for center, sigma, height in zip(table.centers.numpy(), table.sigmas.numpy(), table.heights.numpy(), strict=True):
        away = points - center
        away[:, 0] -= 2 * PI * np.round(away[:, 0] / (2 * PI))
        q = 0.5 * ((away / sigma) ** 2).sum(1)
        density += np.where(q < cut, height * (np.exp(-q) - math.exp(-cut)), 0.0)
    seen = density > 0
    assert 0.02 < seen.mean() < 0.9
    expected = -KT * np.log(density[seen] / density.max())
    np.testing.assert_allclose(columns["file.free"][seen], expected, rtol=0, atol=1e-6)
    assert np.isinf(columns["file.free"][~seen]).all()


def test_opes_needs_a_temperature(tmp_path):
    write_opes_state(tmp_path / "STATE", opes_table_of(opes(batches=1)))
    assert "F = -kT ln P needs --kt" in run(tmp_path, "STATE", code=2)


# --- grids ------------------------------------------------------------------------------------------------------------


def test_grid_is_drawn_again(tmp_path):
    write(tmp_path / "HILLS", ("phi", "d"))
    run(tmp_path, "HILLS", "--no-plots", "--bin", "40,30", "--kt", KT, "--deltaf", "phi:0:2", "-o", "one.dat")
    before = (tmp_path / "one.dat").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    output = run(tmp_path / "elsewhere", "../one.dat", "--kt", KT, "--deltaf", "phi:0:2")
    assert (tmp_path / "one.dat").read_bytes() == before
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["one_drawn.png"]
    assert (tmp_path / "elsewhere" / "one_drawn.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["HILLS", "elsewhere", "one.dat", "one.json"]
    delta_f = numbers(tmp_path / "one.json")["delta_f"]
    assert f"{delta_f:.3g} kJ/mol" in output


def test_grid_is_drawn_again_where_it_was_made(tmp_path):
    write(tmp_path / "HILLS", ("phi",))
    run(tmp_path, "HILLS")
    made = {p.name for p in tmp_path.iterdir()}
    assert "grid points" in run(tmp_path, "fes.dat", "--no-plots")
    assert {p.name for p in tmp_path.iterdir()} == made
    run(tmp_path, "fes.dat")
    assert {p.name for p in tmp_path.iterdir()} - made == {"fes_drawn.png"}
    again = run(tmp_path, "fes.dat", code=2)
    assert "fes_drawn.png exists already; nothing is overwritten: choose another --outfile, or --no-plots" in again
    run(tmp_path, "fes.dat", "-o", "third.dat")
    assert {"third.dat", "third.png", "third.json"} < {p.name for p in tmp_path.iterdir()}


def test_grid_is_projected(tmp_path):
    write(tmp_path / "HILLS", ("phi", "d"))
    run(tmp_path, "HILLS", "--no-plots", "--bin", "40,30", "-o", "whole.dat")
    run(tmp_path, "HILLS", "--no-plots", "--bin", "40,30", "--idw", "d", "--kt", KT, "-o", "a.dat")
    run(tmp_path, "whole.dat", "--no-plots", "--idw", "d", "--kt", KT, "-o", "b.dat")
    a, b = (read_table(tmp_path / name)[0]["projection"] for name in ("a.dat", "b.dat"))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)


def test_grid_with_errors(tmp_path):
    text = HEADER.format("file.free uncertainty")
    (tmp_path / "fes.dat").write_text(text + " 0 1.5 0.1\n 1 0.0 0.1\n 2 0.5 0.2\n")
    output = run(tmp_path, "fes.dat", "--kt", KT, "--deltaf", "-0.5..0.5", "-o", "out.dat")
    assert "the errors of cells are correlated" in output
    expected = -KT * math.log(math.exp(-1.5 / KT) / (1 + math.exp(-0.5 / KT)))
    assert numbers(tmp_path / "out.json")["delta_f"] == pytest.approx(expected, abs=1e-9)


def reweighted(folder):
    """Tables of frames of a normal law."""
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    write_colvar(folder / "COLVAR", {"x": x})
    run(folder, "COLVAR", "--kt", KT, "--bias", "none", "--bin", 20, "--no-plots")


def test_errors_of_reweighted_frames_are_found_beside_their_table(tmp_path):
    reweighted(tmp_path)
    output = run(tmp_path, "fes.dat", "--kt", KT, "--deltaf", "0..1", "-o", "out.dat")
    for false in ("has no error bar: it is off", "holds no errors", "feynkac fes COLVAR"):
        assert false not in output
    assert "the errors of cells are correlated" in output
    columns, _ = read_table(tmp_path / "fes_uncertainty.dat")
    known = columns["uncertainty"][np.isfinite(columns["file.free"]) & np.isfinite(columns["uncertainty"])]
    row = json.loads((tmp_path / "out.json").read_text())["numbers"]["cell_error"]
    assert row["value"] == pytest.approx(float(torch.tensor(known).median()), abs=1e-9)
    assert row["remark"] == "of fes_uncertainty.dat, beside the table"
    run(tmp_path, "fes.dat", "--units", "kcal/mol", "--no-plots", "-o", "kcal.dat")
    assert numbers(tmp_path / "kcal.json")["cell_error"] == pytest.approx(row["value"] / 4.184)


@pytest.mark.parametrize("spoil", ["gone", "other values", "other grid", "damaged", "no errors"])
def test_errors_of_another_surface_are_not_taken(tmp_path, spoil):
    """And of a table without errors nothing is said that is not known."""
    reweighted(tmp_path)
    beside = tmp_path / "fes_uncertainty.dat"
    text = beside.read_text()
    beside.unlink()
    if spoil == "other values":
        line = text.splitlines()[-8]
        beside.write_text(text.replace(line, line.replace(line.split()[1], "3.141592654")))
    elif spoil == "other grid":
        beside.write_text(text.replace("#! SET max_x ", "#! SET max_x 1"))
    elif spoil == "damaged":
        beside.write_text(text[:-30])
    elif spoil == "no errors":
        beside.write_text((tmp_path / "fes.dat").read_text())
    output = run(tmp_path, "fes.dat", "-o", "out.dat", "--no-plots")
    assert "cell_error" not in numbers(tmp_path / "out.json")
    assert "this table holds no errors and does not say what it was made of" in output
    assert "what a bias implies" not in output


@pytest.mark.parametrize(
    ("words", "factor"), [(["--bias-factor", 4], -4 / 3), (["--bias-factor", "inf"], -1), (["--negbias"], -1)]
)
def test_bias_grid(tmp_path, words, factor):
    axis = grid_axis("phi", -PI, PI, 20, periodic=True)
    bias = 3 + torch.cos(axis.points())
    write_bias_grid(tmp_path / "GRID", [axis], bias)
    assert "needs --bias-factor" in run(tmp_path, "GRID", code=2)
    run(tmp_path, "GRID", "--no-plots", *words, "-o", "out.dat")
    columns, _ = read_table(tmp_path / "out.dat")
    np.testing.assert_allclose(columns["file.free"], factor * bias.numpy(), rtol=0, atol=1e-8)
    assert "leave --bias-factor and --negbias out" in run(tmp_path, "out.dat", *words, code=2)


def test_constant_and_unknown_grids(tmp_path):
    text = HEADER.format("other") + " 0 1\n 1 1\n 2 1\n"
    (tmp_path / "a.dat").write_text(text)
    assert "neither free energies" in run(tmp_path, "a.dat", code=2)
    (tmp_path / "b.dat").write_text(text.replace("other", "file.free"))
    run(tmp_path, "b.dat", "-o", "d.dat")
    assert numbers(tmp_path / "d.json")["span"] == 0
    (tmp_path / "c.dat").write_text(text.replace("other", "file.free").replace(" 2 1\n", ""))
    assert "truncated or altered" in run(tmp_path, "c.dat", code=2)


# --- OpenMM -----------------------------------------------------------------------------------------------------------


def test_openmm_folder(tmp_path):
    folder = tmp_path / "biases"
    folder.mkdir()
    phi, d = np.linspace(-PI, PI, 13), np.linspace(0.0, 1.0, 6)
    parts = [np.cos(phi)[None, :] * d[:, None] + k for k in range(2)]  # axes in reverse order
    for k, part in enumerate(parts):
        np.save(folder / f"bias_{k + 1}_0.npy", part)
    words = ("biases", "--bias-factor", 5, "--min", "-pi,0", "--max", "pi,1", "--cv", "phi", "--cv", "d")
    run(tmp_path, *words, "--kt", KT, "--deltaf", "phi:0:2")
    columns, settings = read_table(tmp_path / "fes.dat")
    expected = -1.25 * (2 * np.cos(columns["phi"]) * columns["d"] + 1)
    np.testing.assert_allclose(columns["file.free"], expected, rtol=0, atol=1e-8)
    assert (settings["nbins_phi"], settings["nbins_d"], settings["periodic_phi"]) == ("13", "6", "false")
    assert "the ranges: give --min and --max" in run(tmp_path, "biases", "--bias-factor", 5, code=2)
    assert "needs --bias-factor" in run(tmp_path, "biases", "--min", "0,0", "--max", "1,1", code=2)
    short = ("biases", "--bias-factor", 5, "--min", "0", "--max", "1", "-o", "x.dat")
    assert "the bias has 2 variables" in run(tmp_path, *short, code=2)


def test_openmm_periodic(tmp_path):
    folder = tmp_path / "biases"
    folder.mkdir()
    values = 2 + np.cos(np.linspace(-PI, PI, 25))
    np.save(folder / "bias_7_0.npy", np.zeros(25))
    np.save(folder / "bias_7_3.npy", values)  # the newest of a walker counts
    run(tmp_path, "biases", "--bias-factor", 5, "--min", "-pi", "--max", "pi", "--periodic", "--no-plots")
    columns, settings = read_table(tmp_path / "fes.dat")
    assert (settings["nbins_s1"], settings["periodic_s1"]) == ("24", "true")
    np.testing.assert_allclose(columns["file.free"], -1.25 * values[:-1], rtol=0, atol=1e-8)
