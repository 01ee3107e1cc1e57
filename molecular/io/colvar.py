"""COLVAR files: variables and biases in the order of time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .append import append_rows
from .plumed import PlumedTable, read_table, set_lines

__all__ = ["append_colvar", "bias_columns", "read_colvar", "write_colvar"]


def bias_columns(label: str, bias: Tensor, rct: Tensor | float | None = None) -> dict[str, Tensor]:
    """Columns of a bias as PLUMED's METAD names them.

    Args:
        label: of the bias ("metad").
        bias: (n,) V at each sample, kJ/mol.
        rct: c(t) in kJ/mol, (n,) or one number for all; None leaves out two of the columns.

    Returns:
        ``<label>.bias``; with ``rct`` also ``<label>.rbias`` = V - c(t) and ``<label>.rct``.
    """
    columns = {f"{label}.bias": bias}
    if rct is not None:
        shift = torch.as_tensor(rct, dtype=torch.float64, device=bias.device).expand(bias.shape)
        columns |= {f"{label}.rbias": bias - shift, f"{label}.rct": shift}
    return columns


def write_colvar(
    path: Path,
    columns: Mapping[str, Tensor],
    *,
    periods: Mapping[str, float | None] | None = None,
    time: Tensor | None = None,
) -> None:
    """Write a COLVAR file: a ``time`` column, then ``columns``.

    A column named ``*.bias`` holding kT * log-weight in kJ/mol lets PLUMED's reweighting tools weight the
    samples by exp(bias / kT).

    Args:
        path: file to create.
        columns: name -> (n,) values.
        periods: name -> period; a periodic variable gets its ``min_`` and ``max_`` SET lines (-period/2,
            period/2).
        time: (n,) in ps; None for the index of the sample, which suits independent samples.

    Raises:
        FileExistsError: if ``path`` exists.
        ValueError: for columns of unequal length or names with a blank.
    """
    names = _checked(columns)
    rows = len(next(iter(columns.values())))
    times = torch.arange(rows, dtype=torch.float64) if time is None else time
    body = _body(columns, times)
    with open(path, "x", encoding="ascii") as file:
        file.write("\n".join(_header(names, periods)) + "\n" + body)


def append_colvar(
    path: Path,
    columns: Mapping[str, Tensor],
    *,
    time: Tensor,
    periods: Mapping[str, float | None] | None = None,
) -> None:
    """Add rows to a file that `write_colvar` made; they are on the disk when this returns.

    A job that resumes cuts the file back to its checkpoint with `truncate_rows` first.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: if the file has other columns or periods, or its last line is not whole.
        ValueError: as `write_colvar`.
    """
    append_rows(path, _header(_checked(columns), periods), _body(columns, time))


def read_colvar(path: Path, *, unfinished: bool = False) -> PlumedTable:
    """Read a COLVAR file, or any PLUMED table; ``.domains`` has the ends of its periodic variables.

    Headers repeated after restarts must name the same fields. Rows stay in the order of the file.

    Args:
        path: file.
        unfinished: whether a last line that does not end, as in the file of a run that was killed, may be left out,
            with an `UnfinishedLineWarning`.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: naming file and line of a missing header, a short row, or a value that is no number.
    """
    return read_table(path, unfinished=unfinished)


def _checked(columns: Mapping[str, Tensor]) -> list[str]:
    shapes = {name: tuple(column.shape) for name, column in columns.items()}
    if not columns or len(set(shapes.values())) != 1:
        raise ValueError(f"columns must have one common length, got {shapes}")
    if any(not name or re.search(r"\s", name) for name in columns) or "time" in columns:
        raise ValueError(f"column names must not hold blanks or be 'time', got {list(columns)}")
    return list(columns)


def _header(names: list[str], periods: Mapping[str, float | None] | None) -> list[str]:
    found = [(periods or {}).get(name) for name in names]
    domains = [None if period is None else (-period / 2, period / 2) for period in found]
    return ["#! FIELDS time " + " ".join(names), *set_lines(names, domains)]


def _body(columns: Mapping[str, Tensor], time: Tensor) -> str:
    rows = torch.stack([c.detach().cpu().double() for c in columns.values()], dim=1)
    if time.shape != (len(rows),):
        raise ValueError(f"time must be ({len(rows)},) as the columns are, got {tuple(time.shape)}")
    return "".join(
        f" {instant:.6f} " + " ".join(f"{value:.9f}" for value in row) + "\n"
        for instant, row in zip(time.detach().cpu().double().tolist(), rows.tolist(), strict=True)
    )
