"""`feynkac run`, `resume` and `report` of corrected configs, from end to end: mixtures and digits."""

import json
import re

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("diffusers")

from PIL import Image

from feynkac.cli.corrected.config import CorrectedConfig
from feynkac.cli.corrected.experts import build_experts
from feynkac.cli.corrected.progress import Watch
from feynkac.cli.run_folder import RunFolder
from feynkac.cli.validation import load_config
from feynkac.fkc import AnnealedProduct, sample_corrected

from .command import arrays, complaint, killed, same, succeed

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

MIXTURE = """\
job: corrected
name: two-modes
experts:
  q: {mixture: {means: [[-1.0], [1.5]], std: 0.3, weights: [1.0, 2.0]}}
targets:
  cold: {form: annealed, experts: [q], exponent: 2}
sampling: {particles: 1000, populations: 8, steps: 20, seed: 3, checkpoint_every: 5}
"""
DIGITS = """\
job: corrected
name: digits
experts:
  four: {pipeline: {folder: data:digits_diffusion, class_label: 4}}
  any: {pipeline: {folder: data:digits_diffusion}, mean: -0.4, std: 0.55}
targets:
  cold: {form: annealed, experts: [four], exponent: 1.5}
  led: {form: guidance, experts: [any, four], weight: 2}
levels: {sigma_max: 20.0, sigma_min: 0.2, rho: 7.0}
sampling: {particles: 8, steps: 6, seed: 1, chunk_size: 64, checkpoint_every: 2}
classifier: data:digits_classifier
"""
DEADLY = """\
import os, signal
from feynkac.cli.corrected import progress as corrected_progress
whole = corrected_progress.Watch.__call__
def deadly(self, state, info):
    seconds = whole(self, state, info)
    if (self.unit.name, state.index) == ({unit!r}, {step}):
        os.kill(os.getpid(), signal.SIGKILL)
    return seconds
corrected_progress.Watch.__call__ = deadly
from feynkac.cli.main import main
main()
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "mixture.yaml").write_text(MIXTURE)
    (tmp_path / "digits.yaml").write_text(DIGITS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return tmp_path


def contents(folder):
    """What must have the same bits in a run that was stopped; times differ."""
    found = {p.name: arrays(p) for p in [folder / "weights.npz", *sorted((folder / "samples").glob("*.npz"))]}
    numbers = json.loads((folder / "results.json").read_text())["numbers"]
    numbers.pop("seconds")
    return found, numbers, (folder / "metrics.jsonl").read_bytes()


def z_scores(numbers, way):
    """By key, of the numbers of a way that have an exact answer."""
    found = {}
    for key, number in numbers.items():
        match = re.search(r"z = ([-+][\d.]+)", number.get("remark", ""))
        if match and (key.startswith(way) or (way == "weighted" and key == "log_evidence")):
            found[key] = float(match[1])
    return found


@pytest.mark.slow
def test_a_run_writes_everything_and_agrees_with_the_exact_answer(workplace):
    output = succeed("run", "mixture.yaml", "-o", "out")
    out = workplace / "out"
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "metrics.jsonl", "checkpoint", "samples", "weights.npz", "results.json", "report.html",
        "samples_cold.png", "path_cold.png", "modes_cold.png",
    }  # fmt: skip
    found = arrays(out / "weights.npz")
    shapes = {name.removeprefix("cold.weighted."): a.shape for name, a in found.items() if ".weighted." in name}
    assert shapes == {
        "log_weights": (8, 1000), "weights": (8, 1000), "log_evidence": (8,), "log_evidence_std_error": (8,),
        "ess": (8,), "distinct_roots": (8,), "ess_trace": (21, 8), "log_evidence_trace": (21, 8),
        "distinct_roots_trace": (21, 8), "resampled": (21, 8),
    }  # fmt: skip
    samples = arrays(out / "samples" / "cold.npz")
    assert {name: a.shape for name, a in samples.items()} == {
        "weighted": (8, 1000, 1), "log_weights": (8, 1000), "resampled": (8000, 1), "unweighted": (8, 1000, 1),
    }  # fmt: skip
    numbers = json.loads((out / "results.json").read_text())["numbers"]
    weighted, unweighted = z_scores(numbers, "weighted"), z_scores(numbers, "unweighted")
    assert weighted.keys() == {"log_evidence", "weighted.mean_1", "weighted.square"}
    assert max(abs(z) for z in weighted.values()) < 4
    assert unweighted.keys() == {"unweighted.mean_1", "unweighted.square"}
    assert abs(unweighted["unweighted.mean_1"]) > 4
    assert numbers["weighted.modes"]["value"] < 0.02 < numbers["unweighted.modes"]["value"]
    # the modes of q^2 weigh 1 : 4, by hand
    assert (samples["resampled"] > 0.25).mean() == pytest.approx(0.8, abs=0.03)
    assert (samples["unweighted"] > 0.25).mean() != pytest.approx(0.8, abs=0.03)
    settled = yaml.safe_load((out / "config.yaml").read_text())
    assert settled["targets"]["cold"]["noise"] == 2.0
    assert settled["levels"] == {"sigma_max": pytest.approx(10.0), "sigma_min": pytest.approx(0.01)}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["unit"], line["step"]) for line in lines] == [
        (unit, step) for unit in ("cold/weighted", "cold/unweighted") for step in range(21)
    ]
    assert [line["ess"] for line in lines[:21]] == found["cold.weighted.ess_trace"].tolist()
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.split("</style>")[1].split("How to cite")[0]
    assert "exact" in output


@pytest.mark.slow
def test_the_run_is_that_of_the_library(workplace):
    succeed("run", "mixture.yaml", "-o", "out", "--set", "compare=false", "--set", "sampling.churn=0.3")
    expert = build_experts(load_config(workplace / "mixture.yaml", CorrectedConfig), {})[0]["q"]
    direct = sample_corrected(
        AnnealedProduct([expert], 2.0), particles=1000, populations=8, steps=20, churn=0.3, seed=3, noise=2.0
    )
    found = arrays(workplace / "out" / "weights.npz")
    np.testing.assert_allclose(found["cold.weighted.log_evidence"], direct.log_evidence, rtol=0, atol=1e-9)
    other = sample_corrected(AnnealedProduct([expert], 2.0), particles=1000, populations=8, steps=20, seed=3, noise=2.0)
    assert abs(found["cold.weighted.log_evidence"] - other.log_evidence.numpy()).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "step", "saved"), [("cold/weighted", 13, 10), ("cold/unweighted", 4, None)])
def test_a_killed_run_ends_with_the_same_bits(workplace, monkeypatch, unit, step, saved):
    succeed("run", "mixture.yaml", "-o", "whole")
    killed("run", "mixture.yaml", "-o", "killed", code=DEADLY.format(unit=unit, step=step))
    folder = RunFolder(workplace / "killed")
    assert not folder.complete
    made = []
    whole = Watch.__call__
    monkeypatch.setattr(
        Watch,
        "__call__",
        lambda self, state, info: made.append((self.unit.name, state.index)) or whole(self, state, info),
    )
    succeed("resume", "killed")
    assert made[0] == (unit, 0 if saved is None else saved + 1)  # what was saved is not made again
    first, second = contents(workplace / "whole"), contents(workplace / "killed")
    assert all(same(first[0][name], second[0][name]) for name in first[0])
    assert first[1:] == second[1:]
    assert "complete" in complaint("resume", "killed")
    succeed("run", "mixture.yaml", "-o", "other", "--set", "sampling.seed=4")
    assert not same(first[0]["weights.npz"], contents(workplace / "other")[0]["weights.npz"])


@pytest.mark.slow
def test_a_report_is_drawn_again(workplace):
    succeed("run", "mixture.yaml", "-o", "out", "--set", "sampling.populations=1", "--set", "compare=false")
    out = workplace / "out"
    before = {name: (out / name).read_bytes() for name in ("report.html", "samples_cold.png", "results.json")}
    (out / "samples_cold.png").unlink()
    (out / "report.html").write_text("nothing")
    succeed("report", "out")
    assert {name: (out / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_digits_run_resume_and_are_images(workplace):
    output = succeed("run", "digits.yaml", "-o", "out")
    out = workplace / "out"
    names = {f"{kind}_{target}.png" for kind in ("samples", "path", "classes") for target in ("cold", "led")}
    assert names <= {p.name for p in out.iterdir()}
    for target in ("cold", "led"):
        samples = arrays(out / "samples" / f"{target}.npz")
        assert samples["weighted"].shape == samples["unweighted"].shape == (1, 8, 1, 8, 8)
        assert not np.array_equal(samples["weighted"], samples["unweighted"])
        for way in ("weighted", "unweighted"):
            with Image.open(out / "samples" / f"{target}_{way}.png") as image:
                assert image.size == (4 * (8 * 9 + 1), 4 * (9 + 1))
    found = arrays(out / "weights.npz")
    assert found["cold.unweighted.classes"].shape == (1, 8)
    assert (found["cold.unweighted.classes"] == 4).mean() > 0.5
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 6
    assert "share of class 4, weighted" in output
    assert "no exact answer is known" in output
    for part in ("results.json", "weights.npz"):
        (out / part).unlink()
    for file in (out / "checkpoint" / "led" / "unweighted").iterdir():
        file.unlink()
    succeed("resume", "out")
    assert same(found, arrays(out / "weights.npz"))


@pytest.mark.slow
def test_a_changed_model_is_not_resumed(workplace):
    from feynkac.cli.paths import resolve
    from feynkac.steering.pixel_pipeline import load_pipeline

    load_pipeline(resolve("data:digits_diffusion", workplace)).save_pretrained("mine")
    (workplace / "digits.yaml").write_text(DIGITS.replace("data:digits_diffusion, class", "mine, class"))
    succeed("run", "digits.yaml", "-o", "out", "--set", "sampling.steps=2")
    (workplace / "out" / "results.json").unlink()
    index = workplace / "mine" / "model_index.json"
    index.write_text(index.read_text() + "\n")
    assert "experts.four changed since" in complaint("resume", "out")


def test_a_job_of_no_kind_is_named(workplace):
    (workplace / "mixture.yaml").write_text(MIXTURE.replace("job: corrected", "job: corected"))
    text = complaint("run", "mixture.yaml", "-o", "out")
    assert "line 1: job = 'corected'" in text
    assert "corrected" in text.split("expected")[1]
    assert "feynkac" not in text
    (workplace / "mixture.yaml").write_text(MIXTURE.replace("job: corrected", "job: train_value"))
    assert "feynkac train mixture.yaml" in complaint("run", "mixture.yaml", "-o", "out")
    assert not (workplace / "out").exists()
