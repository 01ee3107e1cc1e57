"""Saved flows come back bit for bit; damaged or foreign ones are refused with one clear error."""

from __future__ import annotations

import json

import pytest
import torch

from feynkac.fkc import CheckpointError
from feynkac.flows import InternalCoordinateFlow, MoleculeMismatch, load_flow, read_card, save_flow


@pytest.fixture
def flow(alanine, thermal) -> InternalCoordinateFlow:
    y = thermal(alanine, 500, torch.Generator().manual_seed(1))
    coordinates = alanine.fitted(y)
    return InternalCoordinateFlow.from_data(coordinates, coordinates.wrap(y), hidden=8, bins=6, circular_bins=10)


def test_round_trip(flow, tmp_path):
    save_flow(flow, tmp_path / "flow", card={"temperature_K": 300.0})
    assert sorted(p.name for p in (tmp_path / "flow").iterdir()) == ["card.json", "model.safetensors"]
    assert read_card(tmp_path / "flow")["card"] == {"temperature_K": 300.0}
    for path in (tmp_path / "flow", tmp_path / "flow" / "model.safetensors", str(tmp_path / "flow" / "card.json")):
        loaded = load_flow(path)
        assert loaded.facts == flow.facts
        assert loaded.coordinates == flow.coordinates
    drawn = [f.sample_and_log_prob(20, generator=torch.Generator().manual_seed(2)) for f in (flow, loaded)]
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])


def test_other_settings_survive(alanine, tmp_path):
    flow = InternalCoordinateFlow(
        alanine, orientation="random", dtype=torch.float32, hidden=8, order=list(reversed(range(60)))
    ).double()
    save_flow(flow, tmp_path)
    loaded = load_flow(tmp_path)
    assert loaded.density.order == flow.density.order
    assert (loaded.orientation, loaded.dtype) == ("random", torch.float32)
    assert loaded.density.networks.weight1.dtype == torch.float64
    assert loaded.facts.fingerprint == flow.facts.fingerprint


def test_a_flow_of_useful_size_fits_five_megabytes(alanine, tmp_path):
    save_flow(InternalCoordinateFlow(alanine), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 5e6
    assert (tmp_path / "card.json").stat().st_size < 5e4


def test_damage_is_named(flow, tmp_path):
    save_flow(flow, tmp_path)
    model, card = tmp_path / "model.safetensors", tmp_path / "card.json"
    payload, text = model.read_bytes(), card.read_text()

    model.write_bytes(payload[:-100])
    with pytest.raises(
        CheckpointError, match=rf"model.safetensors has {len(payload) - 100} bytes where {len(payload)}"
    ):
        load_flow(tmp_path)
    model.write_bytes(payload[:-1] + bytes([payload[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model.safetensors does not have the SHA-256"):
        load_flow(tmp_path)
    model.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        load_flow(tmp_path)
    model.write_bytes(payload)
    card.write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match=r"card.json is not complete JSON"):
        load_flow(tmp_path)
    card.write_text('{"format": "something else"}')
    with pytest.raises(CheckpointError, match="found 'something else'"):
        load_flow(tmp_path)
    record = json.loads(text)
    record["settings"]["hidden"] = 9
    card.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"does not fit card\.json"):
        load_flow(tmp_path)
    del record["coordinates"]["zmatrix"]
    card.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"card\.json does not describe a flow"):
        load_flow(tmp_path)
    with pytest.raises(CheckpointError, match="no flow at"):
        load_flow(tmp_path / "elsewhere")


def test_another_molecule_is_refused(flow, tmp_path):
    save_flow(flow, tmp_path)
    elements = list(flow.coordinates.elements)
    load_flow(tmp_path, elements=elements, names=flow.coordinates.names)
    with pytest.raises(MoleculeMismatch, match="for 22 atoms, the molecule has 3"):
        load_flow(tmp_path, elements="OHH")
    elements[5] = "N"
    with pytest.raises(MoleculeMismatch, match="elements differ first at atom 5, O in the flow and N in the molecule"):
        load_flow(tmp_path, elements=elements)
    with pytest.raises(MoleculeMismatch, match="atom names differ first at atom 0"):
        load_flow(tmp_path, names=["X", *flow.coordinates.names[1:]])
