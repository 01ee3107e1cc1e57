"""What `feynkac fes COLVAR` makes of times: walkers in turn, restarts, runs one after the other, killed runs."""

import math

import numpy as np
import pytest
import torch

from feynkac.cli.errors import UserError
from feynkac.cli.fes.axes import data_axes
from feynkac.cli.fes.estimates import estimate
from feynkac.cli.fes.options import FesOptions
from feynkac.cli.fes.samples import read_samples
from feynkac.cli.fes.texts import parse_box
from feynkac.cli.fes.walkers import split_notes, split_rows
from feynkac.molecular.io import PlumedTable

from .fes_files import numbers, run

WORDS = ("--kt", 2.5, "--bias", "none", "--no-plots", "--deltaf", "x:1:9")


def write(path, times, x, walker=None):
    """A COLVAR of rows (n,)."""
    fields = "#! FIELDS time x" + ("" if walker is None else " walker")
    labels = [""] * len(x) if walker is None else [f" {int(w)}" for w in walker]
    rows = [f" {t:.6f} {v:.9f}{w}" for t, v, w in zip(times, x, labels, strict=True)]
    path.write_text("\n".join([fields, *rows]) + "\n")


def series(steps, walkers, seed=0, memory=0.9):
    """(T, B) of an autoregressive process with the normal law."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(steps, walkers))
    for k in range(1, steps):
        x[k] = memory * x[k - 1] + math.sqrt(1 - memory**2) * x[k]
    return x


def difference(x):
    """Of 1 < x < 9, in kT."""
    x = np.round(x, 9)
    return math.log(((x < 1) | (x > 9)).sum() / ((x > 1) & (x < 9)).sum())


def split(times, count=None, **columns):
    """Rows of each walker as lists, and what was found."""
    times = torch.tensor(times, dtype=torch.float64)
    others = {"x": torch.rand(len(times), generator=torch.Generator().manual_seed(0)).double()}
    others |= {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
    found = split_rows("COLVAR", PlumedTable({"time": times, **others}, {}), count)
    return [walker.tolist() for walker in found.walkers], found, split_notes(["COLVAR"], [found])


# --- errors -----------------------------------------------------------------------------------------------------------


def mean_square_z(path, make, **settings):
    options = FesOptions(kT=2.5, bin=(20,), bias=("none",), **settings)
    box = parse_box("--deltaf", "1..9", {"x": None})
    truth = math.log(1 / (0.5 * math.erfc(math.sqrt(0.5))) - 1)
    z = []
    for seed in range(40):
        write(path, *make(seed))
        samples = read_samples([path], options)
        found = estimate(
            samples, data_axes(("x",), (None,), samples.values.reshape(-1, 1), options), box, None, options
        )
        z.append((found.difference.value - truth) / found.difference.std_error)
    return float(np.mean(np.square(z)))


def in_turn(seed):
    x = series(200, 20, seed)
    return np.repeat(np.arange(200) * 0.2, 20), x.reshape(-1)


def rewound(seed):
    """Nearly all of it four times."""
    x, times = series(2000, 1, seed)[:, 0], np.arange(2000) * 0.2
    parts = [slice(0, 1900), slice(100, 1900), slice(100, 1900), slice(100, 2000)]
    return np.concatenate([times[part] for part in parts]), np.concatenate([x[part] for part in parts])


def without_a_clock(seed):
    """The same rows, their times hidden."""
    x = rewound(seed)[1]
    return np.arange(len(x)), x


@pytest.mark.slow
@pytest.mark.parametrize("make", [in_turn, rewound])
def test_errors_are_calibrated(tmp_path, make):
    assert abs(mean_square_z(tmp_path / "COLVAR", make) - 1) < 4 * math.sqrt(2 / 40)


@pytest.mark.slow
def test_rows_taken_as_they_stand_fail_that_test(tmp_path):
    assert mean_square_z(tmp_path / "COLVAR", in_turn, walkers=1) > 4
    assert mean_square_z(tmp_path / "COLVAR", without_a_clock) > 1 + 4 * math.sqrt(2 / 40)


# --- walkers in turn --------------------------------------------------------------------------------------------------


def test_times_that_repeat_are_walkers_in_turn(tmp_path):
    x = series(60, 5)
    write(tmp_path / "COLVAR", np.repeat(np.arange(60), 5), x.reshape(-1))
    output = run(tmp_path, "COLVAR", *WORDS, "-o", "a.dat")
    assert "each time stands 5 times in COLVAR: the rows are taken as frames of 5 walkers in turn" in output
    assert "5 walkers of up to 60 frames" in output
    assert "each time" not in run(tmp_path, "COLVAR", *WORDS, "--walkers", 5, "-o", "b.dat")
    assert numbers(tmp_path / "a.json") == numbers(tmp_path / "b.json")
    output = run(tmp_path, "COLVAR", *WORDS, "--walkers", 1, "-o", "c.dat")
    assert "each time stands 5 times in COLVAR, but --walkers 1 takes the rows as those of one" in output
    assert numbers(tmp_path / "c.json")["crossings"] != numbers(tmp_path / "a.json")["crossings"]
    for count in (2, 10):
        message = f"--walkers {count}: each time stands 5 times in COLVAR; leave --walkers out, or give 5"
        assert message in run(tmp_path, "COLVAR", *WORDS, "--walkers", count, "-o", "d.dat", code=2)


def test_a_clean_series_is_one_walker_s(tmp_path):
    write(tmp_path / "COLVAR", np.arange(300), series(300, 1)[:, 0])
    output = run(tmp_path, "COLVAR", *WORDS)
    assert not any(word in output for word in ("each time", "times come again", "clock", "stand again"))
    # and walkers that share no times can be told
    assert split(range(6), 2)[0] == [[0, 2, 4], [1, 3, 5]]
    assert split([0, 10, 1, 11, 2, 12, 3, 13], 2)[0] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    with pytest.raises(UserError, match="its times go back 3 times in 8; give each walker a file of its own"):
        split([0, 10, 1, 11, 2, 12, 3, 13])
    with pytest.raises(UserError, match="--walkers 4: the times of COLVAR do not grow along each"):
        split([0, 10, 1, 11, 2, 0, 3, 13], 4)
    _, found, (note,) = split([0, 10, 1, 11, 2, 12, 3, 13], 1)
    assert found.clockless
    assert "in no order" in note


def test_the_last_frame_may_lack_walkers():
    assert split([0, 0, 0, 1, 1, 1, 2, 2])[0] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    with pytest.raises(UserError, match="no multiple"):
        split(range(8), 3)


def test_walkers_that_start_alike_are_walkers():
    """Equal rows at one time, but not at all of them."""
    assert len(split([0, 0, 1, 1], x=[5, 5, 1, 2])[0]) == 2
    walkers, found, notes = split([0, 0, 1, 1, 2], x=[5, 5, 1, 1, 3])
    assert walkers == [[1, 3, 4]]
    assert (found.copies, found.again) == (2, 0)
    assert notes == ["2 rows of COLVAR are copies of others with the same times and were left out"]


def test_times_that_stand_now_so_now_so_often():
    with pytest.raises(UserError, match="its times stand 1 to 3 times"):
        split([0, 0, 1, 1, 1, 2, 3, 3, 4, 5, 5, 5, 6])
    with pytest.raises(UserError, match="its times stand now 2, now 1 times"):
        split([0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3])


def test_times_that_tell_nothing():
    for times in ([7.0] * 4, [0, 1, math.nan, 3]):
        walkers, _, (note,) = split(times)
        assert walkers == [[0, 1, 2, 3]]
        assert "do not tell of walkers and restarts" in note
        walkers, _, notes = split(times, 2)
        assert (walkers, notes) == ([[0, 2], [1, 3]], [])
    assert split([7.0])[2] == []


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_of_rows_whose_times_come_again_the_later_stay(tmp_path):
    """From the restart on another path was taken."""
    first, second = series(200, 1, 1)[:, 0], series(200, 1, 2)[:, 0]
    times = np.arange(200) * 0.5
    write(tmp_path / "COLVAR", [*times[:150], *times[90:]], [*first[:150], *second[90:]])
    write(tmp_path / "CLEAN", times, [*first[:90], *second[90:]])
    for k, words in enumerate(((), ("--skip", "20ps"), ("--skip", "25%"), ("--walkers", 1))):
        output = run(tmp_path, "COLVAR", *WORDS, *words, "-o", f"a{k}.dat")
        assert "times come again in COLVAR, as after a restart: the later rows are kept, 60 earlier ones were" in output
        assert "60 whose times stand again left out" in output
        assert "left out" not in run(tmp_path, "CLEAN", *WORDS, *words, "-o", f"b{k}.dat").replace("left out:", "")
        a, b = (numbers(tmp_path / f"{name}{k}.json") for name in "ab")
        assert a == b
    assert numbers(tmp_path / "a0.json")["delta_f_kT"] == pytest.approx(
        difference(np.array([*first[:90], *second[90:]]))
    )


def test_restarts_of_every_kind():
    assert split([0, 1, 2, 2, 3, 4])[0] == [[0, 1, 3, 4, 5]]  # the frame at the checkpoint is written again
    assert split([0, 1, 2, 3, 4, 5, 3.5, 4.5, 5.5])[0] == [[0, 1, 2, 3, 6, 7, 8]]  # at other times
    twice = [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 2, 3, 4, 5]
    walkers, found, _ = split(twice)
    assert walkers == [[0, 1, 11, 12, 13, 14]]
    assert found.again == 9
    # walkers in turn, stopped within a frame
    times = [0, 0, 1, 1, 2, 2, 3, 3, 4, 2, 2, 3, 3, 4, 4]
    walkers, found, notes = split(times)
    assert walkers == [[0, 2, 9, 11, 13], [1, 3, 10, 12, 14]]
    assert found.again == 5
    assert len(notes) == 2
    assert split(times, 2)[0] == walkers
    # and so that the frame is begun again: its last rows are the whole ones
    assert split([0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5])[0] == [[0, 2, 5, 7, 9, 11], [1, 3, 6, 8, 10, 12]]


def test_restarts_of_labelled_walkers(tmp_path):
    times, walker = [0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3], [0, 1] * 6
    walkers, found, notes = split(times, walker=walker)
    assert walkers == [[0, 2, 8, 10], [1, 3, 9, 11]]
    assert found.again == 4
    assert len(notes) == 1
    with pytest.raises(UserError, match="walker 0 has each time 2 times"):
        split([0, 0, 1, 1, 2, 2], walker=[0] * 6)
    x = series(50, 3)
    write(tmp_path / "COLVAR", np.repeat(np.arange(50), 3), x.reshape(-1), walker=[0, 1, 2] * 50)
    assert "warning: time" not in run(tmp_path, "COLVAR", *WORDS)


# --- runs one after the other -----------------------------------------------------------------------------------------


def test_a_clock_that_starts_again(tmp_path):
    x = series(80, 3)
    for k in range(3):
        write(tmp_path / f"COLVAR.{k}", np.arange(80), x[:, k])
    write(tmp_path / "COLVAR", np.tile(np.arange(80), 3), x.T.reshape(-1))
    output = run(tmp_path, "COLVAR", *WORDS, "-o", "a.dat")
    assert "the clock starts again in COLVAR: 3 stretches are taken as walkers of their own" in output
    assert "the clock" not in run(tmp_path, *(f"COLVAR.{k}" for k in range(3)), *WORDS, "-o", "b.dat")
    assert "the clock" not in run(tmp_path, "COLVAR", *WORDS, "--walkers", 3, "-o", "c.dat")
    a, b, c = (numbers(tmp_path / f"{name}.json") for name in "abc")
    assert a == b == c
    output = run(tmp_path, "COLVAR", *WORDS, "--walkers", 1, "-o", "d.dat")
    assert numbers(tmp_path / "d.json")["frames"] == 240
    assert "walkers of up to" not in output


def test_a_run_that_is_there_twice_counts_once():
    for times, x in (
        ([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], [5, 6, 7, 8, 9] * 2),
        ([0, 1, 2, 3, 0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 5, 6, 7, 8, 3, 4]),
        ([0, 1, 2, 3, 4, 5, 0, 1, 2, 3], [5, 6, 7, 8, 9, 1, 5, 6, 7, 8]),
    ):
        walkers, found, notes = split(times, x=x)
        assert len(walkers) == 1
        assert found.copies == len(times) - len(walkers[0]) > 3
        assert len(notes) == 1
        assert "are copies of others" in notes[0]
    assert len(split([0, 1, 2, 3, 4, 0, 1, 2, 3, 4])[0]) == 2


# --- runs that were killed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 8, 15])
def test_last_line_of_a_run_that_was_killed(tmp_path, cut):
    x = series(100, 2)
    for k in range(2):
        write(tmp_path / f"WHOLE.{k}", np.arange(100), x[:, k])
        text = (tmp_path / f"WHOLE.{k}").read_text()
        (tmp_path / f"COLVAR.{k}").write_text(text[:-cut])
        (tmp_path / f"LESS.{k}").write_text("".join(text.splitlines(keepends=True)[:-1]))
    output = run(tmp_path, "COLVAR.0", "COLVAR.1", *WORDS, "-o", "a.dat")
    assert (
        "the last line of 2 files does not end, as where a run was killed, and was left out (COLVAR.0, line 101"
        in output
    )
    for name in ("LESS", "WHOLE"):
        run(tmp_path, f"{name}.0", f"{name}.1", *WORDS, "-o", f"{name}.dat")
    assert numbers(tmp_path / "a.json") == numbers(tmp_path / "LESS.json") != numbers(tmp_path / "WHOLE.json")
    lines = text.splitlines(keepends=True)
    (tmp_path / "SHORT").write_text("".join([*lines[:50], " 49.0\n", *lines[50:]]))
    assert "SHORT, line 51: 1 values for 2 fields" in run(tmp_path, "SHORT", *WORDS, "-o", "s.dat", code=2)
