"""Atoms of a topology by index, by name, or by an mdtraj selection."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

__all__ = [
    "Selection",
    "UnknownAtomError",
    "find_atom",
    "masses_of",
    "number_of_atoms",
    "residues_of",
    "select_atom",
    "select_atoms",
]

Selection = int | str | Sequence[int | str]
"""An index, a name such as ``ALA2:CA``, an mdtraj selection such as ``name CA``, or a list of these."""

_ATOM_NAME = re.compile(r"^(?:(?P<chain>[^/:\s]+)/)?(?P<residue>[A-Za-z]\w*?)(?P<number>-?\d+):(?P<atom>[^\s:]+)$")


class UnknownAtomError(ValueError):
    """A collective variable names an atom that the topology does not have, or not exactly once."""


def find_atom(label: str, topology: Any) -> int:
    """Index of the atom called ``[CHAIN/]RESIDUE:ATOM``, e.g. ``ALA2:CA`` or ``B/ALA2:CA``.

    Args:
        label: residue name and number as in the PDB file, a colon, the atom name; a chain id where needed.
        topology: an OpenMM ``app.Topology``, or mdtraj's.

    Returns:
        Index of the atom, from 0.

    Raises:
        UnknownAtomError: if the label cannot be read, fits no atom, or fits several chains.
    """
    match = _ATOM_NAME.match(label)
    if match is None:
        raise UnknownAtomError(f"atom {label!r} cannot be read: write it as ALA2:CA, or A/ALA2:CA with a chain")
    known = [
        (_chain(atom.residue.chain), f"{atom.residue.name}{_number(atom.residue)}:{atom.name}", int(atom.index))
        for atom in _atoms(topology)
    ]
    wanted = label.rpartition("/")[2]
    found = [(chain, index) for chain, name, index in known if name == wanted and match["chain"] in (None, chain)]
    if len(found) == 1:
        return found[0][1]
    if len({chain for chain, _ in found}) > 1:
        raise UnknownAtomError(f"atom {label!r} exists in {len(found)} chains: write CHAIN/{wanted}")
    if found:
        raise UnknownAtomError(f"{len(found)} atoms are called {label!r}: give an index instead")
    close = difflib.get_close_matches(wanted, list(dict.fromkeys(name for _, name, _ in known)), n=3, cutoff=0.5)
    hint = f"; close names: {', '.join(close)}" if close else ""
    raise UnknownAtomError(f"there is no atom {label!r} in this molecule{hint}")


def select_atom(variable: str, selection: int | str, topology: Any | None) -> int:
    """The one atom that ``selection`` stands for.

    Args:
        variable: name of the collective variable, for errors.
        selection: an index, a name, or an mdtraj selection.
        topology: OpenMM's or mdtraj's; None if there are only indices.

    Raises:
        UnknownAtomError: if it does not stand for exactly one atom of the topology.
        ValueError: for a name or a selection without a topology.
    """
    found = _matches(variable, selection, topology)
    if len(found) != 1:
        raise UnknownAtomError(f"{variable}: {selection!r} must be one atom, but matches {len(found)} atoms")
    return found[0]


def select_atoms(variable: str, selection: Selection, topology: Any | None) -> tuple[int, ...]:
    """The atoms that ``selection`` stands for, at least one, in the order given.

    Raises:
        UnknownAtomError: if an entry matches no atom, or an atom is selected twice.
        ValueError: for a name or a selection without a topology, or an empty list.
    """
    entries = [selection] if isinstance(selection, int | str) else list(selection)
    if not entries:
        raise ValueError(f"{variable}: a group of atoms is empty")
    atoms: list[int] = []
    for entry in entries:
        found = _matches(variable, entry, topology)
        if not found:
            raise UnknownAtomError(f"{variable}: {entry!r} matches 0 atoms")
        again = [atom for atom in found if atom in set(atoms)]
        if again:
            raise UnknownAtomError(f"{variable}: {entry!r} selects atom {again[0]} a second time")
        atoms += found
    return tuple(atoms)


def masses_of(variable: str, atoms: Sequence[int], topology: Any | None) -> tuple[float, ...]:
    """Masses of atoms in Da, those of their elements.

    Raises:
        ValueError: without a topology, or for an atom without an element.
    """
    if topology is None:
        raise ValueError(f"{variable}: masses need a topology")
    every = list(_atoms(topology))
    masses = []
    for atom in atoms:
        element = every[atom].element
        if element is None or getattr(element, "symbol", "VS") == "VS":
            raise ValueError(f"{variable}: atom {atom} ({every[atom].name}) has no element, hence no mass")
        mass = element.mass
        masses.append(float(getattr(mass, "_value", mass)))
    return tuple(masses)


def residues_of(variable: str, atoms: Sequence[int], topology: Any | None) -> tuple[int, ...]:
    """For each atom the place of its residue in the topology.

    Raises:
        ValueError: without a topology.
    """
    if topology is None:
        raise ValueError(f"{variable}: residues need a topology")
    every = list(_atoms(topology))
    return tuple(int(every[atom].residue.index) for atom in atoms)


def number_of_atoms(topology: Any) -> int:
    """Of OpenMM's topology, or mdtraj's."""
    return int(topology.n_atoms if hasattr(topology, "n_atoms") else topology.getNumAtoms())


def _matches(variable: str, selection: int | str, topology: Any | None) -> list[int]:
    if isinstance(selection, bool) or not isinstance(selection, int | str):
        raise ValueError(f"{variable}: atoms are given by index, name or selection, got {selection!r}")
    if isinstance(selection, int):
        if topology is not None and selection >= number_of_atoms(topology):
            size = number_of_atoms(topology)
            raise UnknownAtomError(
                f"{variable}: atom index {selection} is past the last of {size} atoms (0 to {size - 1})"
            )
        return [selection]
    if topology is None:
        raise ValueError(f"{variable}: atom {selection!r} is given by name, which needs a topology")
    if _ATOM_NAME.match(selection):
        try:
            return [find_atom(selection, topology)]
        except UnknownAtomError as error:
            raise UnknownAtomError(f"{variable}: {error}") from error
    return _select(variable, selection, topology)


def _select(variable: str, selection: str, topology: Any) -> list[int]:
    if not hasattr(topology, "select"):
        try:
            import mdtraj
        except ImportError as error:
            raise ImportError(
                f"{variable}: selections such as {selection!r} need mdtraj: pip install 'feynkac[molecular]'"
            ) from error
        topology = mdtraj.Topology.from_openmm(topology)
    try:
        return [int(atom) for atom in topology.select(selection)]
    except Exception as error:  # mdtraj's parser raises whatever its grammar and Python's raise
        raise UnknownAtomError(
            f"{variable}: {selection!r} is neither an atom such as ALA2:CA nor a selection such as "
            f"'resid 1 and name CB' ({str(error).strip().splitlines()[0] if str(error).strip() else 'not readable'})"
        ) from error


def _atoms(topology: Any) -> Any:
    return topology.atoms() if callable(topology.atoms) else topology.atoms


def _number(residue: Any) -> Any:
    return residue.id if hasattr(residue, "id") else residue.resSeq


def _chain(chain: Any) -> Any:
    return chain.id if hasattr(chain, "id") else chain.chain_id
