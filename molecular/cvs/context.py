"""What the builders of collective variables look things up in: the topology, files, and other variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .base import CollectiveVariable
from .cell import Cell
from .frames import read_frames
from .rmsd import Superposition
from .selections import Selection, masses_of, number_of_atoms, select_atom, select_atoms
from .switch import RationalSwitch
from .variables import Variables

__all__ = ["Context", "Options"]

Options = Mapping[str, Any]
"""Options of a kind as plain data."""


@dataclass(frozen=True)
class Context:
    """What a builder may look things up in.

    Attributes:
        name: of the variable.
        topology: of the molecule, or None.
        known: variables that may be referred to.
    """

    name: str
    topology: Any | None
    known: Mapping[str, CollectiveVariable]

    def points(self, atoms: Any, count: int, kind: str) -> tuple[int, ...]:
        """A list of ``count`` single atoms."""
        if isinstance(atoms, str) or not isinstance(atoms, Sequence) or len(atoms) != count:
            got = len(atoms) if isinstance(atoms, Sequence) and not isinstance(atoms, str) else repr(atoms)
            raise ValueError(f"{self.name}: a {kind} needs {count} atoms, got {got}")
        return tuple(select_atom(self.name, atom, self.topology) for atom in atoms)

    def group(self, selection: Selection | None) -> tuple[int, ...]:
        """A group of atoms; None for all."""
        if selection is not None:
            return select_atoms(self.name, selection, self.topology)
        if self.topology is None:
            raise ValueError(f"{self.name}: all atoms needs a topology")
        return tuple(range(number_of_atoms(self.topology)))

    def masses(self, atoms: tuple[int, ...], wanted: Any) -> tuple[float, ...] | None:
        """Masses of atoms if they are wanted."""
        return masses_of(self.name, atoms, self.topology) if wanted else None

    def cell(self, cell: Any) -> Cell | None:
        """A cell from numbers, from the topology for "structure", or None."""
        if cell is None:
            return None
        if cell != "structure":
            try:
                return Cell.of(cell)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.name}: {error}") from error
        vectors = getattr(self.topology, "getPeriodicBoxVectors", lambda: None)()
        if vectors is None:
            raise ValueError(f"{self.name}: the structure has no periodic cell")
        return Cell.of([[float(x) for x in vector] for vector in vectors._value])

    def referred(self, names: Sequence[str]) -> Variables:
        """Variables by name."""
        unknown = [n for n in names if n not in self.known or n == self.name]
        if unknown:
            others = ", ".join(n for n in self.known if n != self.name) or "none"
            raise ValueError(f"{self.name}: {unknown[0]!r} is none of the other variables; there are {others}")
        return Variables([self.known[n] for n in names])

    def switch(self, options: Options) -> RationalSwitch:
        """The switching function of r0, d0, n and m."""
        chosen = {key: options[key] for key in ("d0", "n", "m") if key in options}
        try:
            return RationalSwitch(options["r0"], **chosen)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def superposition(self, options: Options) -> Superposition:
        """Deviations from the structures of the file ``reference``."""
        references = read_frames(
            self.name, options["reference"], structure=options.get("structure"), topology=self.topology
        )
        chosen = options.get("atoms")
        everything = tuple(range(references.shape[1])) if chosen is None else None
        atoms = everything or self.group(chosen)
        align = None if options.get("align") is None else self.group(options["align"])
        weighted = options.get("mass_weighted", False)
        return Superposition(
            references,
            atoms=atoms,
            align=align,
            weights=self.masses(atoms, weighted),
            align_weights=None if align is None else self.masses(align, weighted),
            name=self.name,
        )
