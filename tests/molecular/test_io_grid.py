"""Grid files: METAD's bias, projections, one to three variables; what is not a grid is refused."""

import math
from pathlib import Path

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, GridAxis, RepulsionBias
from feynkac.molecular.free_energy import Axis, free_energy_surface
from feynkac.molecular.io import (
    FileFormatError,
    append_colvar,
    bias_columns,
    bias_grid,
    bias_tables,
    grid_axis,
    read_colvar,
    read_fes,
    read_grid,
    truncate_rows,
    write_bias_grid,
    write_colvar,
    write_fes_projection,
    write_grid,
)

PI = math.pi
PHI = grid_axis("phi", -PI, PI, 6, periodic=True, unit="rad")
D = grid_axis("d", 0.5, 2.0, 4, periodic=False, unit="nm")
PSI = grid_axis("psi", -PI, PI, 5, periodic=True)


def values_on(axes):
    """A smooth function that is another in every direction."""
    mesh = torch.meshgrid(*(axis.points() for axis in axes), indexing="ij")
    return sum((k + 1.0) * torch.sin(x + k) for k, x in enumerate(mesh))


def test_axis_by_its_ends():
    assert D.points().tolist() == [0.5, 1.0, 1.5, 2.0]
    assert (D.lower, D.upper, D.width) == (0.25, 2.25, 0.5)
    assert PHI.points()[0] == -PI
    assert float(PHI.points()[-1]) == pytest.approx(PI - PI / 3)


def test_layout_is_that_of_metads_grid(tmp_path):
    bias = torch.arange(24, dtype=torch.float64).reshape(6, 4)
    write_bias_grid(tmp_path / "GRID", [PHI, D], bias, torch.zeros(6, 4, 2))
    lines = (tmp_path / "GRID").read_text().split("\n")
    assert lines[0] == "#! FIELDS phi d metad.bias der_phi der_d"
    assert lines[5:9] == [
        "#! SET min_d 0.5",
        "#! SET max_d 2.0",
        "#! SET nbins_d 4",
        "#! SET periodic_d false",
    ]
    # The first variable varies fastest: the second row is one step along phi, four rows of the tensor on.
    assert [float(line.split()[2]) for line in lines[9:15]] == [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]
    assert lines[15] == ""
    assert float(lines[16].split()[2]) == 1.0


@pytest.mark.parametrize("axes", [[PHI], [D], [PHI, D], [D, PHI], [PHI, D, PSI]], ids=len)
def test_bias_round_trip(tmp_path, axes):
    bias = values_on(axes)
    write_bias_grid(tmp_path / "GRID", axes, bias, label="walk")
    grid = read_grid(tmp_path / "GRID")
    assert list(grid.columns) == ["walk.bias", *(f"der_{axis.name}" for axis in axes)]
    torch.testing.assert_close(grid.bias, bias, rtol=0, atol=1e-9)
    assert grid.gradient is not None
    assert grid.gradient.shape == (*bias.shape, len(axes))
    for read, axis in zip(grid.axes, axes, strict=True):
        torch.testing.assert_close(read.points(), axis.points(), rtol=0, atol=1e-12)
        assert (read.name, read.bins, read.periodic) == (axis.name, axis.bins, axis.periodic)
    with pytest.raises(FileFormatError, match=r"no column 'file.free'.*read_grid"):
        read_fes(tmp_path / "GRID")
    with pytest.raises(FileExistsError):
        write_bias_grid(tmp_path / "GRID", axes, bias)


def test_a_large_grid_is_evaluated_in_parts(monkeypatch):
    variables = [BiasVariable("phi", sigma=0.4, period=2 * PI)]
    bias = RepulsionBias.well_tempered(variables, kT=2.5, bias_factor=6, height=3.0)
    bias = bias.deposited(torch.tensor([[3.0]], dtype=torch.float64))
    whole = bias_grid(bias)
    rows, real = [], type(bias).value_and_gradient

    def counted(self, values):
        rows.append(len(values))
        return real(self, values)

    monkeypatch.setattr(type(bias), "value_and_gradient", counted)
    monkeypatch.setattr(bias_tables, "_POINTS_AT_ONCE", 7)
    parted = bias_grid(bias)
    assert max(rows) == 7
    assert sum(rows) == whole.columns["metad.bias"].numel() > 70
    for name, column in whole.columns.items():
        torch.testing.assert_close(parted.columns[name], column, rtol=0, atol=1e-12)


def test_bias_on_its_own_grid_and_on_another(tmp_path):
    variables = [BiasVariable("phi", sigma=0.4, period=2 * PI), BiasVariable("d", sigma=0.2)]
    grid = [GridAxis(-PI, PI, 60, True), GridAxis(0.0, 2.0, 40)]
    bias = RepulsionBias.well_tempered(variables, kT=2.5, bias_factor=6, height=3.0, grid=grid)
    bias = bias.deposited(torch.tensor([[3.0, 0.5], [-1.0, 1.2]], dtype=torch.float64))
    for axes in (None, [grid_axis("phi", -PI, PI, 40, periodic=True), grid_axis("d", 0.0, 2.0, 33, periodic=False)]):
        made = bias_grid(bias, axes)
        path = tmp_path / f"GRID.{axes is None}"
        write_grid(path, made.axes, made.columns)
        read = read_grid(path)
        points = read.points()
        value, gradient = bias.value_and_gradient(points.reshape(-1, 2))
        torch.testing.assert_close(read.bias, value.reshape(points.shape[:-1]), rtol=0, atol=1e-9)
        torch.testing.assert_close(read.gradient, gradient.reshape(points.shape), rtol=0, atol=1e-8)
    assert read.bias.shape == (40, 33)
    assert read_grid(tmp_path / "GRID.True").bias.shape == (60, 41)
    # Central differences are what a file without analytic ones gets.
    write_bias_grid(tmp_path / "rough", made.axes, made.columns["metad.bias"])
    rough = read_grid(tmp_path / "rough").gradient
    scale = read.gradient.abs().max()
    assert 1e-4 < (rough - read.gradient)[:, 1:-1].abs().max() / scale < 0.1
    with pytest.raises(ValueError, match="are not the variables"):
        bias_grid(bias, [PHI, PSI])
    with pytest.raises(ValueError, match="needs axes"):
        bias_grid(RepulsionBias.well_tempered(variables, kT=2.5, bias_factor=6, height=3.0))


def surface_of(axes):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, len(axes), generator=generator, dtype=torch.float64)
    return free_energy_surface(values, torch.zeros(5000), kT=2.5, axes=axes, bootstrap=0)


def test_projection(tmp_path):
    surface = surface_of([Axis.torsion("phi", 8)])
    write_fes_projection(tmp_path / "fes_phi.dat", surface)
    assert (tmp_path / "fes_phi.dat").read_text().startswith("#! FIELDS phi projection\n#! SET min_phi -pi\n")
    read = read_fes(tmp_path / "fes_phi.dat")
    assert read.columns == {}
    torch.testing.assert_close(read.free_energy, surface.free_energy, rtol=0, atol=1e-9)


def test_surface_of_three_variables(tmp_path):
    axes = [grid_axis(name, -1.0, 1.0, points, periodic=False) for name, points in (("x", 3), ("y", 4), ("z", 5))]
    values = values_on(axes)
    write_grid(tmp_path / "fes.dat", axes, {"file.free": values})
    read = read_fes(tmp_path / "fes.dat")
    assert read.free_energy.shape == (3, 4, 5)
    torch.testing.assert_close(read.free_energy, values, rtol=0, atol=1e-9)
    four = "#! FIELDS a b c d file.free\n" + "".join(f"#! SET min_{name} 0\n" for name in "abcd")
    (tmp_path / "four").write_text(four)
    with pytest.raises(FileFormatError, match="one to 3 columns"):
        read_fes(tmp_path / "four")


PLUMED_GRID = """\
#! FIELDS cv metad.bias der_cv
#! SET min_cv 0
#! SET max_cv 2
#! SET nbins_cv  3
#! SET periodic_cv false
    0.000000000    1.500000000    0.000000000
    1.000000000    2.500000000    1.000000000
    2.000000000    0.500000000   -1.000000000
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    2.000000000    0.500000000   -1.000000000\n", "", "truncated or altered: 2 rows for a grid of 3"),
        ("    1.000000000    2.5", "    2.000000000    2.5", "line 7: cv is 2.0, which is not the grid's point"),
        ("    1.000000000    2.5", "            nan    2.5", "line 7: cv is nan"),
        ("nbins_cv  3", "nbins_cv three", "SET lines of cv are missing or wrong"),
        ("#! SET periodic_cv false\n", "", "SET lines of cv are missing or wrong: 'periodic_cv'"),
        ("periodic_cv false", "periodic_cv no", "periodic_cv is 'no'"),
        ("max_cv 2", "max_cv -2", "ends must be finite and in order"),
        ("FIELDS cv metad.bias", "FIELDS metad.bias cv", "SET lines for its first"),
        ("_cv", "_xv", "SET lines for its first"),
    ],
)
def test_broken_grids_are_refused(tmp_path, old, new, message):
    path = tmp_path / "GRID"
    path.write_text(PLUMED_GRID)
    assert read_grid(path).bias.tolist() == [1.5, 2.5, 0.5]
    assert old in PLUMED_GRID
    path.write_text(PLUMED_GRID.replace(old, new))
    with pytest.raises(FileFormatError, match=message):
        read_grid(path)


def test_transposed_grids_are_refused(tmp_path):
    """Scans along the last variable, as scripts like to write them, would be read as something else."""
    write_bias_grid(tmp_path / "GRID", [D, PSI], values_on([D, PSI]))
    lines = (tmp_path / "GRID").read_text().splitlines()
    body = sorted((line for line in lines[9:] if line), key=lambda line: [float(w) for w in line.split()[:2]])
    (tmp_path / "other").write_text("\n".join([*lines[:9], *body]) + "\n")
    with pytest.raises(FileFormatError, match="the first variable varies fastest"):
        read_grid(tmp_path / "other")


def test_what_is_not_a_grid_is_not_written(tmp_path):
    four = [grid_axis(name, 0, 1, 2, periodic=False) for name in "abcd"]
    for axes, columns, message in (
        (four, {"file.free": torch.zeros(2, 2, 2, 2)}, "1 to 3 variables"),
        ([D], {}, "a column of values"),
        ([D], {"file.free": torch.zeros(5)}, r"must have the shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            write_grid(tmp_path / "GRID", axes, columns)
    with pytest.raises(ValueError, match="gradient must be"):
        write_bias_grid(tmp_path / "GRID", [D], torch.zeros(4), torch.zeros(4))
    assert list(Path(tmp_path).iterdir()) == []
    write_grid(tmp_path / "two", [D], {"a.bias": torch.zeros(4), "b.bias": torch.ones(4)})
    with pytest.raises(KeyError, match="2 columns end in"):
        _ = read_grid(tmp_path / "two").bias
    assert read_grid(tmp_path / "two").gradient is None


# --- COLVAR of a biased run -----------------------------------------------------------------------------------------


def test_colvar_of_a_biased_run(tmp_path):
    bias = torch.tensor([3.0, 5.0], dtype=torch.float64)
    columns = {"phi": torch.tensor([1.0, -2.0]), **bias_columns("metad", bias, torch.tensor([1.0, 1.5]))}
    write_colvar(tmp_path / "COLVAR", columns, periods={"phi": 2 * PI}, time=torch.tensor([0.5, 1.0]))
    assert (tmp_path / "COLVAR").read_text().splitlines() == [
        "#! FIELDS time phi metad.bias metad.rbias metad.rct",
        "#! SET min_phi -pi",
        "#! SET max_phi pi",
        " 0.500000 1.000000000 3.000000000 2.000000000 1.000000000",
        " 1.000000 -2.000000000 5.000000000 3.500000000 1.500000000",
    ]
    table = read_colvar(tmp_path / "COLVAR")
    assert table.domains == {"phi": (-PI, PI)}
    assert table.columns["time"].tolist() == [0.5, 1.0]
    assert list(bias_columns("b", bias)) == ["b.bias"]
    assert bias_columns("b", bias, 2.0)["b.rct"].tolist() == [2.0, 2.0]


def test_colvar_of_a_running_job(tmp_path):
    path, time = tmp_path / "COLVAR", torch.arange(6, dtype=torch.float64) / 2
    columns = {"phi": torch.linspace(-3, 3, 6), "metad.bias": torch.rand(6, generator=torch.Generator().manual_seed(0))}
    periods = {"phi": 2 * PI}

    def part(first, last):
        return {name: column[first:last] for name, column in columns.items()}

    write_colvar(tmp_path / "whole", columns, periods=periods, time=time)
    write_colvar(path, part(0, 2), periods=periods, time=time[:2])
    append_colvar(path, part(2, 5), periods=periods, time=time[2:5])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError, match="cut it back with truncate_rows"):
        append_colvar(path, part(5, 6), periods=periods, time=time[5:])
    truncate_rows(path, 3)
    append_colvar(path, part(3, 6), periods=periods, time=time[3:])
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    with pytest.raises(FileFormatError, match="its header is not the one"):
        append_colvar(path, part(5, 6), time=time[5:])
    with pytest.raises(ValueError, match="expected a number from 0 on"):
        truncate_rows(path, -1)


def test_colvar_after_a_restart(tmp_path):
    header = "#! FIELDS time phi\n#! SET min_phi -pi\n#! SET max_phi pi\n"
    (tmp_path / "COLVAR").write_text(f"{header} 0 1\n 1 2\n{header} 2 3\n")
    table = read_colvar(tmp_path / "COLVAR")
    assert table.columns["phi"].tolist() == [1.0, 2.0, 3.0]
    assert table.row_lines == (4, 5, 9)
    assert table.rows == 3


def test_colvar_refuses_times_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"time must be \(2,\)"):
        write_colvar(tmp_path / "COLVAR", {"a": torch.zeros(2)}, time=torch.zeros(3))
    with pytest.raises(ValueError, match="'time'"):
        write_colvar(tmp_path / "COLVAR", {"time": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("pi", PI), ("-pi", -PI), ("+pi", PI), ("2*pi", 2 * PI), ("-pi/2", -PI / 2), ("0.5*pi", PI / 2), ("-1.25", -1.25)],
)
def test_ends_as_plumed_writes_them(tmp_path, text, value):
    (tmp_path / "COLVAR").write_text(f"#! FIELDS time phi\n#! SET min_phi {text}\n#! SET max_phi 3*pi\n 0 1\n")
    assert read_colvar(tmp_path / "COLVAR").domains["phi"] == pytest.approx((value, 3 * PI), rel=1e-15)
