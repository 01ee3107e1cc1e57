"""The table layout of PLUMED: a FIELDS line, SET lines, whitespace columns; and COLVAR files in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import FileFormatError

__all__ = ["PlumedTable", "plumed_number", "read_colvar", "read_table", "write_colvar"]


@dataclass(frozen=True)
class PlumedTable:
    """Columns (n,) float64 by name in the order of the file, and the values of the SET lines as text."""

    columns: dict[str, torch.Tensor]
    constants: dict[str, str]


def plumed_number(value: float) -> str:
    """A boundary as PLUMED writes it: multiples of pi/2 symbolically ("-pi", "2*pi"), others in full."""
    for text, multiple in (("pi", 1.0), ("2*pi", 2.0), ("pi/2", 0.5)):
        for sign, prefix in ((1.0, ""), (-1.0, "-")):
            if value == sign * multiple * math.pi:
                return prefix + text
    return repr(float(value))


def parse_plumed_number(text: str) -> float:
    """The inverse of `plumed_number`.

    Raises:
        ValueError: for text that is no number.
    """
    match = re.fullmatch(r"(-?)(?:(\d+(?:\.\d+)?)\*)?pi(?:/(\d+(?:\.\d+)?))?", text)
    if match is None:
        return float(text)
    sign, times, over = match.groups()
    return (-1.0 if sign else 1.0) * float(times or 1) * math.pi / float(over or 1)


def write_colvar(
    path: Path, columns: Mapping[str, torch.Tensor], *, periods: Mapping[str, float | None] | None = None
) -> None:
    """Write a COLVAR file: a ``time`` column with the sample index, then ``columns``.

    A column named ``*.bias`` holding kT * log-weight in kJ/mol lets PLUMED's reweighting tools weight the
    samples by exp(bias / kT).

    Args:
        path: file to create.
        columns: name -> (n,) values.
        periods: name -> period; a periodic variable gets its ``min_`` and ``max_`` SET lines (-period/2,
            period/2).

    Raises:
        FileExistsError: if ``path`` exists.
        ValueError: for columns of unequal length or names with a blank.
    """
    if not columns or len({tuple(c.shape) for c in columns.values()}) != 1:
        raise ValueError(
            f"columns must have one common length, got { ({k: tuple(c.shape) for k, c in columns.items()}) }"
        )
    if any(not name or re.search(r"\s", name) for name in columns):
        raise ValueError(f"column names must not hold blanks, got {list(columns)}")
    lines = ["#! FIELDS time " + " ".join(columns)]
    for name in columns:
        period = (periods or {}).get(name)
        if period is not None:
            lines += [
                f"#! SET min_{name} {plumed_number(-period / 2)}",
                f"#! SET max_{name} {plumed_number(period / 2)}",
            ]
    rows = torch.stack([c.detach().cpu().double() for c in columns.values()], dim=1).tolist()
    with open(path, "x", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
        for index, row in enumerate(rows):
            file.write(f" {index:.6f} " + " ".join(f"{value:.9f}" for value in row) + "\n")


def read_colvar(path: Path) -> PlumedTable:
    """Read a COLVAR file, or any PLUMED table.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: naming file and line of a missing header, a short row, or a value that is no number.
    """
    return read_table(path)


def read_table(path: Path) -> PlumedTable:
    """Read a PLUMED table; repeated headers (restarts) must name the same fields. Raises as `read_colvar`."""
    fields: list[str] = []
    constants: dict[str, str] = {}
    rows: list[list[float]] = []
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if line.startswith("#!"):
            fields = _header(path, number, words[1:], fields, constants)
        elif words and not line.startswith("#"):
            rows.append(_row(path, number, words, fields))
    if text and not text.endswith("\n"):
        raise FileFormatError(f"{path}: truncated: its last line does not end")
    if not fields:
        raise FileFormatError(f"{path}: no '#! FIELDS' line, so this is no PLUMED file")
    data = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(fields))
    return PlumedTable({name: data[:, k].clone() for k, name in enumerate(fields)}, constants)


def _header(path: Path, number: int, words: list[str], fields: list[str], constants: dict[str, str]) -> list[str]:
    if words[:1] == ["FIELDS"]:
        if fields and fields != words[1:]:
            raise FileFormatError(f"{path}, line {number}: the fields change to {words[1:]} from {fields}")
        return words[1:]
    if words[:1] == ["SET"] and len(words) >= 3:
        constants[words[1]] = " ".join(words[2:])
        return fields
    raise FileFormatError(f"{path}, line {number}: neither '#! FIELDS ...' nor '#! SET name value'")


def _row(path: Path, number: int, words: list[str], fields: list[str]) -> list[float]:
    if not fields:
        raise FileFormatError(f"{path}, line {number}: data before any '#! FIELDS' line")
    if len(words) != len(fields):
        raise FileFormatError(f"{path}, line {number}: {len(words)} values for {len(fields)} fields (truncated?)")
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise FileFormatError(f"{path}, line {number}: {error}") from error
