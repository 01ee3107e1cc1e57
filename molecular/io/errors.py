"""Errors of reading and writing files."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FileFormatError", "UnfinishedLineWarning"]


class FileFormatError(ValueError):
    """A file is truncated, altered, or not of the format its reader expects; the message names it."""


class UnfinishedLineWarning(UserWarning):
    """The last line of a table does not end, as where a run was killed while it wrote, and was left out.

    Attributes:
        path: of the file, as given.
        line: of the file, from 1.
    """

    def __init__(self, path: Path, line: int) -> None:
        super().__init__(f"{path}, line {line}: the last line does not end and was left out")
        self.path, self.line = path, line
