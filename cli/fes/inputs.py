"""What the named files are, from their content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

__all__ = ["KINDS", "Inputs", "recognise"]

KINDS = {
    "hills": "HILLS",
    "colvar": "COLVAR",
    "kernels": "KERNELS of OPES",
    "state": "STATE of OPES",
    "grid": "a grid (fes.dat, GRID)",
    "openmm": "a folder of OpenMM's bias_*.npy",
}
"""Kind of input and what it is called."""

_SEVERAL = ("hills", "colvar")
_HEAD = 40
_BIAS = re.compile(r"bias_\d+_\d+\.npy")


@dataclass(frozen=True)
class Inputs:
    """Files of one kind.

    Attributes:
        kind: a key of :data:`KINDS`.
        paths: the files; the folder of OpenMM's biases.
        run: folder of the run that the COLVAR belongs to, or None.
    """

    kind: str
    paths: tuple[Path, ...]
    run: Path | None = None

    @property
    def text(self) -> str:
        """In words."""
        return KINDS[self.kind]


def recognise(paths: Sequence[Path]) -> Inputs:
    """Tell from their first lines what the files are.

    Raises:
        UserError: a path that is missing or is none of the kinds, files of different kinds, or several of a kind of
            which one is expected.
    """
    if not paths:
        raise UserError("fes: no input; expected " + ", ".join(KINDS.values()) + ", or the folder of a run")
    found = [_kind(path) for path in paths]
    for one in found[1:]:
        if one.kind != found[0].kind:
            raise UserError(f"{found[0].paths[0]} is {found[0].text}, but {one.paths[0]} is {one.text}: give one kind")
    if len({one.paths[0].resolve() for one in found}) < len(found):
        raise UserError("fes: a file is named twice, so that its rows would count double")
    if len(found) > 1 and found[0].kind not in _SEVERAL:
        raise UserError(f"{paths[1]}: one file of this kind at a time ({found[0].text})")
    run = found[0].run if len(found) == 1 else None
    return Inputs(found[0].kind, tuple(one.paths[0] for one in found), run)


def _kind(path: Path) -> Inputs:
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    fields, settings = _head(path)
    if settings.get("action", "").endswith("_kernels"):
        return Inputs("kernels", (path,))
    if settings.get("action", "").endswith("_state"):
        return Inputs("state", (path,))
    if {"height", "biasf"} <= set(fields):
        return Inputs("hills", (path,))
    if any(name.startswith("nbins_") for name in settings):
        return Inputs("grid", (path,))
    return Inputs("colvar", (path,))


def _folder(path: Path) -> Inputs:
    if any(_BIAS.fullmatch(part.name) for part in path.iterdir()):
        return Inputs("openmm", (path,))
    if (path / "config.yaml").is_file():
        if not (path / "COLVAR").is_file():
            unfinished = "" if (path / "results.json").is_file() else "; the run is not finished"
            raise UserError(f"{path}: this run has no COLVAR{unfinished}")
        return Inputs("colvar", (path / "COLVAR",), run=path)
    raise UserError(f"{path}: neither the folder of a run (config.yaml) nor one with bias_<id>_<index>.npy of OpenMM")


def _head(path: Path) -> tuple[list[str], dict[str, str]]:
    """Fields and SET lines of the first header."""
    fields: list[str] = []
    settings: dict[str, str] = {}
    with open(path, encoding="utf-8", errors="replace") as file:
        for _, line in zip(range(_HEAD), file, strict=False):
            words = line[:10_000].split()
            if words[:2] == ["#!", "FIELDS"] and not fields:
                fields = words[2:]
            elif words[:2] == ["#!", "SET"] and len(words) > 3:
                settings[words[2]] = words[3]
    if not fields:
        raise UserError(
            f"{path}: not recognised: it does not start with '#! FIELDS' as PLUMED's files do; expected "
            + ", ".join(KINDS.values())
        )
    return fields, settings
