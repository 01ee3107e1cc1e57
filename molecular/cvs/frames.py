"""Reference structures of collective variables, from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .selections import number_of_atoms

__all__ = ["read_frames"]


def read_frames(
    variable: str, path: str | Path, *, structure: str | Path | None = None, topology: Any | None = None
) -> torch.Tensor:
    """Structures of the whole molecule from a PDB file, of one or more models, or from a trajectory.

    Args:
        variable: name of the collective variable, for errors.
        path: file that mdtraj reads; a trajectory without a topology of its own (DCD, XTC) needs ``structure``.
        structure: PDB file of the same atoms as the trajectory.
        topology: of the molecule, OpenMM's or mdtraj's, with which number and elements of the atoms are compared.

    Returns:
        (F, N, 3) float64 in nm.

    Raises:
        ValueError: if the file cannot be read, or has other atoms.
        ImportError: without mdtraj.
    """
    try:
        import mdtraj
    except ImportError as error:
        raise ImportError(f"{variable}: reading {path} needs mdtraj: pip install 'feynkac[molecular]'") from error
    given = {} if structure is None else {"top": str(structure)}
    try:
        frames = mdtraj.load(str(path), **given)
    except Exception as error:  # each format's reader raises what it likes
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{variable}: {path} cannot be read: {first}") from error
    if topology is not None:
        _check_same_molecule(variable, path, frames.topology, topology)
    positions = torch.from_numpy(frames.xyz).double()
    if not torch.isfinite(positions).all():
        raise ValueError(f"{variable}: {path} has coordinates that are not finite")
    return positions


def _check_same_molecule(variable: str, path: str | Path, found: Any, expected: Any) -> None:
    size = number_of_atoms(expected)
    if found.n_atoms != size:
        raise ValueError(f"{variable}: {path} has {found.n_atoms} atoms, the molecule has {size}")
    atoms = expected.atoms() if callable(expected.atoms) else expected.atoms
    for mine, theirs in zip(atoms, found.atoms, strict=True):
        symbols = [getattr(a.element, "symbol", None) for a in (mine, theirs)]
        if None not in symbols and "VS" not in symbols and symbols[0] != symbols[1]:
            raise ValueError(
                f"{variable}: atom {theirs.index} of {path} is {symbols[1]} ({theirs.name}), "
                f"in the molecule it is {symbols[0]} ({mine.name})"
            )
