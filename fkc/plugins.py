"""Objects by name: an installed entry point, or ``package.module:attribute``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

__all__ = ["PluginError", "entry_point_names", "find_object"]


class PluginError(ValueError):
    """A name that stands for nothing that can be imported."""


def entry_point_names(group: str) -> list[str]:
    """Names installed in an entry-point group, sorted; nothing is imported."""
    return sorted({point.name for point in entry_points(group=group)})


def find_object(group: str, name: str, *, also: Iterable[str] = ()) -> Any:
    """The object that ``name`` stands for: an entry point of ``group``, or ``package.module:attribute``.

    Args:
        group: such as ``feynkac.rewards``.
        name: of the entry point, or where the object is.
        also: further names to suggest in the message, known to the caller.

    Raises:
        PluginError: no such entry point, module or attribute, or it cannot be imported.
    """
    if ":" in name:
        return _imported(name)
    points = {point.name: point for point in entry_points(group=group)}
    if name in points:
        return _loaded(points[name])
    known = sorted({*points, *also})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    kind = group.rpartition(".")[2].removesuffix("s")
    choices = ", ".join(known) or "none installed"
    raise PluginError(f"{kind}: got {name!r}, expected one of {choices} or package.module:attribute{hint}")


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise PluginError(f"plugin {point.name!r}: {point.value} cannot be imported: {error}") from error


def _imported(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise PluginError(
            f"{target!r}: module {module_name!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise PluginError(f"{target!r}: {module_name} has no {attribute!r}")
        value = getattr(value, part)
    return value
