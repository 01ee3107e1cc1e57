"""`feynkac run`, `resume` and `report` of repelled configs, from end to end, on the shipped digits."""

import json
import re

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("diffusers")

from PIL import Image

from feynkac.cli.repelled.build import Plane
from feynkac.cli.repelled.config import RepelledConfig
from feynkac.cli.repelled.results import Batches, Outcome, numbers
from feynkac.cli.validation import ConfigError, load_config
from feynkac.fkc.bias import BiasVariable, RepulsionBias
from feynkac.fkc.bias.rounds import Drawn, Round

from .command import arrays, complaint, killed, same, succeed

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

CONFIG = """\
job: repelled
name: digits
model: {folder: data:digits_diffusion}
call: {labels: [null], steps: 6, eta: 1.0}
features: {classifier: data:digits_classifier, draws: 80}
bias: {bias_factor: 8, height: 4.0}
steering: {particles: 12, ess_threshold: 0.95}
sampling: {batches: 2, frozen: 1, populations: 3, seed: 2}
"""
DEADLY = """\
import os, signal
from feynkac.cli.repelled import job
whole = job.save_state
def deadly(place, tensors, meta):
    whole(place, tensors, meta)
    if place.name == {unit!r}:
        os.kill(os.getpid(), signal.SIGKILL)
job.save_state = deadly
from feynkac.cli.main import main
main()
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return tmp_path


def contents(folder):
    """What must have the same bits in a run that was stopped; times differ."""
    found = {p.name: arrays(p) for p in [folder / "weights.npz", *sorted((folder / "samples").glob("*.npz"))]}
    numbers = json.loads((folder / "results.json").read_text())["numbers"]
    numbers.pop("seconds")
    return found, numbers, (folder / "metrics.jsonl").read_bytes(), (folder / "bias.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_writes_everything_and_its_weights_are_what_they_say(workplace):
    output = succeed("run", "config.yaml", "-o", "out")
    out = workplace / "out"
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "metrics.jsonl", "checkpoint", "samples", "weights.npz", "bias.safetensors", "results.json",
        "report.html", "samples.png", "plane.png", "coverage.png", "classes.png",
    }  # fmt: skip
    found = arrays(out / "weights.npz")
    for way in ("repelled", "plain"):
        assert found[f"{way}.values"].shape == (3, 3, 12, 2)
        for name in ("classes", "log_weights", "biased_log_weights", "pooled_log_weights"):
            assert found[f"{way}.{name}"].shape == (3, 3, 12)
        assert arrays(out / "samples" / f"{way}.npz")["images"].shape == (3, 3, 12, 8, 8)
    # the first batch has no bias, nor have the plain ones, which are other draws
    assert np.abs(found["repelled.log_weights"][0]).max() == 0.0
    assert np.abs(found["repelled.biased_log_weights"][1]).max() > 0.1
    assert np.abs(found["plain.log_weights"]).max() == 0.0
    assert not np.isin(found["repelled.values"], found["plain.values"]).any()
    # undone by hand with the last bias, which acted on the frozen batch
    from safetensors.torch import load_file

    bias = RepulsionBias.from_state_dict(load_file(out / "bias.safetensors"))
    assert bias.counts.batches == 2
    values = torch.from_numpy(found["repelled.values"][2].reshape(-1, 2))
    undone = found["repelled.biased_log_weights"][2].reshape(-1) + bias(values).numpy()
    assert np.allclose(undone, found["repelled.log_weights"][2].reshape(-1), atol=1e-12)
    assert np.ptp(bias(values).numpy()) > 0.3
    # evidences of populations, undone, are about one
    numbers = json.loads((out / "results.json").read_text())["numbers"]
    evidence = numbers["log_evidence"]
    assert abs(evidence["value"]) < 5 * evidence["error"]
    assert re.match(r"exact 0, z = [-+]\d", evidence["remark"])
    shares = [numbers[f"class_{c}"]["value"] for c in range(10)]
    assert sum(shares) == pytest.approx(1.0, abs=1e-9)
    assert abs(numbers["largest_z"]["value"]) < 5
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["unit"] for line in lines] == [f"{way}-{i:03d}" for way in ("repelled", "plain") for i in range(3)]
    assert [line["hills"] for line in lines] == [36, 72, 72, 0, 0, 0]
    page = (out / "report.html").read_text()
    assert page.count("<img ") == 4
    assert "cells of the plane" in page
    for name in ("samples", "plane", "coverage", "classes"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > 600
    assert "share of class 3" in output
    recorded = yaml.safe_load((out / "config.yaml").read_text())
    assert recorded["model"]["scheduler"] == "DDIMScheduler"
    # drawn again: the same pictures, and the data untouched
    before = {name: (out / name).read_bytes() for name in ("plane.png", "classes.png", "weights.npz", "results.json")}
    succeed("report", "out")
    assert {name: (out / name).read_bytes() for name in before} == before
    assert "complete" in complaint("resume", "out")


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["plane", "repelled-001", "plain-000"])
def test_killed_and_resumed_it_ends_with_the_same_bits(workplace, unit):
    """A run killed behind its plane, between batches, or while it draws to compare."""
    killed("run", "config.yaml", "-o", "killed", code=DEADLY.format(unit=unit))
    assert not (workplace / "killed" / "results.json").exists()
    succeed("resume", "killed")
    succeed("run", "config.yaml", "-o", "whole")
    first, second = contents(workplace / "killed"), contents(workplace / "whole")
    assert first[1:] == second[1:]
    assert first[0].keys() == second[0].keys()
    assert all(same(first[0][name], second[0][name]) for name in first[0])


@pytest.mark.slow
def test_rewards_beside_the_bias_opes_pca_and_a_class(workplace):
    text = CONFIG.replace("bias: {bias_factor: 8, height: 4.0}", "bias: {rule: opes, barrier: 3.0, start: 0.3}")
    text = text.replace("labels: [null]", "labels: [3]").replace("draws: 80", "draws: 60, projection: pca")
    (workplace / "other.yaml").write_text(text + "rewards: [{name: brightness, scale: 10.0}]\n")
    output = succeed("run", "other.yaml", "-o", "out")
    numbers = json.loads((workplace / "out" / "results.json").read_text())["numbers"]
    assert "without the bias" in numbers["log_evidence"]["remark"]
    assert abs(numbers["log_evidence"]["value"]) > 0.5  # that of the reward
    assert numbers["class_3"]["value"] > 0.8
    assert "OPES" in (workplace / "out" / "report.html").read_text()
    assert "10 brightness" in (workplace / "out" / "report.html").read_text()
    assert output


def test_the_shipped_config_is_valid(workplace):
    from importlib.resources import files

    config = load_config(files("feynkac.data") / "configs" / "repel_digits.yaml", RepelledConfig)
    assert config.job == "repelled"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bias.rule=opes", "rule opes needs barrier"),
        ("bias.barrier=3.0", "takes no barrier"),
        ("bias.bias_factor=1.0", "greater than 1"),
        ("steering.method=best-of-n", "method fk"),
        ("steering.final=best", "final weighted"),
        ("call.labels=[1, 2]", "one prompt or label"),
        ("sampling.populations=1", "greater than or equal to 2"),
        ("features.projection=umap", "discriminant or pca"),
    ],
)
def test_configs_that_make_no_sense_are_refused(workplace, change, message):
    with pytest.raises(ConfigError, match=message):
        load_config(workplace / "config.yaml", RepelledConfig, [change])


def test_a_label_that_the_model_does_not_have_is_refused_in_one_line_and_leaves_no_folder(workplace):
    said = complaint("run", "config.yaml", "-o", "out", "--set", "call.labels=[11]")
    assert "call: ClassConditionalPixelPipeline refuses its call: class_labels: got 11" in said
    assert "Traceback" not in said
    assert not (workplace / "out").exists()


def outcome_of(classes, plain=None):
    """Two batches of two populations of two, of these classes out of three, under no bias."""
    empty = RepulsionBias.well_tempered([BiasVariable("u", sigma=1.0)], kT=1.0, bias_factor=5.0, height=1.0)
    drawn = Drawn(torch.zeros(4, 1), torch.zeros(4, dtype=torch.float64), None, torch.tensor([0, 0, 1, 1]))
    rounds = tuple(Round(i, empty, drawn, empty) for i in range(2))

    def batches(found):
        shaped = torch.tensor(found).reshape(2, 2, 2)
        return Batches(rounds, shaped, np.zeros((2, 2, 2, 8, 8), np.uint8), torch.ones(2, 2), (1.0, 1.0), ())

    plane = Plane(torch.eye(1), torch.zeros(1), torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))
    return Outcome(plane, batches(classes), None if plain is None else batches(plain), 3, False, 0)


def test_shares_of_classes_that_were_not_seen_have_no_error_and_no_score():
    some, other, none = [0, 0, 0, 1, 0, 0, 1, 1], [0, 1, 2, 1, 0, 0, 0, 1], [0] * 8
    found = {n.key: n for n in numbers(outcome_of(some, other))}
    assert (found["class_2"].text, found["class_2"].error) == ("0", None)
    assert found["class_2"].remark.startswith("none seen; without the bias 0.125 ± ")
    assert "z =" not in found["class_2"].remark
    assert "z = " in found["class_1"].remark  # seen in both: scored, with an error
    assert found["class_1"].error > 0.0
    assert "of 2 classes" in found["largest_z"].remark
    found = {n.key: n for n in numbers(outcome_of(other, none))}
    assert found["class_2"].remark == "without the bias none seen"
    assert found["class_0"].remark == "without the bias no other seen"
    assert "largest_z" not in found
    alone = {n.key: n for n in numbers(outcome_of(none))}
    assert [alone[f"class_{c}"].remark for c in range(3)] == ["no other seen", "none seen", "none seen"]


def test_what_cannot_run_is_refused_before_a_folder_is_made(workplace):
    assert "adds no noise" in complaint("run", "config.yaml", "-o", "out", "--set", "call.eta=0.0")
    wrong = ("--set", "features.classifier=data:digits_diffusion")
    assert "features.classifier" in complaint("run", "config.yaml", "-o", "out", *wrong)
    assert not (workplace / "out").exists()
    (workplace / "other.yaml").write_text(CONFIG.replace("job: repelled", "job: repeled"))
    assert "repelled" in complaint("run", "other.yaml")
