"""Errors of reading and writing files."""

from __future__ import annotations

__all__ = ["FileFormatError"]


class FileFormatError(ValueError):
    """A file is truncated, altered, or not of the format its reader expects; the message names it."""
