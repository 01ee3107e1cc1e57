"""`feynkac train` on a molecule's diffusion pipeline: a very small job, its resume to the bit, mistakes in configs."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

pytest.importorskip("openmm")
pytest.importorskip("diffusers")

from feynkac.cli.errors import UserError
from feynkac.cli.kinds import job_kind
from feynkac.cli.paths import resolve
from feynkac.cli.run_folder import RunFolder
from feynkac.cli.training import diffusion_job
from feynkac.cli.training.diffusion_config import DiffusionTrainConfig
from feynkac.cli.training.frames import training_inputs
from feynkac.cli.validation import load_config
from feynkac.molecular.diffusion import MoleculePipeline
from feynkac.molecular.diffusion.training import DenoiserFit

from .command import call

SMALL = """\
job: train_diffusion
name: tiny
system:
  pdb: data:molecules/alanine_dipeptide.pdb
  force_field: [amber99sbildn.xml, amber99_obc.xml]
  temperature: 400 K
energy: {precision: single}
dynamics:
  highest_temperature: 500 K
  replicas: 2
  ladders: 4
  melt: 0.2 ps
  burn_in: 0.2 ps
  production: 2 ps
  exchange_steps: 10
  time_step: 1 fs
  friction: 2 /ps
  seed: 1
denoiser: {width: 8, blocks: 1, embedding: 8}
fitting: {frames: 300, held_out_ladders: 1, steps: 6, batch_size: 16, warmup: 2, evaluate_every: 2, seed: 1}
quality: {samples: 8, steps: [3], torsions: {phi: [4, 6, 8, 14]}}
"""


class Stop(Exception):
    """Stands for a kill."""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return tmp_path


def parameters(folder: str):
    return load_file(Path(folder) / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_pipeline_is_trained_and_a_killed_run_ends_with_its_bits(workplace, monkeypatch):
    result = call("train", "small.yaml", "-o", "whole")
    assert result.exit_code == 0, result.output
    pipe = MoleculePipeline.from_pretrained("whole/pipeline", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(2, 2, torch.Generator().manual_seed(0)).positions.shape == (2, 22, 3)
    assert pipe.topology.atom_names[8] == "CA"
    card = json.loads(Path("whole/pipeline/card.json").read_text())
    assert card["temperature_K"] == 400.0
    assert card["seeds"] == {"dynamics": 1, "network": 0, "fit": 1}
    quality = json.loads(Path("whole/pipeline/quality.json").read_text())
    assert RunFolder.open(Path("whole")).results() == {"training": card, "quality": quality}
    assert quality[0]["steps"] == 3
    assert set(quality[0]["bonds"]) == {"C-C", "C-H", "C-N", "C-O", "H-N"}
    metrics = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [2, 4, 6]

    with monkeypatch.context() as patch:  # killed in the middle of the fit
        advance = DenoiserFit.advance

        def stopping(self):
            if self.step == 3:
                raise Stop
            advance(self)

        patch.setattr(DenoiserFit, "advance", stopping)
        assert isinstance(call("train", "small.yaml", "-o", "stopped").exception, Stop)
    folder = RunFolder.open(Path("stopped"))
    assert not folder.complete
    monkeypatch.setattr(diffusion_job, "draw_frames", lambda *a, **k: pytest.fail("the frames were there"))
    result = call("resume", "stopped")
    assert result.exit_code == 0, result.output
    assert same(parameters("stopped"), parameters("whole"))
    assert folder.results()["quality"] == quality
    metrics = [json.loads(line) for line in Path("stopped/metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [2, 4, 6]
    assert call("resume", "stopped").exit_code == 2


def test_another_seed_gives_another_network(workplace):
    """Negative control of the comparison of bits."""
    for name, seed in (("one", 1), ("two", 2)):
        result = call("train", "small.yaml", "-o", name, "-s", f"fitting.seed={seed}")
        assert result.exit_code == 0, result.output
    assert not same(parameters("one"), parameters("two"))


def test_a_changed_molecule_is_noticed(workplace):
    source = resolve("data:molecules/alanine_dipeptide.pdb", Path())
    (workplace / "own.pdb").write_bytes(source.read_bytes())
    (workplace / "small.yaml").write_text(SMALL.replace("data:molecules/alanine_dipeptide.pdb", "own.pdb"))
    config = load_config(workplace / "small.yaml", DiffusionTrainConfig)
    folder = RunFolder.create(workplace / "run", config, training_inputs(config))
    (workplace / "own.pdb").write_text("END\n")
    with pytest.raises(UserError, match=r"system\.pdb changed"):
        job_kind("train_diffusion").resume(Console(quiet=True), folder)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("job: train_diffusion", "job: train_difusion", ["line 1", "did you mean 'train_diffusion'"]),
        ("width: 8", "widht: 8", ["line 19", "denoiser.widht", "did you mean 'width'"]),
        ("width: 8", "lowest_noise: 40.0", ["lowest_noise (40.0) must lie below highest_noise (30.0)"]),
        ("held_out_ladders: 1", "held_out_ladders: 4", ["must be fewer than dynamics.ladders (4)"]),
        ("warmup: 2", "centre: 50.0", ["expected lowest <= centre <= highest, got 0.0015, 50.0, 40.0"]),
        ("500 K", "400 K", ["must lie above system.temperature"]),
        ("[4, 6, 8, 14]", "[4, 6, 8]", ["line 21", "quality.torsions.phi", "at least 4 entries"]),
    ],
)
def test_mistakes_are_named(workplace, old, new, parts):
    assert old in SMALL
    (workplace / "small.yaml").write_text(SMALL.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_config(workplace / "small.yaml", DiffusionTrainConfig)
    lines = str(caught.value).splitlines()
    assert any(all(part in line for part in parts) for line in lines), lines


def test_a_torsion_of_no_atom_leaves_no_folder(workplace):
    (workplace / "small.yaml").write_text(SMALL.replace("[4, 6, 8, 14]", "[4, 6, 8, 22]"))
    result = call("train", "small.yaml", "-o", "out")
    assert result.exit_code == 2
    assert "quality.torsions.phi: atom 22, but the molecule has 22 atoms" in result.stderr
    assert not Path("out").exists()


def test_the_shipped_config_is_valid():
    config = load_config(resolve("data:configs/train_alanine_dipeptide_diffusion.yaml", Path()), DiffusionTrainConfig)
    assert config.system.temperature == 600.0
