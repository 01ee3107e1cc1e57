"""Paths of a config: relative to the config file, or ``data:...`` for what is shipped with feynkac."""

from __future__ import annotations

import difflib
import importlib.resources
from pathlib import Path

from .errors import UserError

__all__ = ["config_path", "default_run_folder", "resolve", "shipped"]

_PREFIX = "data:"


def resolve(text: str, base: Path) -> Path:
    """The path that ``text`` stands for.

    Raises:
        ValueError: if nothing is there; for shipped data with the close names.
    """
    if not text.startswith(_PREFIX):
        path = (base / Path(text).expanduser()).resolve()
        if not path.exists():
            raise ValueError(f"there is no {path}")
        return path
    name = text.removeprefix(_PREFIX)
    path = _root() / name
    # compared as written: an editable install keeps links here that lead elsewhere
    outside = Path(name).is_absolute() or ".." in Path(name).parts
    if not name or outside or not path.exists():
        close = difflib.get_close_matches(name, shipped(), n=1, cutoff=0.4)
        hint = f"; did you mean {_PREFIX}{close[0]}?" if close else ""
        raise ValueError(f"feynkac ships no data called {name!r}{hint}")
    return path


def config_path(path: Path) -> Path:
    """The config file that the command line names; ``data:configs/...`` is one shipped with feynkac.

    Raises:
        UserError: if no such config is shipped.
    """
    if not str(path).startswith(_PREFIX):
        return path
    try:
        return resolve(str(path), Path())
    except ValueError as error:
        raise UserError(str(error)) from error


def shipped() -> list[str]:
    """Names that may follow ``data:``: molecules, configs and checkpoint folders."""
    root = _root()
    files = [p for p in root.rglob("*") if p.is_file() and p.suffix in {".pdb", ".yaml", ".safetensors"}]
    names = {p.parent if p.suffix == ".safetensors" else p for p in files}
    return sorted(str(p.relative_to(root)) for p in names)


def default_run_folder(name: str) -> Path:
    """``runs/NAME-001``, or the first number after the highest one in use."""
    parent = Path("runs")
    taken = [p.name.removeprefix(f"{name}-") for p in parent.glob(f"{name}-*")] if parent.is_dir() else []
    highest = max((int(n) for n in taken if n.isdigit()), default=0)
    return parent / f"{name}-{highest + 1:03d}"


def _root() -> Path:
    return Path(str(importlib.resources.files("feynkac.data")))
