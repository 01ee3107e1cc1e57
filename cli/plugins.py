"""Third-party energies, proposals and variables: by entry point, or as ``package.module:attribute``."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import UserError

__all__ = ["GROUPS", "Plugin", "installed", "load_plugin"]

GROUPS = {
    "feynkac.proposals": "factory(system, **options) -> flows.Proposal",
    "feynkac.energies": "factory(system, temperature=..., **options) -> molecular.energies.Energy",
    "feynkac.cvs": "factory(name=..., **options) -> molecular.cvs.CollectiveVariable",
    "feynkac.rewards": "factory(**options) -> steering.rewards.Reward",
}
"""Entry-point groups and what an entry must be; ``system`` is a ``molecular.systems.MolecularSystem``."""


@dataclass(frozen=True)
class Plugin:
    """An installed entry point: group, name, target and the distribution it comes from."""

    group: str
    name: str
    target: str
    distribution: str


def installed() -> list[Plugin]:
    """Every installed plugin of the groups in `GROUPS`; nothing is imported."""
    return [
        Plugin(group, point.name, point.value, point.dist.name if point.dist else "")
        for group in GROUPS
        for point in sorted(entry_points(group=group), key=lambda p: p.name)
    ]


def load_plugin(group: str, name: str) -> Any:
    """The object that ``name`` stands for: an entry point of ``group``, or ``package.module:attribute``.

    Raises:
        UserError: if there is no such entry point, module or attribute.
    """
    if ":" in name:
        return _import(name)
    points = {p.name: p for p in entry_points(group=group)}
    if name not in points:
        known = ", ".join(sorted(points)) or "none installed"
        close = difflib.get_close_matches(name, points, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(f"no plugin {name!r} in {group} ({known}){hint}; or write package.module:attribute")
    return _load(points[name])


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except ImportError as error:
        raise UserError(f"plugin {point.name!r} ({point.value}) cannot be imported: {error}") from error


def _import(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(f"plugin {target!r}: {module_name!r} cannot be imported: {error}") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise UserError(f"plugin {target!r}: {module_name} has no {attribute!r}")
        value = getattr(value, part)
    return value
