"""`feynkac run`, `resume` and `report` from end to end on alanine dipeptide, with a proposal that is a plugin."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from feynkac.cli.paths import resolve
from feynkac.cli.run_folder import RunFolder
from feynkac.molecular.cvs import Torsion
from feynkac.molecular.io import read_colvar, read_fes, read_trajectory, read_weights
from feynkac.molecular.systems import load_system

from .command import call, killed

pytest.importorskip("openmm")
pytest.importorskip("mdtraj")

PROPOSAL = '''\
"""A Gaussian around the structure of the PDB file: a poor proposal, but one with an exact density."""
import math, os, signal
import torch
from feynkac.flows.proposal import ProposalFacts

class Gaussian:
    def __init__(self, system, width=0.002, kill_after=0):
        self.mean, self.width, self.kill_after, self.drawn = system.positions, width, kill_after, 0
        self.event_shape = tuple(self.mean.shape)
        self.facts = ProposalFacts(
            base_measure="euclidean", unit="nm", density="exact", fingerprint=f"gaussian {width}"
        )

    def sample_and_log_prob(self, n, *, generator, context=None):
        if os.environ.get("KILL_AFTER") and self.drawn >= int(os.environ["KILL_AFTER"]):
            os.kill(os.getpid(), signal.SIGKILL)
        self.drawn += n
        noise = torch.randn(n, *self.event_shape, generator=generator, dtype=torch.float64)
        x = self.mean + self.width * noise
        return x, self.log_prob(x)

    def log_prob(self, x, *, context=None):
        z = ((x - self.mean) / self.width).flatten(1)
        return -0.5 * (z * z).sum(1) - z.shape[1] * math.log(self.width * math.sqrt(2 * math.pi))

class harmonic:
    """A harmonic well around the same structure: weights of a known, mild spread."""
    def __init__(self, system, temperature, width):
        self.mean, self.kT, self.width, self.n_calls = system.positions, 0.00831446 * temperature, width, 0

    def __call__(self, x):
        self.n_calls += len(x)
        return self.kT * 0.5 * (((x - self.mean) / self.width) ** 2).flatten(1).sum(1)

def tilted(name, shift=0.0):
    class Height:
        period, unit = None, "nm"
        def __init__(self): self.name = name
        def __call__(self, x): return x[:, 8, 2] + shift
    return Height()
'''

CONFIG = """\
job: free_energy
name: small
system:
  pdb: data:molecules/alanine_dipeptide.pdb
  force_field: [amber99sbildn.xml, amber99_obc.xml]
  temperature: 300 K
energy: {engine: "gaussian_for_tests:harmonic", options: {width: 0.0021}}
proposal: {plugin: "gaussian_for_tests:Gaussian", options: {width: 0.002}}
sampling: {samples: 600, chunk_size: 100, seed: 3}
analysis:
  variables:
    phi: {torsion: ["ACE1:C", "ALA2:N", "ALA2:CA", "ALA2:C"]}
    psi: {torsion: [6, 8, 14, 16]}
    z: {plugin: "gaussian_for_tests:tilted", options: {shift: 0.1}, range: 0 nm .. 0.2 nm}
  surface: {variables: [phi, psi], bins: [90, 90], bootstrap: 10}
  profiles: [phi, z]
  difference: {variable: phi, region: START rad .. 3.1 rad}
"""


FORCE_FIELD = 'energy: {engine: "gaussian_for_tests:harmonic", options: {width: 0.0021}}\n'
"""Left out of the config, the energy is that of the force field, which the proposal serves badly."""


def reference_phi() -> float:
    built = load_system(resolve("data:molecules/alanine_dipeptide.pdb", Path()), force_field=["amber99sbildn.xml"])
    return float(Torsion(4, 6, 8, 14)(built.positions[None]))


CONFIG = CONFIG.replace("START", f"{reference_phi():.4f}")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "gaussian_for_tests.py").write_text(PROPOSAL)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "gaussian_for_tests", raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return tmp_path


def complaint(*arguments: str) -> str:
    """The single line that a refused command prints."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_run_writes_everything(workplace):
    result = call("run", "config.yaml", "--output", "out")
    assert result.exit_code == 0, result.output
    out = workplace / "out"
    names = {p.name for p in out.iterdir()}
    assert names >= {
        "config.yaml", "metrics.jsonl", "checkpoint", "samples.dcd", "samples.pdb", "weights.npz", "COLVAR",
        "fes.dat", "fes_uncertainty.dat", "fes_phi.dat", "fes_z.dat", "results.json", "report.html",
        "fes.png", "density.png", "profiles.png", "weights.png", "running.png",
    }  # fmt: skip
    arrays = read_weights(out / "weights.npz")
    assert arrays["log_weights"].shape == (600,)
    positions, topology = read_trajectory(out / "samples.dcd", out / "samples.pdb")
    assert positions.shape == (600, 22, 3)
    assert topology.n_atoms == 22
    colvar = read_colvar(out / "COLVAR").columns
    torch.testing.assert_close(colvar["phi"], arrays["variable_phi"], rtol=0, atol=1e-8)
    torch.testing.assert_close(colvar["proposal.bias"], float(arrays["kT"]) * arrays["log_weights"], rtol=0, atol=1e-8)
    assert read_fes(out / "fes.dat").free_energy.shape == (90, 90)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["samples"] for m in metrics] == [100, 200, 300, 400, 500, 600]
    assert {"ess", "energy_calls", "energy_calls_per_second", "log_evidence"} <= set(metrics[0])
    numbers = json.loads((out / "results.json").read_text())["numbers"]
    assert numbers["samples"]["value"] == 600
    assert numbers["energy_calls"]["value"] == 600
    # The target is a Gaussian in 66 dimensions: log Z = 66 ln(sigma sqrt(2 pi)).
    log_z = numbers["log_evidence"]
    assert abs(log_z["value"] - 66 * math.log(0.0021 * math.sqrt(2 * math.pi))) < 5 * log_z["error"]
    assert metrics[-1]["log_evidence"] == log_z["value"]
    assert metrics[-1]["ess"] == pytest.approx(numbers["ess"]["value"], abs=0.06)
    for word in ("samples", "energy calls", "raw weights", "Pareto-smoothed", "k-hat", "log Z", "ΔF", "fes.png"):
        assert word in result.stdout


def test_the_report_stands_alone_and_lists_every_number(workplace):
    assert call("run", "config.yaml", "-o", "out").exit_code == 0
    page = (workplace / "out" / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png") == 5
    for number in json.loads((workplace / "out" / "results.json").read_text())["numbers"].values():
        assert number["label"].replace("<", "&lt;") in page
    assert "How to cite" in page
    assert "pdb: data:molecules/alanine_dipeptide.pdb" in page


def test_a_hopeless_proposal_is_called_one(workplace):
    (workplace / "config.yaml").write_text(CONFIG.replace(FORCE_FIELD, ""))
    result = call("run", "config.yaml", "-o", "out", "-s", "sampling.samples=300")
    assert result.exit_code == 0, result.output
    assert "warning: Pareto k-hat is" in result.stdout
    assert "do not trust" in result.stdout
    assert "effective samples" in result.stdout
    page = (workplace / "out" / "report.html").read_text()
    assert "too heavy a tail" in page


def test_report_draws_again_and_leaves_the_data(workplace):
    assert call("run", "config.yaml", "-o", "out").exit_code == 0
    out = workplace / "out"
    data = {p.name: p.read_bytes() for p in out.iterdir() if p.suffix in {".npz", ".dcd", ".dat"}}
    page = (out / "report.html").read_text()
    for name in ("report.html", "fes.png"):
        (out / name).unlink()
    result = call("report", "out")
    assert result.exit_code == 0, result.output
    assert (out / "report.html").read_text() == page
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.name in data} == data


def test_the_resolved_config_repeats_the_run_bit_for_bit(workplace):
    assert call("run", "config.yaml", "-o", "out", "--set", "sampling.seed=9").exit_code == 0
    result = call("run", "out/config.yaml", "-o", "again")
    assert result.exit_code == 0, result.output
    assert (workplace / "out" / "weights.npz").read_bytes() == (workplace / "again" / "weights.npz").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 4])
def test_a_killed_run_resumes_to_the_same_bits(workplace, chunks):
    assert call("run", "config.yaml", "-o", "whole").exit_code == 0
    killed("run", "config.yaml", "-o", "killed", PYTHONPATH=str(workplace), KILL_AFTER=str(100 * chunks))
    folder = RunFolder(workplace / "killed")
    assert not folder.complete
    assert len(folder.metrics.read_text().splitlines()) == chunks
    result = call("resume", "killed")
    assert result.exit_code == 0, result.output
    whole, resumed = (read_weights(workplace / name / "weights.npz") for name in ("whole", "killed"))
    assert list(whole) == list(resumed)
    for name, array in whole.items():
        assert torch.equal(array, resumed[name]), name
    metrics = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [m["samples"] for m in metrics] == [100, 200, 300, 400, 500, 600]
    assert "complete" in complaint("resume", "killed")


def test_existing_folders_are_refused_before_any_work(workplace, monkeypatch):
    (workplace / "out").mkdir()
    (workplace / "out" / "mine").write_text("mine")
    monkeypatch.setattr("feynkac.cli.build.build_system", lambda config: pytest.fail("work was done"))
    assert "out exists already" in complaint("run", "config.yaml", "-o", "out")
    assert [p.name for p in (workplace / "out").iterdir()] == ["mine"]


@pytest.mark.slow
def test_default_folders_are_numbered(workplace):
    for number in ("001", "002"):
        assert call("run", "config.yaml", "-s", "sampling.samples=100").exit_code == 0
        assert (workplace / "runs" / f"small-{number}" / "results.json").is_file()


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("chunk_size", "chunksize", ["config.yaml, line 9", "sampling.chunksize", "did you mean 'chunk_size'"]),
        ("300 K", "300 nm", ["line 6", "wrong unit 'nm'", "units: K"]),
        ("data:molecules/alanine_dipeptide.pdb", "absent.pdb", ["line 4", "there is no", "absent.pdb"]),
        ("amber99sbildn.xml", "amber99sbildm.xml", ["force_field", "amber99sbildm.xml"]),
        ("gaussian_for_tests:Gaussian", "gaussian_for_tests:Gauss", ["has no 'Gauss'"]),
        ("options: {width: 0.002}", "options: {wide: 1}", ["does not accept its options"]),
        ("ALA2:CA", "ALA2:CX", ["no atom 'ALA2:CX'", "ALA2:CA"]),
        ("[6, 8, 14, 16]", "[6, 8, 14, 99]", ["99 is past the last of 22 atoms"]),
        (CONFIG.split("region: ")[1].split("}")[0], "0 nm .. 1 nm", ["phi is measured in rad"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_makes_no_folder(workplace, old, new, parts):
    assert old in CONFIG
    (workplace / "config.yaml").write_text(CONFIG.replace(old, new))
    line = complaint("run", "config.yaml", "-o", "out")
    assert all(part in line for part in parts), line
    assert not (workplace / "out").exists()


def test_structures_that_do_not_fit_the_force_field(workplace):
    whole = resolve("data:molecules/alanine_dipeptide.pdb", Path()).read_text().splitlines(keepends=True)
    config = CONFIG.replace("data:molecules/alanine_dipeptide.pdb", "mine.pdb")
    (workplace / "config.yaml").write_text(config)
    (workplace / "mine.pdb").write_text("".join(line for line in whole if " HB2 ALA" not in line))
    line = complaint("run", "config.yaml", "-o", "out")
    assert "ALA" in line
    assert "HB2" in line
    (workplace / "mine.pdb").write_text("".join(whole).replace("ALA A", "XYZ A"))
    assert "XYZ" in complaint("run", "config.yaml", "-o", "out")
    assert not (workplace / "out").exists()


def test_a_truncated_checkpoint_passes_its_message_on(workplace):
    environment = os.environ | {"PYTHONPATH": str(workplace), "KILL_AFTER": "200"}
    command = [sys.executable, "-c", "from feynkac.cli.main import main; main()", "run", "config.yaml", "-o", "cut"]
    subprocess.run(command, env=environment, capture_output=True, check=False)
    largest = max((workplace / "cut" / "checkpoint").rglob("*.safetensors"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])
    assert largest.name in complaint("resume", "cut")


def test_resume_and_report_refuse_what_is_no_run(workplace):
    assert "no such folder" in complaint("resume", "nowhere")
    (workplace / "empty").mkdir()
    assert "has no config.yaml" in complaint("report", "empty")


@pytest.mark.slow
def test_unfinished_runs_have_no_report_and_changed_inputs_stop_a_resume(workplace):
    pdb = workplace / "mine.pdb"
    pdb.write_text(resolve("data:molecules/alanine_dipeptide.pdb", Path()).read_text())
    config = CONFIG.replace("data:molecules/alanine_dipeptide.pdb", "mine.pdb")
    (workplace / "config.yaml").write_text(config)
    environment = os.environ | {"PYTHONPATH": str(workplace), "KILL_AFTER": "100"}
    command = [sys.executable, "-c", "from feynkac.cli.main import main; main()", "run", "config.yaml", "-o", "cut"]
    subprocess.run(command, env=environment, capture_output=True, check=False)
    assert "feynkac resume cut" in complaint("report", "cut")
    pdb.write_text(pdb.read_text() + "REMARK edited\n")
    assert "system.pdb changed since" in complaint("resume", "cut")


def test_doctor_runs(monkeypatch):
    result = call("doctor", "--no-measure")
    assert result.exit_code == 0, result.output
    for word in ("torch", "openmm", "CUDA", "kernel", "cores"):
        assert word in result.stdout
