"""`feynkac plugins`: what third parties have added."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..plugins import GROUPS, installed

__all__ = ["plugins"]


def plugins(console: Console) -> None:
    """Print the installed plugins of every group, and what a plugin must be."""
    found = installed()
    for group, contract in GROUPS.items():
        table = Table(title=group, title_justify="left", title_style="bold", show_header=False, box=None)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        members = [p for p in found if p.group == group]
        for plugin in members:
            table.add_row(f"  {plugin.name}", f"{plugin.target} ({plugin.distribution})")
        if not members:
            table.add_row("  none", "")
        table.add_row("  contract", contract)
        console.print(table)
        console.print()
    console.print("A config may also name any importable object as package.module:attribute.")
