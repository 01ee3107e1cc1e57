"""What ships must do what it says: the alanine-dipeptide flow, its config, its reference."""

import json
import math
import statistics
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from feynkac.cli.main import app
from feynkac.flows import importance_sample, load_flow
from feynkac.molecular.cvs import Torsion
from feynkac.molecular.energies import BatchedForceField
from feynkac.molecular.free_energy import free_energy_difference
from feynkac.molecular.systems import load_system

DATA = Path(str(files("feynkac.data")))


@pytest.fixture(scope="module")
def energy():
    pdb = DATA / "molecules" / "alanine_dipeptide.pdb"
    built = load_system(pdb, force_field=["amber99sbildn.xml", "amber99_obc.xml"])
    return BatchedForceField.from_openmm(built.system, topology=built.topology, dtype=torch.float64)


@pytest.fixture(scope="module")
def repeats(energy):
    """Twenty runs of 4,000 draws: the result and the free-energy difference of each."""
    flow = load_flow(DATA / "alanine_dipeptide_flow")
    phi = Torsion(4, 6, 8, 14)
    runs = []
    for repeat in range(20):
        result = importance_sample(flow, energy, 4000, seed=repeat, chunk_size=2000)
        angle = phi(result.x)
        inside = (angle > 0) & (angle < 2)
        runs.append((result, free_energy_difference(inside, result.log_weights, kT=energy.kT, bootstrap=0)))
    return runs


@pytest.fixture(scope="module")
def reference():
    return json.loads((DATA / "references" / "alanine_dipeptide_300K.json").read_text())


@pytest.mark.slow
def test_the_proposal_is_efficient(repeats):
    fractions = [result.ess_fraction for result, _ in repeats]
    assert statistics.median(fractions) > 0.8
    assert min(fractions) > 0.25
    assert all(result.n_nonfinite == 0 for result, _ in repeats)
    assert all(result.pareto.khat < 0.7 for result, _ in repeats)


@pytest.mark.slow
def test_free_energy_agrees_with_the_long_reference(repeats, reference):
    values = [difference.value for _, difference in repeats]
    error = math.hypot(statistics.stdev(values) / math.sqrt(20), reference["delta_f_kT"]["std_error"])
    # ln of a ratio of averages is biased by half its variance, here below 0.02
    assert abs(statistics.fmean(values) - reference["delta_f_kT"]["value"]) < 3 * error + 0.02


@pytest.mark.slow
def test_error_bars_are_honest(repeats):
    """The spread of twenty repeats is known to one part in six: three of those on either side."""
    ratio = statistics.stdev([d.value for _, d in repeats]) / statistics.fmean([d.std_error for _, d in repeats])
    assert 0.6 < ratio < 1.6
    evidences = [result.log_evidence for result, _ in repeats]
    stated = statistics.fmean([result.log_evidence_std_error for result, _ in repeats])
    assert 0.6 < statistics.stdev(evidences) / stated < 1.6


@pytest.mark.slow
def test_other_averages_agree_with_the_reference(repeats, reference):
    """Energy and torsions, which the proposal was not tuned for one by one."""
    phi = Torsion(4, 6, 8, 14)
    for name, function in (("cos_phi", lambda x: phi(x).cos()), ("sin_phi", lambda x: phi(x).sin())):
        values = torch.stack([result.mean(function) for result, _ in repeats])
        error = math.hypot(values.std().item() / math.sqrt(20), reference[name]["std_error"])
        assert abs(values.mean().item() - reference[name]["value"]) < 4 * error
    energies = []
    for result, _ in repeats:
        weights = (result.log_weights - result.log_weights.logsumexp(0)).exp()
        energies.append((weights * result.energies).sum().item())
    # the reference's dynamics has a time-step error of a few hundredths of kJ/mol in the energy
    error = math.hypot(statistics.stdev(energies) / math.sqrt(20), reference["energy_kJ_mol"]["std_error"])
    assert abs(statistics.fmean(energies) - reference["energy_kJ_mol"]["value"]) < 4 * error + 0.1


def test_what_ships_is_small():
    for file in DATA.rglob("*"):
        assert not file.is_file() or file.stat().st_size < 5_000_000, file


@pytest.mark.slow
def test_the_shipped_config_runs(tmp_path):
    output = tmp_path / "run"
    arguments = ["run", "data:configs/alanine_dipeptide.yaml", "--output", str(output)]
    outcome = CliRunner().invoke(app, [*arguments, "--set", "sampling.samples=3000"])
    assert outcome.exit_code == 0, outcome.output
    assert "3,000" in outcome.output
    written = {path.name for path in output.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "samples.dcd", "samples.pdb", "weights.npz", "COLVAR", "fes.dat"} <= written
    assert {"report.html", "fes.png"} <= written
    arrays = np.load(output / "weights.npz", allow_pickle=False)
    assert len(arrays["log_weights"]) == 3000
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists" in again.output
