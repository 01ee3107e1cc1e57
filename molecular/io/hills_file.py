r"""HILLS files: read, written and appended to.

Layout (PLUMED 2.10, ``src/bias/MetaD.cpp``): a FIELDS line ``time <variables> sigma_* height biasf [clock]``, SET
lines ``multivariate``, ``kerneltype`` and, for periodic variables, ``min_`` and ``max_``; the header is repeated after
a restart. The height column is the deposited height times gamma / (gamma - 1) for a bias factor gamma > 1. Columns
``sigma_a_b`` of multivariate hills hold the lower Cholesky factor of the covariance, diagonals first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from .append import append_rows
from .errors import FileFormatError
from .hills import KERNEL_TYPES, HillsTable, factor_of_file
from .plumed import PlumedTable, domain_of, read_blocks, set_lines

__all__ = ["append_hills", "read_hills", "write_hills"]


def read_hills(paths: Path | str | Sequence[Path | str], *, unfinished: bool = False) -> HillsTable:
    """Read HILLS files: one, or those of several walkers or restarts, joined in the order given.

    Args:
        paths: one file or several.
        unfinished: whether the last line of a file may be left out that does not end, as in that of a run that was
            killed, with an `UnfinishedLineWarning`.

    Raises:
        FileNotFoundError: if a file is missing.
        FileFormatError: naming file and line: no HILLS file, truncated, values out of range, or headers that
            change anything but the bias factor.
        ValueError: no path.
    """
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    if not several:
        raise ValueError("read_hills: no path")
    tables: list[HillsTable] = []
    for path in map(Path, several):
        for block in read_blocks(path, unfinished=unfinished):
            table = _table(path, block)
            if tables and (difference := tables[0].differs_from(table)):
                _fail(path, block.line, difference)
            tables.append(table)
    return HillsTable.joined(tables)


def write_hills(path: Path, table: HillsTable) -> None:
    """Write a HILLS file; a table without a hill makes one with its header only.

    Numbers are written in full, so reading them back gives the same bits, but for heights that a bias factor
    rescales (one or two units in the last place).

    Raises:
        FileExistsError: if ``path`` exists.
    """
    with open(path, "x", encoding="ascii") as file:
        file.write("\n".join(_header(table)) + "\n" + _body(table))


def append_hills(path: Path, table: HillsTable) -> None:
    """Add hills to a file that `write_hills` made; they are on the disk when this returns.

    A job that resumes cuts the file back to its checkpoint with `truncate_rows` first.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: if the file starts with another header, or its last line is not whole.
    """
    append_rows(path, _header(table), _body(table))


def _header(table: HillsTable) -> list[str]:
    sigmas = [name for name, _, _ in _sigma_fields(table.names, table.multivariate)]
    clock = [] if table.clocks is None else ["clock"]
    return [
        "#! FIELDS " + " ".join(["time", *table.names, *sigmas, "height", "biasf", *clock]),
        f"#! SET multivariate {str(table.multivariate).lower()}",
        f"#! SET kerneltype {table.kernel}",
        *set_lines(table.names, table.domains),
    ]


def _body(table: HillsTable) -> str:
    fields = _sigma_fields(table.names, table.multivariate)
    sigmas = [table.sigmas[:, i, j] if table.multivariate else table.sigmas[:, i] for _, i, j in fields]
    columns = [table.times, *table.centers.unbind(1), *sigmas, table.file_heights, table.biasf]
    rows = torch.stack([column.double() for column in columns], dim=1).tolist()
    ends = ["\n"] * len(rows) if table.clocks is None else [f" {int(clock)}\n" for clock in table.clocks.tolist()]
    return "".join(" " + " ".join(map(repr, row)) + end for row, end in zip(rows, ends, strict=True))


def _sigma_fields(names: Sequence[str], multivariate: bool) -> list[tuple[str, int, int]]:
    """Name, row and column of each width in the order of the file."""
    if not multivariate:
        return [(f"sigma_{name}", i, i) for i, name in enumerate(names)]
    d = len(names)
    bands = [(j + band, j) for band in range(d) for j in range(d - band)]
    return [(f"sigma_{names[i]}_{names[j]}", i, j) for i, j in bands]


def _table(path: Path, block: PlumedTable) -> HillsTable:
    fields, constants = list(block.columns), block.constants
    flag = constants.get("multivariate", "false")
    if flag not in ("true", "false"):
        _fail(path, block.line, f"multivariate is {flag!r}, expected true or false")
    # Files from before PLUMED wrote the type of the kernel have plain Gaussians.
    kernel = constants.get("kerneltype", "gaussian")
    if kernel not in KERNEL_TYPES:
        _fail(path, block.line, f"kerneltype is {kernel!r}, expected one of {KERNEL_TYPES}")
    names = _names(path, block, flag == "true")
    widths = _sigma_fields(names, flag == "true")
    wanted = ["time", *names, *(name for name, _, _ in widths), "height", "biasf"]
    if fields not in (wanted, [*wanted, "clock"]):
        _fail(path, block.line, f"the fields of a HILLS file with the variables {names} are {wanted}, got {fields}")
    columns = block.columns
    _check(path, block, columns["biasf"], (columns["biasf"] < 1) & (columns["biasf"] != -1), "biasf")
    for name, i, j in widths:
        _check(path, block, columns[name], (columns[name] <= 0) & (i == j), name)
    sigmas = torch.zeros(block.rows, len(names), len(names), dtype=torch.float64)
    for name, i, j in widths:
        sigmas[:, i, j] = columns[name]
    try:
        return HillsTable(
            names=tuple(names),
            domains=tuple(domain_of(constants, name) for name in names),
            centers=torch.stack([columns[name] for name in names], dim=1),
            sigmas=sigmas if flag == "true" else sigmas.diagonal(dim1=1, dim2=2).contiguous(),
            heights=columns["height"] / factor_of_file(columns["biasf"]),
            biasf=columns["biasf"],
            times=columns["time"],
            kernel=kernel,
            clocks=columns.get("clock"),
        )
    except ValueError as error:
        raise FileFormatError(f"{path}, line {block.line}: {error}") from error


def _names(path: Path, block: PlumedTable, multivariate: bool) -> list[str]:
    """The variables: the fields between ``time`` and the widths, whose number follows from theirs."""
    fields = list(block.columns)
    if fields[:1] != ["time"] or "height" not in fields or "biasf" not in fields:
        _fail(path, block.line, f"no HILLS file: its fields are {fields}")
    between = fields.index("height") - 1
    width = {d: d + (d * (d + 1) // 2 if multivariate else d) for d in range(1, between)}
    d = next((d for d in width if width[d] == between), None)
    if d is None:
        kind = f"multivariate {str(multivariate).lower()}"
        _fail(path, block.line, f"no HILLS file with {kind}: its fields are {fields}")
    return fields[1 : d + 1]


def _check(path: Path, block: PlumedTable, values: Tensor, wrong: Tensor, name: str) -> None:
    bad = (wrong | ~torch.isfinite(values)).nonzero()
    if len(bad):
        row = int(bad[0])
        _fail(path, block.row_lines[row], f"{name} is {float(values[row])!r}")


def _fail(path: Path, line: int, what: str) -> NoReturn:
    raise FileFormatError(f"{path}, line {line}: {what}")
