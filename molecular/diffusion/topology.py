"""What a molecule is made of: enough to write a PDB file, and to notice another molecule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..systems import require_openmm

__all__ = ["MoleculeMismatch", "MoleculeTopology"]


class MoleculeMismatch(ValueError):
    """A model of one molecule met another; the message names the first atom that differs."""


@dataclass(frozen=True)
class MoleculeTopology:
    """Atoms in order, their residues, and bonds.

    Attributes:
        elements: symbols.
        atom_names: such as ``CA``.
        residue_names: of the residue of each atom, such as ``ALA``.
        residue_indices: of the residue of each atom, from 0, not falling.
        bonds: pairs of atom indices.
    """

    elements: tuple[str, ...]
    atom_names: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_indices: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for name in ("atom_names", "residue_names", "residue_indices"):
            if len(getattr(self, name)) != len(self.elements):
                raise ValueError(f"{name}: got {len(getattr(self, name))}, expected one an atom, {len(self.elements)}")
        if len(self.elements) < 4:
            raise ValueError(f"elements: got {len(self.elements)} atoms, expected at least 4")
        self.check_atoms("bonds", self.bonds, 2)

    @classmethod
    def from_lists(
        cls,
        elements: Sequence[str],
        atom_names: Sequence[str],
        residue_names: Sequence[str],
        residue_indices: Sequence[int],
        bonds: Sequence[Sequence[int]],
    ) -> "MoleculeTopology":
        """From what JSON holds. Raises ValueError: lengths that differ, an index that is no atom."""
        pairs = tuple((int(bond[0]), int(bond[1])) for bond in bonds)
        return cls(tuple(elements), tuple(atom_names), tuple(residue_names), tuple(residue_indices), pairs)

    @classmethod
    def from_openmm(cls, topology: Any) -> "MoleculeTopology":
        """Of an ``openmm.app.Topology``."""
        atoms = list(topology.atoms())
        return cls(
            tuple(a.element.symbol if a.element is not None else "X" for a in atoms),
            tuple(a.name for a in atoms),
            tuple(a.residue.name for a in atoms),
            tuple(a.residue.index for a in atoms),
            tuple((b.atom1.index, b.atom2.index) for b in topology.bonds()),
        )

    def to_openmm(self) -> Any:
        """An ``openmm.app.Topology`` of one chain, for PDB files and energies."""
        app = require_openmm().app
        topology = app.Topology()
        chain = topology.addChain()
        residue, last, atoms = None, None, []
        for symbol, name, kind, index in zip(
            self.elements, self.atom_names, self.residue_names, self.residue_indices, strict=True
        ):
            if index != last:
                residue, last = topology.addResidue(kind, chain), index
            element = None if symbol == "X" else app.Element.getBySymbol(symbol)
            atoms.append(topology.addAtom(name, element, residue))
        for i, j in self.bonds:
            topology.addBond(atoms[i], atoms[j])
        return topology

    def check(self, topology: Any) -> None:
        """Is ``topology`` (one of these, or OpenMM's) of the same atoms in the same order?

        Raises:
            MoleculeMismatch: it is not.
        """
        other = topology if isinstance(topology, MoleculeTopology) else MoleculeTopology.from_openmm(topology)
        if len(other.elements) != len(self.elements):
            raise MoleculeMismatch(f"topology: got {len(other.elements)} atoms, the model has {len(self.elements)}")
        for i, (mine, theirs) in enumerate(zip(self._labels(), other._labels(), strict=True)):
            if mine != theirs:
                raise MoleculeMismatch(f"topology: atom {i} is {theirs}, in the model {mine}")

    def check_atoms(self, name: str, groups: Sequence[Sequence[int]], size: int) -> None:
        """Raises ValueError unless every group has ``size`` different atom indices."""
        for group in groups:
            right = len(group) >= 3 if size is None else len(group) == size
            if not right or len(set(group)) != len(group) or not all(0 <= i < len(self.elements) for i in group):
                wanted = "three or more" if size is None else str(size)
                raise ValueError(
                    f"{name}: got {list(group)}, expected {wanted} different atoms below {len(self.elements)}"
                )

    def _labels(self) -> list[str]:
        return [f"{r}-{a} ({e})" for r, a, e in zip(self.residue_names, self.atom_names, self.elements, strict=True)]
