"""Third-party energies, proposals and variables: by entry point, or as ``package.module:attribute``."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from ..fkc.plugins import PluginError, find_object
from .errors import UserError

__all__ = ["GROUPS", "Plugin", "call_plugin", "installed", "load_plugin"]

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
    try:
        return find_object(group, name)
    except PluginError as error:
        raise UserError(str(error)) from error


def call_plugin(group: str, factory: Any, label: str, /, *args: Any, **kwargs: Any) -> Any:
    """What the factory of a plugin makes of the arguments.

    Args:
        group: of entry points, which says what the factory must be.
        factory: the plugin.
        label: what it is called in messages.
        args, kwargs: of the factory.

    Raises:
        UserError: it cannot be called, or not with these.
    """
    wanted = f"; expected {GROUPS[group]}"
    if not callable(factory):
        raise UserError(f"plugin {label!r} is a {type(factory).__name__}, which cannot be called{wanted}")
    try:
        inspect.signature(factory).bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(f"plugin {label!r} does not accept its options: {error}{wanted}") from error
    return factory(*args, **kwargs)
