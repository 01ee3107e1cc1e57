"""Tables of PLUMED that grow while a job runs, and are cut back when it resumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .errors import FileFormatError

__all__ = ["append_rows", "truncate_rows"]


def append_rows(path: Path, header: Sequence[str], body: str) -> None:
    """Add rows to a file with a given header; they are on the disk when this returns.

    Args:
        path: file.
        header: lines that the file must start with, and have no more of at its start.
        body: rows, each with its end of line.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: if the file starts with another header, or its last line is not whole.
    """
    wanted = "\n".join(header) + "\n"
    with open(path, "r+b") as file:
        start, beyond = file.read(len(wanted)), file.read(2)
        if start != wanted.encode("ascii") or beyond == b"#!":
            raise FileFormatError(f"{path}: its header is not the one of the rows to append:\n{wanted}")
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            raise FileFormatError(f"{path}: truncated: its last line does not end; cut it back with truncate_rows")
        file.write(body.encode("ascii"))
        file.flush()
        os.fsync(file.fileno())


def truncate_rows(path: Path, rows: int) -> None:
    """Cut a table back to its first ``rows`` rows, as a job does that resumes from its checkpoint.

    What follows those rows goes, whole or not; the header before them stays.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: if it has fewer whole rows.
        ValueError: for a negative number.
    """
    if rows < 0:
        raise ValueError(f"rows: got {rows}, expected a number from 0 on")
    with open(path, "r+b") as file:
        end = kept = 0
        for line in file:
            is_row = bool(line.strip()) and not line.startswith(b"#")
            if not line.endswith(b"\n") or (is_row and kept == rows) or kept == rows > 0:
                break
            kept += is_row
            end += len(line)
        if kept < rows or end == 0:
            raise FileFormatError(f"{path}: truncated: {kept} whole rows, {rows} are needed")
        file.truncate(end)
        file.flush()
        os.fsync(file.fileno())
