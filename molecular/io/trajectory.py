"""Trajectories as DCD with a PDB for the topology, written and read through mdtraj."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch

from .errors import FileFormatError

__all__ = ["read_trajectory", "write_trajectory"]


def write_trajectory(dcd: Path, pdb: Path, positions: torch.Tensor, topology: Any) -> None:
    """Write positions as a DCD file and the first frame with its topology as a PDB file.

    DCD holds single precision.  Non-finite frames are written as they are; their weight is zero.

    Args:
        dcd: file to create.
        pdb: file to create.
        positions: (n, N, 3) in nm, n >= 1.
        topology: OpenMM ``app.Topology`` or mdtraj ``Topology`` of N atoms.

    Raises:
        FileExistsError: if either file exists; nothing is written.
        ValueError: if the shapes do not fit.
        ImportError: without mdtraj.

    Example:
        >>> write_trajectory(Path("samples.dcd"), Path("samples.pdb"), positions, topology)  # doctest: +SKIP
        >>> mdtraj.load("samples.dcd", top="samples.pdb")  # doctest: +SKIP
    """
    mdtraj = _mdtraj()
    for path in (dcd, pdb):
        if Path(path).exists():
            raise FileExistsError(f"{path} exists; trajectories are never overwritten")
    if positions.ndim != 3 or positions.shape[0] < 1 or positions.shape[2] != 3:
        raise ValueError(f"positions must be (n, N, 3) in nm with n >= 1, got {tuple(positions.shape)}")
    if not isinstance(topology, mdtraj.Topology):
        topology = mdtraj.Topology.from_openmm(topology)
    if topology.n_atoms != positions.shape[1]:
        raise ValueError(f"the topology has {topology.n_atoms} atoms, the positions have {positions.shape[1]}")
    frames = positions.detach().cpu().float().numpy()
    finite = torch.isfinite(positions).all(-1).all(-1).nonzero()
    first = int(finite[0]) if len(finite) else 0
    mdtraj.Trajectory(frames[first : first + 1], topology).save_pdb(str(pdb), force_overwrite=False)
    mdtraj.Trajectory(frames, topology).save_dcd(str(dcd), force_overwrite=False)


def read_trajectory(dcd: Path, pdb: Path) -> tuple[torch.Tensor, Any]:
    """Read a DCD file and the topology of a PDB file.

    Returns:
        Positions (n, N, 3) float32 in nm, and the mdtraj ``Topology``.

    Raises:
        FileNotFoundError: if a file is missing.
        FileFormatError: if the DCD file is no DCD file, is truncated, or has another number of atoms than the
            PDB.
        ImportError: without mdtraj.
    """
    mdtraj = _mdtraj()
    announced = _announced_frames(Path(dcd))
    topology = mdtraj.load_topology(str(pdb))
    try:
        trajectory = mdtraj.load_dcd(str(dcd), top=topology)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{dcd}: cannot be read with the topology of {pdb}: {error}") from error
    if trajectory.n_frames != announced:
        raise FileFormatError(f"{dcd}: truncated: {trajectory.n_frames} of {announced} frames are there")
    return torch.from_numpy(trajectory.xyz.copy()), topology


def _announced_frames(dcd: Path) -> int:
    """Number of frames that the header of a little-endian DCD file states."""
    with open(dcd, "rb") as file:
        head = file.read(12)
    if len(head) < 12 or head[4:8] != b"CORD":
        raise FileFormatError(f"{dcd}: not a DCD file, or truncated in its header")
    return int(struct.unpack("<i", head[8:12])[0])


def _mdtraj() -> Any:
    try:
        import mdtraj
    except ImportError as error:
        raise ImportError('trajectories need mdtraj: pip install "feynkac[molecular]"') from error
    return mdtraj
