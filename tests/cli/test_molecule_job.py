"""`feynkac run`, `resume` and `report` of a molecule's model taken to another temperature."""

import json
import math

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("openmm")
pytest.importorskip("mdtraj")

import itertools

from feynkac.cli.molecule.build import Molecule
from feynkac.cli.molecule.config import MoleculeConfig
from feynkac.cli.paths import resolve
from feynkac.cli.run_folder import RunFolder
from feynkac.cli.validation import load_config
from feynkac.fkc.streams import generator_for
from feynkac.molecular.anneal import BondEnergy, WeightedFrames, noise_ratios
from feynkac.molecular.free_energy import Region
from feynkac.molecular.io import read_trajectory
from feynkac.molecular.pipeline import DifferenceRequest
from feynkac.molecular.systems import load_system
from feynkac.molecular.units import kT
from feynkac.steering import Annealed, attach

from .command import arrays, complaint, killed, same, succeed

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

CONFIG = """\
job: annealed_molecule
name: cold
pipeline: data:alanine_dipeptide_diffusion
model_temperature: 600 K
system:
  pdb: data:molecules/alanine_dipeptide.pdb
  force_field: [amber99sbildn.xml, amber99_obc.xml]
  temperature: 300 K
model: {draws: 32, steps: 12}
sampling: {particles: 8, populations: 2, steps: 12, seed: 3}
analysis:
  variables:
    phi: {torsion: [4, 6, 8, 14]}
    psi: {torsion: [6, 8, 14, 16]}
  surface: {variables: [phi, psi], bins: [12, 12], bootstrap: 5}
  profiles: [phi]
  profile_bins: 12
  difference: {variable: phi, region: 0 rad .. 2 rad}
reference: data:references/alanine_dipeptide_300K.json
"""
FILES = {
    "COLVAR",
    "COLVAR.model",
    "fes.dat",
    "fes_phi.dat",
    "fes_phi_uncertainty.dat",
    "fes_uncertainty.dat",
    "samples.dcd",
    "samples.pdb",
    "model.dcd",
    "model.pdb",
    "weights.npz",
    "surfaces.png",
    "profiles.png",
    "bonds.png",
    "path.png",
    "weights.png",
    "report.html",
    "results.json",
    "metrics.jsonl",
    "config.yaml",
}
DEADLY = """\
import os, signal
from feynkac.cli.molecule import build as molecule_build
whole = molecule_build.Molecule.draw_cold
def deadly(self, population, spread, began, *, weighted):
    if population == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, population, spread, began, weighted=weighted)
molecule_build.Molecule.draw_cold = deadly
from feynkac.cli.main import main
main()
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cold.yaml").write_text(CONFIG)
    return tmp_path


# --- the config -----------------------------------------------------------------------------------------------------


def test_the_shipped_config_is_valid():
    config = load_config(resolve("data:configs/anneal_alanine_dipeptide.yaml", None), MoleculeConfig)
    assert config.exponent == 2.0
    assert config.sampling.populations >= 4


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sampling.particle", "9", "sampling.particle: unknown key; did you mean 'particles'?"),
        ("sampling.particles", "1", "sampling.particles = 1"),
        ("sampling.ess_threshold", "1.5", "sampling.ess_threshold = 1.5"),
        ("sampling.resampler", "magic", "expected multinomial"),
        ("system.temperature", "700 K", "must not be above model_temperature (600 K)"),
        ("system.constraints", "HBonds", "must be none"),
        ("model_temperature", "600", "a temperature such as '300 K'"),
        ("pipeline", "data:alanine_dipeptide_diffusio", "feynkac ships no data called 'alanine_dipeptide_diffusio'"),
        ("pipeline", "data:alanine_dipeptide_flow", "it has no model_index.json"),
        ("model_temperature", "500 K", "its card says 600 K"),
        ("system.pdb", "data:molecules/chignolin.pdb", "pipeline = 'data:alanine_dipeptide_diffusion': topology"),
        ("system.temperature", "310 K", "is of 300 K, not of 310 K"),
        ("reference", "data:molecules/alanine_dipeptide.pdb", "reference = 'data:molecules/alanine_dipeptide.pdb'"),
    ],
)
def test_a_wrong_config_is_explained_before_anything_is_made(workplace, key, value, said):
    text = complaint("run", "cold.yaml", "-o", "out", "--set", f"{key}={value}")
    assert said in text
    assert not (workplace / "out").exists()


# --- what is computed -----------------------------------------------------------------------------------------------


def frames(log_weights, groups, values):
    blank = torch.zeros_like(values)
    return WeightedFrames(
        log_weights=log_weights, groups=groups, energies=values, bond_energies=blank, variables={"phi": values}, kT=2.5
    )


def test_errors_of_means_are_those_of_independent_groups():
    generator = torch.Generator().manual_seed(1)
    means, told, naive = [], [], []
    for _ in range(300):
        shared = torch.randn(40, 1, generator=generator, dtype=torch.float64)  # what the members of a group have alike
        values = (shared + 0.3 * torch.randn(40, 5, generator=generator, dtype=torch.float64)).reshape(-1)
        log_weights = 0.5 * torch.randn(200, generator=generator, dtype=torch.float64)
        groups = torch.arange(40).repeat_interleave(5)
        mean, error = frames(log_weights, groups, values).mean(values)
        means.append(mean)
        told.append(error)
        naive.append(frames(log_weights, torch.arange(200), values).mean(values)[1])
    true = float(torch.tensor(means).std())
    assert abs(float(torch.tensor(told).mean()) / true - 1.0) < 0.12
    assert float(torch.tensor(naive).mean()) / true < 0.7  # what taking relatives for strangers would say


def test_frames_without_weight_do_not_count():
    values = torch.tensor([1.0, 2.0, float("inf")], dtype=torch.float64)
    log_weights = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64)
    found = frames(log_weights, torch.arange(3), values)
    assert found.mean(values)[0] == 1.5
    assert found.effective_groups == pytest.approx(2.0)
    request = DifferenceRequest(variable="phi", region=Region(0.0, 1.5, None), bootstrap=0)
    with pytest.warns(UserWarning, match="effective samples"):
        assert found.difference(request).value == pytest.approx(0.0)


def test_bonds_cost_what_openmm_says_and_their_law_is_a_density():
    openmm = pytest.importorskip("openmm")
    system = load_system(
        resolve("data:molecules/alanine_dipeptide.pdb", None), force_field=("amber99sbildn.xml", "amber99_obc.xml")
    )
    bonds = BondEnergy(system.system)
    for force in system.system.getForces():
        force.setForceGroup(1 if isinstance(force, openmm.HarmonicBondForce) else 0)
    context = openmm.Context(
        system.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(system.positions.numpy())
    wanted = context.getState(getEnergy=True, groups={1}).getPotentialEnergy()._value
    assert float(bonds(system.positions[None])[0]) == pytest.approx(wanted, rel=1e-9)
    whole = context.getState(getEnergy=True).getPotentialEnergy()._value
    assert abs(whole - wanted) > 1.0  # the energy of everything is another number
    grid = torch.linspace(1e-3, 400.0, 400_000, dtype=torch.float64)
    density = bonds.log_density(grid, kT(300.0)).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-6)
    assert float(torch.trapezoid(density * grid, grid)) == pytest.approx(bonds.count * kT(300.0) / 2, rel=1e-6)


def test_noise_ratios_cover_the_range():
    found = noise_ratios(0.002, 30.0)
    assert found[0] == 0.002
    assert found[-1] == pytest.approx(30.0)
    assert max(b / a for a, b in itertools.pairwise(found)) <= 1.6 + 1e-9
    with pytest.raises(ValueError, match="noise range"):
        noise_ratios(1.0, 0.5)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_both_weights_of_one_run_are_those_of_two(workplace):
    """What is carried before the last correction is the weight of a run that makes none."""
    molecule = Molecule.build(load_config(workplace / "cold.yaml", MoleculeConfig))
    spread = molecule.spread(molecule.draw_model()["positions"])
    found = molecule.draw_cold(1, spread, lambda run: None, weighted=True)
    plain = Annealed(2.0, std=spread, space=molecule.space, control="score")
    noise = torch.randn((8, 22, 3), generator=generator_for(3, 2**30 + 3 + 1))
    with attach(molecule.pipe, plain, particles=8, seed=3, transition="stochastic", first_population=1) as run:
        molecule.pipe(8, num_inference_steps=12, latents=noise, output_type="latent")
    weights = found["log_weights"]
    assert torch.allclose(weights.softmax(0), run.weights[0], rtol=1e-9, atol=1e-12)
    assert float(weights.logsumexp(0)) == pytest.approx(float(run.log_evidence[0]) + math.log(8))
    assert not torch.allclose(found["log_weights_energy"].softmax(0), run.weights[0], rtol=1e-2)
    apart = molecule.draw_cold(1, spread, lambda run: None, weighted=False)
    assert not bool(apart["resampled"].any())
    assert bool(found["resampled"].any())


@pytest.mark.slow
def test_a_run_leaves_everything(workplace):
    output = succeed("run", "cold.yaml", "-o", "out")
    out = workplace / "out"
    assert {p.name for p in out.iterdir() if p.is_file()} == FILES
    assert {p.name for p in out.iterdir() if p.is_dir()} == {"checkpoint", "model", "annealed"}
    assert "with weights and energies" in output
    found = arrays(out / "weights.npz")
    assert found["log_weights"].shape == found["log_weights_energy"].shape == found["energies"].shape == (2, 8)
    assert found["ess"].shape == (2, 12)
    assert found["model.energies"].shape == (32,)
    assert found["unweighted.variable_phi"].shape == (8,)
    positions, _ = read_trajectory(out / "samples.dcd", out / "samples.pdb")
    molecule = Molecule.build(load_config(out / "config.yaml", MoleculeConfig))
    energies = molecule.energy(positions.double()).reshape(2, 8)
    assert torch.allclose(energies, torch.from_numpy(found["energies"]), rtol=1e-3)
    recorded = json.loads((out / "results.json").read_text())["numbers"]
    assert recorded["reference.delta_f_kT"]["value"] == pytest.approx(3.841, abs=1e-3)
    assert recorded["exponent"]["value"] == 2.0
    ways = {key.partition(".")[0] for key in recorded if key.endswith(".energy")}
    assert ways == {"model", "unweighted", "annealed", "corrected", "reference"}
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 5
    before = {name: (out / name).read_bytes() for name in ("report.html", "surfaces.png", "results.json")}
    (out / "surfaces.png").unlink()
    (out / "report.html").write_text("nothing")
    succeed("report", "out")
    assert {name: (out / name).read_bytes() for name in before} == before
    assert "complete" in complaint("resume", "out")


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(workplace):
    succeed("run", "cold.yaml", "-o", "whole")
    killed("run", "cold.yaml", "-o", "killed", code=DEADLY)
    folder = RunFolder(workplace / "killed")
    assert not folder.complete
    assert {p.name for p in folder.checkpoint.iterdir()} == {"model", "population-000"}
    succeed("resume", "killed")
    first, second = (arrays(workplace / name / "weights.npz") for name in ("whole", "killed"))
    assert same(first, second)
    texts = [(workplace / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]
    succeed("run", "cold.yaml", "-o", "other", "--set", "sampling.seed=4")
    assert not same(first, arrays(workplace / "other" / "weights.npz"))


@pytest.mark.slow
def test_a_changed_reference_is_not_resumed(workplace):
    place = workplace / "numbers.json"
    place.write_text(resolve("data:references/alanine_dipeptide_300K.json", None).read_text())
    succeed("run", "cold.yaml", "-o", "out", "--set", "reference=numbers.json", "--set", "sampling.compare=false")
    assert not any(name.startswith("unweighted") for name in arrays(workplace / "out" / "weights.npz"))
    (workplace / "out" / "results.json").unlink()
    place.write_text(place.read_text() + "\n")
    assert "reference changed since" in complaint("resume", "out")


@pytest.mark.slow
def test_weights_make_the_model_colder(workplace):
    """One population is enough to see which of the model, the moves and the weights is cold."""
    (workplace / "cold.yaml").write_text(
        CONFIG.replace("{draws: 32, steps: 12}", "{draws: 128, steps: 60}").replace(
            "{particles: 8, populations: 2, steps: 12, seed: 3}",
            "{particles: 64, populations: 1, steps: 250, seed: 3, compare: false}",
        )
    )
    succeed("run", "cold.yaml", "-o", "out")
    found = json.loads((workplace / "out" / "results.json").read_text())["numbers"]
    truth = found["reference.energy"]["value"]
    off = {way: abs(found[f"{way}.energy"]["value"] - truth) for way in ("model", "annealed", "corrected")}
    assert off["corrected"] < 13.5  # the standard deviation of the energy, at a few effective samples
    assert off["annealed"] < 13.5
    assert off["model"] > 40.0  # the model's own draws are of 600 K
    assert found["annealed.ess"]["value"] > found["corrected.ess"]["value"] > 1.5
