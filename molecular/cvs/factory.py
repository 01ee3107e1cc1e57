"""Collective variables from a word and a list of atoms, given by index or by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from .base import CollectiveVariable
from .distance import Distance
from .torsion import Torsion

__all__ = ["VARIABLE_KINDS", "UnknownAtomError", "build_variable", "find_atom"]

VARIABLE_KINDS = {"torsion": 4, "distance": 2}
"""Kinds that `build_variable` knows, with the number of atoms each needs."""

_ATOM_NAME = re.compile(r"^(?:(?P<chain>[^/:\s]+)/)?(?P<residue>[A-Za-z]\w*?)(?P<number>-?\d+):(?P<atom>[^\s:]+)$")


class UnknownAtomError(ValueError):
    """A collective variable names an atom that the topology does not have."""


def find_atom(label: str, topology: Any) -> int:
    """Index of the atom called ``[CHAIN/]RESIDUE:ATOM``, e.g. ``ALA2:CA`` or ``B/ALA2:CA``.

    Args:
        label: residue name and number as in the PDB file, a colon, the atom name; a chain id where needed.
        topology: an OpenMM ``app.Topology``.

    Returns:
        Index of the atom, from 0.

    Raises:
        UnknownAtomError: if the label cannot be read, fits no atom, or fits several chains.
    """
    match = _ATOM_NAME.match(label)
    if match is None:
        raise UnknownAtomError(f"atom {label!r} cannot be read: write it as ALA2:CA, or A/ALA2:CA with a chain")
    known = {
        (atom.residue.chain.id, f"{atom.residue.name}{atom.residue.id}:{atom.name}"): atom.index
        for atom in topology.atoms()
    }
    wanted = label.rpartition("/")[2]
    found = [i for (chain, name), i in known.items() if name == wanted and match["chain"] in (None, chain)]
    if len(found) == 1:
        return int(found[0])
    if found:
        raise UnknownAtomError(f"atom {label!r} exists in {len(found)} chains: write CHAIN/{wanted}")
    close = difflib.get_close_matches(wanted, [name for _, name in known], n=3, cutoff=0.5)
    hint = f"; close names: {', '.join(close)}" if close else ""
    raise UnknownAtomError(f"there is no atom {label!r} in this molecule{hint}")


def build_variable(
    name: str, kind: str, atoms: Sequence[int | str], *, topology: Any | None = None
) -> CollectiveVariable:
    """A collective variable of a kind in `VARIABLE_KINDS`.

    Args:
        name: label in files and plots.
        kind: "torsion" or "distance".
        atoms: indices from 0, or names such as "ALA2:CA" (these need ``topology``).
        topology: OpenMM ``app.Topology`` in which names are looked up and indices checked.

    Raises:
        ValueError: for an unknown kind, a wrong number of atoms, or an index past the last atom.
        UnknownAtomError: for a name that is not in the topology.

    Example:
        >>> build_variable("d", "distance", [0, 5]).unit
        'nm'
    """
    if kind not in VARIABLE_KINDS:
        raise ValueError(f"{name}: unknown kind {kind!r}; known: {', '.join(VARIABLE_KINDS)}")
    if len(atoms) != VARIABLE_KINDS[kind]:
        raise ValueError(f"{name}: a {kind} needs {VARIABLE_KINDS[kind]} atoms, got {len(atoms)}")
    indices = [_index(name, atom, topology) for atom in atoms]
    if topology is not None:
        size = topology.getNumAtoms()
        outside = [i for i in indices if i >= size]
        if outside:
            raise UnknownAtomError(
                f"{name}: atom index {outside[0]} is past the last of {size} atoms (0 to {size - 1})"
            )
    if kind == "torsion":
        i, j, k, l = indices  # noqa: E741
        return Torsion(i, j, k, l, name=name)
    i, j = indices
    return Distance(i, j, name=name)


def _index(name: str, atom: int | str, topology: Any | None) -> int:
    if not isinstance(atom, str):
        return atom
    if topology is None:
        raise ValueError(f"{name}: atom {atom!r} is given by name, which needs a topology")
    return find_atom(atom, topology)
