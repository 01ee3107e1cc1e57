"""KERNELS and STATE files of OPES: layout, round trips, and a bias that goes on exactly."""

import math
from dataclasses import replace

import pytest
import torch

from feynkac.fkc.bias import BiasVariable, RepulsionBias
from feynkac.molecular.io import (
    FileFormatError,
    OpesTable,
    append_opes_kernels,
    opes_bias_of,
    opes_kernels_of,
    opes_table_of,
    read_opes_kernels,
    read_opes_state,
    truncate_rows,
    write_opes_kernels,
    write_opes_state,
)

PI = math.pi
KT = 2.5
VARIABLES = [BiasVariable("phi", sigma=0.3, period=2 * PI), BiasVariable("d", sigma=0.2)]

# In the layout of PLUMED 2.8 and later.
KERNELS = """\
#! FIELDS time psi d sigma_psi sigma_d height logweight
#! SET action OPES_METAD_kernels
#! SET biasfactor   inf
#! SET epsilon   0.001000
#! SET kernel_cutoff   6.000000
#! SET compression_threshold   1.000000
#! SET min_psi -pi
#! SET max_psi pi
  5.000000  1.142756 -2.292240  0.150000  0.250000  0.001000 -6.907755
  10.000000  1.893253 -2.131678  0.150000  0.250000  0.001064 -6.845638
"""
STATE = """\
#! FIELDS time d sigma_d height
#! SET action OPES_METAD_EXPLORE_state
#! SET biasfactor 10
#! SET epsilon 0.00012
#! SET kernel_cutoff 4.249
#! SET compression_threshold 1
#! SET zed 0.75
#! SET sum_weights 3.5
#! SET sum_weights2 1.25
#! SET counter 12
#! SET adaptive_counter 500
#! SET av_cv_d 0.5
#! SET av_M2_d 0.125
 100 0.5 0.2 2.5
 100 0.9 0.3 1.0
"""


def samples(n, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return torch.stack([(2 * values[:, 0] - 1) * PI, values[:, 1]], dim=1)


def grown(explore=False, bias_factor=None, batches=3):
    bias = RepulsionBias.opes(VARIABLES, kT=KT, barrier=20.0, explore=explore, bias_factor=bias_factor)
    for k in range(batches):
        bias = bias.deposited(samples(20, k))
    return bias


def test_kernels_as_plumed_writes_them(tmp_path):
    (tmp_path / "KERNELS").write_text(KERNELS)
    table = read_opes_kernels(tmp_path / "KERNELS")
    assert table.names == ("psi", "d")
    assert table.domains == ((-PI, PI), None)
    assert table.periods == (2 * PI, None)
    assert table.bias_factor == math.inf
    assert (table.epsilon, table.kernel_cutoff, table.compression_threshold) == (0.001, 6.0, 1.0)
    assert (table.action, table.explore, table.state) == ("OPES_METAD", False, None)
    assert table.centers.tolist() == [[1.142756, -2.29224], [1.893253, -2.131678]]
    assert table.sigmas[0].tolist() == [0.15, 0.25]
    assert table.heights.tolist() == [0.001, 0.001064]
    assert table.log_weights.tolist() == [-6.907755, -6.845638]
    write_opes_kernels(tmp_path / "again", table)
    again = read_opes_kernels(tmp_path / "again")
    for name in ("centers", "sigmas", "heights", "times", "log_weights"):
        assert torch.equal(getattr(again, name), getattr(table, name))
    head = [line.split() for line in (tmp_path / "again").read_text().splitlines()[:8]]
    assert [line[:3] for line in head] == [line.split()[:3] for line in KERNELS.splitlines()[:8]]
    (tmp_path / "twice").write_text(KERNELS + KERNELS.replace("0.001000\n#", "0.002\n#"))
    assert len(read_opes_kernels(tmp_path / "twice")) == 4
    assert read_opes_kernels(tmp_path / "twice").epsilon == 0.002


def test_state_as_plumed_writes_it(tmp_path):
    (tmp_path / "STATE").write_text(STATE)
    table = read_opes_state(tmp_path / "STATE")
    assert table.explore
    assert table.log_weights is None
    state = table.state
    assert (state.zed, state.sum_weights, state.sum_weights2, state.counter) == (0.75, 3.5, 1.25, 12)
    assert state.adaptive == {"adaptive_counter": 500.0, "av_cv_d": 0.5, "av_M2_d": 0.125}
    write_opes_state(tmp_path / "again", table)
    again = read_opes_state(tmp_path / "again")
    assert again.state == state
    assert torch.equal(again.centers, table.centers)
    with pytest.raises(ValueError, match="measured its widths"):
        opes_bias_of(table, [BiasVariable("d", sigma=0.2)], kT=KT)


def test_stored_states_are_one_after_the_other(tmp_path):
    later = STATE.replace("counter 12", "counter 13").replace(" 100 0.9 0.3 1.0\n", "")
    (tmp_path / "STATE").write_text(STATE + later)
    assert (len(read_opes_state(tmp_path / "STATE")), read_opes_state(tmp_path / "STATE").state.counter) == (1, 13)
    assert (len(read_opes_state(tmp_path / "STATE", 0)), read_opes_state(tmp_path / "STATE", 0).state.counter) == (
        2,
        12,
    )
    with pytest.raises(IndexError, match="state 2 of 2"):
        read_opes_state(tmp_path / "STATE", 2)


def evaluate_by_hand(table, points, kT):
    """V from a STATE file as PLUMED's OPES defines it, kernel by kernel."""
    state, gamma, values = table.state, table.bias_factor, []
    norm = state.counter if table.explore else state.sum_weights
    prefactor = gamma - 1 if table.explore else 1 - 1 / gamma
    for point in points.tolist():
        density = 0.0
        for center, sigma, height in zip(
            table.centers.tolist(), table.sigmas.tolist(), table.heights.tolist(), strict=True
        ):
            norm2 = 0.0
            for x, c, s, period in zip(point, center, sigma, table.periods, strict=True):
                away = min(abs(x - c + k * (period or 0.0)) for k in (-1, 0, 1))
                norm2 += (away / s) ** 2
            if norm2 < table.kernel_cutoff**2:
                density += height * (math.exp(-norm2 / 2) - math.exp(-(table.kernel_cutoff**2) / 2))
        values.append(prefactor * kT * math.log(density / norm / state.zed + table.epsilon))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("explore", "bias_factor"), [(False, None), (False, math.inf), (True, 12.0)])
def test_bias_goes_on_from_its_state(tmp_path, explore, bias_factor):
    bias = grown(explore, bias_factor)
    write_opes_state(tmp_path / "STATE", opes_table_of(bias, time=3.0))
    table = read_opes_state(tmp_path / "STATE")
    points = samples(50, 9)
    torch.testing.assert_close(evaluate_by_hand(table, points, KT), bias(points), rtol=0, atol=1e-10)
    again = opes_bias_of(table, VARIABLES, kT=KT)
    torch.testing.assert_close(again(points), bias(points), rtol=0, atol=1e-12)
    assert again.sums == bias.sums
    more = samples(20, 8)
    torch.testing.assert_close(again.deposited(more)(points), bias.deposited(more)(points), rtol=0, atol=1e-9)
    # What a state without its sums would make of the next batch.
    wrong = replace(again, sums=replace(again.sums, weights=2 * again.sums.weights, counter=2 * again.sums.counter))
    assert (wrong.deposited(more)(points) - bias.deposited(more)(points)).abs().max() > 1e-3


def test_bias_with_a_grid_goes_on_with_it(tmp_path):
    """Variables on circles alone have a grid by default; the file has the kernels behind it."""
    phi = [VARIABLES[0]]
    bias, points = RepulsionBias.opes(phi, kT=KT, barrier=20.0), torch.linspace(-PI, PI, 60).double()[:, None]
    for k in range(3):
        bias = bias.deposited(samples(20, k)[:, :1])
    write_opes_state(tmp_path / "STATE", opes_table_of(bias))
    table = read_opes_state(tmp_path / "STATE")
    again = opes_bias_of(table, phi, kT=KT)
    nodes = again.grid.points()
    torch.testing.assert_close(evaluate_by_hand(table, nodes, KT), again(nodes), rtol=0, atol=1e-10)
    torch.testing.assert_close(again(points), bias(points), rtol=0, atol=1e-10)
    assert float(bias(points).max() - bias(points).min()) > 1.0


def test_kernels_of_a_run_are_appended_and_cut_back(tmp_path):
    path, bias, tables = tmp_path / "KERNELS", grown(batches=0), []
    for batch in range(3):
        values = samples(20, batch)
        tables.append(opes_kernels_of(bias, bias.hills(values, time=float(batch))))
        torch.testing.assert_close(tables[-1].log_weights, bias(values) / KT, rtol=0, atol=0)
        (append_opes_kernels if batch else write_opes_kernels)(path, tables[-1])
        bias = bias.deposited(values)
    whole = path.read_bytes()
    read = read_opes_kernels(path)
    assert torch.equal(read.centers, torch.cat([table.centers for table in tables]))
    assert read.times.tolist() == [0.0] * 20 + [1.0] * 20 + [2.0] * 20
    # The sums of the run follow from the file, as PLUMED makes them when it restarts from one.
    first = math.exp(-20.0 / KT)
    assert first + float(read.log_weights.exp().sum()) == pytest.approx(bias.sums.weights, rel=1e-12)
    path.write_bytes(whole[:-30])
    truncate_rows(path, 40)
    append_opes_kernels(path, tables[-1])
    assert path.read_bytes() == whole
    with pytest.raises(FileFormatError, match="its header is not the one"):
        append_opes_kernels(path, replace(tables[-1], epsilon=0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "does not hold the sums"),
        ({"kernel_cutoff": 6.0}, "kernel_cutoff 6 is not"),
        ({"names": ("psi", "d")}, "are not those of the file"),
        ({"domains": (None, None)}, "are not those of the file"),
    ],
)
def test_states_that_no_bias_can_continue(change, message):
    with pytest.raises(ValueError, match=message):
        opes_bias_of(replace(opes_table_of(grown()), **change), VARIABLES, kT=KT)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("_kernels", "_state", "line 1: action is 'OPES_METAD_state'"),
        ("#! SET action OPES_METAD_kernels\n", "", "line 1: action is None"),
        ("#! SET epsilon   0.001000\n", "", "line 1: no '#! SET epsilon' line"),
        ("epsilon   0.001000", "epsilon nan", "line 1: epsilon is nan"),
        ("logweight\n", "logheight\n", "line 1: no KERNELS file"),
        ("sigma_d", "sigma_e", "line 1: no KERNELS file"),
        ("-6.845638\n", "\n", "line 10: 6 values for 7 fields"),
        ("-6.845638\n", "-6.845638", "last line does not end"),
        ("0.250000  0.001064", "0.0  0.001064", "line 10: a number that is not finite, or a width"),
        ("  0.001064", "  inf", "line 10: a number that is not finite"),
        ("#! SET max_psi pi\n", "", "psi has only one of"),
    ],
)
def test_broken_kernels_are_refused_with_the_line(tmp_path, old, new, message):
    assert old in KERNELS
    (tmp_path / "KERNELS").write_text(KERNELS.replace(old, new))
    with pytest.raises(FileFormatError, match=f"KERNELS.*{message}"):
        read_opes_kernels(tmp_path / "KERNELS")


def test_broken_states_are_refused(tmp_path):
    for old, new, message in (
        ("#! SET sum_weights2 1.25\n", "", "no '#! SET sum_weights2' line"),
        ("counter 12", "counter 1.5", "counter is 1.5"),
        ("_state", "_kernels", "expected one that ends in _state"),
    ):
        (tmp_path / "STATE").write_text(STATE.replace(old, new, 1))
        with pytest.raises(FileFormatError, match=message):
            read_opes_state(tmp_path / "STATE")
    (tmp_path / "both").write_text(KERNELS + KERNELS.replace("_psi", "_phi").replace(" psi", " phi"))
    with pytest.raises(FileFormatError, match="both, line 11: variables, domains or action change"):
        read_opes_kernels(tmp_path / "both")


def test_files_need_what_they_hold(tmp_path):
    table = opes_table_of(grown())
    with pytest.raises(ValueError, match="needs the log_weights"):
        write_opes_kernels(tmp_path / "KERNELS", table)
    with pytest.raises(ValueError, match="needs the state"):
        write_opes_state(tmp_path / "STATE", replace(table, state=None))
    with pytest.raises(ValueError, match="do not fit"):
        replace(table, heights=torch.zeros(1))
    with pytest.raises(ValueError, match="domains"):
        replace(table, domains=(None,))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "STATE").write_text("mine")
    with pytest.raises(FileExistsError):
        write_opes_state(tmp_path / "STATE", table)
    assert isinstance(table, OpesTable)
