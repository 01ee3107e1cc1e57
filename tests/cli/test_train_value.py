"""`feynkac train` on a value network: a very small job, its resume to the bit, and the mistakes in its config."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

pytest.importorskip("diffusers")

from feynkac.cli.errors import UserError
from feynkac.cli.kinds import job_kind
from feynkac.cli.paths import resolve
from feynkac.cli.run_folder import RunFolder
from feynkac.cli.training.value_config import ValueConfig
from feynkac.cli.validation import load_config
from feynkac.steering.learned import LearnedValue, collecting, training

from .command import call

SMALL = """\
job: train_value
name: tiny
pipeline:
  folder: data:digits_diffusion
  call: {class_labels: null, num_inference_steps: 4, eta: 1.0, output_type: pt}
reward:
  name: class_log_prob
  options: {model: data:digits_classifier, label: 3}
temperature: 1.0
rollouts: {count: 24, batch_size: 8, seed: 1}
fitting: {width: 8, blocks: 1, steps: 6, batch_size: 16, held_out: 0.25, evaluate_every: 2, warmup: 2, seed: 1}
"""


class Stop(Exception):
    """Stands for a kill."""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "value.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parameters(folder: Path):
    return load_file(folder / "value" / "diffusion_pytorch_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_value_is_trained_and_stopped_ones_end_with_the_same_bits(workplace, monkeypatch):
    result = call("train", "value.yaml", "-o", "whole")
    assert result.exit_code == 0, result.output
    value = LearnedValue.from_pretrained("whole/value")
    assert value.network.shape == (1, 8, 8)
    assert value.temperature == 1.0
    card = RunFolder.open(Path("whole")).results()["training"]
    assert [level["move"] for level in card["quality"]] == [0, 1, 2, 3]
    assert all(level["denoised_correlation"] is not None for level in card["quality"])
    assert card["held_out_rollouts"] == 6
    metrics = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [2, 4, 6]
    assert Path("whole/quality.png").read_bytes().startswith(b"\x89PNG")

    with monkeypatch.context() as patch:  # killed when two chunks of rollouts are there
        written = []

        def save(*arguments):
            if len(written) == 2:
                raise Stop
            written.append(arguments)
            save_state(*arguments)

        save_state = collecting.save_state
        patch.setattr(collecting, "save_state", save)
        assert isinstance(call("train", "value.yaml", "-o", "stopped").exception, Stop)
    assert sorted(p.name for p in Path("stopped/rollouts").iterdir()) == ["chunk-000000", "chunk-000001"]
    folder = RunFolder.open(Path("stopped"))

    with monkeypatch.context() as patch:  # and again after the first evaluation
        advance = training.FitRun.advance

        def stopping(self):
            if self.step == 3:
                raise Stop
            advance(self)

        patch.setattr(training.FitRun, "advance", stopping)
        with pytest.raises(Stop):
            job_kind("train_value").resume(Console(quiet=True), folder)
    assert not folder.complete
    monkeypatch.setattr(collecting, "_call", lambda *a: pytest.fail("the rollouts were there"))
    job_kind("train_value").resume(Console(quiet=True), folder)
    assert same(parameters(Path("stopped")), parameters(Path("whole")))
    assert folder.results()["training"]["quality"] == card["quality"]
    metrics = [json.loads(line) for line in Path("stopped/metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [2, 4, 6]


def test_another_seed_gives_another_network(workplace):
    """Negative control of the comparison of bits."""
    for name, seed in (("one", 1), ("two", 2)):
        result = call("train", "value.yaml", "-o", name, "-s", f"fitting.seed={seed}", "-s", "rollouts.count=8")
        assert result.exit_code == 0, result.output
    assert not same(parameters(Path("one")), parameters(Path("two")))


def test_a_changed_reward_is_noticed(workplace):
    (workplace / "judge.txt").write_text("one")
    config = SMALL.replace("model: data:digits_classifier", f"model: {workplace / 'judge.txt'}")
    (workplace / "value.yaml").write_text(config)
    from feynkac.cli.training.value_job import value_inputs

    loaded = load_config(workplace / "value.yaml", ValueConfig)
    folder = RunFolder.create(workplace / "run", loaded, value_inputs(loaded))
    folder.check_inputs(value_inputs(loaded))
    (workplace / "judge.txt").write_text("two")
    with pytest.raises(UserError, match=r"reward\.model changed"):
        job_kind("train_value").resume(Console(quiet=True), folder)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("temperature: 1.0", "temperature: 0.0", ["line 9", "temperature = 0.0", "greater than 0"]),
        ("digits_diffusion", "digits_difusion", ["line 4", "did you mean data:digits_diffusion"]),
        ("eta: 1.0", "generator: 1", ["call.generator is set by the rollouts"]),
        ("count: 24", "cuont: 24", ["line 10", "rollouts.cuont", "did you mean 'count'"]),
        ("held_out: 0.25", "held_out: 0.99", ["leaves none of 24 rollouts"]),
        ("job: train_value", "job: train_values", ["line 1", "did you mean 'train_value'"]),
    ],
)
def test_mistakes_are_named(workplace, old, new, parts):
    assert old in SMALL
    (workplace / "value.yaml").write_text(SMALL.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_config(workplace / "value.yaml", ValueConfig)
    lines = str(caught.value).splitlines()
    assert any(all(part in line for part in parts) for line in lines), lines


def test_an_unknown_reward_leaves_no_folder(workplace):
    result = call("train", "value.yaml", "-o", "out", "-s", "reward.name=class_log_prop")
    assert result.exit_code == 2
    assert "did you mean 'class_log_prob'" in result.stderr
    assert not Path("out").exists()


def test_the_shipped_config_is_valid():
    config = load_config(resolve("data:configs/train_value_digits.yaml", Path()), ValueConfig)
    assert config.pipeline.call["class_labels"] is None


def test_the_kind_may_be_named_and_resume_knows_it(workplace):
    few = ["-s", "rollouts.count=8"]
    for name, arguments in (("a", ["value.yaml"]), ("b", ["value", "--config", "value.yaml"])):
        result = call("train", *arguments, "-o", name, *few)
        assert result.exit_code == 0, result.output
    assert same(parameters(Path("a")), parameters(Path("b")))
    Path("a/results.json").unlink()
    result = call("resume", "a")
    assert result.exit_code == 0, result.output
    assert same(parameters(Path("a")), parameters(Path("b")))
    assert call("resume", "a").exit_code == 2
    wrong = call("train", "flow", "--config", "value.yaml", "-o", "c")
    assert wrong.exit_code == 2
    assert "expected train" in wrong.stderr
