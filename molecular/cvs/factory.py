"""Collective variables from plain data: a kind, its options, and the topology they refer to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from .base import CollectiveVariable
from .builders import BUILDERS, NUMBERS, REFERRING
from .context import Context

__all__ = ["VARIABLE_KINDS", "build_variable", "build_variables"]

VARIABLE_KINDS = tuple(BUILDERS)
"""Kinds that `build_variable` knows."""

Options = Mapping[str, Any] | Sequence[int | str]


def build_variable(
    name: str,
    kind: str,
    options: Options,
    *,
    topology: Any | None = None,
    known: Mapping[str, CollectiveVariable] | None = None,
) -> CollectiveVariable:
    """A collective variable of a kind in `VARIABLE_KINDS`.

    Args:
        name: label in files and plots.
        kind: "torsion", "distance", "coordination" and so on.
        options: those of the kind, as in docs/collective_variables.md, with lengths in nm and angles in rad; a bare
            list is the option ``atoms``.
        topology: OpenMM's ``app.Topology``, or mdtraj's, in which atoms are looked up and indices checked.
        known: variables that this one may refer to by name.

    Raises:
        ValueError: for an unknown kind or option, or a value that does not fit.
        UnknownAtomError: for atoms that are not in the topology.

    Example:
        >>> build_variable("d", "distance", [0, 5]).unit
        'nm'
        >>> build_variable("cn", "coordination", {"group_a": [0], "group_b": [3, 6], "r0": 0.35}).unit
        ''
    """
    if kind not in BUILDERS:
        raise ValueError(f"{name}: unknown kind {kind!r}; known: {', '.join(BUILDERS)}")
    given = dict(options) if isinstance(options, Mapping) else {"atoms": options}
    builder = BUILDERS[kind]
    unknown = [key for key in given if key not in builder.options]
    if unknown:
        valid = ", ".join(builder.options)
        raise ValueError(f"{name}: a {kind} has no option {unknown[0]!r}; it has {valid}")
    missing = [key for key in builder.required if given.get(key) is None]
    if missing:
        raise ValueError(f"{name}: a {kind} needs the option {missing[0]!r}")
    for key, unit in NUMBERS.items():
        value = given.get(key)
        if value is None or (key == "lambda" and isinstance(value, str) and value == "auto"):
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{name}: {key} must be a number{unit}, got {value!r}")
    context = Context(name, topology, {} if known is None else known)
    return builder.build(context, {key: value for key, value in given.items() if value is not None})


def build_variables(
    entries: Mapping[str, tuple[str, Options]],
    *,
    topology: Any | None = None,
    known: Mapping[str, CollectiveVariable] | None = None,
) -> dict[str, CollectiveVariable]:
    """Collective variables by name, in the order given; those that refer to others may come before them.

    Args:
        entries: for each name the kind and its options, as for `build_variable`.
        topology: as for `build_variable`.
        known: further variables that may be referred to.

    Raises:
        ValueError: for a name that is none of the variables, or variables that refer to each other in a circle;
            otherwise as `build_variable`.
    """
    built: dict[str, CollectiveVariable] = dict(known or {})

    def build(name: str, above: tuple[str, ...]) -> None:
        if name in built:
            return
        if name in above:
            raise ValueError(f"{name}: the variables {' -> '.join((*above, name))} refer to each other in a circle")
        kind, options = entries[name]
        referred = options.get("variables") if kind in REFERRING and isinstance(options, Mapping) else None
        for other in referred or ():
            if other in entries:
                build(other, (*above, name))
        built[name] = build_variable(name, kind, options, topology=topology, known=built)

    for name in entries:
        build(name, ())
    return {name: built[name] for name in entries}
