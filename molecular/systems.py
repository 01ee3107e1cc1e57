"""From a structure file and force-field files to an OpenMM System, with errors a user can act on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["MolecularSystem", "SystemBuildError", "load_system", "require_openmm"]

_METHODS = ("NoCutoff", "CutoffNonPeriodic")
_CONSTRAINTS = ("none", "HBonds", "AllBonds", "HAngles")


class SystemBuildError(ValueError):
    """A structure, a force field and their settings do not make a System; the message names the culprit."""


@dataclass(frozen=True)
class MolecularSystem:
    """An OpenMM System with the topology it was built from.

    Attributes:
        topology: ``openmm.app.Topology``.
        system: ``openmm.System``.
        positions: (N, 3) float64 in nm, those of the structure file.
    """

    topology: Any
    system: Any
    positions: Tensor

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.positions)

    @property
    def atom_names(self) -> list[str]:
        """Names such as ``ALA2-CA``, in order."""
        return [f"{a.residue.name}{a.residue.index + 1}-{a.name}" for a in self.topology.atoms()]

    @property
    def elements(self) -> list[str]:
        """Element symbols, in order."""
        return [a.element.symbol if a.element is not None else "X" for a in self.topology.atoms()]

    @property
    def bonds(self) -> list[tuple[int, int]]:
        """Bonded pairs of atom indices."""
        return [(b.atom1.index, b.atom2.index) for b in self.topology.bonds()]


def require_openmm() -> Any:
    """The ``openmm`` package, or an error that names the extra to install."""
    try:
        import openmm
        import openmm.app
        import openmm.unit
    except ImportError as error:
        raise ImportError("OpenMM is needed here: install it with  pip install 'feynkac[molecular]'") from error
    return openmm


def load_system(
    pdb: str | Path,
    *,
    force_field: Sequence[str],
    nonbonded_method: str = "NoCutoff",
    cutoff: float = 2.0,
    constraints: str = "none",
) -> MolecularSystem:
    """Build a System from a PDB file and OpenMM force-field files.

    Args:
        pdb: structure with all atoms, hydrogens included.
        force_field: OpenMM XML files, for example ``["amber99sbildn.xml", "amber99_obc.xml"]``.
        nonbonded_method: ``"NoCutoff"`` or ``"CutoffNonPeriodic"``.
        cutoff: in nm, for ``"CutoffNonPeriodic"``.
        constraints: ``"none"``, ``"HBonds"``, ``"AllBonds"`` or ``"HAngles"``.

    Raises:
        SystemBuildError: unreadable file, NaN coordinate, unknown residue, missing atom, unknown force field or
        setting.
    """
    openmm = require_openmm()
    app = openmm.app
    _check_choice("nonbonded_method", nonbonded_method, _METHODS)
    _check_choice("constraints", constraints, _CONSTRAINTS)
    if not (cutoff > 0.0 and np.isfinite(cutoff)):
        raise SystemBuildError(f"cutoff: got {cutoff!r} nm, expected a positive number of nm")
    structure = _read_pdb(app, Path(pdb))
    positions = np.array(structure.getPositions(asNumpy=True)._value, dtype=np.float64)
    _check_positions(structure.topology, positions, pdb)
    files = _load_force_field(app, force_field)
    try:
        system = files.createSystem(
            structure.topology,
            nonbondedMethod=getattr(app, nonbonded_method),
            nonbondedCutoff=cutoff * openmm.unit.nanometer,
            constraints=None if constraints == "none" else getattr(app, constraints),
        )
    except ValueError as error:
        raise SystemBuildError(_explain(files, structure.topology, error, Path(pdb))) from error
    return MolecularSystem(structure.topology, system, torch.from_numpy(positions))


def _check_choice(field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SystemBuildError(f"{field}: got {value!r}, expected one of {', '.join(known)}")


def _read_pdb(app: Any, path: Path) -> Any:
    if not path.is_file():
        raise SystemBuildError(f"pdb: no such file: {path}")
    try:
        return app.PDBFile(str(path))
    except Exception as error:  # the PDB reader raises many kinds, always because of the file
        raise SystemBuildError(f"pdb: {path} could not be read as a PDB file ({error})") from error


def _check_positions(topology: Any, positions: np.ndarray[Any, np.dtype[np.float64]], path: str | Path) -> None:
    if len(positions) == 0:
        raise SystemBuildError(f"pdb: {path} holds no atoms")
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        atom = list(topology.atoms())[int(bad[0])]
        raise SystemBuildError(
            f"pdb: {path}: atom {atom.name} of residue {atom.residue.name} {atom.residue.id} has a coordinate that is "
            f"not a finite number ({len(bad)} such atom{'s' if len(bad) > 1 else ''})"
        )


def _load_force_field(app: Any, names: Sequence[str]) -> Any:
    if isinstance(names, str) or not names:
        raise SystemBuildError(f"force_field: got {names!r}, expected a list of OpenMM XML files")
    try:
        return app.ForceField(*names)
    except Exception as error:  # missing file, malformed XML: always the fault of the names given
        raise SystemBuildError(f"force_field: {list(names)!r} could not be loaded ({error})") from error


def _explain(force_field: Any, topology: Any, error: Exception, path: Path) -> str:
    """The first residue that no template fits, and which atoms it lacks or has too many."""
    unmatched = force_field.getUnmatchedResidues(topology)
    if not unmatched:
        return f"{path}: {error}"
    residue = unmatched[0]
    where = f"{path}: residue {residue.name} {residue.id}"
    known = {name for name in force_field._templates if name == residue.name or name[1:] == residue.name}
    if not known:
        return f"{where} is unknown to the force field (no template of that name); check it or add a force-field file"
    atoms = {atom.name for atom in residue.atoms()}
    best = min((force_field._templates[name] for name in known), key=lambda t: len(atoms ^ {a.name for a in t.atoms}))
    wanted = {atom.name for atom in best.atoms}
    missing, extra = sorted(wanted - atoms), sorted(atoms - wanted)
    said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(extra)} too many"] * bool(extra)
    reason = " and ".join(said) or str(error)
    return f"{where} does not fit the force field: compared with template {best.name} it {reason}"
