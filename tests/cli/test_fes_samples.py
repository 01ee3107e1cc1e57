"""`feynkac fes COLVAR`: reweighting with known answers, calibrated errors, every way to name walkers and weights."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from feynkac.cli.biased.watch import Watch, cores, reach_of
from feynkac.cli.fes.axes import data_axes
from feynkac.cli.fes.estimates import estimate
from feynkac.cli.fes.options import FesOptions
from feynkac.cli.fes.samples import Samples, read_samples
from feynkac.cli.fes.texts import parse_box
from feynkac.fkc.bias import BiasVariable, RepulsionBias
from feynkac.molecular.free_energy import Region, count_crossings
from feynkac.molecular.io import bias_columns, read_fes, write_colvar
from feynkac.molecular.pipeline import DifferenceRequest

from ..molecular.free_energy_walkers import biased_walkers, double_well, exact_difference, log_weights
from .fes_files import PI, numbers, read_table, run

KT = 2.5
REGION = ("--kt", KT, "--deltaf", "-3..0", "--min", -2.2, "--max", 2.2)
TRUTH = -exact_difference()  # of x < 0 against the rest


def frames(steps=300, walkers=8, seed=0):
    return biased_walkers(torch.Generator().manual_seed(seed), steps, walkers)


def write(path, x, *, more=None, rct=None, **settings):
    """A COLVAR of walkers (T, B), a frame of all of them after the other."""
    steps, walkers = x.shape
    bias = bias_columns("metad", KT * log_weights(x).reshape(-1), rct)
    columns = {"x": x.reshape(-1), **bias, **(more or {})}
    time = 0.5 * torch.arange(steps, dtype=torch.float64).repeat_interleave(walkers)
    write_colvar(path, columns, time=time, **settings)


# --- the answer is right, and so is its error -------------------------------------------------------------------------


def z_of(x, options, *, spoil=None):
    logs = log_weights(x) if spoil is None else spoil(log_weights(x))
    samples = Samples(("x",), (None,), x[..., None], logs, 0.5, x.numel(), 0, 0, "", ())
    box = parse_box("--deltaf", "-3..0", {"x": None})
    axes = data_axes(("x",), (None,), x.reshape(-1, 1), options)
    found = estimate(samples, axes, box, None, options)
    return (found.difference.value - TRUTH) / found.difference.std_error


@pytest.mark.slow
@pytest.mark.parametrize("walkers", [20, 4])
def test_errors_are_calibrated(walkers):
    """z has mean 0 and mean square 1; with 20 walkers errors come from these, with 4 from blocks of time."""
    options, repeats = FesOptions(kT=KT, bin=(20,)), 60
    z = np.array([z_of(frames(6000 // walkers * 2, walkers, seed), options) for seed in range(repeats)])
    assert abs(z.mean()) < 4 / math.sqrt(repeats)
    assert abs((z * z).mean() - 1) < 4 * math.sqrt(2 / repeats)


@pytest.mark.slow
def test_what_spoils_the_answer_is_seen():
    """Frames taken for independent, and weights of another temperature, fail the test above."""
    repeats = 20
    independent = FesOptions(kT=KT, bin=(20,), blocks=3000)
    z = np.array([z_of(frames(3000, 4, seed), independent) for seed in range(repeats)])
    assert (z * z).mean() > 4
    options = FesOptions(kT=KT, bin=(20,))
    z = np.array([z_of(frames(3000, 4, seed), options, spoil=lambda logs: 0.7 * logs) for seed in range(8)])
    assert abs(z.mean()) > 4 / math.sqrt(8)


def test_command_finds_the_difference(tmp_path):
    write(tmp_path / "COLVAR", frames(1500, 8))
    output = run(tmp_path, "COLVAR", "--walkers", 8, *REGION)
    row = json.loads((tmp_path / "fes.json").read_text())["numbers"]
    assert abs(row["delta_f_kT"]["value"] - TRUTH) < 4 * row["delta_f_kT"]["error"]
    assert 0.01 < row["delta_f_kT"]["error"] < 0.2
    assert row["delta_f"]["value"] == pytest.approx(KT * row["delta_f_kT"]["value"])
    assert row["frames"]["value"] == 12000
    assert "weights exp((metad.bias)/kT)" in output
    for name in ("fes.png", "fes_deltaf.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    for label in ("correlation time of ΔF", "effective frames", "independent groups", "crossings", "k-hat", " ps"):
        assert label in output


def test_profile_is_that_of_the_law(tmp_path):
    write(tmp_path / "COLVAR", frames(3000, 8))
    run(tmp_path, "COLVAR", "--walkers", 8, "--kt", KT, "--bin", 22, "--min", -2.2, "--max", 2.2, "--no-plots")
    columns, _ = read_table(tmp_path / "fes_uncertainty.dat")
    fine = torch.linspace(-2.2, 2.2, 22 * 400 + 1, dtype=torch.float64)
    mass = torch.exp(-double_well(0.5 * (fine[1:] + fine[:-1]))).reshape(22, 400).sum(1)
    expected = -KT * torch.log(mass).numpy()
    seen = columns["file.free"] < 12
    weight = 1 / columns["uncertainty"][seen] ** 2
    off = (columns["file.free"] - expected)[seen]
    z = (off - (weight * off).sum() / weight.sum()) / columns["uncertainty"][seen]
    assert seen.sum() > 10
    assert np.abs(z).max() < 5
    grid = read_fes(tmp_path / "fes.dat")
    np.testing.assert_allclose(grid.free_energy.numpy(), columns["file.free"], rtol=0, atol=1e-9)


# --- walkers, weights, rows -------------------------------------------------------------------------------------------


def test_all_ways_to_name_walkers_agree(tmp_path):
    x = frames(200, 4)
    write(tmp_path / "mixed", x)
    write(tmp_path / "labelled", x, more={"walker": torch.arange(4.0).double().repeat(200)})
    for k in range(4):
        write(tmp_path / f"COLVAR.{k}", x[:, k : k + 1])
    run(tmp_path, "mixed", "--walkers", 4, *REGION, "-o", "a.dat", "--no-plots")
    run(tmp_path, "labelled", *REGION, "-o", "b.dat", "--no-plots")
    run(tmp_path, *(f"COLVAR.{k}" for k in range(4)), *REGION, "-o", "c.dat", "--no-plots")
    run(tmp_path, "mixed", *REGION, "-o", "d.dat", "--no-plots")
    run(tmp_path, "mixed", "--walkers", 1, *REGION, "-o", "e.dat", "--no-plots")
    a, b, c, d, e = (json.loads((tmp_path / f"{name}.json").read_text())["numbers"] for name in "abcde")
    assert a == b == d
    for key in ("delta_f", "std_error_correlation", "correlation_time", "crossings", "groups"):
        assert a[key]["value"] == c[key]["value"], key
        assert a[key].get("error") == c[key].get("error"), key
    # taken for one walker the frames seem to forget at once
    assert e["delta_f"]["value"] == pytest.approx(a["delta_f"]["value"])
    assert e["crossings"]["value"] > 3 * a["crossings"]["value"]
    assert (tmp_path / "a.dat").read_text() == (tmp_path / "c.dat").read_text()


def test_number_of_walkers_that_the_file_denies(tmp_path):
    x = frames(200, 4)
    write(tmp_path / "COLVAR", x, more={"walker": torch.arange(4.0).double().repeat(200)})
    message = "--walkers 8: COLVAR has a column walker with 4; leave --walkers out"
    assert message in run(tmp_path, "COLVAR", "--walkers", 8, *REGION, code=2)
    assert [p.name for p in tmp_path.iterdir()] == ["COLVAR"]
    # with the right number the column still tells whose a row is: here the walkers lie one after the other
    write(tmp_path / "SORTED", x.T.reshape(-1, 1), more={"walker": torch.arange(4.0).double().repeat_interleave(200)})
    run(tmp_path, "COLVAR", "--walkers", 4, *REGION, "--no-plots", "-o", "a.dat")
    run(tmp_path, "SORTED", "--walkers", 4, *REGION, "--no-plots", "-o", "b.dat")
    a, b = (numbers(tmp_path / f"{name}.json") for name in "ab")
    assert a["crossings"] == b["crossings"]
    assert a["delta_f"] == pytest.approx(b["delta_f"])


def test_walkers_of_different_length(tmp_path):
    x = frames(200, 2)
    write(tmp_path / "COLVAR.0", x[:, :1])
    write(tmp_path / "COLVAR.1", x[:150, 1:])
    output = run(tmp_path, "COLVAR.0", "COLVAR.1", *REGION, "--no-plots")
    assert "walkers have from 150 to 200 frames; all are used" in output
    assert numbers(tmp_path / "fes.json")["frames"] == 350
    kept = torch.cat([x[:, 0], x[:150, 1]])
    weights = torch.exp(log_weights(kept))
    expected = math.log(float(weights[kept > 0].sum() / weights[kept < 0].sum()))
    assert numbers(tmp_path / "fes.json")["delta_f_kT"] == pytest.approx(expected, abs=1e-6)


def test_rows_that_are_not_finite_are_counted(tmp_path):
    x = frames(200, 1)
    write(tmp_path / "COLVAR", x)
    lines = (tmp_path / "COLVAR").read_text().splitlines()
    lines[5] = " 2.0 nan -1.0"
    lines[9] = " 4.0 0.3 nan"
    lines[12] = " 5.5 inf -1.0"
    lines[15] = " 7.0 0.3 -inf"  # a weight of zero, nothing wrong with it
    (tmp_path / "COLVAR").write_text("\n".join(lines) + "\n")
    output = run(tmp_path, "COLVAR", *REGION, "--no-plots")
    assert "3 rows hold numbers that are not finite" in output
    found = numbers(tmp_path / "fes.json")
    assert (found["invalid"], found["frames"]) == (3, 196)
    kept = torch.cat([x[k - 1] for k in range(1, 201) if k not in (5, 9, 12, 15)])
    weights = torch.exp(log_weights(kept))
    expected = math.log(float(weights[kept > 0].sum() / weights[kept < 0].sum()))
    assert found["delta_f_kT"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("skip", "left"), [("0.25", 150), ("25%", 150), ("10ps", 180), ("0.01ns", 180)])
def test_skip(tmp_path, skip, left):
    x = frames(200, 2)
    write(tmp_path / "COLVAR", x)
    run(tmp_path, "COLVAR", "--walkers", 2, *REGION, "--no-plots", "--skip", skip)
    found = numbers(tmp_path / "fes.json")
    assert found["frames"] == 2 * left
    kept = x[200 - left :].reshape(-1)
    weights = torch.exp(log_weights(kept))
    expected = math.log(float(weights[kept > 0].sum() / weights[kept < 0].sum()))
    assert found["delta_f_kT"] == pytest.approx(expected, abs=1e-6)


def test_every_bias_counts_unless_named(tmp_path):
    x = frames(100, 1)
    wall = 3.0 * (x.reshape(-1) > 0.9)
    write(tmp_path / "COLVAR", x, more={"uwall.bias": wall, "uwall.force2": wall})
    expected = {}
    for name, words, logs in (
        ("both", (), log_weights(x[:, 0]) + wall / KT),
        ("one", ("--bias", "metad.bias"), log_weights(x[:, 0])),
        ("none", ("--bias", "none"), torch.zeros(100)),
    ):
        run(tmp_path, "COLVAR", *REGION, "--no-plots", "--cv", "x", *words, "-o", f"{name}.dat")
        w = logs.exp()
        expected[name] = math.log(float(w[x[:, 0] > 0].sum() / w[x[:, 0] < 0].sum()))
        assert numbers(tmp_path / f"{name}.json")["delta_f_kT"] == pytest.approx(expected[name], abs=1e-6)
    assert len({round(value, 3) for value in expected.values()}) == 3


def test_column_of_weights(tmp_path):
    x = frames(100, 1)
    write(tmp_path / "COLVAR", x, more={"w": 7 * log_weights(x).exp().reshape(-1)})
    run(tmp_path, "COLVAR", "--cv", "x", *REGION, "--no-plots", "-o", "a.dat")
    run(tmp_path, "COLVAR", "--cv", "x", "--weights", "w", *REGION, "--no-plots", "-o", "b.dat")
    a, b = (numbers(tmp_path / name)["delta_f_kT"] for name in ("a.json", "b.json"))
    assert a == pytest.approx(b, abs=1e-6)


def test_columns_that_make_weights_are_no_variables(tmp_path):
    """Named or not, ``x`` alone is the variable; only ``--cv`` makes another of them one."""
    x = frames(100, 1)
    weights, steep = 7 * log_weights(x).exp().reshape(-1), 0.1 * x.reshape(-1) ** 2
    write(tmp_path / "COLVAR", x, more={"w": weights})
    run(tmp_path, "COLVAR", "--cv", "x", "--weights", "w", *REGION, "--no-plots", "-o", "a.dat")
    run(tmp_path, "COLVAR", "--weights", "w", *REGION, "--no-plots", "-o", "b.dat")
    assert (tmp_path / "a.dat").read_text() == (tmp_path / "b.dat").read_text()
    run(tmp_path, "COLVAR", "--weights", "w", "--kt", KT, "--cv", "x,w", "--no-plots", "-o", "c.dat")
    assert [axis.name for axis in read_fes(tmp_path / "c.dat").axes] == ["x", "w"]
    run(tmp_path, "COLVAR", "--kt", KT, "--no-plots", "-o", "d.dat")  # nothing says that w is a weight
    assert [axis.name for axis in read_fes(tmp_path / "d.dat").axes] == ["x", "w"]
    write(tmp_path / "TILTED", x, more={"tilt": steep})
    run(tmp_path, "TILTED", "--bias", "metad.bias,tilt", *REGION, "--no-plots", "-o", "e.dat")
    assert [axis.name for axis in read_fes(tmp_path / "e.dat").axes] == ["x"]


def test_growing_bias_is_noticed_and_c_of_t_used(tmp_path):
    x = frames(100, 1)
    rct = torch.linspace(0, 8, 100, dtype=torch.float64)
    write(tmp_path / "COLVAR", x, rct=rct)
    output = run(tmp_path, "COLVAR", *REGION, "--no-plots", "-o", "plain.dat")
    assert "c(t) of metad changes along the file" in output
    output = run(tmp_path, "COLVAR", "--rct", *REGION, "--no-plots")
    assert "c(t) of metad" not in output
    assert "weights exp((metad.rbias)/kT)" in output
    w = torch.exp(log_weights(x[:, 0]) - rct / KT)
    expected = math.log(float(w[x[:, 0] > 0].sum() / w[x[:, 0] < 0].sum()))
    assert numbers(tmp_path / "fes.json")["delta_f_kT"] == pytest.approx(expected, abs=1e-6)
    frozen = torch.full((100,), 8.0, dtype=torch.float64)
    write(tmp_path / "FROZEN", x, rct=frozen)
    assert "c(t)" not in run(tmp_path, "FROZEN", *REGION, "--no-plots", "-o", "frozen.dat")


def test_rct_from_the_column_of_c(tmp_path):
    x = frames(100, 1)
    rct = torch.linspace(0, 8, 100, dtype=torch.float64)
    write(tmp_path / "COLVAR", x, rct=rct)
    text = (tmp_path / "COLVAR").read_text().replace("metad.rbias", "metad.work")
    (tmp_path / "OTHER").write_text(text)
    run(tmp_path, "COLVAR", "--rct", *REGION, "--no-plots", "-o", "a.dat")
    run(tmp_path, "OTHER", "--rct", "--cv", "x", *REGION, "--no-plots", "-o", "b.dat")
    a, b = (numbers(tmp_path / name)["delta_f_kT"] for name in ("a.json", "b.json"))
    assert a == pytest.approx(b, abs=1e-6)


def test_blocks_as_asked_for(tmp_path):
    write(tmp_path / "COLVAR", frames(203, 2))
    output = run(tmp_path, "COLVAR", "--walkers", 2, "--blocks", 5, *REGION, "--no-plots")
    assert numbers(tmp_path / "fes.json")["groups"] == 10
    assert "10 blocks of time, as asked for" in output


def test_two_regions(tmp_path):
    x = frames(300, 4)
    write(tmp_path / "COLVAR", x)
    words = ("--kt", KT, "--deltaf", "-1.3..-0.7", "--against", "0.7..1.3", "--no-plots", "--units", "kcal/mol")
    run(tmp_path, "COLVAR", "--walkers", 4, *words)
    w = log_weights(x).exp()
    a, b = float(w[(x > -1.3) & (x < -0.7)].sum()), float(w[(x > 0.7) & (x < 1.3)].sum())
    found = numbers(tmp_path / "fes.json")
    assert found["delta_f_kT"] == pytest.approx(math.log(b / a), abs=1e-6)
    assert found["delta_f"] == pytest.approx(KT / 4.184 * math.log(b / a), abs=1e-6)


def test_verdicts_are_printed(tmp_path):
    """Walkers that never left the well in which they started."""
    start = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    write(tmp_path / "COLVAR", start + 0.1 * noise)
    output = run(tmp_path, "COLVAR", "--walkers", 2, *REGION)
    assert "convergence: only 0 crossings between the regions" in output
    assert "correlation times" in output


def test_few_frames_are_said(tmp_path):
    """Numbers that cannot be trusted come with words, and none of it ends in a traceback."""
    for steps, word in ((2, "only 2 independent groups"), (12, "fewer than 20 frames a walker"), (30, "convergence:")):
        write(tmp_path / f"COLVAR{steps}", frames(steps, 1))
        words = ("--kt", KT, "--bin", 5, "-o", f"fes{steps}.dat", "--no-plots")
        more = () if steps == 2 else ("--deltaf", "-3..0")
        assert word in run(tmp_path, f"COLVAR{steps}", *words, *more)
    write(tmp_path / "ONE", frames(1, 1))
    assert "in every frame" in run(tmp_path, "ONE", "--kt", KT, code=2)
    assert "one frame is too few" in run(tmp_path, "ONE", "--kt", KT, "--min", -2, "--max", 2, code=2)


def test_region_that_nobody_visited(tmp_path):
    write(tmp_path / "COLVAR", frames(100, 1))
    output = run(tmp_path, "COLVAR", "--kt", KT, "--deltaf", "5..6")
    assert "inf kJ/mol" in output
    assert "it was never visited" in output
    assert json.loads((tmp_path / "fes.json").read_text())["numbers"]["delta_f"]["value"] == "inf"


@pytest.mark.parametrize(("region", "ends"), [("0.5..90", "0.5..4"), ("-90..0.5", "-4..0.5"), ("-90..90", None)])
def test_a_generous_end_of_a_region_changes_nothing(tmp_path, region, ends):
    """Walkers that go from side to side all the time; cores of a quarter of 89.5 would find no crossing at all."""
    x = 0.9 * torch.randn(400, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x[7, 3], x[9, 4] = 85.0, -85.0
    weights = (x.abs() < 80).double().reshape(-1)  # how far such frames go makes no difference either
    write(tmp_path / "COLVAR", x, more={"w": weights})
    words = ("COLVAR", "--kt", KT, "--weights", "w", "--no-plots")
    output = run(tmp_path, *words, "--deltaf", region, "-o", "a.dat")
    if ends is None:  # nobody is outside
        assert "it was never visited" in output
        return
    assert "convergence" not in output
    assert numbers(tmp_path / "a.json")["crossings"] > 1000
    run(tmp_path, *words, "--deltaf", ends, "-o", "b.dat")
    a, b = (numbers(tmp_path / f"{name}.json") for name in "ab")
    for key in ("crossings", "delta_f", "std_error_correlation", "halves_z", "trend_z", "ess_inside"):
        assert a[key] == pytest.approx(b[key], rel=1e-9), key


def test_cores_of_open_variables():
    x = torch.tensor([-3.0, -0.6, -0.4, 0.0, 0.4, 0.6, 1.4, 1.6, 2.0, math.nan], dtype=torch.float64)

    def found(lower, upper, reach=None):
        request = DifferenceRequest(variable="x", region=Region(lower, upper), bootstrap=0)
        inside, outside = cores(x, request, reach)
        assert not bool((inside & outside).any())
        return x[inside].tolist(), x[outside].tolist()

    # the region ends within the values: a quarter of it on both sides
    assert found(0.0, 1.0) == ([0.4, 0.6], [-3.0, -0.6, -0.4, 1.4, 1.6, 2.0])
    # a quarter of 0 .. 2, and no border at the upper end
    for upper in (2.1, 50.0):
        assert found(0.0, upper) == ([0.6, 1.4, 1.6, 2.0], [-3.0, -0.6])
    # the rest, 1 wide from 1 on, is narrower than the region
    assert found(-50.0, 1.0) == ([-3.0, -0.6, -0.4, 0.0, 0.4, 0.6], [1.4, 1.6, 2.0])
    # what other frames reach counts: here the values go on to 40
    assert found(0.0, 50.0, (-40.0, 40.0)) == ([], [])
    # no value in the region: its own width
    assert found(10.0, 12.0) == ([], x[:-1].tolist())
    assert reach_of(x) == (-3.0, 2.0)
    assert reach_of(x, x > 0.5) == (0.6, 2.0)
    assert reach_of(x, x > 5) == (math.inf, -math.inf)


def test_running_crossings_of_a_region_with_a_generous_end():
    """What walkers reached so far is remembered, over a stop too; without that each record has cores of its own."""
    generator = torch.Generator().manual_seed(3)
    series = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    request = DifferenceRequest(variable="x", region=Region(0.5, 90.0), bootstrap=0)
    bias = RepulsionBias.well_tempered([BiasVariable("x", 0.1)], kT=KT, bias_factor=5.0, height=1.0)

    def counted(stop):
        watch = Watch(4, request)
        for k, values in enumerate(series):
            if k == stop:
                watch = Watch(4, request, watch.state_dict())
            record = SimpleNamespace(log_weights=torch.zeros(4), alive=torch.ones(4, dtype=torch.bool), values=values)
            watch.take(SimpleNamespace(stage="fill", record=record, state=SimpleNamespace(bias=bias)), {"x": values})
        assert watch.reach.tolist() == [float(series.min()), float(series.max())]
        return int(watch.counts[0])

    whole = count_crossings(*cores(series, request)).total
    assert counted(None) == counted(150) == pytest.approx(whole, rel=0.1)
    assert whole > 100
    older = {name: value for name, value in Watch(4, request).state_dict().items() if name != "reach"}
    assert Watch(4, request, older).reach.tolist() == [math.inf, -math.inf]  # of a checkpoint that has none
    each = [cores(values, request) for values in series]  # by what the walkers of one record reach
    alone = count_crossings(*(torch.stack([core[side] for core in each]) for side in (0, 1))).total
    assert alone != pytest.approx(whole, rel=0.1)


def test_rare_region_has_small_numbers_that_can_be_read(tmp_path):
    """A basin whose frames weigh e^-30: no zeros for a probability, no count of more samples than frames."""
    x = frames(400, 2)
    steep = 2.5 * 30 * (x < 0).double().reshape(-1)
    write(tmp_path / "COLVAR", x, more={"tilt": -steep})
    words = ("COLVAR", "--walkers", 2, "--cv", "x", "--no-plots", *REGION)
    output = run(tmp_path, *words, "--bias", "metad.bias", "--bias", "tilt")
    (line,) = [line for line in output.splitlines() if "probability of -3" in line]
    found = json.loads((tmp_path / "fes.json").read_text())["numbers"]
    row = found["probability"]
    assert 0 < row["value"] < 1e-9
    assert f"{row['value']:.2e} ± {row['error']:.1e}" in line
    assert "independent" not in found
    run(tmp_path, *words, "--bias", "metad.bias", "-o", "plain.dat")
    plain = numbers(tmp_path / "plain.json")
    assert 2 < plain["independent"] < plain["frames"]


# --- surfaces ---------------------------------------------------------------------------------------------------------


def test_two_variables_and_kernels(tmp_path):
    generator = torch.Generator().manual_seed(1)
    phi = 0.6 * torch.randn(2000, generator=generator, dtype=torch.float64) + PI
    columns = {
        "phi": torch.remainder(phi + PI, 2 * PI) - PI,
        "d": 0.2 * torch.randn(2000, generator=generator).double(),
    }
    columns["metad.bias"] = torch.zeros(2000, dtype=torch.float64)
    write_colvar(tmp_path / "COLVAR", columns, periods={"phi": 2 * PI})
    run(tmp_path, "COLVAR", "--temperature", 300, "--bin", "24,15", "--deltaf", "phi:3:-3,d:-0.1:0.1")
    grid = read_fes(tmp_path / "fes.dat")
    assert [axis.bins for axis in grid.axes] == [24, 15]
    assert [axis.periodic for axis in grid.axes] == [True, False]
    inside = ((phi > 3) & (phi < 2 * PI - 3) & (columns["d"].abs() < 0.1)).double().mean()
    expected = 0.0083144626 * 300 * math.log((1 - float(inside)) / float(inside))
    assert numbers(tmp_path / "fes.json")["delta_f"] == pytest.approx(expected, rel=1e-5)
    run(tmp_path, "COLVAR", "--temperature", 300, "--cv", "phi", "--kde", 0.3, "--bin", 48, "-o", "kde.dat")
    smooth = read_fes(tmp_path / "kde.dat")
    points = smooth.axes[0].points()
    away = torch.remainder(points, 2 * PI) - PI
    wide = 0.36 + 0.09  # variances of samples and kernel
    expected_f = 0.0083144626 * 300 * 0.5 * away**2 / wide
    near = away.abs() < 1.2
    off = (smooth.free_energy - expected_f)[near]
    assert float((off - off.mean()).abs().max()) < 0.35


def test_default_variables_and_grid(tmp_path):
    write(tmp_path / "COLVAR", frames(100, 1), more={"energy": torch.zeros(100)})
    run(tmp_path, "COLVAR", "--kt", KT, "--no-plots")
    grid = read_fes(tmp_path / "fes.dat")
    x = frames(100, 1)
    assert [axis.name for axis in grid.axes] == ["x"]
    assert grid.axes[0].bins == 60
    assert grid.axes[0].lower == pytest.approx(float(x.min()), abs=1e-8)
    assert grid.axes[0].upper == pytest.approx(float(x.max()), abs=1e-8)


def test_run_folder_brings_its_temperature(tmp_path):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "COLVAR", frames(100, 1))
    (tmp_path / "run" / "config.yaml").write_text("job: metadynamics\nsystem: {temperature: 350 K}\n")
    run(tmp_path, "run", "--no-plots", "--deltaf", "-3..0", "-o", "a.dat")
    assert " kT " in run(tmp_path, "run", "--no-plots", "--units", "kT", "-o", "c.dat")
    run(tmp_path, "run/COLVAR", "--no-plots", "--deltaf", "-3..0", "--temperature", 350, "-o", "b.dat")
    assert numbers(tmp_path / "a.json") == numbers(tmp_path / "b.json")
    assert (tmp_path / "a.dat").read_text() == (tmp_path / "b.dat").read_text()


def test_another_temperature_than_the_run_s(tmp_path):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "COLVAR", frames(100, 1))
    (tmp_path / "run" / "config.yaml").write_text("job: metadynamics\nsystem: {temperature: 300 K}\n")
    for k, (words, other) in enumerate(
        (((), None), (("--kt", 2.494), None), (("--kt", 0.596), "71.68 K"), (("--temperature", 310), "310 K"))
    ):
        output = run(tmp_path, "run", "--no-plots", "-o", f"{k}.dat", *words)
        assert ("the run was at 300 K" in output) == (other is not None)
        assert other is None or f"say {other}" in output
    (tmp_path / "run" / "config.yaml").write_text("job: metadynamics\n")
    assert "the run was at" not in run(tmp_path, "run", "--no-plots", "-o", "none.dat", "--kt", 2.5)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "reweighting samples needs --kt in kJ/mol"),
        (["--kt", "2.5", "--cv", "psi"], "--cv: COLVAR has no column 'psi'; there are time, x, metad.bias"),
        (["--kt", "2.5", "--bias", "opes.bias"], "--bias: COLVAR has no column 'opes.bias'"),
        (["--kt", "2.5", "--weights", "w"], "--weights: COLVAR has no column 'w'"),
        (["--kt", "2.5", "--rct"], "--rct: COLVAR has neither .rbias nor .rct of metad.bias"),
        (["--kt", "2.5", "--weights", "x", "--bias", "x"], "takes the place of biases"),
        (["--kt", "2.5", "--walkers", "7"], "--walkers 7: the 100 rows of COLVAR are no multiple of it"),
        (["--kt", "2.5", "--blocks", "1"], "--blocks: got 1"),
        (["--kt", "2.5", "--blocks", "500"], "--blocks 500: a walker has 100 frames"),
        (["--kt", "2.5", "--skip", "3"], "--skip: got '3', expected a share"),
        (["--kt", "2.5", "--skip", "1h"], "--skip: got '1h'"),
        (["--kt", "2.5", "--kde", "0.1,0.2"], "--kde: 2 widths for 1 variables (x)"),
        (["--kt", "2.5", "--min", "5", "--max", "6"], "no frame lies between them"),
        (["--kt", "2.5", "--bin", "5,5"], "--bin: 2 values for 1 variables (x)"),
        (["--kt", "2.5", "--stride", "5"], "--stride has no meaning for COLVAR"),
        (["--kt", "2.5", "--negbias"], "--negbias has no meaning for COLVAR"),
        (["--kt", "2.5", "--deltaf", "y:0:1"], "--deltaf: no variable 'y'; there are x"),
        (["--kt", "2.5", "--deltaf", "0..1", "--against", "0.5..2"], "overlap"),
    ],
)
def test_options_that_cannot_be_used(tmp_path, words, message):
    write(tmp_path / "COLVAR", frames(100, 1))
    assert message in run(tmp_path, "COLVAR", *words, code=2)
    assert [p.name for p in tmp_path.iterdir()] == ["COLVAR"]


def test_columns_that_are_missing(tmp_path):
    columns = {name: torch.rand(9).double() for name in ("a", "b", "c")}
    write_colvar(tmp_path / "COLVAR", columns)
    assert "name one or two variables with --cv; there are a, b, c" in run(tmp_path, "COLVAR", "--kt", 2, code=2)
    write_colvar(tmp_path / "DOTS", {"path.sss": columns["a"], "m.bias": columns["b"]})
    assert "with --cv; there are path.sss, m.bias" in run(tmp_path, "DOTS", "--kt", 2, code=2)
    words = ("COLVAR", "--kt", 2, "--cv", "a")
    assert "no column ends in .bias among time, a, b, c; name it with --bias" in run(tmp_path, *words, code=2)
    write_colvar(tmp_path / "OTHER", {"a": columns["a"], "m.bias": columns["b"]})
    assert "its columns or domains are not those of" in run(tmp_path, "COLVAR", "OTHER", *words[1:], code=2)
    write_colvar(tmp_path / "CONSTANT", {"a": torch.ones(9), "m.bias": columns["b"]})
    assert "a has the value 1 in every frame" in run(tmp_path, "CONSTANT", "--kt", 2, code=2)
    write_colvar(tmp_path / "EMPTY", {"a": torch.ones(0), "m.bias": torch.ones(0)})
    assert "EMPTY: no row" in run(tmp_path, "EMPTY", "--kt", 2, code=2)


def test_nothing_is_overwritten(tmp_path):
    write(tmp_path / "COLVAR", frames(100, 1))
    for name in ("fes.dat", "fes_uncertainty.dat", "fes.png", "fes_deltaf.png", "fes.json"):
        (tmp_path / name).write_text("mine")
        assert f"{name} exists already" in run(tmp_path, "COLVAR", *REGION, code=2)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["COLVAR", name])
        (tmp_path / name).unlink()


def test_run_folders_that_have_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    assert "neither the folder of a run" in run(tmp_path, "run", code=2)
    (tmp_path / "run" / "config.yaml").write_text("job: metadynamics\n")
    assert "this run has no COLVAR; the run is not finished" in run(tmp_path, "run", code=2)
    write(tmp_path / "run" / "COLVAR", frames(100, 1))
    assert "no system.temperature; give --kt" in run(tmp_path, "run", code=2)


def test_reader_keeps_times_and_counts(tmp_path):
    write(tmp_path / "COLVAR", frames(60, 2))
    samples = read_samples([tmp_path / "COLVAR"], FesOptions(kT=KT, walkers=2))
    assert samples.values.shape == (60, 2, 1)
    assert samples.spacing == pytest.approx(0.5)
    assert (samples.rows, samples.skipped, samples.invalid) == (120, 0, 0)
    torch.testing.assert_close(samples.log_weights, log_weights(frames(60, 2)), rtol=0, atol=1e-8)
