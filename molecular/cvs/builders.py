"""One function a kind: from its options, as plain data, to the collective variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .angle import Angle
from .base import CollectiveVariable
from .cell import Cell
from .contact_map import ContactMap, native_pairs
from .context import Context, Options
from .coordination import Coordination, pair_distances
from .distance import Distance
from .frames import read_frames
from .function import TorchScriptVariable
from .gyration import GyrationRadius
from .linear import Linear
from .path import NodeDistances, PathDistance, PathProgress, smoothness
from .rmsd import RMSD, Superposition
from .selections import residues_of
from .surface import Height, Lateral
from .torsion import Torsion

__all__ = ["BUILDERS", "REFERRING", "Builder"]


def _torsion(c: Context, o: Options) -> CollectiveVariable:
    i, j, k, l = c.points(o["atoms"], 4, "torsion")  # noqa: E741
    return Torsion(i, j, k, l, name=c.name)


def _angle(c: Context, o: Options) -> CollectiveVariable:
    i, j, k = c.points(o["atoms"], 3, "angle")
    return Angle(i, j, k, name=c.name)


def _distance(c: Context, o: Options) -> CollectiveVariable:
    i, j = c.points(o["atoms"], 2, "distance")
    return Distance(i, j, name=c.name, cell=c.cell(o.get("cell")))


def _coordination(c: Context, o: Options) -> CollectiveVariable:
    other = None if o.get("group_b") is None else c.group(o["group_b"])
    return Coordination(c.group(o["group_a"]), other, c.switch(o), name=c.name, cell=c.cell(o.get("cell")))


def _gyration(c: Context, o: Options) -> CollectiveVariable:
    atoms = c.group(o.get("atoms"))
    return GyrationRadius(atoms, masses=c.masses(atoms, o.get("mass_weighted")), name=c.name)


def _rmsd(c: Context, o: Options) -> CollectiveVariable:
    return RMSD(c.superposition(o), name=c.name)


_PATHS: dict[str, type[PathProgress] | type[PathDistance]] = {"progress": PathProgress, "distance": PathDistance}


def _path(c: Context, o: Options) -> CollectiveVariable:
    if ("reference" in o) == ("variables" in o):
        raise ValueError(f"{c.name}: a path needs either a reference of several structures, or variables and nodes")
    distances: Superposition | NodeDistances
    if "reference" in o:
        strange = [key for key in ("nodes", "scales") if key in o]
        if strange:
            raise ValueError(f"{c.name}: {strange[0]} is for a path along variables")
        distances = c.superposition(o)
    else:
        strange = [key for key in ("structure", "atoms", "align", "mass_weighted") if o.get(key)]
        if strange:
            raise ValueError(f"{c.name}: {strange[0]} is for a path along structures")
        if "nodes" not in o:
            raise ValueError(f"{c.name}: a path along variables needs nodes, a list of their values at each node")
        try:
            nodes = torch.tensor(o["nodes"], dtype=torch.float64)
            distances = NodeDistances(c.referred(o["variables"]), nodes, o.get("scales"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{c.name}: {str(error).removeprefix(c.name + ': ')}") from error
    kind = _PATHS.get(o.get("component", "progress"))
    if kind is None:
        raise ValueError(f"{c.name}: component must be 'progress' or 'distance', got {o['component']!r}")
    count = len(distances.references if isinstance(distances, Superposition) else distances.nodes)
    if count < 2:
        raise ValueError(f"{c.name}: a path needs at least 2 nodes, got {count}")
    return kind(distances, smoothness(distances) if o["lambda"] == "auto" else float(o["lambda"]), name=c.name)


def _linear(c: Context, o: Options) -> CollectiveVariable:
    rest = {key: o[key] for key in ("means", "offset", "expand", "period", "unit") if key in o}
    return Linear(c.referred(o["variables"]), o["coefficients"], name=c.name, **rest)


def _contact_map(c: Context, o: Options) -> CollectiveVariable:
    switch, cell = c.switch(o), c.cell(o.get("cell"))
    file = o.get("reference")
    structure = None if file is None else read_frames(c.name, file, topology=c.topology)
    if structure is not None and len(structure) != 1:
        raise ValueError(f"{c.name}: {file} has {len(structure)} structures, a contact map needs one")
    pairs = _contacts(c, o, structure, cell)
    reference = None
    if o.get("mode", "sum") == "distance":
        if structure is None:
            raise ValueError(f"{c.name}: mode distance needs a reference structure")
        reference = tuple(switch(pair_distances(structure, torch.tensor(pairs), cell))[0].tolist())
    weights = o.get("weights")
    if o.get("normalise"):
        if weights is not None:
            raise ValueError(f"{c.name}: normalise is for contacts without weights")
        weights = (1.0 / len(pairs),) * len(pairs)
    return ContactMap(
        pairs,
        switch,
        reference=reference,
        weights=None if weights is None else tuple(weights),
        mode=o.get("mode", "sum"),
        cell=cell,
        name=c.name,
    )


def _contacts(c: Context, o: Options, structure: torch.Tensor | None, cell: Cell | None) -> tuple[tuple[int, int], ...]:
    if ("pairs" in o) == ("atoms" in o):
        raise ValueError(f"{c.name}: a contact map needs either pairs, or atoms with within and a reference")
    if "pairs" in o:
        strange = [key for key in ("within", "separation") if key in o]
        if strange:
            raise ValueError(f"{c.name}: {strange[0]} is for contacts found in a reference, not for pairs")
        found = (c.points(pair, 2, "contact") for pair in o["pairs"])
        return tuple((i, j) for i, j in found)
    if structure is None or "within" not in o:
        raise ValueError(f"{c.name}: contacts of atoms need a reference structure and within, a distance")
    atoms = c.group(o["atoms"])
    residues = residues_of(c.name, atoms, c.topology)
    pairs = native_pairs(
        structure[0], atoms, residues, within=o["within"], separation=o.get("separation", 3), cell=cell
    )
    if not pairs:
        raise ValueError(f"{c.name}: the reference has no contact within {o['within']:g} nm")
    return pairs


def _height(c: Context, o: Options) -> CollectiveVariable:
    if ("surface" in o) == ("plane" in o):
        raise ValueError(f"{c.name}: a height needs either surface, a group of atoms, or plane, a place")
    atoms = c.group(o["atoms"])
    return Height(
        atoms,
        surface=c.group(o["surface"]) if "surface" in o else float(o["plane"]),
        normal=o.get("normal", "z"),
        cell=c.cell(o.get("cell")),
        lowest=o.get("lowest"),
        masses=c.masses(atoms, o.get("mass_weighted")),
        name=c.name,
    )


def _lateral(c: Context, o: Options) -> CollectiveVariable:
    atoms, cell = c.group(o["atoms"]), c.cell(o["cell"])
    assert cell is not None
    origin = None if o.get("relative_to") is None else c.group(o["relative_to"])
    masses = c.masses(atoms, o.get("mass_weighted"))
    return Lateral(atoms, o["axis"], cell, relative_to=origin, masses=masses, name=c.name)


def _torchscript(c: Context, o: Options) -> CollectiveVariable:
    return TorchScriptVariable(
        o["file"],
        inputs=None if "variables" not in o else c.referred(o["variables"]),
        atoms=None if "atoms" not in o else c.group(o["atoms"]),
        component=o.get("component", 0),
        name=c.name,
        unit=o.get("unit", ""),
        period=o.get("period"),
    )


class Builder(NamedTuple):
    """How a kind is built, from which options."""

    build: Callable[[Context, Options], CollectiveVariable]
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """All options, the required ones first."""
        return (*self.required, *self.optional)


_SWITCH = ("d0", "n", "m")
BUILDERS = {
    "torsion": Builder(_torsion, ("atoms",)),
    "distance": Builder(_distance, ("atoms",), ("cell",)),
    "angle": Builder(_angle, ("atoms",)),
    "coordination": Builder(_coordination, ("group_a", "r0"), ("group_b", *_SWITCH, "cell")),
    "gyration": Builder(_gyration, (), ("atoms", "mass_weighted")),
    "rmsd": Builder(_rmsd, ("reference",), ("structure", "atoms", "align", "mass_weighted")),
    "path": Builder(
        _path,
        ("lambda",),
        (
            *("component", "reference", "structure", "atoms", "align", "mass_weighted"),
            *("variables", "nodes", "scales"),
        ),
    ),
    "linear": Builder(_linear, ("variables", "coefficients"), ("means", "offset", "expand", "period", "unit")),
    "contact_map": Builder(
        _contact_map,
        ("r0",),
        (*_SWITCH, "pairs", "atoms", "within", "separation", "reference", "weights", "normalise", "mode", "cell"),
    ),
    "height": Builder(_height, ("atoms",), ("surface", "plane", "normal", "lowest", "mass_weighted", "cell")),
    "lateral": Builder(_lateral, ("atoms", "axis", "cell"), ("relative_to", "mass_weighted")),
    "torchscript": Builder(_torchscript, ("file",), ("variables", "atoms", "component", "unit", "period")),
}
"""Every kind with what builds it."""

NUMBERS = dict.fromkeys(("r0", "d0", "within", "plane", "lowest"), " in nm") | {
    "n": "",
    "m": "",
    "separation": "",
    "lambda": " or 'auto'",
}
"""Options that are plain numbers, with the unit that a message says."""

REFERRING = ("path", "linear", "torchscript")
"""Kinds with an option ``variables``: names of others."""
