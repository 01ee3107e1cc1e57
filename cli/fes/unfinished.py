"""Files of runs that were killed while they wrote a line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from ...molecular.io import UnfinishedLineWarning

__all__ = ["reading"]

Read = TypeVar("Read")


def reading(read: Callable[[], Read]) -> tuple[Read, list[str]]:
    """What ``read`` returns, and a warning that counts the unfinished lines that it left out; empty without any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnfinishedLineWarning)
        found = read()
    cut = []
    for one in caught:
        if isinstance(one.message, UnfinishedLineWarning):
            cut.append(f"{one.message.path}, line {one.message.line}")
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if not cut:
        return found, []
    files = "file" if len(cut) == 1 else "files"
    where = cut[0] + (", ..." if len(cut) > 1 else "")
    return found, [
        f"the last line of {len(cut)} {files} does not end, as where a run was killed, and was left out ({where})"
    ]
