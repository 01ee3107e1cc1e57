"""Checkpoints: atomic, checked, and refused by name when damaged."""

import json

import pytest
import torch

from feynkac.fkc import CheckpointError
from feynkac.fkc.checkpoint import exists, load_state, save_state

TENSORS = {
    "x": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "generator": torch.Generator().manual_seed(1).get_state(),
    "flags": torch.tensor([True, False]),
    "weights": torch.tensor([0.1, -torch.inf], dtype=torch.float64),
}
META = {"step": 3, "seed": 2**62 + 1, "names": ["a"], "value": 0.1}


def test_round_trip(tmp_path):
    folder = tmp_path / "deep" / "run"
    assert not exists(folder)
    save_state(folder, TENSORS, META)
    tensors, meta = load_state(folder)
    assert meta == META
    assert set(tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


def test_a_second_save_replaces_the_first_and_leaves_two_files(tmp_path):
    save_state(tmp_path, TENSORS, META)
    save_state(tmp_path, {"x": torch.ones(1)}, {"step": 4})
    assert load_state(tmp_path)[1] == {"step": 4}
    assert len(list(tmp_path.iterdir())) == 2


def test_killed_between_the_two_files_the_old_state_is_whole(tmp_path, monkeypatch):
    save_state(tmp_path, TENSORS, META)
    from feynkac.fkc import checkpoint

    write = checkpoint._write_then_rename

    def killed(path, payload):
        if path.name == "state.json":
            raise KeyboardInterrupt
        write(path, payload)

    monkeypatch.setattr(checkpoint, "_write_then_rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, {"x": torch.ones(1)}, {"step": 4})
    assert load_state(tmp_path)[1] == META


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
@pytest.mark.parametrize("which", ["state.json", "*.safetensors"])
def test_damage_is_found_and_the_file_named(tmp_path, damage, which):
    save_state(tmp_path, TENSORS, META)
    (path,) = tmp_path.glob(which)
    payload = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(payload[: len(payload) // 2])
    elif damage == "flip":
        payload[-8] ^= 1
        path.write_bytes(payload)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=path.name.replace(".", r"\.")):
        load_state(tmp_path)


def test_an_edited_number_is_found(tmp_path):
    save_state(tmp_path, TENSORS, META)
    path = tmp_path / "state.json"
    record = json.loads(path.read_text())
    record["meta"]["step"] = 2
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="checksum"):
        load_state(tmp_path)


def test_another_format_is_refused(tmp_path):
    (tmp_path / "state.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 1"):
        load_state(tmp_path)
