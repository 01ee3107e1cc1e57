"""The table layout of PLUMED: FIELDS and SET lines, then whitespace columns; and how it writes numbers."""

from __future__ import annotations

import math
import re
import warnings
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from .errors import FileFormatError, UnfinishedLineWarning

__all__ = [
    "PlumedTable",
    "domain_of",
    "parse_plumed_number",
    "plumed_number",
    "read_blocks",
    "read_table",
    "set_lines",
]

Domain = tuple[float, float]


@dataclass(frozen=True)
class PlumedTable:
    """A table, or the part of one that stands under one header.

    Attributes:
        columns: name -> (n,) float64, in the order of the file.
        constants: name -> value of the SET lines, as text.
        line: of the file where the header starts, from 1.
        row_lines: line of the file of each row; empty for a table not read from one.
    """

    columns: dict[str, Tensor]
    constants: dict[str, str]
    line: int = 1
    row_lines: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    @property
    def domains(self) -> dict[str, Domain]:
        """Name -> (lower, upper) of the columns that have ``min_`` and ``max_``: those of periodic variables.

        Raises:
            ValueError: an end that is no number.
        """
        found = {name: domain_of(self.constants, name) for name in self.columns}
        return {name: domain for name, domain in found.items() if domain is not None}


def domain_of(constants: Mapping[str, str], name: str) -> Domain | None:
    """Ends of a periodic variable from its SET lines, or None without them.

    Raises:
        ValueError: one end only, ends that are no numbers or out of order.
    """
    low, high = constants.get(f"min_{name}"), constants.get(f"max_{name}")
    if low is None and high is None:
        return None
    if low is None or high is None:
        raise ValueError(f"{name} has only one of min_{name} and max_{name}")
    lower, upper = parse_plumed_number(low), parse_plumed_number(high)
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ValueError(f"{name}: the ends {low} and {high} are not finite and in order")
    return lower, upper


def set_lines(names: Sequence[str], domains: Sequence[Domain | None]) -> list[str]:
    """``#! SET min_`` and ``max_`` lines of the periodic ones among ``names``."""
    lines = []
    for name, domain in zip(names, domains, strict=True):
        if domain is not None:
            lines += [
                f"#! SET min_{name} {plumed_number(domain[0])}",
                f"#! SET max_{name} {plumed_number(domain[1])}",
            ]
    return lines


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
    match = re.fullmatch(r"([+-]?)(?:(\d+(?:\.\d*)?)\*)?pi(?:/(\d+(?:\.\d*)?))?", text)
    if match is None:
        return float(text)
    sign, times, over = match.groups()
    return (-1.0 if sign == "-" else 1.0) * float(times or 1) * math.pi / float(over or 1)


def read_table(path: Path, *, unfinished: bool = False) -> PlumedTable:
    """Read a PLUMED table. Headers repeated after restarts must name the same fields; later SET lines win.

    Args:
        path: file.
        unfinished: as in `read_blocks`.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: naming file and line of a missing header, a short row, or a value that is no number.
    """
    blocks = read_blocks(path, unfinished=unfinished)
    for block in blocks:
        if list(block.columns) != list(blocks[0].columns):
            raise FileFormatError(
                f"{path}, line {block.line}: the fields change to {list(block.columns)} from {list(blocks[0].columns)}"
            )
    columns = {name: torch.cat([block.columns[name] for block in blocks]) for name in blocks[0].columns}
    constants = {key: value for block in blocks for key, value in block.constants.items()}
    return PlumedTable(columns, constants, row_lines=sum((block.row_lines for block in blocks), ()))


def read_blocks(path: Path, *, unfinished: bool = False) -> list[PlumedTable]:
    """The parts of a PLUMED file, one for each header; a header starts with a FIELDS line.

    Args:
        path: file.
        unfinished: whether a last line without an end, which a run leaves that is killed while it writes, may be left
            out with an `UnfinishedLineWarning`; its numbers may be cut short even where none is missing. A repeated
            header without a row that it belongs to goes with it. Otherwise such a line is an error.

    Raises:
        As `read_table`.
    """
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    cut = lines.pop()
    parts: list[_Part] = []
    for number, line in enumerate(lines if unfinished or not cut else [*lines, cut], start=1):
        words = line.split()
        if line.startswith("#!"):
            _header(path, number, words[1:], parts)
        elif words and not line.startswith("#"):
            if not parts:
                _fail(path, number, "data before any '#! FIELDS' line")
            parts[-1].numbers.extend(_row(path, number, words, parts[-1].fields))
            parts[-1].row_lines.append(number)
    if cut and not unfinished:
        raise FileFormatError(f"{path}: truncated: its last line does not end")
    if not parts:
        raise FileFormatError(f"{path}: no '#! FIELDS' line, so this is no PLUMED file")
    if cut:
        warnings.warn(UnfinishedLineWarning(path, len(lines) + 1), stacklevel=2)
        if len(parts) > 1 and cut.startswith("#") and not parts[-1].row_lines:
            parts.pop()
    return [part.table() for part in parts]


@dataclass(frozen=True)
class _Part:
    fields: list[str]
    line: int
    constants: dict[str, str]
    row_lines: list[int]
    numbers: array[float]

    def table(self) -> PlumedTable:
        data = torch.from_numpy(np.array(self.numbers)).reshape(-1, len(self.fields))
        columns = {name: data[:, k].clone() for k, name in enumerate(self.fields)}
        return PlumedTable(columns, self.constants, self.line, tuple(self.row_lines))


def _header(path: Path, number: int, words: list[str], parts: list[_Part]) -> None:
    if words[:1] == ["FIELDS"]:
        if len(words) < 2 or len(set(words)) != len(words):
            _fail(path, number, "no field, or one that occurs twice")
        parts.append(_Part(words[1:], number, {}, [], array("d")))
    elif words[:1] == ["SET"] and len(words) >= 3:
        if not parts:
            _fail(path, number, "a SET line before any '#! FIELDS' line")
        parts[-1].constants[words[1]] = " ".join(words[2:])
    else:
        _fail(path, number, "neither '#! FIELDS ...' nor '#! SET name value'")


def _row(path: Path, number: int, words: list[str], fields: list[str]) -> list[float]:
    if len(words) != len(fields):
        _fail(path, number, f"{len(words)} values for {len(fields)} fields (truncated?)")
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise FileFormatError(f"{path}, line {number}: {error}") from error


def _fail(path: Path, number: int, what: str) -> NoReturn:
    raise FileFormatError(f"{path}, line {number}: {what}")
