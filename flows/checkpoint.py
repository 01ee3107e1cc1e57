"""A trained flow on disk: ``model.safetensors`` and ``card.json`` in one folder; no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..fkc.errors import CheckpointError
from .internal_coordinates import InternalCoordinates
from .molecule_flow import InternalCoordinateFlow

__all__ = ["MoleculeMismatch", "load_flow", "read_card", "save_flow"]

_FORMAT = "feynkac-internal-coordinate-flow-1"
_MODEL, _CARD = "model.safetensors", "card.json"


class MoleculeMismatch(ValueError):
    """The flow describes another molecule than the one it is asked to serve."""


def save_flow(flow: InternalCoordinateFlow, folder: Path | str, *, card: Mapping[str, Any] | None = None) -> None:
    """Write a flow.

    Args:
        flow: its parameters are stored in their own dtype.
        folder: made if missing; a flow already there is replaced.
        card: anything JSON can hold that a user should know: force field, temperature, data, measured quality.
    """
    from safetensors.torch import save

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    payload = save({name: value.detach().cpu().contiguous() for name, value in flow.state_dict().items()})
    record = {
        "format": _FORMAT,
        "model": {"file": _MODEL, "bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()},
        "settings": {**flow.density.settings, "order": list(flow.density.order)},
        "orientation": flow.orientation,
        "dtype": {"positions": _name(flow.dtype), "parameters": _name(flow.density.networks.weight1.dtype)},
        "card": dict(card or {}),
        "coordinates": flow.coordinates.to_json(),
    }
    text = json.dumps(record, indent=1, allow_nan=False)
    _write(place / _MODEL, payload)
    _write(place / _CARD, text.encode())


def read_card(folder: Path | str) -> dict[str, Any]:
    """The JSON record of a saved flow; what its author said is under ``card``.

    Raises:
        CheckpointError: missing or damaged.
    """
    path = _folder(folder) / _CARD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no flow at {path.parent}: {path.name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"damaged flow: {path} is not complete JSON ({error})") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise CheckpointError(f"{path} is not a flow of format {_FORMAT!r}: found {found!r}")
    return record


def load_flow(
    folder: Path | str, *, elements: Sequence[str] | None = None, names: Sequence[str] | None = None
) -> InternalCoordinateFlow:
    """Read a flow written by :func:`save_flow`.

    Args:
        folder: or the path of one of its two files.
        elements: N element symbols that the flow must have been made for, in this order.
        names: likewise N atom names.

    Raises:
        CheckpointError: a file is missing, truncated or altered; it is named, with what was expected.
        MoleculeMismatch: the flow was made for other atoms.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    place = _folder(folder)
    record = read_card(place)
    payload = _payload(place / _MODEL, record)
    try:
        coordinates = InternalCoordinates.from_json(record["coordinates"])
        flow = InternalCoordinateFlow(
            coordinates,
            orientation=record["orientation"],
            dtype=getattr(torch, record["dtype"]["positions"]),
            **record["settings"],
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"damaged flow: {place / _CARD} does not describe a flow ({error!r})") from error
    _check_molecule(flow, elements, names, place)
    flow.density.networks.to(getattr(torch, record["dtype"]["parameters"]))
    try:
        flow.load_state_dict(load(payload))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"damaged flow: {place / _MODEL} does not fit {_CARD} ({error})") from error
    return flow


def _payload(path: Path, record: dict[str, Any]) -> bytes:
    expected = record.get("model", {})
    try:
        payload = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"damaged flow: {path} is missing") from None
    if len(payload) != expected.get("bytes"):
        raise CheckpointError(
            f"damaged flow: {path} has {len(payload)} bytes where {expected.get('bytes')} are expected (truncated?)"
        )
    if hashlib.sha256(payload).hexdigest() != expected.get("sha256"):
        raise CheckpointError(f"damaged flow: {path} does not have the SHA-256 that {_CARD} expects (altered)")
    return payload


def _check_molecule(
    flow: InternalCoordinateFlow, elements: Sequence[str] | None, names: Sequence[str] | None, place: Path
) -> None:
    for what, wanted, found in (
        ("elements", elements, flow.coordinates.elements),
        ("atom names", names, flow.coordinates.names),
    ):
        if wanted is None or tuple(wanted) == found:
            continue
        if len(wanted) != len(found):
            raise MoleculeMismatch(f"the flow in {place} is for {len(found)} atoms, the molecule has {len(wanted)}")
        at = next(i for i, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b)
        raise MoleculeMismatch(
            f"the flow in {place} is for another molecule: {what} differ first at atom {at}, "
            f"{found[at]} in the flow and {wanted[at]} in the molecule"
        )


def _folder(path: Path | str) -> Path:
    place = Path(path)
    return place.parent if place.name in (_MODEL, _CARD) else place


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _write(path: Path, payload: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(payload)
    temporary.replace(path)
