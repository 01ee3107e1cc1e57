"""Run folders: made once, moved into place whole, damaged and foreign ones refused."""

import contextlib
import json

import pytest
import yaml
from pydantic import BaseModel

from feynkac.cli.errors import UserError
from feynkac.cli.run_folder import RunFolder


class Config(BaseModel):
    name: str = "a"


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "input.pdb"
    source.write_text("ATOM")
    return RunFolder.create(tmp_path / "run", Config(), {"system.pdb": source})


def test_the_config_holds_what_a_repeat_needs(folder):
    data = yaml.safe_load(folder.config.read_text())
    assert data["name"] == "a"
    assert {"versions", "device", "torch_threads", "sha256"} <= set(data["provenance"])
    assert "feynkac" in data["provenance"]["versions"]


def test_existing_folders_are_refused_and_untouched(folder, tmp_path):
    before = sorted(p.name for p in folder.path.iterdir())
    with pytest.raises(FileExistsError, match="never overwrite"):
        RunFolder.create(folder.path, Config(), {})
    assert sorted(p.name for p in folder.path.iterdir()) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError):
        RunFolder.create(tmp_path / "empty", Config(), {})


def test_changed_inputs_are_noticed(folder, tmp_path):
    source = tmp_path / "input.pdb"
    folder.check_inputs({"system.pdb": source})
    source.write_text("ATOM 2")
    with pytest.raises(UserError, match=r"system\.pdb changed since"):
        folder.check_inputs({"system.pdb": source})


def test_results_appear_whole_and_last(folder):
    with contextlib.suppress(RuntimeError), folder.results_stage({"numbers": {}}) as stage:
        (stage / "weights.npz").write_text("half")
        raise RuntimeError
    assert not (folder.path / "weights.npz").exists()
    assert not folder.complete
    with folder.results_stage({"numbers": {}}) as stage:
        assert list(stage.iterdir()) == []
        (stage / "weights.npz").write_text("whole")
        (stage / "flow").mkdir()
        (stage / "flow" / "card.json").write_text("{}")
    assert folder.complete
    assert folder.results() == {"numbers": {}}
    assert (folder.path / "weights.npz").read_text() == "whole"
    with folder.results_stage({}) as stage:
        (stage / "flow").mkdir()
    assert list((folder.path / "flow").iterdir()) == []
    assert not (folder.path / ".writing").exists()


def test_metrics_of_a_killed_run_are_trimmed(folder):
    for chunk in range(3):
        folder.append_metrics({"chunk": chunk})
    with open(folder.metrics, "a") as file:
        file.write('{"chunk": 3, "es')
    assert folder.keep_metrics() == 3
    assert [json.loads(line)["chunk"] for line in folder.metrics.read_text().splitlines()] == [0, 1, 2]
    folder.metrics.unlink()
    assert folder.keep_metrics() == 0


def test_what_is_no_run_is_named(tmp_path, folder):
    with pytest.raises(UserError, match="no such folder"):
        RunFolder.open(tmp_path / "none")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        RunFolder.open(tmp_path / "other")
    with pytest.raises(UserError, match="feynkac resume"):
        folder.results()
    (folder.path / "results.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        folder.results()
