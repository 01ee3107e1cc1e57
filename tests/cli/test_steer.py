"""`feynkac steer` and `resume` from end to end: the shipped digits, and a tiny text-to-image pipeline from a folder."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("diffusers")

from PIL import Image

from feynkac.cli.kinds import job_kind
from feynkac.cli.run_folder import RunFolder
from feynkac.cli.steer import build as steer_build

from ..steering.zoo import row
from .command import arrays, call, killed, same, succeed

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

REWARDS = '''\
"""Brightness; once so many samples were judged, the process dies on the spot."""
import os, signal
import numpy as np
import torch

judged = 0

def bright(images):
    global judged
    judged += len(images)
    if judged > int(os.environ.get("KILL_AFTER", 10**9)):
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.tensor([np.asarray(image).mean() / 255 for image in images], dtype=torch.float64)

def impossible(images):
    return torch.full((len(images),), -torch.inf, dtype=torch.float64)
'''
DIGITS = ("steer", "--model", "data:digits_diffusion", "--eta", "1", "--steps", "6", "--particles", "4")
BRIGHT = (*DIGITS, "--reward", "rewards_for_tests:bright", "--scale", "40", "--ess-threshold", "0.9")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "rewards_for_tests.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rewards_for_tests", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return tmp_path


def samples(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "samples").rglob("*.png"))}


def test_a_run_writes_everything(workplace):
    output = succeed(*BRIGHT, "--label", "3", "--seed", "5", "--seeds", "2", "-o", "out")
    out = workplace / "out"
    assert {p.name for p in out.iterdir()} == {
        "config.yaml", "metrics.jsonl", "checkpoint", "samples", "weights.npz", "results.json", "report.html",
        "samples_label-3.png", "run_label-3.png", "ancestry_label-3.png",
    }  # fmt: skip
    found = arrays(out / "weights.npz")
    assert {name: array.shape for name, array in found.items()} == {
        "log_weights": (1, 2, 4), "weights": (1, 2, 4), "log_tilt": (1, 2, 4), "rewards": (1, 2, 1, 4),
        "log_evidence": (1, 2), "log_evidence_std_error": (1, 2), "ess": (1, 2), "distinct_roots": (1, 2),
        "ancestors": (1, 2, 6, 4), "ess_trace": (1, 2, 6), "log_evidence_trace": (1, 2, 6),
        "reward_trace": (1, 2, 6, 1, 4), "conditions": (1,), "seeds": (2,), "reward_names": (1,),
    }  # fmt: skip
    np.testing.assert_allclose(found["weights"].sum(-1), 1.0)
    np.testing.assert_allclose(found["log_tilt"], 40 * found["rewards"][:, :, 0])
    for s, seed in enumerate((5, 6)):
        for k in range(4):
            with Image.open(out / "samples" / "label-3" / f"seed-{seed}" / f"{k:03d}.png") as image:
                assert np.asarray(image).mean() / 255 == pytest.approx(found["rewards"][0, s, 0, k])
    data = yaml.safe_load((out / "config.yaml").read_text())
    assert data["model"]["scheduler"] == "DDIMScheduler"
    assert data["model"]["device"] != "auto"
    assert data["steering"]["potential"] == "difference"
    assert {"versions", "device", "sha256"} <= set(data["provenance"])
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(7), *range(7)]
    assert {"step", "ess", "log_evidence", "reward_mean", "reward_max", "resampled"} <= set(lines[0])
    assert [line["ess"] for line in lines[:6]] == pytest.approx(found["ess_trace"][0, 0])
    moved = (found["ancestors"] != np.arange(4)).any(-1).reshape(-1)
    resampled = np.array([line["resampled"] for line in lines if "outputs" not in line])
    assert moved.any()
    assert not (moved & ~resampled).any()
    assert not resampled.all()
    assert lines[6]["log_evidence"] == pytest.approx(found["log_evidence"][0, 0])
    numbers = json.loads((out / "results.json").read_text())["numbers"]
    assert numbers["log_evidence_spread"]["value"] == pytest.approx(found["log_evidence"].std(ddof=1))
    assert numbers["denoiser_calls"]["value"] == 2 * 4 * 6
    assert "spread of log-evidence over seeds" in output
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "exp(40 rewards_for_tests:bright)" in page
    assert "http" not in page.split("</style>")[1].split("How to cite")[0]


def test_the_same_seed_gives_the_same_bits(workplace):
    for name, seed in (("first", "1"), ("again", "1"), ("other", "2")):
        succeed(*BRIGHT, "--label", "3", "--seed", seed, "-o", name)
    first, again, other = (arrays(workplace / name / "weights.npz") for name in ("first", "again", "other"))
    assert same(first, again)
    assert samples(workplace / "first") == samples(workplace / "again")
    assert (workplace / "first/metrics.jsonl").read_bytes() == (workplace / "again/metrics.jsonl").read_bytes()
    assert not same(first, other)


def test_a_prompt_is_the_same_alone_or_with_another(workplace):
    succeed(*BRIGHT, "--label", "7", "-o", "alone")
    succeed(*BRIGHT, "--label", "3", "--label", "7", "-o", "both")
    alone, both = (arrays(workplace / name / "weights.npz") for name in ("alone", "both"))
    for name in ("log_weights", "rewards", "ancestors", "log_evidence"):
        np.testing.assert_array_equal(alone[name][0], both[name][1])
        assert name == "ancestors" or not np.array_equal(both[name][0], both[name][1])
    kept = {name: content for name, content in samples(workplace / "both").items() if "label-7" in name}
    assert samples(workplace / "alone") == kept
    for name in ("samples_label-7.png", "run_label-7.png", "ancestry_label-7.png"):
        assert (workplace / "alone" / name).read_bytes() == (workplace / "both" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("judged", "steps_saved"), [(14, 3), (60, 1)])
def test_a_killed_run_resumes_to_the_same_bits(workplace, judged, steps_saved):
    """28 samples are judged a population: once it dies in the first, once in the third, in the middle of its steps."""
    command = [*BRIGHT, "--label", "3", "--label", "7", "--seeds", "2", "--set", "sampling.checkpoint_every=1"]
    succeed(*command, "-o", "whole")
    killed(*command, "-o", "killed", PYTHONPATH=str(workplace), KILL_AFTER=str(judged))
    folder = RunFolder(workplace / "killed")
    assert not folder.complete
    assert len(folder.metrics.read_text().splitlines()) > (judged // 28) * 7
    judged_by_now = sys.modules["rewards_for_tests"].judged
    succeed("resume", "killed")
    again = sys.modules["rewards_for_tests"].judged - judged_by_now
    assert again == 28 * (4 - judged // 28) - 4 * steps_saved  # what was judged before the last checkpoint is not again
    assert same(arrays(workplace / "whole" / "weights.npz"), arrays(workplace / "killed" / "weights.npz"))
    assert samples(workplace / "whole") == samples(workplace / "killed")
    assert (workplace / "whole/metrics.jsonl").read_bytes() == folder.metrics.read_bytes()
    assert "complete" in call("resume", "killed").stderr


def test_a_changed_model_is_not_resumed(workplace):
    from feynkac.steering.pixel_pipeline import load_pipeline

    pipe = load_pipeline(steer_build.resolve("data:digits_diffusion", workplace))
    pipe.save_pretrained("mine")
    succeed("steer", "--model", "mine", *BRIGHT[3:], "--label", "1", "-o", "out")
    (workplace / "out" / "results.json").unlink()
    index = workplace / "mine" / "model_index.json"
    index.write_text(index.read_text() + "\n")
    result = call("resume", "out")
    assert result.exit_code == 2
    assert "model/model_index.json changed since" in result.stderr


def test_a_report_is_drawn_again(workplace):
    from rich.console import Console

    succeed(*BRIGHT, "--label", "3", "-o", "out")
    out = workplace / "out"
    before = {p.name: p.read_bytes() for p in out.glob("*.*")}
    for name in ("report.html", "run_label-3.png"):
        (out / name).unlink()
    folder = RunFolder.open(out)
    job_kind("steer").report(Console(quiet=True), folder)
    assert {p.name: p.read_bytes() for p in out.glob("*.*")} == before


# --- methods --------------------------------------------------------------------------------------------------------


def test_soft_value_on_a_deterministic_scheduler(workplace):
    command = [
        *DIGITS[:3],
        *DIGITS[5:],
        "--label",
        "8",
        "--reward",
        "brightness",
        "--scale",
        "40",
        "--reward",
        "sharpness",
    ]
    more = ("--scale", "2", "--method", "soft-value", "--candidates", "3", "--transition", "stochastic")
    succeed(*command, *more, "--temperature", "0.5", "-o", "out")
    found = arrays(workplace / "out" / "weights.npz")
    tilt = (40 * found["rewards"][:, :, 0] + 2 * found["rewards"][:, :, 1]) / 0.5
    np.testing.assert_allclose(found["log_tilt"], tilt)
    assert found["reward_names"].tolist() == ["brightness", "sharpness"]
    assert json.loads((workplace / "out/results.json").read_text())["numbers"]["denoiser_calls"]["value"] == 6 * 12


def test_best_of_n_is_plain_draws_weighted_in_the_end(workplace):
    """Also where steps add no noise: nothing is copied."""
    command = [*DIGITS[:3], *DIGITS[5:], "--label", "8", "--reward", "rewards_for_tests:bright", "--scale", "30"]
    succeed(*command, "--method", "best-of-n", "-o", "out")
    found = arrays(workplace / "out" / "weights.npz")
    np.testing.assert_allclose(found["log_weights"], 30 * found["rewards"][:, :, 0])
    expected = np.log(np.exp(found["log_weights"]).mean(-1))
    np.testing.assert_allclose(found["log_evidence"], expected)
    assert (found["ancestors"] == np.arange(4)).all()
    assert len(np.unique(found["rewards"])) == 4
    numbers = json.loads((workplace / "out/results.json").read_text())["numbers"]
    assert numbers["reward_calls"]["value"] == 4


def test_steering_that_never_resamples_is_best_of_n(workplace):
    """The same draws with the same weights: what was applied on the way has cancelled."""
    succeed(*BRIGHT[:-1], "0", "--label", "3", "-o", "fk")
    succeed(*BRIGHT[:-1], "0", "--label", "3", "--method", "best-of-n", "-o", "best")
    succeed(*BRIGHT, "--label", "3", "-o", "resampled")
    fk, best, resampled = (arrays(workplace / name / "weights.npz") for name in ("fk", "best", "resampled"))
    assert samples(workplace / "fk") == samples(workplace / "best") != samples(workplace / "resampled")
    np.testing.assert_allclose(fk["log_weights"], best["log_weights"])
    np.testing.assert_allclose(fk["log_evidence"], best["log_evidence"])
    assert not np.allclose(fk["log_evidence"], resampled["log_evidence"])


def test_where_nothing_is_possible_the_run_says_so(workplace):
    result = call(*DIGITS, "--label", "8", "--reward", "rewards_for_tests:impossible", "-o", "out")
    assert result.exit_code == 2
    assert "every sample was impossible" in result.stderr.replace("\n", " ")
    assert (arrays(workplace / "out" / "weights.npz")["weights"] == 0).all()


def test_no_prompt_pipelines_need_none(workplace):
    row("ddpm").pipe.save_pretrained("model")
    command = ["steer", "--model", "model", "--steps", "4", "--particles", "3", "--reward", "brightness"]
    succeed(*command, "-o", "out")
    assert arrays(workplace / "out" / "weights.npz")["conditions"].tolist() == ["samples"]


@pytest.mark.slow
def test_a_text_pipeline_from_a_folder(workplace):
    row("sd").build().save_pretrained("model")
    command = [
        "steer",
        "--model",
        "model",
        "--steps",
        "4",
        "--particles",
        "3",
        "--reward",
        "jpeg_size",
        "--size",
        "64x32",
    ]
    both = ("--prompt", "a red fox", "--prompt", "The sea!", "--negative-prompt", "mist", "--guidance-scale", "3")
    succeed(*command, *both, "--scheduler", "EulerAncestralDiscreteScheduler", "-o", "both")
    succeed(*command, *both[2:], "--scheduler", "EulerAncestralDiscreteScheduler", "-o", "alone")
    found = samples(workplace / "both")
    assert len(found) == 6
    assert {name: content for name, content in found.items() if "the-sea" in name} == samples(workplace / "alone")
    with Image.open(workplace / "both" / next(iter(found))) as image:
        assert image.size == (32, 64)
    assert arrays(workplace / "both" / "weights.npz")["conditions"].tolist() == ["a red fox", "The sea!"]
    refused = call(*command, "--prompt", "a red fox")
    assert refused.exit_code == 2
    assert "adds no noise" in refused.stderr
    assert not (workplace / "runs").exists()


@pytest.mark.slow
def test_frames_of_videos_stand_side_by_side(workplace):
    row("ltx").build().save_pretrained("model")
    command = ["steer", "--model", "model", "--steps", "3", "--particles", "2", "--reward", "rewards_for_tests:bright"]
    size = ("--size", "32x32", "--set", "call.arguments.num_frames=9")
    succeed(*command, *size, "--prompt", "waves", "--transition", "stochastic", "-o", "out")
    for path in (workplace / "out" / "samples").rglob("*.png"):
        with Image.open(path) as image:
            assert image.size == (9 * 32, 32)
    assert len(samples(workplace / "out")) == 2
