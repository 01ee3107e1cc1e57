"""`feynkac train` on a very small job, its resume, and the mistakes in its config."""

import json
from pathlib import Path

import pytest
import torch

from feynkac.cli.errors import UserError
from feynkac.cli.paths import resolve, shipped
from feynkac.cli.training.flow_config import TrainConfig
from feynkac.cli.validation import load_config

from .command import call

pytest.importorskip("openmm")

SMALL = """\
job: train
name: tiny
system:
  pdb: data:molecules/alanine_dipeptide.pdb
  force_field: [amber99sbildn.xml, amber99_obc.xml]
  temperature: 300 K
energy: {precision: single}
dynamics:
  highest_temperature: 400 K
  replicas: 2
  ladders: 4
  melt: 0.2 ps
  burn_in: 0.2 ps
  production: 4 ps
  exchange_steps: 10
  time_step: 1 fs
  friction: 2 /ps
  seed: 1
flow: {hidden: 8, bins: 4, circular_bins: 4}
training:
  held_out_ladders: 1
  evaluate_every: 10
  ess_draws: 64
  seed: 1
  phases:
    - {steps: 20, learning_rate: 1e-3, batch_size: 64, warmup: 2}
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "train.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return tmp_path


def test_a_flow_is_trained_and_can_be_run(workplace):
    from feynkac.flows import load_flow

    result = call("train", "train.yaml", "-o", "out")
    assert result.exit_code == 0, result.output
    assert load_flow(workplace / "out" / "flow").event_shape == (22, 3)
    metrics = [json.loads(line) for line in (workplace / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [10, 20]
    run = (
        SMALL.split("energy:")[0].replace("job: train", "job: free_energy")
        + "proposal: {checkpoint: out/flow}\nsampling: {samples: 50, chunk_size: 25, seed: 1}\n"
        + "analysis:\n  variables: {d: {distance: [4, 14], range: 0 nm .. 1 nm}}\n  profiles: [d]\n"
    )
    (workplace / "run.yaml").write_text(run)
    result = call("run", "run.yaml", "-o", "sampled")
    assert result.exit_code == 0, result.output
    assert (workplace / "sampled" / "fes_d.dat").is_file()


def test_a_stopped_training_goes_on(workplace, monkeypatch):
    from feynkac.cli.training import flow_job

    class Stop(Exception):
        pass

    def stop(self, record):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(flow_job.RunFolder, "append_metrics", stop)
        assert isinstance(call("train", "train.yaml", "-o", "out").exception, Stop)
    assert (workplace / "out" / "frames" / "state.json").is_file()
    monkeypatch.setattr(flow_job, "draw_frames", lambda *a, **k: pytest.fail("the frames were there"))
    result = call("resume", "out")
    assert result.exit_code == 0, result.output
    assert (workplace / "out" / "flow").is_dir()
    assert call("resume", "out").exit_code == 2


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("time_step: 1 fs", "time_step: 1 nm", ["line 16", "dynamics.time_step", "wrong unit 'nm'", "fs, ps, ns"]),
        ("friction: 2 /ps", "friction: 2 ps", ["line 17", "units: /ps"]),
        ("learning_rate", "learnig_rate", ["line 26", "phases[0].learnig_rate", "did you mean 'learning_rate'"]),
        ("held_out_ladders: 1", "held_out_ladders: 4", ["must be fewer than dynamics.ladders (4)"]),
        ("400 K", "300 K", ["must lie above system.temperature"]),
        ("job: train", "job: free_energy", ["line 1", "expected train"]),
    ],
)
def test_mistakes_are_named(workplace, old, new, parts):
    assert old in SMALL
    (workplace / "train.yaml").write_text(SMALL.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_config(workplace / "train.yaml", TrainConfig)
    lines = str(caught.value).splitlines()
    assert any(all(part in line for part in parts) for line in lines), lines


def test_shipped_training_configs_are_valid():
    others = ("value", "diffusion")  # jobs of their own
    names = [n for n in shipped() if n.startswith("configs/train") and not any(word in n for word in others)]
    assert names
    for name in names:
        load_config(resolve(f"data:{name}", Path()), TrainConfig)
