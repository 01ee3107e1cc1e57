"""Numbers, warnings and the names of files on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from .results import Number

__all__ = ["print_results"]


def print_results(
    console: Console, numbers: Sequence[Number], notes: Sequence[str], files: Sequence[Path], *, heading: str
) -> None:
    """Numbers and warnings, then the files under their heading, if there are any."""
    console.print()
    width = max((len(n.label) for n in numbers), default=0)
    for n in numbers:
        remark = (f"   {n.remark}", "dim") if n.remark else ""
        console.print(Text.assemble(f"  {n.label:<{width}}  ", (n.text, "bold"), remark), soft_wrap=True)
    for note in notes:
        console.print(Text.assemble("\n", ("warning: ", "yellow"), note), soft_wrap=True)
    if files:
        console.print(f"\n  {heading}", highlight=False)
    for path in files:
        console.print(Text(f"    {path}"), soft_wrap=True)
