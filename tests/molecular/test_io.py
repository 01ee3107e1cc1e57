"""Files: round trips, the exact PLUMED layout, truncated files refused, existing files kept."""

import math

import numpy as np
import pytest
import torch

from feynkac.molecular.free_energy import Axis, free_energy_surface
from feynkac.molecular.io import (
    FileFormatError,
    UnfinishedLineWarning,
    read_colvar,
    read_fes,
    read_trajectory,
    read_weights,
    write_colvar,
    write_fes,
    write_fes_uncertainty,
    write_trajectory,
    write_weights,
)


@pytest.fixture
def topology():
    app = pytest.importorskip("openmm.app")
    topology = app.Topology()
    residue = topology.addResidue("ALA", topology.addChain("A"), id="2")
    for name in ("N", "CA", "C"):
        topology.addAtom(name, app.element.carbon, residue)
    return topology


def make_surface(axes, n=4000):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(n, len(axes), generator=generator, dtype=torch.float64)
    return free_energy_surface(values, torch.zeros(n), kT=2.5, axes=axes, bootstrap=20, seed=0)


PHI = Axis.torsion("phi", 5)
DISTANCE = Axis(name="d", lower=-2.0, upper=2.0, bins=4, periodic=False, unit="nm")


def test_trajectory_round_trip(tmp_path, topology):
    mdtraj = pytest.importorskip("mdtraj")
    positions = torch.randn(7, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dcd, pdb = tmp_path / "samples.dcd", tmp_path / "samples.pdb"
    write_trajectory(dcd, pdb, positions, topology)
    loaded = mdtraj.load(str(dcd), top=str(pdb))
    assert loaded.n_frames == 7
    assert [a.name for a in loaded.topology.atoms] == ["N", "CA", "C"]
    read, _ = read_trajectory(dcd, pdb)
    torch.testing.assert_close(read, positions.float(), rtol=0, atol=1e-6)


def test_trajectory_refuses_truncated_and_foreign_files(tmp_path, topology):
    pytest.importorskip("mdtraj")
    dcd, pdb = tmp_path / "samples.dcd", tmp_path / "samples.pdb"
    write_trajectory(dcd, pdb, torch.zeros(7, 3, 3), topology)
    whole = dcd.read_bytes()
    for size in (len(whole) - 40, len(whole) - 200, 300, 50, 4):
        dcd.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match=r"samples\.dcd"):
            read_trajectory(dcd, pdb)
    dcd.write_text("no trajectory at all")
    with pytest.raises(FileFormatError, match="not a DCD file"):
        read_trajectory(dcd, pdb)


def test_trajectory_refuses_another_number_of_atoms(tmp_path, topology):
    pytest.importorskip("mdtraj")
    with pytest.raises(ValueError, match="topology has 3 atoms, the positions have 4"):
        write_trajectory(tmp_path / "a.dcd", tmp_path / "a.pdb", torch.zeros(2, 4, 3), topology)
    assert list(tmp_path.iterdir()) == []


def test_colvar_layout_and_round_trip(tmp_path):
    path = tmp_path / "COLVAR"
    columns = {
        "phi": torch.tensor([-1.5, 3.0]),
        "d": torch.tensor([0.25, 0.5], dtype=torch.float64),
        "proposal.bias": torch.tensor([-2.0, -math.inf]),
    }
    write_colvar(path, columns, periods={"phi": 2 * math.pi, "d": None})
    assert path.read_text().splitlines() == [
        "#! FIELDS time phi d proposal.bias",
        "#! SET min_phi -pi",
        "#! SET max_phi pi",
        " 0.000000 -1.500000000 0.250000000 -2.000000000",
        " 1.000000 3.000000000 0.500000000 -inf",
    ]
    table = read_colvar(path)
    assert table.constants == {"min_phi": "-pi", "max_phi": "pi"}
    assert list(table.columns) == ["time", *columns]
    for name, column in columns.items():
        assert torch.equal(table.columns[name], column.double())


def test_fes_layout_is_plumeds(tmp_path):
    surface = make_surface([PHI, DISTANCE])
    path = tmp_path / "fes.dat"
    write_fes(path, surface)
    lines = path.read_text().split("\n")
    assert lines[:9] == [
        "#! FIELDS phi d file.free der_phi der_d",
        "#! SET min_phi -pi",
        "#! SET max_phi pi",
        "#! SET nbins_phi 5",
        "#! SET periodic_phi true",
        "#! SET min_d -1.5",
        "#! SET max_d 1.5",
        "#! SET nbins_d 4",
        "#! SET periodic_d false",
    ]
    body = lines[9:]
    # Four scans of five rows, a blank line between scans, one newline at the end.
    assert [k for k, line in enumerate(body) if not line] == [5, 11, 17, 23]
    rows = [[float(word) for word in line.split()] for line in body if line]
    assert [row[0] for row in rows[:5]] == pytest.approx([-math.pi + 2 * math.pi * k / 5 for k in range(5)])
    assert {row[1] for row in rows[:5]} == {-1.5}
    assert rows[-1][1] == 1.5
    assert rows[7][2] == pytest.approx(float(surface.free_energy[2, 1]), abs=1e-8)


@pytest.mark.parametrize("axes", [[PHI], [DISTANCE], [PHI, DISTANCE], [DISTANCE, PHI]])
def test_fes_round_trip(tmp_path, axes):
    surface = make_surface(axes)
    write_fes(tmp_path / "fes.dat", surface)
    write_fes_uncertainty(tmp_path / "fes_uncertainty.dat", surface)
    grid = read_fes(tmp_path / "fes.dat")
    errors = read_fes(tmp_path / "fes_uncertainty.dat")
    for read, axis in zip(grid.axes, axes, strict=True):
        assert (read.name, read.bins, read.periodic) == (axis.name, axis.bins, axis.periodic)
        torch.testing.assert_close(read.points(), axis.points())
    torch.testing.assert_close(grid.free_energy, surface.free_energy, rtol=0, atol=1e-8)
    torch.testing.assert_close(errors.columns["uncertainty"], surface.std_error, rtol=0, atol=1e-8, equal_nan=True)
    assert list(grid.columns) == [f"der_{axis.name}" for axis in axes]


def test_fes_derivatives_are_those_of_a_smooth_surface(tmp_path):
    axis = Axis.torsion("phi", 60)
    generator = torch.Generator().manual_seed(2)
    x = (2 * torch.rand(5000, generator=generator, dtype=torch.float64) - 1) * math.pi
    surface = free_energy_surface(
        x, torch.cos(x - 0.7), kT=2.5, axes=[axis], method="kde", bandwidth=[0.4], bootstrap=0
    )
    write_fes(tmp_path / "fes.dat", surface)
    grid = read_fes(tmp_path / "fes.dat")
    finer = torch.fft.irfft(1j * torch.arange(31) * torch.fft.rfft(surface.free_energy), n=60)
    torch.testing.assert_close(grid.columns["der_phi"], finer, rtol=0, atol=0.05)


def test_empty_cells_survive_the_file(tmp_path):
    surface = make_surface([Axis.torsion("phi", 40)], n=30)
    write_fes(tmp_path / "fes.dat", surface)
    grid = read_fes(tmp_path / "fes.dat")
    empty = torch.isinf(surface.free_energy)
    assert empty.any()
    assert torch.equal(torch.isinf(grid.free_energy), empty)
    assert torch.isnan(grid.columns["der_phi"][empty]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no '#! FIELDS' line"),
        ("0.0 1.0\n", "line 1: data before"),
        ("#! FIELDS time phi\n 0 1\n 1\n", "line 3: 1 values for 2 fields"),
        ("#! FIELDS time phi\n 0 1\n 1 2.", "last line does not end"),
        ("#! FIELDS time phi\n 0 x\n", "line 2: could not convert"),
        ("#! FIELDS time phi\n 0 1\n#! FIELDS time psi\n", "line 3: the fields change"),
        ("#! NONSENSE\n", "line 1: neither"),
    ],
)
def test_broken_tables_are_refused_with_the_line(tmp_path, text, message):
    path = tmp_path / "COLVAR"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message):
        read_colvar(path)


@pytest.mark.parametrize("cut", [*range(1, 19), *range(20, 27)])
def test_unfinished_last_line_may_be_left_out(tmp_path, cut):
    """However much of it is there, and a repeated header that was cut short goes with its line."""
    whole = "#! FIELDS time phi\n 0 1.5\n 1 2.25\n#! FIELDS time phi\n"
    path = tmp_path / "COLVAR"
    path.write_text(whole[:-cut])
    with pytest.raises(FileFormatError, match="COLVAR"):
        read_colvar(path)
    lines = whole[:-cut].count("\n")
    with pytest.warns(UnfinishedLineWarning, match=f"line {lines + 1}: the last line does not end") as caught:
        table = read_colvar(path, unfinished=True)
    assert (caught[0].message.path, caught[0].message.line) == (path, lines + 1)
    assert table.columns["phi"].tolist() == [1.5, 2.25][: lines - 1]


def test_unfinished_header_is_left_out_whole(tmp_path):
    head = "#! FIELDS time phi\n#! SET min_phi -pi\n#! SET max_phi pi\n"
    (tmp_path / "COLVAR").write_text(head + " 0 1\n" + head[:-3])
    with pytest.warns(UnfinishedLineWarning, match="line 7"):
        assert read_colvar(tmp_path / "COLVAR", unfinished=True).domains == {"phi": (-math.pi, math.pi)}


@pytest.mark.parametrize("text", ["#! FIELDS time phi\n 0\n 1 2\n", "#! FIELDS time phi\n 0\n 1 2", "#! FIELDS tim"])
def test_only_the_last_line_may_be_unfinished(tmp_path, text):
    (tmp_path / "COLVAR").write_text(text)
    with pytest.raises(FileFormatError, match=r"COLVAR(, line 2: 1 values for 2|: no '#! FIELDS' line)"):
        read_colvar(tmp_path / "COLVAR", unfinished=True)


def test_whole_tables_are_read_without_a_word(tmp_path):
    (tmp_path / "COLVAR").write_text("#! FIELDS time phi\n 0 1\n")
    assert read_colvar(tmp_path / "COLVAR", unfinished=True).rows == 1  # a warning would be an error
    (tmp_path / "fes.dat").write_text("#! FIELDS time phi\n 0 1")
    with pytest.raises(FileFormatError, match="does not end"):
        read_fes(tmp_path / "fes.dat")


def test_truncated_fes_is_refused(tmp_path):
    write_fes(tmp_path / "fes.dat", make_surface([PHI, DISTANCE]))
    lines = (tmp_path / "fes.dat").read_text().splitlines(keepends=True)
    (tmp_path / "short.dat").write_text("".join(lines[:-2]))
    with pytest.raises(FileFormatError, match="18 rows for a grid of 5 x 4"):
        read_fes(tmp_path / "short.dat")
    (tmp_path / "headless.dat").write_text("".join([lines[0], *lines[9:]]))
    with pytest.raises(FileFormatError, match="SET lines"):
        read_fes(tmp_path / "headless.dat")


def test_weights_round_trip_bit_for_bit(tmp_path):
    arrays = {
        "log_weights": torch.tensor([-math.inf, 0.1, 1e300], dtype=torch.float64),
        "positions": torch.rand(2, 3, generator=torch.Generator().manual_seed(3)),
    }
    write_weights(tmp_path / "weights.npz", arrays)
    write_weights(tmp_path / "again.npz", arrays)
    assert (tmp_path / "weights.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    read = read_weights(tmp_path / "weights.npz")
    assert list(read) == list(arrays)
    for name, tensor in arrays.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


def test_broken_weights_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    write_weights(path, {"log_weights": torch.zeros(1000)})
    whole = path.read_bytes()
    for size in (0, 10, 1000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match=r"weights\.npz: truncated"):
            read_weights(path)
    np.savez(path, bad=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(FileFormatError, match="plain arrays"):
        read_weights(path)


def test_nothing_is_overwritten(tmp_path, topology):
    pytest.importorskip("mdtraj")
    taken = tmp_path / "taken"
    taken.write_text("mine")
    surface = make_surface([PHI])
    for write in (
        lambda: write_colvar(taken, {"phi": torch.zeros(2)}),
        lambda: write_fes(taken, surface),
        lambda: write_fes_uncertainty(taken, surface),
        lambda: write_weights(taken, {"a": torch.zeros(2)}),
        lambda: write_trajectory(taken, tmp_path / "x.pdb", torch.zeros(1, 3, 3), topology),
        lambda: write_trajectory(tmp_path / "x.dcd", taken, torch.zeros(1, 3, 3), topology),
    ):
        with pytest.raises(FileExistsError):
            write()
    assert taken.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_uneven_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one common length"):
        write_colvar(tmp_path / "COLVAR", {"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match="blanks"):
        write_colvar(tmp_path / "COLVAR", {"a b": torch.zeros(2)})
