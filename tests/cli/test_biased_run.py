"""`feynkac run`, `resume` and `report` of biased dynamics from end to end."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("openmm")
pytest.importorskip("mdtraj")

from feynkac.cli.biased import bias as bias_module
from feynkac.cli.biased import job, journal
from feynkac.cli.biased.build import Setup
from feynkac.cli.biased.config import MetadynamicsConfig
from feynkac.cli.biased.numbers import numbers as all_numbers
from feynkac.cli.biased.numbers import warnings_of
from feynkac.cli.biased.plots import draw_convergence
from feynkac.cli.biased.results import outcome_of
from feynkac.cli.paths import resolve
from feynkac.cli.run_folder import RunFolder
from feynkac.cli.validation import load_config
from feynkac.fkc.bias import RepulsionBias
from feynkac.fkc.checkpoint import load_state
from feynkac.molecular.free_energy import free_energy_difference
from feynkac.molecular.io import (
    hills_of,
    opes_bias_of,
    read_colvar,
    read_fes,
    read_grid,
    read_hills,
    read_opes_kernels,
    read_opes_state,
    read_trajectory,
    read_weights,
)

from .biased_runs import CONFIG, KINDS, OPES
from .command import complaint, killed, same, succeed

COMMON = {
    "COLVAR",
    "COLVAR.fill",
    "bias.dat",
    "config.yaml",
    "convergence.png",
    "fes.dat",
    "fes.png",
    "fes_d.dat",
    "fes_d_uncertainty.dat",
    "fes_phi.dat",
    "fes_phi_uncertainty.dat",
    "fes_uncertainty.dat",
    "filling.png",
    "halves.png",
    "metrics.jsonl",
    "profiles.png",
    "report.html",
    "results.json",
    "samples.dcd",
    "samples.pdb",
    "walkers.png",
    "weights.npz",
}
OWN = {"well_tempered": {"HILLS"}, "opes": {"KERNELS", "STATE"}}
DEADLY = """\
import os, signal
from feynkac.cli.biased import journal
journal.SECONDS_BETWEEN_CHECKPOINTS = {seconds}
whole, seen = journal.Journal.add, []
def deadly(self, staged):
    seen.append(staged)
    whole(self, staged)
    if len(seen) == {records}:
        self.tables.flush()
        self.folder.append_metrics({{"half": "written"}})
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.add = deadly
from feynkac.cli.main import main
main()
"""
"""Kills itself when so many records are on the disk, the last of them behind the checkpoint."""
INTERRUPTED = """\
import os, signal
from feynkac.cli.biased import journal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
journal.SECONDS_BETWEEN_CHECKPOINTS = 1e9
whole, seen = journal.Journal.add, []
def interrupted(self, staged):
    seen.append(staged)
    if len(seen) == {records}:
        for _ in range({times}):
            os.kill(os.getpid(), signal.SIGINT)
    assert len(seen) <= {records}
    whole(self, staged)
journal.Journal.add = interrupted
from feynkac.cli.main import main
main()
"""
"""Presses Ctrl-C, once or twice, while it takes in a record; no other checkpoint is due."""


def write_configs(folder):
    for kind, text in KINDS.items():
        (folder / f"{kind}.yaml").write_text(text)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of each kind, to look at and to compare with."""
    place = tmp_path_factory.mktemp("whole")
    write_configs(place)
    for kind in KINDS:
        output = succeed("run", str(place / f"{kind}.yaml"), "-o", str(place / kind))
        assert "read off the bias" in output
    return place


def arrays(path):
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if name != "seconds"}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(folder):
    return json.loads((folder / "results.json").read_text())["numbers"]


# --- what a run leaves ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_everything_and_its_files_agree(whole, kind):
    out = whole / kind
    assert {p.name for p in out.iterdir() if p.is_file()} == COMMON | OWN[kind]
    assert {p.name for p in out.iterdir() if p.is_dir()} == {"checkpoint", "bias"}
    found, setup = arrays(out / "weights.npz"), Setup.build(load_config(out / "config.yaml", MetadynamicsConfig))
    assert found["log_weights"].shape == found["variable_d"].shape == found["restraint_tether"].shape == (20, 6)
    bias = RepulsionBias.from_state_dict(load_state(out / "bias")[0])
    values = torch.from_numpy(np.stack([found["variable_phi"], found["variable_psi"]], axis=-1))
    expected = bias.reweight(values.reshape(-1, 2)).reshape(20, 6)
    assert torch.allclose(torch.from_numpy(found["log_weights"]), expected, atol=1e-12)
    _check_colvar(out, found, setup, bias)
    _check_frames(out, found, setup)
    _check_bias_files(out, kind, setup, bias)
    _check_numbers(out, found, setup)


def _check_colvar(out, found, setup, bias):
    table = read_colvar(out / "COLVAR")
    assert list(table.columns)[:4] == ["time", "phi", "psi", "d"]
    label = setup.label
    weights = table.columns[f"{label}.bias"].reshape(20, 6) / bias.kT
    assert torch.allclose(weights, torch.from_numpy(found["log_weights"]), atol=1e-6)
    assert torch.allclose(table.columns["tether.restraint"].reshape(20, 6), torch.from_numpy(found["restraint_tether"]))
    assert table.columns["walker"].reshape(20, 6)[7].tolist() == list(range(6))
    assert table.columns["time"][-1] == pytest.approx(0.1 + 0.04 + 0.4)
    growing = read_colvar(out / "COLVAR.fill")
    assert growing.columns["time"].max() == pytest.approx(0.1)
    if label == "metad":
        assert (table.columns["metad.rct"] == table.columns["metad.rct"][0]).all()
        assert growing.columns["metad.rct"].unique().numel() == 5
        shifted = growing.columns["metad.bias"] - growing.columns["metad.rct"]
        assert torch.allclose(growing.columns["metad.rbias"], shifted, atol=1e-8)
    else:
        assert "opes.rct" not in table.columns


def _check_frames(out, found, setup):
    positions, _ = read_trajectory(out / "samples.dcd", out / "samples.pdb")
    assert len(positions) == len(found["frames.record"])
    assert set(found["frames.walker"].tolist()) == set(range(6))
    for variable in setup.variables:
        recorded = found[f"variable_{variable.name}"][found["frames.record"], found["frames.walker"]]
        assert variable(positions.double()).numpy() == pytest.approx(recorded, abs=2e-3)
    energy = setup.energy(positions)[:5].numpy()
    assert energy == pytest.approx(found["energy"][found["frames.record"], found["frames.walker"]][:5], abs=0.5)


def _check_bias_files(out, kind, setup, bias):
    points = torch.rand((50, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6.0 - 3.0
    grid = read_grid(out / "bias.dat")
    assert grid.columns[f"{setup.label}.bias"].max() == pytest.approx(float(bias.grid.values.max()), rel=1e-6)
    assert read_fes(out / "fes.dat").free_energy.shape == (12, 12)
    if kind == "well_tempered":
        hills = read_hills(out / "HILLS")
        assert len(hills) == 60
        assert torch.allclose(setup.bias.with_hills(hills_of(hills))(points), bias(points), atol=1e-9)
        fewer = hills_of(hills.rows(slice(0, 54)))
        assert not torch.allclose(setup.bias.with_hills(fewer)(points), bias(points), atol=1e-3)
    else:
        kernels = read_opes_kernels(out / "KERNELS")
        assert len(kernels) == 60
        assert kernels.log_weights[:6].tolist() == pytest.approx([-setup.bias.barrier / setup.bias.kT] * 6)
        again = opes_bias_of(read_opes_state(out / "STATE"), setup.bias.variables, kT=bias.kT)
        assert again.sums == bias.sums
        assert torch.allclose(again.density(points), bias.density(points), rtol=1e-9)


def _check_numbers(out, found, setup):
    told, lines = numbers(out), rows(out / "metrics.jsonl")
    inside = setup.request.difference.region.contains(torch.from_numpy(found["variable_phi"]))
    log_weights = torch.from_numpy(found["log_weights"])
    share = log_weights.reshape(-1).softmax(dim=0)[inside.reshape(-1)].sum()
    assert told["delta_f_kT"]["value"] == pytest.approx(float((1.0 - share).log() - share.log()))
    assert told["energy_calls"]["value"] == lines[-1]["energy_calls"] == 6 * (1 + 500 + 1 + 50 + 20 + 200)
    assert told["deposits"]["value"] == 10
    assert lines[-1]["time_ps"] == pytest.approx(0.54)
    assert lines[-1]["ess"] == pytest.approx(told["ess"]["value"], abs=0.06)
    assert [line["stage"] for line in lines] == ["fill"] * 5 + ["burn-in"] * 2 + ["sample"] * 20


@pytest.mark.slow
def test_report_draws_the_same_again(whole, workplace):
    out = workplace / "out"
    shutil.copytree(whole / "well_tempered", out)
    names = ("report.html", "fes.png", "walkers.png", "results.json", "COLVAR", "HILLS")
    before = {name: (out / name).read_bytes() for name in names}
    page = before["report.html"].decode()
    assert page.count("data:image/png;base64,") == 6
    assert "Well-tempered metadynamics: A. Barducci" in page
    assert "OPES: M. Invernizzi" not in page
    assert "burn_in: 0.04 ps is only" in page
    for name in ("report.html", "fes.png"):
        (out / name).unlink()
    succeed("report", "out")
    assert {name: (out / name).read_bytes() for name in names} == before
    assert "complete" in complaint("resume", "out")
    assert "exists already" in complaint("run", "well_tempered.yaml", "-o", "out")


@pytest.mark.slow
def test_lost_walkers_and_samples_off_the_grid_are_said(whole):
    out = whole / "well_tempered"
    setup = Setup.build(load_config(out / "config.yaml", MetadynamicsConfig))
    bias = RepulsionBias.from_state_dict(load_state(out / "bias")[0])
    found = read_weights(out / "weights.npz")
    quiet = " ".join(warnings_of(outcome_of(setup, found, bias), []))
    assert "retired" not in quiet
    assert "started again" not in quiet
    assert "grid" not in quiet
    lost = {name: found[name].clone() for name in found}
    lost["log_weights"][:, 0] = -math.inf
    lost |= {"retired": torch.tensor(1.0), "outside": torch.tensor(7.0), "restarted": torch.tensor(2.0)}
    notes = warnings_of(outcome_of(setup, lost, bias), ["one", "one"])
    assert notes[0] == "one"
    assert notes[1].startswith("2 of 6 walkers lost their finite energy while they were relaxed or melted")
    assert notes[2].startswith("1 of 6 walkers had no finite energy any more and were retired")
    assert notes[3].startswith("7 samples lay beyond an end of the bias's grid (of the production's, 0 of 100): the")
    told = {number.key: number for number in all_numbers(outcome_of(setup, lost, bias))}
    assert "5 walkers" in " ".join(number.remark for number in told.values())  # 60 and more blocks, or 5 walkers
    assert any("effective samples on one side" in note for note in notes)


PLUGIN = """\
import torch
from feynkac.molecular.cvs import CallableVariable

def half(name):  # a number for every other structure only
    def function(x):
        count = torch.arange(len(x), device=x.device)
        return torch.where(count % 2 == 0, x[:, 8, 2], torch.nan)
    return CallableVariable(function, name, "nm")

def never(name):
    return CallableVariable(lambda x: x[:, 8, 2] * torch.nan, name, "nm")

def broken(name):
    def function(x):
        raise KeyError("no such thing")
    return CallableVariable(function, name)

def detached(name):
    return CallableVariable(lambda x: x[:, 8, 2].detach(), name)
"""


@pytest.fixture
def plugins(workplace, monkeypatch):
    """A module with variables that fail; its name is that of the file."""
    (workplace / "failing_for_tests.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(workplace))
    yield "failing_for_tests"
    sys.modules.pop("failing_for_tests", None)


@pytest.mark.slow
def test_what_no_sample_is_on_and_what_is_not_finite_cost_nothing_else(workplace, plugins):
    changes = [
        ("range: 0.2 nm .. 0.6 nm}",
         "range: 6 A .. 8 A}\n  h: {plugin: 'failing_for_tests:half', range: -1 nm .. 1 nm}\n"
         "  n: {plugin: 'failing_for_tests:never', range: 0 nm .. 1 nm}\n"
         "  e: {distance: [4, 16], range: 0.2 nm .. 0.35 nm}"),
        ("surface: {variables: [phi, psi]", "surface: {variables: [phi, d]"),
        ("profiles: [phi, d]", "profiles: [phi, d, h, n, e]"),
    ]  # fmt: skip
    text = CONFIG
    for change in changes:
        assert change[0] in text
        text = text.replace(*change)
    (workplace / "odd.yaml").write_text(text)
    output = " ".join(succeed("run", "odd.yaml", "-o", "out").split())
    out = workplace / "out"
    assert "100% of the weight lies outside the axis of d, 0.6 to 0.8 nm: the samples are between 0.3" in output
    assert "no sample with a weight lies inside the axes of phi and d: the surface is left out" in output
    assert "no sample with a weight lies inside the axes of d: the profile of d is left out" in output
    assert "h is not finite in 60 of 120 samples with a weight" in output
    assert "n is not finite in 120 of 120 samples with a weight" in output
    assert "the profile of n is left out" in output
    assert re.search(r"\d+% of the weight lies outside the axis of e, 0.2 to 0.35 nm", output)
    names = {path.name for path in out.iterdir()}
    assert {"weights.npz", "results.json", "report.html", "fes_phi.dat", "fes_h.dat", "fes_e.dat", "COLVAR"} <= names
    assert not {"fes.dat", "fes.png", "fes_d.dat", "fes_n.dat"} & names
    found = arrays(out / "weights.npz")
    assert np.isnan(found["variable_h"]).sum() == 60
    page = (out / "report.html").read_bytes()
    succeed("report", "out")
    assert (out / "report.html").read_bytes() == page
    told = json.loads((out / "results.json").read_text())["warnings"]
    assert sum("n is not finite" in warning for warning in told) == 1


@pytest.mark.slow
def test_a_region_of_a_variable_that_is_not_finite_is_left_out(workplace, plugins):
    for name, share in (("half", 60), ("never", 0)):
        text = CONFIG.replace("  psi: {tor", f"  q: {{plugin: 'failing_for_tests:{name}'}}\n  psi: {{tor").replace(
            "{variable: phi, region: -1.5 rad .. 0 rad, bootstrap: 10}", "{variable: q, region: 0 nm .. 9 nm}"
        )
        (workplace / "odd.yaml").write_text(text)
        output = " ".join(succeed("run", "odd.yaml", "-o", name).split())
        assert f"q is not finite in {120 - share} of 120 samples" in output
        assert ("delta_f_kT" in numbers(workplace / name)) == (share > 0)
    found = arrays(workplace / "half" / "weights.npz")
    known = np.isfinite(found["variable_q"])
    weights = np.exp(found["log_weights"][known])
    expected = weights[found["variable_q"][known] > 0].sum() / weights.sum()
    assert numbers(workplace / "half")["probability"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "where", "said"),
    [
        ("broken", "analysed", "variables.q: fails on the structure of the molecule: the function failed: KeyError"),
        ("broken", "biased", "variables.q: fails on the structure of the molecule: the function failed: KeyError"),
        ("never", "biased", "variables.q: is nan on the structure of the molecule"),
        ("detached", "biased", "variables.q: fails on the structure of the molecule: the values do not follow"),
    ],
)
def test_a_variable_that_fails_at_the_start_is_an_error_before_anything_is_made(workplace, plugins, name, where, said):
    text = CONFIG.replace("  psi: {tor", f"  q: {{plugin: 'failing_for_tests:{name}'}}\n  psi: {{tor")
    if where == "biased":
        text = text.replace("    psi: {sigma: 0.3 rad}", "    q: {sigma: 0.1 nm, range: 0 nm .. 1 nm}").replace(
            "0.1 nm, range: 0 nm .. 1 nm" if name == "detached" else "nothing", "0.1, range: 0 .. 1"
        )
    (workplace / "odd.yaml").write_text(text)
    assert said in complaint("run", "odd.yaml", "-o", "out")
    assert not (workplace / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "files"),
    [
        (("psi: {sigma: 0.3 rad}", "d: {sigma: 0.02 nm, range: 0.34 nm .. 0.4 nm}"), {"bias.dat", "convergence.png"}),
        (("walkers: 6", "walkers: 1"), {"halves.png", "walkers.png"}),
        (("bias_factor: 10", "bias_factor: .inf"), {"HILLS", "bias.dat"}),
    ],
)
def test_other_variables_one_walker_and_no_tempering(workplace, change, files):
    (workplace / "other.yaml").write_text(CONFIG.replace(*change))
    output = succeed("run", "other.yaml", "-o", "out")
    assert files <= {p.name for p in (workplace / "out").iterdir()}
    if "range" in change[1]:
        assert "samples lay beyond an end of the bias's grid" in output
        assert numbers(workplace / "out")["outside"]["value"] > 10


@pytest.mark.slow
def test_absurd_errors_and_what_is_far_from_a_reference_are_said(whole):
    out = whole / "well_tempered"
    setup = Setup.build(load_config(out / "config.yaml", MetadynamicsConfig))
    bias = RepulsionBias.from_state_dict(load_state(out / "bias")[0])
    outcome = outcome_of(setup, read_weights(out / "weights.npz"), bias)
    value, error = outcome.difference.value, outcome.difference.std_error

    def beside(sigmas):
        known = {"value": value + sigmas * math.hypot(error, 0.1), "std_error": 0.1}
        reference = {"delta_f_kT": known, "probability_-1.5_phi_0": {}}
        return replace(outcome, setup=replace(setup, reference=reference))

    assert "3.5 combined errors from the reference's" in " ".join(warnings_of(beside(3.5), []))
    assert "reference" not in " ".join(warnings_of(beside(2.5), []))
    for sigmas, shown in ((0.0, True), (1e4, False)):
        drawn = beside(sigmas)
        left = draw_convergence(drawn, drawn.report, drawn.difference).axes[0]
        names = [] if left.get_legend() is None else [text.get_text() for text in left.get_legend().get_texts()]
        assert ("reference" in names) == shown
        beyond = [text.get_text() for text in left.texts]  # with an arrow to the edge
        far = drawn.setup.reference["delta_f_kT"]["value"]
        assert beyond == ([] if shown else [f"reference {far:.2f} kT"])
    absurd = replace(outcome.difference, std_error=5e27)
    report = replace(outcome.report, std_error=5e27, independent=1e4, autocorrelation=None)
    wild = replace(outcome, difference=absurd, report=report)
    texts = {number.key: number.text for number in all_numbers(wild)}
    assert texts["delta_f_kT"].endswith("± unknown")
    assert texts["delta_f_kJ_mol"].endswith("± unknown")
    assert not {"std_error_correlation_kT", "independent"} & set(texts)
    assert texts["delta_f_kT"] != {n.key: n.text for n in all_numbers(outcome)}["delta_f_kT"]
    told = {number.key: number for number in all_numbers(outcome)}
    tau = outcome.report.autocorrelation
    for independent in (120.0, 121.0):
        few = replace(outcome, report=replace(outcome.report, autocorrelation=tau, independent=independent))
        assert ("independent" in {number.key for number in all_numbers(few)}) == (independent == 120.0)
    assert re.match(r"\d+ in, \d+ out; \d of 6 walkers were in both", told["crossings"].remark)


@pytest.mark.slow
def test_a_bias_is_sampled_as_it_is_given(whole, workplace):
    shutil.copytree(whole / "well_tempered", workplace / "first")
    text = CONFIG.replace("  kind: well", "  start_from: [first/HILLS]\n  kind: well").replace("0.04 ps", "0 ps")
    (workplace / "given.yaml").write_text(text.replace("fill: 0.1 ps", "fill: 0 ps"))
    output = succeed("run", "given.yaml", "-o", "given")
    assert "burn_in: 0 ps is only 0.0 correlation times" in output
    given = RepulsionBias.from_state_dict(load_state(workplace / "given" / "bias")[0])
    source = RepulsionBias.from_state_dict(load_state(workplace / "first" / "bias")[0])
    assert torch.allclose(given.grid.values, source.grid.values, atol=1e-5)
    assert float(source.grid.values.max()) > 1.0
    found = arrays(workplace / "given" / "weights.npz")
    assert found["log_weights"].shape == (20, 6)
    assert found["log_weights"].max() > 0.01
    assert numbers(workplace / "given")["deposits"]["value"] == 0
    assert (workplace / "given" / "HILLS").read_bytes().count(b"\n") > 60
    assert not {"COLVAR.fill", "filling.png"} & {path.name for path in (workplace / "given").iterdir()}
    succeed("report", "given")


@pytest.mark.slow
def test_a_large_grid_is_not_written_as_text(workplace, monkeypatch):
    monkeypatch.setattr(job, "_MOST_WRITTEN", 100)
    succeed("run", "well_tempered.yaml", "-o", "out")
    assert not (workplace / "out" / "bias.dat").exists()
    assert (workplace / "out" / "bias").is_dir()
    wide = OPES.replace("psi: {sigma: 0.3 rad}", "d: {sigma: 0.02 nm, range: 0.34 nm .. 0.4 nm}")
    (workplace / "wide.yaml").write_text(wide)
    monkeypatch.setattr(bias_module, "_MOST_NODES", 1000)
    output = " ".join(succeed("run", "wide.yaml", "-o", "wide").split())
    assert "nodes, too many: its kernels were summed without one" in output
    assert "sigma of d is 0.33 of the variable's range" in output


@pytest.mark.slow
def test_exploding_walkers_are_a_message(workplace):
    text = complaint("run", "well_tempered.yaml", "-o", "out", "--set", "dynamics.time_step=15 fs")
    assert "lost their finite energy" in text
    assert "use a shorter time step" in text


# --- killed and resumed -----------------------------------------------------------------------------------------------


def assert_same_run(first, second, kind):
    assert same(arrays(first / "weights.npz"), arrays(second / "weights.npz"))
    for name in {"COLVAR", "COLVAR.fill", "metrics.jsonl", "bias.dat", "fes.dat"} | OWN[kind]:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    frames = [read_trajectory(path / "samples.dcd", path / "samples.pdb")[0] for path in (first, second)]
    assert torch.equal(*frames)
    states = [load_state(path / "checkpoint" / "state")[0] for path in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    told = [{k: v for k, v in numbers(path).items() if k != "wall_seconds"} for path in (first, second)]
    assert told[0] == told[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "records"),
    [("well_tempered", 4), ("well_tempered", 25), ("opes", 7), ("opes", 11)],  # in filling, burn-in and production
)
def test_a_killed_run_ends_with_the_same_bits(whole, workplace, kind, records):
    killed("run", f"{kind}.yaml", "-o", "killed", code=DEADLY.format(records=records, seconds=0.0))
    folder = RunFolder(workplace / "killed")
    assert not folder.complete
    kept = load_state(folder.checkpoint / "state")[1]["files"]
    assert all((folder.path / name).stat().st_size >= size for name, size in kept.items())
    assert folder.metrics.stat().st_size > kept["metrics.jsonl"]  # something to be cut back
    succeed("resume", "killed")
    assert_same_run(whole / kind, workplace / "killed", kind)


def stopped(*words, code):
    """What a command prints that Ctrl-C ends."""
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 130, found.stderr
    assert "Traceback" not in found.stderr
    return found.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "records"), [("well_tempered", 3), ("well_tempered", 20), ("opes", 11)])
def test_an_interrupted_run_keeps_the_record_at_hand_and_ends_with_the_same_bits(whole, workplace, kind, records):
    output = stopped("run", f"{kind}.yaml", "-o", "out", code=INTERRUPTED.format(records=records, times=1))
    assert "go on with: feynkac resume out (from its last checkpoint" in output
    folder = RunFolder(workplace / "out")
    assert not folder.complete
    steps = int(load_state(folder.checkpoint / "state")[0]["run.walkers.steps"])
    assert steps == (5 * records if records <= 10 else 50 + 10 * (records - 10))  # nothing is lost
    kept = rows(folder.metrics)
    succeed("resume", "out")
    assert rows(folder.metrics)[: len(kept)] == kept
    assert_same_run(whole / kind, workplace / "out", kind)


@pytest.mark.slow
def test_ctrl_c_twice_stops_at_once(workplace):
    stopped("run", "well_tempered.yaml", "-o", "out", code=INTERRUPTED.format(records=12, times=2))
    assert not (workplace / "out" / "checkpoint").exists()


@pytest.mark.slow
def test_another_seed_is_another_run(whole, workplace):
    succeed("run", "opes.yaml", "-o", "other", "--set", "sampling.seed=4")
    assert not same(arrays(whole / "opes" / "weights.npz"), arrays(workplace / "other" / "weights.npz"))
    with pytest.raises(AssertionError):
        assert_same_run(whole / "opes", workplace / "other", "opes")


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_again(whole, workplace):
    killed("run", "well_tempered.yaml", "-o", "killed", code=DEADLY.format(records=6, seconds=1e9))
    assert (workplace / "killed" / "HILLS").exists()
    assert not (workplace / "killed" / "checkpoint").exists()
    succeed("resume", "killed")
    assert_same_run(whole / "well_tempered", workplace / "killed", "well_tempered")


@pytest.mark.slow
def test_a_run_that_was_tampered_with_is_not_resumed(workplace):
    killed("run", "well_tempered.yaml", "-o", "killed", code=DEADLY.format(records=25, seconds=0.0))
    path = workplace / "killed" / "HILLS"
    path.write_bytes(path.read_bytes()[:-200])
    assert "HILLS: shorter than at the last checkpoint" in complaint("resume", "killed")


@pytest.mark.slow
def test_hills_of_one_run_start_another(whole, workplace, monkeypatch):
    shutil.copytree(whole / "well_tempered", workplace / "first")
    shutil.copytree(whole / "opes", workplace / "third")
    monkeypatch.setattr(journal, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    more = CONFIG.replace("  kind: well", "  start_from: [first/HILLS]\n  kind: well")
    (workplace / "more.yaml").write_text(more)
    succeed("run", "more.yaml", "-o", "second")
    hills = read_hills(workplace / "second" / "HILLS")
    assert len(hills) == 120
    bias = RepulsionBias.from_state_dict(load_state(workplace / "second" / "bias")[0])
    setup = Setup.build(load_config(workplace / "well_tempered.yaml", MetadynamicsConfig))
    points = torch.tensor([[-1.5, 1.0], [1.0, 0.3]], dtype=torch.float64)
    assert torch.allclose(setup.bias.with_hills(hills_of(hills))(points), bias(points), atol=1e-9)
    assert numbers(workplace / "second")["deposits"]["remark"].startswith("60 hills")
    (workplace / "again.yaml").write_text(OPES.replace("  kind: opes", "  start_from: [third/STATE]\n  kind: opes"))
    succeed("run", "again.yaml", "-o", "fourth")
    state = read_opes_state(workplace / "fourth" / "STATE").state
    assert state.counter == 121
    text = complaint("run", "again.yaml", "-o", "fifth", "--set", "bias.barrier=30 kJ/mol")
    assert "is of a barrier of 40 kJ/mol" in text


# --- against numbers from elsewhere -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["metad", "opes"])
def test_the_difference_of_alanine_dipeptide(workplace, kind):
    """The shipped configs, shorter: within four joint errors of replica exchange, and the growing bias is not."""
    place = resolve(f"data:configs/{kind}_alanine_dipeptide.yaml", Path())
    short = ["dynamics.walkers=160", "dynamics.fill=15 ps", "dynamics.burn_in=10 ps", "dynamics.production=25 ps"]
    options = [word for setting in short for word in ("--set", setting)]
    succeed("run", str(place), "-o", "out", *options)
    found = numbers(workplace / "out")
    value, error = found["delta_f_kT"]["value"], found["delta_f_kT"]["error"]
    known = found["reference.delta_f_kT"]
    assert error < 0.3
    assert abs(value - known["value"]) < 4.0 * math.hypot(error, known["error"])
    assert found["std_error_correlation_kT"]["value"] == pytest.approx(error, rel=0.6)
    weights = arrays(workplace / "out" / "weights.npz")
    inside = torch.from_numpy((weights["variable_phi"] > 0.0) & (weights["variable_phi"] < 2.0)).reshape(-1)
    unweighted = free_energy_difference(inside, torch.zeros(len(inside)), kT=1.0, bootstrap=0)
    assert abs(unweighted.value - known["value"]) > 1.0  # the biased law is another one
