"""`feynkac fes HILLS` against a summer in plain Python that reads the same text."""

import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from feynkac.fkc.bias import BiasVariable, RepulsionBias
from feynkac.molecular.io import HillsTable, read_fes, table_of, write_hills

from .fes_files import FINITE_SUPPORT, PI, by_hand, make_hills, numbers, read_table, run, write

KINDS = list(itertools.product([False, True], ["gaussian", "stretched-gaussian"]))
PLUMED = shutil.which("plumed")
VARIABLES = [("phi",), ("d",), ("phi", "d"), ("phi", "psi"), ("d", "e")]


def points_of(columns, names):
    return np.stack([columns[name] for name in names], axis=1)


# --- agreement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", VARIABLES)
@pytest.mark.parametrize(("multivariate", "kernel"), KINDS)
@pytest.mark.parametrize("biasf", [5.0, -1.0])
def test_sum_is_that_of_another_summer(tmp_path, names, multivariate, kernel, biasf):
    path = tmp_path / "HILLS"
    write(path, names, multivariate=multivariate, kernel=kernel, biasf=biasf)
    run(tmp_path, "HILLS", "--no-plots", "--bin", ",".join(["23", "17"][: len(names)]))
    columns, _ = read_table(tmp_path / "fes.dat")
    expected = -by_hand(path, points_of(columns, names))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(columns["file.free"], expected, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_three_variables(tmp_path):
    names = ("phi", "d", "psi")
    write(tmp_path / "HILLS", names)
    output = run(tmp_path, "HILLS", "--bin", "15,13,14")
    assert "no picture of three variables" in output
    columns, settings = read_table(tmp_path / "fes.dat")
    expected = -by_hand(tmp_path / "HILLS", points_of(columns, names))
    np.testing.assert_allclose(columns["file.free"], expected, rtol=0, atol=1e-9)
    assert [settings[f"nbins_{name}"] for name in names] == ["15", "14", "14"]


def test_what_is_forgotten_is_seen(tmp_path):
    """The comparison above fails if the bias factor, the circle, the kernel's kind or a hill is left out."""
    path = tmp_path / "HILLS"
    write(path, ("phi", "d"))
    run(tmp_path, "HILLS", "--no-plots")
    columns, _ = read_table(tmp_path / "fes.dat")
    points = points_of(columns, ("phi", "d"))
    other = tmp_path / "OTHER"
    other.write_text(path.read_text().replace("stretched-gaussian", "gaussian"))
    wrong = {
        "bias factor": by_hand(path, points, bias=True),
        "circle": by_hand(path, points, images=(0,)),
        "kernel": by_hand(other, points),
        "last hill": by_hand(path, points, rows=slice(0, -1)),
    }
    for what, values in wrong.items():
        assert np.abs(columns["file.free"] + values).max() > 1e-3, what


@pytest.mark.parametrize("multivariate", [False, True])
def test_derivatives_are_those_of_the_sum(tmp_path, multivariate):
    path, names, step = tmp_path / "HILLS", ("phi", "d"), 1e-6
    write(path, names, multivariate=multivariate)
    run(tmp_path, "HILLS", "--no-plots", "--bin", "19,17")
    columns, _ = read_table(tmp_path / "fes.dat")
    points = points_of(columns, names)
    for k, name in enumerate(names):
        shift = step * np.eye(2)[k]
        slope = -(by_hand(path, points + shift) - by_hand(path, points - shift)) / (2 * step)
        # where a hill ends within the step its derivative is that of either side
        smooth = np.abs(slope - columns[f"der_{name}"]) < 0.05
        assert smooth.mean() > 0.98
        np.testing.assert_allclose(columns[f"der_{name}"][smooth], slope[smooth], rtol=0, atol=1e-5)
        assert np.abs(slope).max() > 0.5


def test_tiles_leave_nothing_out(tmp_path, monkeypatch):
    """A finer and a coarser division of the grid give the same sum."""
    from feynkac.cli.fes import sums

    write(tmp_path / "HILLS", ("phi", "d"), m=40, multivariate=True)
    run(tmp_path, "HILLS", "--no-plots", "-o", "a.dat")
    for size in (2, 1000):
        monkeypatch.setitem(sums._NODES_A_TILE, 2, size)
        run(tmp_path, "HILLS", "--no-plots", "-o", f"b{size}.dat")
        a, b = (read_table(tmp_path / name)[0] for name in ("a.dat", f"b{size}.dat"))
        for name, values in a.items():
            np.testing.assert_allclose(b[name], values, rtol=0, atol=2e-9)


# --- grids ------------------------------------------------------------------------------------------------------------


def test_default_grid(tmp_path):
    """Open: to where the outermost hills end; periodic: once around; a tenth of the narrowest hill's reach."""
    table = write(tmp_path / "HILLS", ("phi", "d"))
    run(tmp_path, "HILLS", "--no-plots")
    _, settings = read_table(tmp_path / "fes.dat")
    reach = FINITE_SUPPORT * table.sigmas.numpy()
    low, high = (table.centers[:, 1].numpy() - reach[:, 1]).min(), (table.centers[:, 1].numpy() + reach[:, 1]).max()
    assert settings["min_phi"] == "-pi"
    assert settings["max_phi"] == "pi"
    assert float(settings["min_d"]) == pytest.approx(low, abs=1e-9)
    assert float(settings["max_d"]) == pytest.approx(high, abs=1e-9)
    assert int(settings["nbins_phi"]) == math.ceil(2 * PI / (reach[:, 0].min() / 10))
    assert int(settings["nbins_d"]) == math.ceil((high - low) / (reach[:, 1].min() / 10)) + 1
    assert (settings["periodic_phi"], settings["periodic_d"]) == ("true", "false")


@pytest.mark.parametrize(
    ("words", "bins", "low", "periodic"),
    [
        (["--min", "-pi,-1", "--max", "pi,3", "--bin", "40,30"], (40, 31), ("-pi", -1.0), ("true", "false")),
        (["--min", "-3.141593,-1", "--max", "3.141593,3", "--bin", "9,9"], (9, 10), ("-pi", -1.0), ("true", "false")),
        (["--min", "0,-1", "--max", "2*pi,3", "--bin", "9,9"], (9, 10), (0.0, -1.0), ("true", "false")),
        (["--min", "-1,-1", "--max", "90deg,3", "--bin", "9,9"], (10, 10), (-1.0, -1.0), ("false", "false")),
        (["--min", "-pi,-1", "--max", "pi,3", "--spacing", "0.2,0.3"], (32, 15), ("-pi", -1.0), ("true", "false")),
        (["--min", "-pi,-1", "--max", "pi,3", "--spacing", "0.2,0.3", "--bin", "20,20"], (32, 21), ("-pi", -1.0),
         ("true", "false")),
    ],
)  # fmt: skip
def test_grids_that_are_asked_for(tmp_path, words, bins, low, periodic):
    write(tmp_path / "HILLS", ("phi", "d"))
    run(tmp_path, "HILLS", "--no-plots", *words)
    columns, settings = read_table(tmp_path / "fes.dat")
    assert (int(settings["nbins_phi"]), int(settings["nbins_d"])) == bins
    assert (settings["periodic_phi"], settings["periodic_d"]) == periodic
    first = settings["min_phi"]
    assert first == low[0] if isinstance(low[0], str) else float(first) == pytest.approx(low[0], abs=1e-12)
    assert float(settings["min_d"]) == pytest.approx(low[1], abs=1e-12)
    expected = -by_hand(tmp_path / "HILLS", points_of(columns, ("phi", "d")), images=range(-2, 3))
    np.testing.assert_allclose(columns["file.free"], expected, rtol=0, atol=1e-8)


def test_round_trip(tmp_path):
    write(tmp_path / "HILLS", ("phi", "d"))
    run(tmp_path, "HILLS", "--no-plots", "--bin", "12,10")
    grid = read_fes(tmp_path / "fes.dat")
    points = np.stack(np.meshgrid(*(axis.points().numpy() for axis in grid.axes), indexing="ij"), -1)
    expected = -by_hand(tmp_path / "HILLS", points.reshape(-1, 2)).reshape(12, 11)
    np.testing.assert_allclose(grid.free_energy.numpy(), expected, rtol=0, atol=1e-8)


# --- options of sum_hills ---------------------------------------------------------------------------------------------


def test_mintozero_and_negbias(tmp_path):
    write(tmp_path / "HILLS", ("phi",), biasf=4.0)
    run(tmp_path, "HILLS", "--no-plots")
    run(tmp_path, "HILLS", "--no-plots", "--mintozero", "-o", "zero.dat")
    run(tmp_path, "HILLS", "--no-plots", "--negbias")
    plain, zero, bias = (
        read_table(tmp_path / name)[0]["file.free"] for name in ("fes.dat", "zero.dat", "negativebias.dat")
    )
    assert zero.min() == 0
    np.testing.assert_allclose(zero, plain - plain.min(), rtol=0, atol=2e-9)
    np.testing.assert_allclose(bias, 0.75 * plain, rtol=0, atol=2e-9)
    columns, _ = read_table(tmp_path / "fes.dat")
    expected = -by_hand(tmp_path / "HILLS", columns["phi"][:, None], bias=True)
    np.testing.assert_allclose(bias, expected, rtol=0, atol=1e-9)


def test_negbias_without_tempering_is_the_sum(tmp_path):
    write(tmp_path / "HILLS", ("phi",), biasf=-1.0)
    run(tmp_path, "HILLS", "--no-plots")
    run(tmp_path, "HILLS", "--no-plots", "--negbias")
    assert (tmp_path / "fes.dat").read_text() == (tmp_path / "negativebias.dat").read_text()


@pytest.mark.parametrize("keep", ["phi", "d"])
def test_projection_is_the_sum_over_the_other(tmp_path, keep):
    names, kT = ("phi", "d"), 2.5
    write(tmp_path / "HILLS", names)
    run(tmp_path, "HILLS", "--no-plots", "--idw", keep, "--kt", kT, "--bin", "21,16")
    columns, settings = read_table(tmp_path / "fes.dat")
    assert list(columns) == [keep, "projection"]
    run(tmp_path, "HILLS", "--no-plots", "--bin", "21,16", "-o", "whole.dat")
    whole, _ = read_table(tmp_path / "whole.dat")
    mass = np.exp(by_hand(tmp_path / "HILLS", points_of(whole, names)) / kT).reshape(17, 21)  # phi varies fastest
    expected = -kT * np.log(mass.sum(0 if keep == "phi" else 1))
    np.testing.assert_allclose(columns["projection"], expected, rtol=0, atol=1e-8)
    assert f"der_{keep}" not in columns
    assert int(settings[f"nbins_{keep}"]) == len(expected)
    assert np.abs(expected + kT * np.log(mass.mean(1 if keep == "phi" else 0)).mean()).max() > 1e-2  # the other way


def test_projection_converges_to_the_integral(tmp_path):
    """With a finer grid the projection is -kT ln of the integral, up to the constant kT ln of the spacing."""
    table, kT = write(tmp_path / "HILLS", ("phi", "psi"), m=8), 2.5
    run(tmp_path, "HILLS", "--no-plots", "--idw", "phi", "--kt", kT, "--bin", "16,120", "--mintozero")
    columns, _ = read_table(tmp_path / "fes.dat")
    psi = np.linspace(-PI, PI, 2001)[:-1]
    points = np.stack(np.meshgrid(columns["phi"], psi, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(by_hand(tmp_path / "HILLS", points) / kT).reshape(16, -1).mean(1)
    expected = -kT * np.log(mass)
    np.testing.assert_allclose(columns["projection"], expected - expected.min(), rtol=0, atol=2e-4)
    assert np.ptp(expected) > 0.1
    assert len(table) == 8


def test_stride(tmp_path):
    write(tmp_path / "HILLS", ("phi", "d"), m=25)
    output = run(tmp_path, "HILLS", "--stride", 10, "--bin", "15,12", "--kt", 2.5, "--deltaf", "phi:0:2")
    assert sorted(p.name for p in tmp_path.glob("fes*")) == [
        "fes.json", "fes.png", "fes_0.dat", "fes_1.dat", "fes_2.dat", "fes_drift.png",
    ]  # fmt: skip
    for k, stop in enumerate((10, 20, 25)):
        columns, _ = read_table(tmp_path / f"fes_{k}.dat")
        expected = -by_hand(tmp_path / "HILLS", points_of(columns, ("phi", "d")), rows=slice(0, stop))
        np.testing.assert_allclose(columns["file.free"], expected, rtol=0, atol=1e-9)
    assert "drift, no error bar" in output
    assert {"last_change", "delta_f_drift"} <= set(numbers(tmp_path / "fes.json"))


@pytest.mark.parametrize(("kept", "falls"), [([0, 1, 2, 3], True), ([0, 1, 3, 2], False)])
def test_drift_has_a_sign(tmp_path, kept, falls):
    """From the first to the last of the second half; a hill in the region makes it deeper."""
    table = make_hills(("phi",), m=4, biasf=-1.0)
    heights = torch.tensor([1.0, 6.0, 2.0, 4.0], dtype=torch.float64)[kept]
    zero = torch.zeros(4, 1, dtype=torch.float64)
    table = replace(table, centers=zero + 1.0, sigmas=zero + 0.3, heights=heights - 2.5)
    write_hills(tmp_path / "HILLS", table)
    output = run(tmp_path, "HILLS", "--stride", 1, "--kt", 2.5, "--deltaf", "0..2", "--no-plots", "--bin", 60)
    values = []
    for k in range(4):
        columns, _ = read_table(tmp_path / f"fes_{k}.dat")
        inside = (columns["phi"] > 0) & (columns["phi"] < 2)
        mass = np.exp(-columns["file.free"] / 2.5)
        values.append(2.5 * math.log(mass[~inside].sum() / mass[inside].sum()))
    late = values[2:]
    found = numbers(tmp_path / "fes.json")["delta_f_drift"]
    assert found == pytest.approx(late[-1] - late[0], abs=0.15)
    assert (found < -0.3, found > 0.1) == (falls, not falls)
    assert "between" not in output
    assert re.search(r"ΔF over the second half of the files +-?\d.* from (-?\d\.\d\d) to (-?\d\.\d\d): drift", output)


def test_drift_names_extremes_between_its_ends(tmp_path):
    table = make_hills(("phi",), m=6, biasf=-1.0)
    zero = torch.zeros(6, 1, dtype=torch.float64)
    heights = torch.tensor([1.0, 1.0, 1.0, 1.0, 6.0, -4.0], dtype=torch.float64)
    write_hills(tmp_path / "HILLS", replace(table, centers=zero + 1.0, sigmas=zero + 0.3, heights=heights))
    output = run(tmp_path, "HILLS", "--stride", 1, "--kt", 2.5, "--deltaf", "0..2", "--no-plots")
    text = re.search(r"from (\S+) to (\S+), between (\S+) and (\S+): drift", output)
    first, last, low, high = map(float, text.groups())
    assert low < last < first == high
    assert numbers(tmp_path / "fes.json")["delta_f_drift"] == pytest.approx(last - first, abs=0.011)


@pytest.mark.parametrize(("names", "remark"), [(("phi",), ""), (("phi", "d"), "9 x 10")])
def test_shape_of_the_grid_is_said_once(tmp_path, names, remark):
    write(tmp_path / "HILLS", names)
    run(tmp_path, "HILLS", "--no-plots", "--bin", ",".join(["9", "9"][: len(names)]))
    row = json.loads((tmp_path / "fes.json").read_text())["numbers"]["grid_points"]
    assert (row["value"], row.get("remark", "")) == (90 if remark else 9, remark)


def test_stride_without_history(tmp_path):
    write(tmp_path / "HILLS", ("phi",), m=25)
    run(tmp_path, "HILLS", "--stride", 10, "--nohistory", "--no-plots", "-o", "part_")
    for k, part in enumerate((slice(0, 10), slice(10, 20), slice(20, 25))):
        columns, _ = read_table(tmp_path / f"part_{k}.dat")
        expected = -by_hand(tmp_path / "HILLS", columns["phi"][:, None], rows=part)
        np.testing.assert_allclose(columns["file.free"], expected, rtol=0, atol=1e-9)


def test_stride_that_divides_the_hills(tmp_path):
    write(tmp_path / "HILLS", ("phi",), m=20)
    run(tmp_path, "HILLS", "--stride", 10, "--no-plots")
    assert not (tmp_path / "fes_2.dat").exists()


def test_files_of_walkers_are_joined_in_time(tmp_path):
    """With clocks (several walkers) a stride goes through all files at once; without, file after file."""
    for clock, first in ((1_700_000_000, (5, 5)), (None, (10, 0))):
        folder = tmp_path / str(clock)
        folder.mkdir()
        for k in range(2):
            write(folder / f"HILLS.{k}", ("phi",), m=10, seed=k, clock=clock, later=0.25 * k)
        run(folder, "HILLS.0", "HILLS.1", "--stride", 10, "--no-plots")
        columns, _ = read_table(folder / "fes_0.dat")
        points = columns["phi"][:, None]
        expected = -sum(by_hand(folder / f"HILLS.{k}", points, rows=slice(0, first[k])) for k in range(2))
        np.testing.assert_allclose(columns["file.free"], expected, rtol=0, atol=2e-9)
        columns, _ = read_table(folder / "fes_1.dat")
        expected = -sum(by_hand(folder / f"HILLS.{k}", points) for k in range(2))
        np.testing.assert_allclose(columns["file.free"], expected, rtol=0, atol=2e-9)


def test_files_inside_a_folder(tmp_path):
    write(tmp_path / "HILLS", ("phi",), m=20)
    (tmp_path / "st").mkdir()
    run(tmp_path, "HILLS", "--stride", 10, "--no-plots", "-o", "st/")
    assert sorted(p.name for p in (tmp_path / "st").iterdir()) == ["fes.json", "fes_0.dat", "fes_1.dat"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["HILLS", "st"]
    run(tmp_path, "HILLS", "--negbias", "--no-plots", "-o", "st")
    assert (tmp_path / "st" / "negativebias.dat").is_file()
    run(tmp_path, "HILLS", "--stride", 10, "--no-plots", "-o", "part")
    assert (tmp_path / "part0.dat").is_file()


def test_hills_that_begin_with_those_of_another_file(tmp_path):
    """Also where spaces differ; files that only share some of their hills are no such case."""
    write(tmp_path / "SECOND", ("phi",), m=20)
    lines = (tmp_path / "SECOND").read_text().splitlines()
    head = sum(line.startswith("#!") for line in lines)
    (tmp_path / "FIRST").write_text(
        "\n".join([*lines[:head], *(" " + line for line in lines[head : head + 12])]) + "\n"
    )
    (tmp_path / "OTHER").write_text("\n".join([*lines[: head + 12], *lines[head:][15:]]) + "\n")
    for k, words in enumerate((("FIRST", "SECOND"), ("SECOND", "FIRST"))):
        output = run(tmp_path, *words, "--no-plots", "-o", f"{k}.dat")
        assert "SECOND begins with all hills of FIRST: these are counted twice; leave FIRST out" in output
        assert numbers(tmp_path / f"{k}.json")["hills"] == 32
    assert "counted twice" not in run(tmp_path, "SECOND", "OTHER", "--no-plots", "-o", "c.dat")
    assert "counted twice" not in run(tmp_path, "SECOND", "--no-plots", "-o", "d.dat")


@pytest.mark.parametrize(
    ("kT", "kelvin", "hint"),
    [(0.596, 71.68, "was it kcal/mol?"), (300, 36081.71, "was it K"), (2.5, 300.68, None), (0.84, 101.03, None)],
)
def test_temperature_of_kT(tmp_path, kT, kelvin, hint):
    write(tmp_path / "HILLS", ("phi",))
    output = run(tmp_path, "HILLS", "--kt", kT, "--no-plots")
    assert numbers(tmp_path / "fes.json")["temperature"] == pytest.approx(kelvin, abs=0.01)
    assert "temperature implied by kT" in output
    assert hint in output if hint else "--kt is in kJ/mol" not in output
    run(tmp_path, "HILLS", "--no-plots", "-o", "none.dat")
    assert "temperature" not in numbers(tmp_path / "none.json")


# --- hills of this package's own bias, and PLUMED itself --------------------------------------------------------------


@pytest.mark.parametrize(("shape", "off"), [("stretched-gaussian", 1e-8), ("gaussian", 0.01)])
def test_hills_of_a_bias_sum_to_its_estimate(tmp_path, shape, off):
    """Exactly in the kernel that PLUMED has; but for what its cutoff leaves out in one without an end."""
    variables = [BiasVariable("phi", 0.3, 2 * PI), BiasVariable("d", 0.1)]
    bias = RepulsionBias.well_tempered(variables, kT=2.5, bias_factor=6.0, height=2.0, shape=shape)
    draw = torch.rand(4, 20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = []
    for batch in draw:
        values = torch.stack([2 * PI * batch[:, 0] - PI, batch[:, 1]], dim=1)
        bias, hills = bias.deposit(values)
        made.append(table_of(bias, hills))
    write_hills(tmp_path / "HILLS", HillsTable.joined(made))
    run(tmp_path, "HILLS", "--no-plots", "--bin", "40,30")
    columns, _ = read_table(tmp_path / "fes.dat")
    estimate = bias.free_energy(torch.tensor(points_of(columns, ("phi", "d")))).numpy()
    np.testing.assert_allclose(columns["file.free"], estimate, rtol=0, atol=off)
    assert np.ptp(estimate) > 20 * off
    assert (np.abs(columns["file.free"] - estimate).max() > 1e-6) == (shape == "gaussian")


@pytest.mark.skipif(PLUMED is None, reason="needs the executable plumed (www.plumed.org) on the PATH")
@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--mintozero"], ["--negbias"], ["--idw", "d", "--kt", "2.5"]])
def test_tables_are_those_of_plumed(tmp_path, words):
    write(tmp_path / "HILLS", ("phi", "d"), m=40)
    grid = ["--min", "-pi,-1", "--max", "pi,3", "--bin", "40,30"]
    command = [str(PLUMED), "sum_hills", "--hills", "HILLS", "--outfile", "theirs.dat", *grid, *words]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    run(tmp_path, "HILLS", "--no-plots", "-o", "mine.dat", *grid, *words)
    (mine, settings), (theirs, wanted) = (read_table(tmp_path / name) for name in ("mine.dat", "theirs.dat"))
    assert list(mine) == list(theirs)
    assert {name: settings[name] for name in settings if "nbins" in name} == {
        name: wanted[name] for name in wanted if "nbins" in name
    }
    for name, values in mine.items():
        np.testing.assert_allclose(values, theirs[name], rtol=0, atol=1e-6)


# --- differences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "inside", "outside"),
    [
        (["--deltaf", "0..2"], lambda x: (x > 0) & (x < 2), None),
        (["--deltaf", "phi:2.5:-2.5"], lambda x: np.abs(x) > 2.5, None),
        (["--deltaf", "phi:0:90deg", "--against", "phi:-3:-1"], lambda x: (x > 0) & (x < PI / 2),
         lambda x: (x > -3) & (x < -1)),
    ],
)  # fmt: skip
def test_difference_is_the_integral(tmp_path, words, inside, outside):
    write(tmp_path / "HILLS", ("phi",), m=60)
    run(tmp_path, "HILLS", "--no-plots", "--kt", 2.5, "--bin", 400, *words)
    x = (np.arange(40000) + 0.5) / 40000 * 2 * PI - PI
    mass = np.exp(by_hand(tmp_path / "HILLS", x[:, None]) / 2.5)
    rest = ~inside(x) if outside is None else outside(x)
    expected = 2.5 * math.log(mass[rest].sum() / mass[inside(x)].sum())
    found = numbers(tmp_path / "fes.json")
    assert found["delta_f"] == pytest.approx(expected, abs=2e-3)
    assert found["delta_f_kT"] == pytest.approx(expected / 2.5, abs=1e-3)
    assert abs(expected) > 0.05


def test_difference_of_a_box(tmp_path):
    write(tmp_path / "HILLS", ("phi", "d"))
    words = ["--deltaf", "phi:0:2,d:0.5:1.5", "--units", "kcal/mol", "--min", "-pi,-1", "--max", "pi,3"]
    output = run(tmp_path, "HILLS", "--kt", 2.5, "--bin", "180,180", *words)
    phi, d = np.meshgrid(np.linspace(-PI, PI, 361)[:-1] + PI / 360, np.linspace(-1, 3, 401)[:-1] + 0.005, indexing="ij")
    mass = np.exp(by_hand(tmp_path / "HILLS", np.stack([phi, d], -1).reshape(-1, 2)) / 2.5).reshape(phi.shape)
    inside = (phi > 0) & (phi < 2) & (d > 0.5) & (d < 1.5)
    expected = 2.5 / 4.184 * math.log(mass[~inside].sum() / mass[inside].sum())
    assert numbers(tmp_path / "fes.json")["delta_f"] == pytest.approx(expected, abs=0.02)
    assert "kcal/mol" in output
    assert "no error bar" in output


def test_no_error_bar_is_said_and_recorded(tmp_path):
    write(tmp_path / "HILLS", ("phi",))
    output = run(tmp_path, "HILLS")
    assert "has no error bar" in output
    record = json.loads((tmp_path / "fes.json").read_text())
    assert any("no error bar" in note for note in record["warnings"])
    assert (tmp_path / "fes.png").read_bytes().startswith(b"\x89PNG")


def test_hills_outside_the_grid_are_counted(tmp_path):
    table = write(tmp_path / "HILLS", ("phi", "d"))
    output = run(tmp_path, "HILLS", "--no-plots", "--min", "-pi,0.5", "--max", "pi,1.5", "--bin", "9,9")
    count = int(((table.centers[:, 1] < 0.5) | (table.centers[:, 1] > 1.5)).sum())
    assert f"{count} of 25 hills have their centre outside the grid" in output
    assert 0 < count < 25


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bin", "10"], "--bin: 1 values for 2 variables (phi, d)"),
        (["--bin", "10,x"], "--bin: 'x' is no number"),
        (["--bin", "10.5,3"], "--bin: got '10.5,3', expected whole numbers"),
        (["--min", "-pi,0"], "--min and --max: give both or neither"),
        (["--min", "1,0", "--max", "0,1"], "are not in order"),
        (["--min", "-4,0", "--max", "4,1"], "more than the period"),
        (["--spacing", "0,1"], "--spacing: got 0, 1, expected positive numbers"),
        (["--idw", "phi"], "--idw needs --kt in kJ/mol"),
        (["--idw", "psi", "--kt", "2.5"], "--idw: no variable 'psi'; there are phi, d"),
        (["--idw", "phi,d", "--kt", "2.5"], "are all variables"),
        (["--stride", "0"], "--stride: got 0"),
        (["--nohistory"], "--nohistory needs --stride"),
        (["--deltaf", "phi:0:2"], "--deltaf needs --kt"),
        (["--deltaf", "0..2", "--kt", "2.5"], "does not say of which variable"),
        (["--deltaf", "psi:0:2", "--kt", "2.5"], "--deltaf: no variable 'psi'; there are phi, d"),
        (["--deltaf", "phi:0:120", "--kt", "2.5"], "phi is in rad, and degrees are typed phi:0deg:120deg"),
        (["--deltaf", "d:2:0", "--kt", "2.5"], "must lie below the upper end"),
        (["--deltaf", "d:0", "--kt", "2.5"], "expected LOW..HIGH or VARIABLE:LOW:HIGH"),
        (["--deltaf", "d:50:60", "--kt", "2.5"], "no grid point lies in 50 < d < 60"),
        (["--against", "d:0:1"], "--against needs --deltaf"),
        (["--negbias", "--deltaf", "d:0:1", "--kt", "2.5"], "the negative bias is no free energy"),
        (["--kt", "2.5", "--temperature", "300"], "say the same"),
        (["--kt", "-1"], "--kt: got -1.0, expected a positive number"),
        (["--units", "eV"], "--units: got 'eV', expected kJ/mol, kcal/mol, kT"),
        (["--units", "kT"], "--units kT needs --kt"),
        (["--skip", "0.2"], "--skip has no meaning for HILLS, which is HILLS"),
        (["--cv", "phi"], "--cv has no meaning for HILLS"),
        (["--rct"], "--rct has no meaning for HILLS"),
        (["-o", "nowhere/fes.dat"], "there is no folder nowhere"),
        (["-o", "nowhere/"], "there is no folder nowhere/"),
    ],
)
def test_options_that_cannot_be_used(tmp_path, words, message):
    write(tmp_path / "HILLS", ("phi", "d"))
    assert message in run(tmp_path, "HILLS", *words, code=2)
    assert [p.name for p in tmp_path.iterdir()] == ["HILLS"]


@pytest.mark.parametrize(
    ("inside", "outside", "overlap"),
    [
        ("phi:0:2", "phi:1:3", True),
        ("phi:0:2", "phi:2:3", False),
        ("phi:0:2", "phi:0:2", True),
        ("phi:2:-2", "phi:-3:-2.5", True),  # around the end of the circle
        ("phi:2:-2", "phi:-1:1", False),
        ("phi:0.5:1", "phi:2:1.5", True),  # from 2 on around to 1.5
        ("phi:0.5:1", "phi:1.5:-1", False),
        ("phi:0:2", "phi:-7:-6", True),  # a turn lower
        ("phi:0:2,d:0:1", "phi:1:3,d:1:2", False),
        ("phi:0:2,d:0:1", "d:0.5:2", True),
        ("d:0:1", "phi:0:1", True),
    ],
)
def test_regions_that_overlap(tmp_path, inside, outside, overlap):
    write(tmp_path / "HILLS", ("phi", "d"), m=4)
    words = ["--no-plots", "--kt", 2.5, "--bin", "9,9", "--deltaf", inside, "--against", outside]
    assert (" overlap" in run(tmp_path, "HILLS", *words, code=2 if overlap else 0)) == overlap
    assert ([p.name for p in tmp_path.iterdir()] == ["HILLS"]) == overlap


def test_nothing_is_overwritten(tmp_path):
    write(tmp_path / "HILLS", ("phi",))
    for name in ("fes.dat", "fes.png", "fes.json"):
        (tmp_path / name).write_text("mine")
        output = run(tmp_path, "HILLS", code=2)
        assert f"{name} exists already" in output
        assert ("or --no-plots" in output) == name.endswith(".png")
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["HILLS", name])
        (tmp_path / name).unlink()


def test_files_that_do_not_go_together(tmp_path):
    write(tmp_path / "HILLS", ("phi",))
    write(tmp_path / "OTHER", ("psi",))
    assert "names change from ('phi',) to ('psi',)" in run(tmp_path, "HILLS", "OTHER", code=2)
    (tmp_path / "COLVAR").write_text("#! FIELDS time phi metad.bias\n 0 1 2\n")
    assert "COLVAR is COLVAR: give one kind" in run(tmp_path, "HILLS", "COLVAR", code=2)
    assert "a file is named twice" in run(tmp_path, "HILLS", "HILLS", code=2)
    assert "there is no such file" in run(tmp_path, "NONE", code=2)
    (tmp_path / "text").write_text("hello\n")
    assert "not recognised" in run(tmp_path, "text", code=2)


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_last_line_of_a_run_that_was_killed(tmp_path, cut):
    """It is left out and counted, also where only its end is missing: its last number may be cut short."""
    write(tmp_path / "WHOLE", ("phi",), m=20)
    text = (tmp_path / "WHOLE").read_text()
    (tmp_path / "HILLS").write_text(text[:-cut])
    (tmp_path / "LESS").write_text("".join(text.splitlines(keepends=True)[:-1]))
    output = run(tmp_path, "HILLS", "--no-plots", "-o", "a.dat", "--min", "-pi", "--max", "pi", "--bin", 50)
    line = text.count("\n")
    assert (
        f"the last line of 1 file does not end, as where a run was killed, and was left out (HILLS, line {line})"
        in (output)
    )
    assert numbers(tmp_path / "a.json")["hills"] == 19
    for name in ("LESS", "WHOLE"):
        words = (name, "--no-plots", "-o", f"{name}.dat", "--min", "-pi", "--max", "pi", "--bin", 50)
        assert "does not end" not in run(tmp_path, *words)
    assert (tmp_path / "a.dat").read_text() == (tmp_path / "LESS.dat").read_text()
    assert (tmp_path / "a.dat").read_text() != (tmp_path / "WHOLE.dat").read_text()
    # what it holds of that line makes the file no other one than the run that went on
    output = run(tmp_path, "HILLS", "WHOLE", "--no-plots", "-o", "b.dat")
    assert "WHOLE begins with all hills of HILLS: these are counted twice" in output


def test_broken_and_empty_hills(tmp_path):
    table = make_hills(("phi",))
    write_hills(tmp_path / "HILLS", table)
    text = (tmp_path / "HILLS").read_text()
    short = text.splitlines(keepends=True)
    (tmp_path / "SHORT").write_text("".join([*short[:-3], short[-3][:-9] + "\n", *short[-2:]]))
    assert f"SHORT, line {len(short) - 2}" in run(tmp_path, "SHORT", code=2)
    write_hills(tmp_path / "EMPTY", replace(table.rows(slice(0, 0))))
    assert "EMPTY: no hill" in run(tmp_path, "EMPTY", code=2)
    spoilt = text.replace(text.splitlines()[6].split()[1], "nan")
    (tmp_path / "NAN").write_text(spoilt)
    assert "NAN, line" in run(tmp_path, "NAN", code=2)
