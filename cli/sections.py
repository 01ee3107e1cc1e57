"""The base of every section of a config, and what sections have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from .paths import resolve

__all__ = ["ExistingPath", "Section"]


class Section(BaseModel):
    """A section of a config."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


def _existing(text: Any, info: ValidationInfo) -> str:
    """An existing path: ``data:...`` is kept as written, anything else made absolute.

    Relative paths are taken from the config's folder, or else (values of --set) from the working folder.
    """
    if not isinstance(text, str):
        raise ValueError("expected a path, relative to the config, or data:NAME")
    base = Path((info.context or {}).get("base", "."))
    if not text.startswith("data:") and not (base / text).exists() and Path(text).exists():
        base = Path()
    path = resolve(text, base)
    return text if text.startswith("data:") else str(path)


ExistingPath = Annotated[str, BeforeValidator(_existing)]
