"""Numbers from elsewhere that a run prints beside its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import UserError, named_errors
from .paths import resolve

__all__ = ["read_reference"]


def read_reference(reference: str | None, temperature: float) -> dict[str, Any]:
    """Numbers from elsewhere, ``{"value": ..., "std_error": ...}`` each; empty without a reference.

    Args:
        reference: path as a config has it.
        temperature: of the run, K.

    Raises:
        UserError: the file is no JSON object, or one of another temperature.
    """
    if reference is None:
        return {}
    place = resolve(reference, Path())
    with named_errors(f"reference = {reference!r}"):
        found = json.loads(place.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise UserError(f"reference = {reference!r}: expected a JSON object")
    settings = found.get("settings", {})
    stated = settings.get("temperature") if isinstance(settings, dict) else None
    if stated is not None and stated != temperature:
        raise UserError(f"reference = {reference!r}: is of {stated:g} K, not of {temperature:g} K")
    return found
