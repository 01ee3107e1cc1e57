"""A Z-matrix from a bond graph: which bond, angle and torsion places each atom.

The spanning tree is rooted at the middle of the longest heavy-atom path and places every heavy atom before
the hydrogens. The first child of an atom gets a proper torsion; its siblings are placed by their torsion
*relative to that first sibling* about the same axis, which is the improper dihedral (atom, parent,
grandparent, first sibling). Siblings therefore keep their shape whatever the rotor does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["ZMatrix", "build_zmatrix"]

Row = tuple[int, int, int, int]


@dataclass(frozen=True)
class ZMatrix:
    """Placement of N bonded atoms.

    Attributes:
        rows: one (atom, bonded to, angle with, torsion with) per atom in the order of placement; -1 where the
            first three atoms have no such reference.
        offset: per row, True where the torsion is measured from a sibling (improper) and not along a chain.
        neighbours: per atom, its bonded atoms in ascending order.
    """

    rows: tuple[Row, ...]
    offset: tuple[bool, ...]
    neighbours: tuple[tuple[int, ...], ...]

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return len(self.rows)

    def rotors(self, elements: Sequence[str]) -> tuple[tuple[int, int, int], ...]:
        """Row triples of terminal XH3 groups (methyl, ammonium): the hydrogens are interchangeable cyclically."""
        children: dict[tuple[int, int], list[int]] = {}
        for index, (atom, parent, grandparent, _) in enumerate(self.rows):
            if index >= 3 and elements[atom] == "H":
                children.setdefault((parent, grandparent), []).append(index)
        return tuple(
            (found[0], found[1], found[2])
            for (parent, _), found in children.items()
            if len(found) == 3 and len(self.neighbours[parent]) == 4 and not self.offset[found[0]]
        )


def build_zmatrix(bonds: Iterable[tuple[int, int]], elements: Sequence[str]) -> ZMatrix:
    """Build the Z-matrix of one connected molecule.

    Args:
        bonds: pairs of atom indices; rings are allowed (their closing bond becomes a dependent distance).
        elements: N element symbols.

    Raises:
        ValueError: fewer than three atoms, an index outside the molecule, or a graph in several pieces.
    """
    neighbours = _adjacency(bonds, len(elements))
    heavy = {i for i, symbol in enumerate(elements) if symbol != "H"}
    start = _root_triple(neighbours, heavy)
    tree = _Tree(neighbours, heavy, start)
    tree.grow(lambda atom: atom in heavy)
    tree.grow(lambda atom: True)
    if len(tree.rows) != len(elements):
        missing = sorted(set(range(len(elements))) - tree.placed)
        raise ValueError(f"the bond graph is not connected: atoms {missing[:10]} are not reached from {start[0]}")
    return ZMatrix(tuple(tree.rows), tuple(tree.offset), tuple(tuple(sorted(n)) for n in neighbours))


class _Tree:
    """Grows the rows breadth first from the three starting atoms."""

    def __init__(self, neighbours: list[set[int]], heavy: set[int], start: tuple[int, int, int]) -> None:
        first, middle, last = start
        self.neighbours = neighbours
        self.heavy = heavy
        self.rows: list[Row] = [(first, -1, -1, -1), (middle, first, -1, -1), (last, middle, first, -1)]
        self.offset = [False, False, False]
        self.placed = set(start)
        # what a first child of an atom is measured along: (angle with, torsion with)
        self.frame = {middle: (first, last), last: (middle, first), first: (middle, last)}
        # the sibling from which the next children's torsions are measured; the middle atom has one already
        self.first_child = {middle: last}
        self.order = [middle, last, first]
        self.weight = _subtree_sizes(neighbours, middle)

    def grow(self, wanted: Callable[[int], bool]) -> None:
        """Place every reachable atom for which ``wanted(atom)`` holds, parents in order of their own placement."""
        queue = deque(self.order)
        while queue:
            parent = queue.popleft()
            children = [a for a in self.neighbours[parent] if a not in self.placed and wanted(a)]
            for atom in sorted(children, key=lambda a: (a not in self.heavy, -self.weight[a], a)):
                self._place(atom, parent)
                queue.append(atom)

    def _place(self, atom: int, parent: int) -> None:
        angle_with, torsion_with = self.frame[parent]
        sibling = self.first_child.setdefault(parent, atom)
        self.rows.append((atom, parent, angle_with, torsion_with if sibling == atom else sibling))
        self.offset.append(sibling != atom)
        self.placed.add(atom)
        self.order.append(atom)
        self.frame[atom] = (parent, angle_with)


def _adjacency(bonds: Iterable[tuple[int, int]], n_atoms: int) -> list[set[int]]:
    if n_atoms < 3:
        raise ValueError(f"internal coordinates need at least three atoms, got {n_atoms}")
    neighbours: list[set[int]] = [set() for _ in range(n_atoms)]
    for i, j in bonds:
        if not (0 <= i < n_atoms and 0 <= j < n_atoms) or i == j:
            raise ValueError(f"bond ({i}, {j}) does not join two of the {n_atoms} atoms")
        neighbours[i].add(j)
        neighbours[j].add(i)
    return neighbours


def _distances(neighbours: list[set[int]], source: int, allowed: set[int]) -> dict[int, int]:
    distance = {source: 0}
    queue = deque([source])
    while queue:
        atom = queue.popleft()
        for other in sorted(neighbours[atom] & allowed):
            if other not in distance:
                distance[other] = distance[atom] + 1
                queue.append(other)
    return distance


def _root_triple(neighbours: list[set[int]], heavy: set[int]) -> tuple[int, int, int]:
    """Three consecutive atoms in the middle of the longest shortest path, of heavy atoms where there are three."""
    for allowed in (heavy, set(range(len(neighbours)))):
        path = _longest_path(neighbours, allowed)
        if len(path) >= 3:
            middle = len(path) // 2
            return path[middle - 1], path[middle], path[middle + 1]
    raise ValueError("the bond graph has no path of three atoms")


def _longest_path(neighbours: list[set[int]], allowed: set[int]) -> list[int]:
    ends, length = (-1, -1), -1
    for source in sorted(allowed):
        for target, distance in _distances(neighbours, source, allowed).items():
            if distance > length:
                ends, length = (source, target), distance
    if length < 0:
        return []
    from_source = _distances(neighbours, ends[0], allowed)
    path = [ends[1]]
    while path[-1] != ends[0]:
        here = path[-1]
        path.append(min(a for a in neighbours[here] & allowed if from_source.get(a, -1) == from_source[here] - 1))
    return path[::-1]


def _subtree_sizes(neighbours: list[set[int]], root: int) -> list[int]:
    """Atoms hanging below each atom in the breadth-first tree from ``root``: the main chain weighs most."""
    distance = _distances(neighbours, root, set(range(len(neighbours))))
    sizes = [1] * len(neighbours)
    parent_of: dict[int, int] = {}
    for atom in sorted(distance, key=lambda a: (distance[a], a)):
        for other in sorted(neighbours[atom]):
            if distance[other] == distance[atom] + 1:
                parent_of.setdefault(other, atom)
    for atom in sorted(distance, key=lambda a: -distance[a]):
        if atom in parent_of:
            sizes[parent_of[atom]] += sizes[atom]
    return sizes
