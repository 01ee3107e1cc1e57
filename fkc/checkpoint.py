"""A state on disk: tensors as safetensors, the rest as JSON, never pickle, never half written.

A folder holds ``state.json`` and the one tensor file that it names. Tensors go to a new file first; renaming
the JSON over the old one is the single moment at which the new state takes effect. Killed at any point, the
folder holds the old state or the new one, whole. Both files carry a SHA-256 checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import CheckpointError

__all__ = ["exists", "load_state", "save_state"]

_FORMAT = 1
_RECORD = "state.json"


def exists(folder: str | Path) -> bool:
    """Whether the folder holds a state."""
    return (Path(folder) / _RECORD).is_file()


def save_state(folder: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a state, replacing the one that the folder held.

    Args:
        folder: created if missing.
        tensors: any dtypes and devices; stored as they are.
        meta: anything JSON can hold.

    Raises:
        TypeError: ``meta`` cannot be written as JSON.
    """
    from safetensors.torch import save

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    payload = save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})
    digest = hashlib.sha256(payload).hexdigest()
    name = f"state-{digest[:16]}.safetensors"
    record = {
        "format": _FORMAT,
        "tensors": name,
        "sha256": digest,
        "meta": json.loads(json.dumps(dict(meta))),
    }
    record["record_sha256"] = _digest(record)
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=True)
    _write_then_rename(place / name, payload)
    _write_then_rename(place / _RECORD, text.encode())
    _sync_folder(place)
    for old in place.glob("state-*.safetensors*"):
        if old.name != name:
            old.unlink(missing_ok=True)


def load_state(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_state` wrote.

    Returns:
        tensors (on the CPU) and meta.

    Raises:
        CheckpointError: no state there, or a file is truncated, altered, missing, or of an unknown format; it
            is named.
    """
    from safetensors.torch import load

    path = Path(folder) / _RECORD
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint: {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"damaged checkpoint: {path} is not complete JSON ({error})") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of format {_FORMAT}")
    stated = record.pop("record_sha256", None)
    if stated != _digest(record):
        raise CheckpointError(f"damaged checkpoint: {path} does not match its checksum")
    payload = _read_tensors(path.parent / str(record["tensors"]), str(record["sha256"]))
    return load(payload), record["meta"]


def _read_tensors(path: Path, digest: str) -> bytes:
    try:
        payload = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"damaged checkpoint: {path} is missing") from None
    if hashlib.sha256(payload).hexdigest() != digest:
        raise CheckpointError(f"damaged checkpoint: {path} does not match its checksum (truncated or altered)")
    return payload


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _write_then_rename(path: Path, payload: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
