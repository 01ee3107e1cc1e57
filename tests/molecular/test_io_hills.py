"""HILLS files: exact layout, round trips, restarts, walkers, broken files, appending and resuming, biases from them."""

import math
from dataclasses import replace

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, RepulsionBias
from feynkac.molecular.io import (
    FileFormatError,
    HillsTable,
    UnfinishedLineWarning,
    append_hills,
    evaluate_hills,
    hills_of,
    read_hills,
    table_of,
    truncate_rows,
    write_hills,
)

PI = math.pi


def make_table(m=6, *, biasf=8.0, multivariate=False, kernel="stretched-gaussian", clock=False, seed=0):
    """A periodic variable and an open one."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(m, 6, generator=generator, dtype=torch.float64)
    sigmas = 0.2 + 0.3 * draw[:, 2:4]
    if multivariate:
        sigmas = torch.diag_embed(sigmas)
        sigmas[:, 1, 0] = 0.3 * draw[:, 4] - 0.1
    return HillsTable(
        names=("phi", "d"),
        domains=((-PI, PI), None),
        centers=torch.stack([(2 * draw[:, 0] - 1) * PI, 2 * draw[:, 1]], dim=1),
        sigmas=sigmas,
        heights=1.2 * draw[:, 5],
        biasf=torch.full((m,), biasf, dtype=torch.float64),
        times=0.1 * torch.arange(1, m + 1, dtype=torch.float64),
        kernel=kernel,
        clocks=torch.arange(m, dtype=torch.float64) + 1_700_000_000 if clock else None,
    )


def assert_equal(a, b, atol=0.0):
    assert (a.names, a.domains, a.kernel, a.multivariate) == (b.names, b.domains, b.kernel, b.multivariate)
    for name in ("centers", "sigmas", "biasf", "times"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    torch.testing.assert_close(a.heights, b.heights, rtol=4e-16, atol=atol)
    assert (a.clocks is None) == (b.clocks is None)
    assert a.clocks is None or torch.equal(a.clocks, b.clocks)


# --- layout and round trips -----------------------------------------------------------------------------------------


def test_layout_is_plumeds(tmp_path):
    table = HillsTable(
        names=("phi", "d"),
        domains=((-PI, PI), None),
        centers=torch.tensor([[-1.5, 0.25]], dtype=torch.float64),
        sigmas=torch.tensor([[0.35, 0.05]], dtype=torch.float64),
        heights=torch.tensor([0.75], dtype=torch.float64),
        biasf=torch.tensor([4.0], dtype=torch.float64),
        times=torch.tensor([1.0], dtype=torch.float64),
    )
    write_hills(tmp_path / "HILLS", table)
    assert (tmp_path / "HILLS").read_text().splitlines() == [
        "#! FIELDS time phi d sigma_phi sigma_d height biasf",
        "#! SET multivariate false",
        "#! SET kerneltype stretched-gaussian",
        "#! SET min_phi -pi",
        "#! SET max_phi pi",
        " 1.0 -1.5 0.25 0.35 0.05 1.0 4.0",
    ]


def test_multivariate_columns_are_bands_of_the_cholesky_factor(tmp_path):
    lower = torch.tensor([[[1.0, 0.0, 0.0], [2.0, 3.0, 0.0], [4.0, 5.0, 6.0]]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    table = HillsTable(("a", "b", "c"), (None,) * 3, torch.zeros(1, 3).double(), lower, one, -one, one)
    write_hills(tmp_path / "HILLS", table)
    lines = (tmp_path / "HILLS").read_text().splitlines()
    fields = lines[0].split()[2:]
    assert fields[4:10] == ["sigma_a_a", "sigma_b_b", "sigma_c_c", "sigma_b_a", "sigma_c_b", "sigma_c_a"]
    assert lines[-1].split()[4:10] == ["1.0", "3.0", "6.0", "2.0", "5.0", "4.0"]
    assert torch.equal(read_hills(tmp_path / "HILLS").sigmas, lower)


@pytest.mark.parametrize("multivariate", [False, True])
@pytest.mark.parametrize("kernel", ["gaussian", "stretched-gaussian"])
@pytest.mark.parametrize(("biasf", "clock"), [(8.0, False), (1.0, True), (-1.0, False)])
def test_round_trip(tmp_path, multivariate, kernel, biasf, clock):
    table = make_table(biasf=biasf, multivariate=multivariate, kernel=kernel, clock=clock)
    write_hills(tmp_path / "HILLS", table)
    assert_equal(read_hills(tmp_path / "HILLS"), table)


def test_extreme_numbers_survive(tmp_path):
    table = replace(make_table(2), heights=torch.tensor([1e-300, 12345.678901234567], dtype=torch.float64))
    write_hills(tmp_path / "HILLS", table)
    assert_equal(read_hills(tmp_path / "HILLS"), table)


@pytest.mark.parametrize(("biasf", "in_the_file"), [(10.0, 1.2 * 10 / 9), (1.0, 1.2), (-1.0, 1.2)])
def test_heights_are_rescaled_by_the_bias_factor(tmp_path, biasf, in_the_file):
    table = replace(make_table(1, biasf=biasf), heights=torch.tensor([1.2], dtype=torch.float64))
    write_hills(tmp_path / "HILLS", table)
    row = (tmp_path / "HILLS").read_text().splitlines()[-1].split()
    assert float(row[5]) == pytest.approx(in_the_file, rel=1e-15)
    read = read_hills(tmp_path / "HILLS")
    assert float(read.heights[0]) == pytest.approx(1.2, rel=1e-15)
    assert float(read.file_heights[0]) == pytest.approx(in_the_file, rel=1e-15)
    assert read.bias_factor == (None if biasf == -1 else biasf)


# --- files as PLUMED writes them ------------------------------------------------------------------------------------

RESTARTED = """\
#! FIELDS time phi d sigma_phi sigma_d height biasf
#! SET multivariate false
#! SET kerneltype gaussian
#! SET min_phi -pi
#! SET max_phi pi
                      1     -1.502409238626139      0.503459263811322                    0.2                    0.1                    1.5                      3
#! FIELDS time phi d sigma_phi sigma_d height biasf
#! SET multivariate false
#! SET min_phi -pi
#! SET max_phi pi
  2.000000  1.502409  0.503459  0.200000  0.100000  1.500000  -1.000000
  3.000000  1.502409  0.503459  0.200000  0.100000  1.500000  1.000000
"""  # noqa: E501  PLUMED's own widths of columns


def test_restart_with_another_bias_factor(tmp_path):
    (tmp_path / "HILLS").write_text(RESTARTED)
    table = read_hills(tmp_path / "HILLS")
    assert table.kernel == "gaussian"  # said once, and what a file without the line means
    torch.testing.assert_close(table.heights, torch.tensor([1.0, 1.5, 1.5], dtype=torch.float64), rtol=0, atol=1e-15)
    assert table.biasf.tolist() == [3.0, -1.0, 1.0]
    assert table.bias_factor == 1.0
    assert table.times.tolist() == [1.0, 2.0, 3.0]
    wrong = table.file_heights  # taking the column for what V gained
    assert not torch.allclose(wrong, torch.tensor([1.0, 1.5, 1.5], dtype=torch.float64))


def test_walkers_are_joined(tmp_path):
    tables = [make_table(4, clock=True, seed=seed) for seed in range(3)]
    paths = [tmp_path / f"HILLS.{k}" for k in range(3)]
    for path, table in zip(paths, tables, strict=True):
        write_hills(path, table)
    read = read_hills(paths)
    assert_equal(read, HillsTable.joined(tables))
    assert len(read) == 12
    write_hills(tmp_path / "other", make_table(2, kernel="gaussian"))
    with pytest.raises(FileFormatError, match=r"other, line 1: kernel change from 'stretched-gaussian' to 'gaussian'"):
        read_hills([paths[0], tmp_path / "other"])
    with pytest.raises(ValueError, match="no path"):
        read_hills([])


def test_domains_that_are_not_symmetric(tmp_path):
    table = replace(make_table(3), domains=((0.0, 2 * PI), (0.25, 1.75)))
    write_hills(tmp_path / "HILLS", table)
    text = (tmp_path / "HILLS").read_text()
    assert "#! SET max_phi 2*pi\n#! SET min_d 0.25\n#! SET max_d 1.75\n" in text
    read = read_hills(tmp_path / "HILLS")
    assert read.domains == table.domains
    assert read.periods == (2 * PI, 1.5)


HEAD = "#! FIELDS time d sigma_d height biasf\n#! SET multivariate false\n#! SET kerneltype gaussian\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no '#! FIELDS' line"),
        ("#! FIELDS time d metad.bias\n 0 1 2\n", "line 1: no HILLS file"),
        ("#! FIELDS time d sigma_d height\n", "line 1: no HILLS file"),
        ("#! FIELDS time d sigma_e height biasf\n", "line 1: the fields of a HILLS file"),
        ("#! FIELDS time d sigma_d height biasf lower\n", "line 1: the fields of a HILLS file"),
        ("#! FIELDS time a b sigma_a height biasf\n#! SET multivariate false\n", "line 1: no HILLS file with multi"),
        ("#! FIELDS time d sigma_d sigma_d height biasf\n", "line 1: no field, or one that occurs twice"),
        (HEAD.replace("false", "von-misses"), "line 1: multivariate is 'von-misses'"),
        (HEAD.replace("gaussian", "triangular"), "line 1: kerneltype is 'triangular'"),
        (HEAD + "#! SET min_d 0\n 1 1 1 1 1\n", "line 1: d has only one of"),
        (HEAD + "#! SET min_d 1\n#! SET max_d 0\n", "line 1: d: the ends 1 and 0"),
        (HEAD + " 1 1 1 1\n", "line 4: 4 values for 5 fields"),
        (HEAD + " 1 1 1 1 1\n 2 1 1 1 1", "last line does not end"),
        (HEAD + " 1 1 1 1 1\n\n 2 1 1 1 0.5\n", "line 6: biasf is 0.5"),
        (HEAD + " 1 1 0 1 1\n", "line 4: sigma_d is 0.0"),
        (HEAD + " 1 1 1 nan 1\n", "line 1: hills: heights holds numbers that are not finite"),
        (HEAD + " 1 1 1 1 1\n" + HEAD.replace("gaussian", "stretched-gaussian"), "line 5: kernel change"),
        (HEAD + " 1 1 1 1 1\n#! FIELDS time e sigma_e height biasf\n", "line 5: names change"),
        (HEAD + " 1 1 1 1 1\n" + HEAD + "#! SET min_d 0\n#! SET max_d 1\n", "line 5: domains change"),
    ],
)
def test_broken_files_are_refused_with_the_line(tmp_path, text, message):
    (tmp_path / "HILLS").write_text(text)
    with pytest.raises(FileFormatError, match=f"HILLS.*{message}"):
        read_hills(tmp_path / "HILLS")


def test_last_hill_of_a_run_that_was_killed(tmp_path):
    table = make_table(6)
    write_hills(tmp_path / "HILLS", table)
    text = (tmp_path / "HILLS").read_text()
    for cut in (1, 5, 30):
        (tmp_path / "HILLS").write_text(text[:-cut])
        with pytest.raises(FileFormatError, match="HILLS"):
            read_hills(tmp_path / "HILLS")
        with pytest.warns(UnfinishedLineWarning, match="HILLS, line 11: the last line does not end and was left out"):
            assert_equal(read_hills(tmp_path / "HILLS", unfinished=True), table.rows(slice(0, 5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centers": torch.zeros(3, 2)}, "centers must be"),
        ({"sigmas": torch.zeros(6, 2)}, "widths must be positive"),
        ({"sigmas": torch.ones(6, 2, 2)}, "lower triangular"),
        ({"sigmas": torch.ones(6, 3)}, "sigmas must be"),
        ({"biasf": torch.zeros(6)}, "bias factor is -1"),
        ({"clocks": torch.zeros(2)}, "clocks must be"),
        ({"kernel": "uniform"}, "is none of"),
        ({"names": ("a", "a")}, "names must be distinct"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(make_table(), **change)


# --- appending and resuming -----------------------------------------------------------------------------------------


def test_appended_batches_equal_one_file(tmp_path):
    table = make_table(10, clock=True)
    write_hills(tmp_path / "whole", table)
    write_hills(tmp_path / "HILLS", table.rows(slice(0, 0)))
    assert len(read_hills(tmp_path / "HILLS")) == 0
    assert read_hills(tmp_path / "HILLS").bias_factor is None
    for first in range(0, 10, 4):
        append_hills(tmp_path / "HILLS", table.rows(slice(first, first + 4)))
    assert (tmp_path / "HILLS").read_bytes() == (tmp_path / "whole").read_bytes()


def test_resumed_file_equals_uninterrupted_one(tmp_path):
    table = make_table(10)
    write_hills(tmp_path / "whole", table)
    whole = (tmp_path / "whole").read_bytes()
    for cut in range(whole.index(b"max_phi pi\n") + 11, len(whole), 41):  # killed anywhere, mid-line as well
        path = tmp_path / f"HILLS.{cut}"
        path.write_bytes(whole[:cut])
        rows = whole[:cut].count(b"\n") - 5
        for kept in {0, rows // 2, rows}:
            truncate_rows(path, kept)
            append_hills(path, table.rows(slice(kept, None)))
            assert path.read_bytes() == whole
            path.write_bytes(whole[:cut])
        with pytest.raises(FileFormatError, match=f"truncated: {rows} whole rows, {rows + 1} are needed"):
            truncate_rows(path, rows + 1)
        assert path.read_bytes() == whole[:cut]


def test_cut_drops_a_repeated_header_after_the_rows(tmp_path):
    (tmp_path / "HILLS").write_text(RESTARTED)
    truncate_rows(tmp_path / "HILLS", 1)
    assert (tmp_path / "HILLS").read_text() == "".join(RESTARTED.splitlines(keepends=True)[:6])
    (tmp_path / "HILLS").write_text(RESTARTED)
    truncate_rows(tmp_path / "HILLS", 2)
    assert read_hills(tmp_path / "HILLS").times.tolist() == [1.0, 2.0]


def test_append_refuses_what_it_does_not_fit(tmp_path):
    table = make_table(3)
    path = tmp_path / "HILLS"
    with pytest.raises(FileNotFoundError):
        append_hills(path, table)
    write_hills(path, table)
    before = path.read_bytes()
    others = [replace(table, kernel="gaussian"), replace(table, names=("psi", "d")), make_table(3, multivariate=True)]
    for other in [*others, make_table(3, clock=True), replace(table, domains=(None, None))]:
        with pytest.raises(FileFormatError, match="its header is not the one"):
            append_hills(path, other)
    assert path.read_bytes() == before
    path.write_bytes(before[:-3])
    with pytest.raises(FileFormatError, match="last line does not end"):
        append_hills(path, table)
    append_hills_with_another_factor = replace(table, biasf=torch.full((3,), 2.0, dtype=torch.float64))
    path.write_bytes(before)
    append_hills(path, append_hills_with_another_factor)
    assert read_hills(path).biasf.tolist() == [8.0] * 3 + [2.0] * 3


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "HILLS"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write_hills(path, make_table())
    assert path.read_text() == "mine"


# --- biases ---------------------------------------------------------------------------------------------------------

VARIABLES = [
    BiasVariable("phi", sigma=0.3, period=2 * PI, unit="rad"),
    BiasVariable("d", sigma=0.2, unit="nm"),
]


def grown_bias(shape="stretched-gaussian", bias_factor=6.0):
    """A bias of three batches, and their hills."""
    bias = RepulsionBias.well_tempered(VARIABLES, kT=2.5, bias_factor=bias_factor, height=4.0, shape=shape)
    generator = torch.Generator().manual_seed(1)
    tables = []
    for batch in range(3):
        values = torch.rand(5, 2, generator=generator, dtype=torch.float64) * torch.tensor([2 * PI, 1.0]).double()
        values[:, 0] -= PI
        bias, hills = bias.deposit(values, time=float(batch))
        tables.append(table_of(bias, hills))
    return bias, HillsTable.joined(tables)


POINTS = torch.stack(torch.meshgrid(torch.linspace(-PI, PI, 23), torch.linspace(-0.5, 2, 17), indexing="ij"), -1)
POINTS = POINTS.reshape(-1, 2).double()


@pytest.mark.parametrize("bias_factor", [6.0, math.inf])
@pytest.mark.parametrize("shape", ["stretched-gaussian", "truncated-gaussian"])
def test_bias_survives_its_hills_file(tmp_path, shape, bias_factor):
    bias, table = grown_bias(shape, bias_factor)
    write_hills(tmp_path / "HILLS", table)
    read = read_hills(tmp_path / "HILLS")
    assert read.bias_factor == (None if math.isinf(bias_factor) else bias_factor)
    assert read.times.tolist() == [0.0] * 5 + [1.0] * 5 + [2.0] * 5
    torch.testing.assert_close(evaluate_hills(read, POINTS), bias(POINTS), rtol=0, atol=1e-12)
    fresh = RepulsionBias.well_tempered(VARIABLES, kT=2.5, bias_factor=bias_factor, height=4.0, shape=shape)
    torch.testing.assert_close(fresh.with_hills(hills_of(read))(POINTS), bias(POINTS), rtol=0, atol=1e-12)
    wrong = fresh.with_hills(replace(hills_of(read), heights=read.file_heights))
    assert torch.equal(wrong(POINTS), bias(POINTS)) or not math.isinf(bias_factor)
    if not math.isinf(bias_factor):
        assert not torch.allclose(wrong(POINTS), bias(POINTS), rtol=1e-2)


def test_gaussians_without_an_end_are_told_to_plumed_as_gaussian():
    bias, table = grown_bias("gaussian")
    assert table.kernel == "gaussian"
    off = (evaluate_hills(table, POINTS) - bias(POINTS)).abs().max()
    assert 0 < off < math.exp(-6.25) * float(table.heights.sum())


def test_centers_of_another_domain_come_around():
    table = replace(make_table(6), domains=((0.0, 2 * PI), None))
    table = replace(table, centers=table.centers + torch.tensor([PI, 0.0]))
    hills = hills_of(table)
    assert float(hills.centers[:, 0].abs().max()) <= PI
    assert torch.equal(hills.centers[:, 1], table.centers[:, 1])
    moved = replace(table, centers=hills.centers)
    torch.testing.assert_close(evaluate_hills(moved, POINTS), evaluate_hills(table, POINTS), rtol=0, atol=1e-12)


def test_multivariate_hills_are_no_diagonal_ones():
    with pytest.raises(ValueError, match="evaluate_hills sums them"):
        hills_of(make_table(multivariate=True))
