"""KERNELS and STATE files of PLUMED's OPES_METAD and OPES_METAD_EXPLORE.

Layout (PLUMED 2.10, ``src/opes/OPESmetad.cpp``): FIELDS ``time <variables> sigma_* height``, in a KERNELS file also
``logweight``; SET lines ``action`` (``OPES_METAD_kernels``, ``OPES_METAD_state``), ``biasfactor``, ``epsilon``,
``kernel_cutoff``, ``compression_threshold``, then ``min_`` and ``max_`` of periodic variables. A STATE file has
besides ``zed``, ``sum_weights``, ``sum_weights2`` and ``counter``, with adaptive widths also ``adaptive_counter`` and
``av_cv_*``, ``av_M2_*``. Heights are those of a density's kernels, in units of their weights; no energies.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from .append import append_rows
from .errors import FileFormatError
from .opes_table import OpesState, OpesTable
from .plumed import PlumedTable, domain_of, parse_plumed_number, read_blocks, set_lines

__all__ = ["append_opes_kernels", "read_opes_kernels", "read_opes_state", "write_opes_kernels", "write_opes_state"]

_SUMS = ("zed", "sum_weights", "sum_weights2", "counter")


def write_opes_kernels(path: Path, table: OpesTable) -> None:
    """Write a KERNELS file: every kernel as it was deposited, in full digits.

    Raises:
        FileExistsError: if ``path`` exists.
        ValueError: for a table without log-weights.
    """
    _write(path, table, "kernels", {}, _log_weights(table))


def write_opes_state(path: Path, table: OpesTable) -> None:
    """Write a STATE file, from which PLUMED restarts (``STATE_RFILE``).

    Raises:
        FileExistsError: if ``path`` exists.
        ValueError: for a table without a state.
    """
    if table.state is None:
        raise ValueError("a STATE file needs the state of its table")
    sums = {name: getattr(table.state, name) for name in _SUMS} | dict(table.state.adaptive)
    _write(path, table, "state", sums, {})


def read_opes_kernels(path: Path) -> OpesTable:
    """Read a KERNELS file; headers repeated after restarts may change the settings, and the last ones are kept.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: naming file and line: no KERNELS file, truncated, values out of range, other variables after
            a restart.
    """
    tables: list[OpesTable] = []
    for block in read_blocks(path):
        table = _table(path, block, "kernels")
        first = tables[0] if tables else table
        if (table.names, table.domains, table.action) != (first.names, first.domains, first.action):
            _fail(path, block.line, "variables, domains or action change")
        tables.append(table)
    return replace(
        tables[-1],
        centers=torch.cat([table.centers for table in tables]),
        sigmas=torch.cat([table.sigmas for table in tables]),
        heights=torch.cat([table.heights for table in tables]),
        times=torch.cat([table.times for table in tables]),
        log_weights=torch.cat([table.log_weights for table in tables if table.log_weights is not None]),
    )


def read_opes_state(path: Path, index: int = -1) -> OpesTable:
    """Read a STATE file.

    The file does not say how many kernels it has, so one cut exactly between two lines is not noticed.

    Args:
        path: file.
        index: which of the states of a file written with STORE_STATES; the last by default.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: naming file and line: no STATE file, truncated, values out of range.
        IndexError: no such state.
    """
    blocks = read_blocks(path)
    if not -len(blocks) <= index < len(blocks):
        raise IndexError(f"{path}: state {index} of {len(blocks)}")
    return _table(path, blocks[index], "state")


def append_opes_kernels(path: Path, table: OpesTable) -> None:
    """Add kernels to a file that `write_opes_kernels` made; they are on the disk when this returns.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: if the file starts with another header, or its last line is not whole.
        ValueError: for a table without log-weights.
    """
    append_rows(path, *_lines(table, "kernels", {}, _log_weights(table)))


def _log_weights(table: OpesTable) -> dict[str, Tensor]:
    if table.log_weights is None:
        raise ValueError("a KERNELS file needs the log_weights of its kernels")
    return {"logweight": table.log_weights}


def _write(path: Path, table: OpesTable, kind: str, sums: dict[str, float], more: dict[str, Tensor]) -> None:
    header, body = _lines(table, kind, sums, more)
    with open(path, "x", encoding="ascii") as file:
        file.write("\n".join(header) + "\n" + body)


def _lines(table: OpesTable, kind: str, sums: dict[str, float], more: dict[str, Tensor]) -> tuple[list[str], str]:
    settings: dict[str, float] = {
        "biasfactor": table.bias_factor,
        "epsilon": table.epsilon,
        "kernel_cutoff": table.kernel_cutoff,
        "compression_threshold": table.compression_threshold,
    }
    header = [
        "#! FIELDS " + " ".join(["time", *table.names, *(f"sigma_{name}" for name in table.names), "height", *more]),
        f"#! SET action {table.action}_{kind}",
        *(f"#! SET {name} {value!r}" for name, value in (settings | sums).items()),
        *set_lines(table.names, table.domains),
    ]
    columns = [table.times, *table.centers.unbind(1), *table.sigmas.unbind(1), table.heights, *more.values()]
    rows = torch.stack([column.double() for column in columns], dim=1).tolist()
    return header, "".join(" " + " ".join(map(repr, row)) + "\n" for row in rows)


def _table(path: Path, block: PlumedTable, kind: str) -> OpesTable:
    action, _, found = block.constants.get("action", "").rpartition("_")
    if found != kind:
        _fail(path, block.line, f"action is {block.constants.get('action')!r}, expected one that ends in _{kind}")
    more = ["logweight"] if kind == "kernels" else []
    fields = list(block.columns)
    d = (len(fields) - 2 - len(more)) // 2
    names = fields[1 : 1 + d]
    wanted = ["time", *names, *(f"sigma_{name}" for name in names), "height", *more]
    if d < 1 or fields != wanted:
        _fail(path, block.line, f"no {kind.upper()} file: its fields are {fields}")
    sigmas = torch.stack([block.columns[f"sigma_{name}"] for name in names], dim=1)
    data = torch.stack(list(block.columns.values()), dim=1)
    bad = (~torch.isfinite(data).all(dim=1) | (sigmas <= 0).any(dim=1)).nonzero()
    if len(bad):
        _fail(path, block.row_lines[int(bad[0])], "a number that is not finite, or a width that is not positive")
    try:
        return OpesTable(
            names=tuple(names),
            domains=tuple(domain_of(block.constants, name) for name in names),
            centers=torch.stack([block.columns[name] for name in names], dim=1),
            sigmas=sigmas,
            heights=block.columns["height"],
            times=block.columns["time"],
            bias_factor=_setting(block, "biasfactor"),
            epsilon=_setting(block, "epsilon"),
            kernel_cutoff=_setting(block, "kernel_cutoff"),
            compression_threshold=_setting(block, "compression_threshold"),
            log_weights=block.columns.get("logweight"),
            action=action,
            state=_state(block) if kind == "state" else None,
        )
    except ValueError as error:
        raise FileFormatError(f"{path}, line {block.line}: {error}") from error


def _state(block: PlumedTable) -> OpesState:
    zed, weights, weights2, counter = (_setting(block, name) for name in _SUMS)
    if counter != int(counter):
        raise ValueError(f"counter is {counter!r}, expected a whole number")
    names = [name for name in block.constants if name == "adaptive_counter" or name.startswith(("av_cv_", "av_M2_"))]
    return OpesState(zed, weights, weights2, int(counter), {name: _setting(block, name) for name in names})


def _setting(block: PlumedTable, name: str) -> float:
    if name not in block.constants:
        raise ValueError(f"no '#! SET {name}' line")
    value = parse_plumed_number(block.constants[name])
    if math.isnan(value) or (math.isinf(value) and name != "biasfactor"):
        raise ValueError(f"{name} is {value!r}")
    return value


def _fail(path: Path, line: int, what: str) -> NoReturn:
    raise FileFormatError(f"{path}, line {line}: {what}")
