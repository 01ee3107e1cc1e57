"""Bonds, angles and torsions of one molecule: the map from positions and back, with its exact Jacobian.

With the Z-matrix of :mod:`feynkac.flows.zmatrix`, centroid c and orientation R,

    d^{3N}x = ( prod_i r_i^2 ) ( prod_i sin theta_i ) 8 pi^2  d(r, theta, phi)  dR  dc,

dR being the normalised Haar measure. A density over shapes is therefore stated *modulo translation and with a
uniform orientation*, in nm^-(3N-3): log q(x) = log q(r, theta, phi) + log|d(r, theta, phi)/dx|. The configuration
integral that goes with it is Z = (1/V) int exp(-U/kT) d^{3N}x.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .domains import Domain, torsion_domain
from .zmatrix import ZMatrix, build_zmatrix

__all__ = ["InternalCoordinates", "random_rotations"]

_LOG_ORIENTATIONS = math.log(8.0 * math.pi**2)


@dataclass(frozen=True)
class InternalCoordinates:
    """The D = 3N - 6 internal coordinates of a molecule: N-1 bonds (nm), N-2 angles, N-3 torsions (rad).

    Columns come in that order, each following the placement order of the Z-matrix. Torsions are wrapped into their
    domain; where a domain is half a circle, the coordinates describe one stereoisomer (and one labelling of
    equivalent hydrogens) only, and :meth:`contains` is False for any other.

    Build one by :meth:`from_bonds` or :meth:`from_topology`, then :meth:`fitted` on data.

    Example:
        >>> water = InternalCoordinates.from_bonds([(0, 1), (0, 2)], ["O", "H", "H"])
        >>> water.forward(torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]]))[0].shape
        torch.Size([1, 3])
    """

    elements: tuple[str, ...]
    names: tuple[str, ...]
    zmatrix: ZMatrix
    domains: tuple[Domain, ...]
    reference: tuple[float, ...]

    @classmethod
    def from_bonds(
        cls,
        bonds: Iterable[tuple[int, int]],
        elements: Sequence[str],
        *,
        positions: Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> InternalCoordinates:
        """Build the coordinates from a bond graph.

        Args:
            bonds: pairs of atom indices of one connected molecule.
            elements: N element symbols; hydrogens are placed last.
            positions: (N, 3) nm, the structure whose chirality and hydrogen labels are kept. Needed when an atom
                has four neighbours.
            names: N atom names, kept in the card of a saved flow; the elements by default.

        Raises:
            ValueError: a bad graph, a missing or misshapen reference.
        """
        zmatrix = build_zmatrix(bonds, elements)
        names = tuple(names) if names is not None else tuple(elements)
        if len(names) != len(elements):
            raise ValueError(f"{len(names)} atom names for {len(elements)} elements")
        plain = cls(tuple(elements), names, zmatrix, _plain_domains(zmatrix), ())
        if positions is None:
            if any(plain._stereo_rows()):
                raise ValueError("reference positions are needed: they fix the chirality of four-bonded atoms")
            return plain
        if tuple(positions.shape) != (len(elements), 3) or not bool(positions.isfinite().all()):
            raise ValueError(f"reference positions must be finite, of shape ({len(elements)}, 3), in nm")
        reference = plain.forward(positions.detach().double()[None])[0][0]
        return replace(plain, reference=tuple(reference.tolist())).fitted(reference[None][:0])

    @classmethod
    def from_topology(cls, topology: Any, positions: Tensor) -> InternalCoordinates:
        """Build from a topology with OpenMM's ``atoms()`` and ``bonds()``, and reference positions (N, 3) nm."""
        atoms = list(topology.atoms())
        bonds = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
        return cls.from_bonds(
            bonds, [a.element.symbol for a in atoms], positions=positions, names=[a.name for a in atoms]
        )

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return self.zmatrix.n_atoms

    @property
    def dimension(self) -> int:
        """Number of coordinates D = 3N - 6."""
        return 3 * self.n_atoms - 6

    @property
    def labels(self) -> tuple[str, ...]:
        """A word for each column, such as ``torsion C-N-CA-C`` or ``offset HA-CA-N-C``."""
        rows, name = self.zmatrix.rows, self.names
        words = ["bond " + "-".join(name[a] for a in row[:2]) for row in rows[1:]]
        words += ["angle " + "-".join(name[a] for a in row[:3]) for row in rows[2:]]
        kinds = ("torsion ", "offset ")
        words += [kinds[self.zmatrix.offset[i]] + "-".join(name[a] for a in rows[i]) for i in range(3, len(rows))]
        return tuple(words)

    def fitted(self, y: Tensor, *, outside: float = 1e-4) -> InternalCoordinates:
        """Return coordinates whose torsion domains follow the data ``y`` (n, D): cuts at the lowest density."""
        first = 2 * self.n_atoms - 3
        domains = list(self.domains)
        for column, stereo in enumerate(self._stereo_rows(), start=first):
            reference = self.reference[column] if self.reference else 0.0
            values = y[:, column]
            if values.numel() == 0 and self.zmatrix.offset[column - first + 3] and self.reference:
                values = torch.tensor([reference])
            domains[column] = torsion_domain(values, stereo=stereo, reference=reference, outside=outside)
        return replace(self, domains=tuple(domains))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Internal coordinates of positions.

        Args:
            x: (B, N, 3) nm.

        Returns:
            y (B, D) and log|dy/dx| (B,), the dx being modulo translation and orientation uniform (module docstring).
        """
        index = self._references(x.device)
        i, j, k, m = (x[:, index[:, column]] for column in range(4))
        bond = (i - j)[:, 1:]
        arm = (k - j)[:, 2:]
        length = bond.norm(dim=-1)
        angle = _angle(bond[:, 1:], arm)
        torsion = _dihedral(i[:, 3:], j[:, 3:], k[:, 3:], m[:, 3:])
        y = self.wrap(torch.cat([length, angle, torsion], dim=-1))
        return y, self.log_jacobian(y)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Positions from internal coordinates, in a fixed frame (first atom at 0, second on x, third in the xy plane).

        Args:
            y: (B, D).

        Returns:
            x (B, N, 3) nm in the dtype of y, and log|dx/dy| (B,).
        """
        n = self.n_atoms
        length, angle, torsion = y[:, : n - 1], y[:, n - 1 : 2 * n - 3], y[:, 2 * n - 3 :]
        along = torch.cat([length[:, :1], -length[:, 1:] * angle.cos()], dim=-1)
        across = length[:, 1:] * angle.sin()
        zero = torch.zeros_like(length[:, 0])
        rows = self.zmatrix.rows
        placed: dict[int, Tensor] = {rows[0][0]: torch.stack([zero, zero, zero], -1)}
        placed[rows[1][0]] = torch.stack([along[:, 0], zero, zero], -1)
        placed[rows[2][0]] = placed[rows[1][0]] + torch.stack([along[:, 1], across[:, 0], zero], -1)
        cos, sin = across[:, 1:] * torsion.cos(), across[:, 1:] * torsion.sin()
        for row in range(3, n):
            atom, bonded, angle_with, torsion_with = rows[row]
            axis = _unit(placed[bonded] - placed[angle_with])
            normal = _unit(torch.linalg.cross(placed[angle_with] - placed[torsion_with], axis))
            binormal = torch.linalg.cross(normal, axis)
            column = row - 3
            placed[atom] = (
                placed[bonded]
                + along[:, row - 1, None] * axis
                + cos[:, column, None] * binormal
                + sin[:, column, None] * normal
            )
        x = torch.stack([placed[atom] for atom in range(n)], dim=1)
        return x, -self.log_jacobian(y)

    def log_jacobian(self, y: Tensor) -> Tensor:
        """log|dy/dx| (B,) of coordinates y (B, D): minus the logarithm of prod r^2, prod sin theta and 8 pi^2."""
        n = self.n_atoms
        radial = 2.0 * y[:, : n - 1].log().sum(-1)
        return -radial - y[:, n - 1 : 2 * n - 3].sin().log().sum(-1) - _LOG_ORIENTATIONS

    def wrap(self, y: Tensor) -> Tensor:
        """Bring the torsions of y (B, D) within half a turn of the middle of their domain."""
        start = 2 * self.n_atoms - 3
        low = [d.lower + 0.5 * d.width - math.pi for d in self.domains[start:]]
        lower = torch.tensor(low, dtype=torch.float64, device=y.device).to(y.dtype)
        torsion = lower + torch.remainder(y[:, start:] - lower, 2.0 * math.pi)
        return torch.cat([y[:, :start], torsion], dim=-1)

    def contains(self, y: Tensor) -> Tensor:
        """(B,) True where every coordinate lies in its domain: the stereoisomer and labels of the reference."""
        inside = torch.ones_like(y[:, 0], dtype=torch.bool)
        for column, domain in enumerate(self.domains):
            inside = inside & domain.contains(y[:, column])
        return inside

    def relabelled(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Permute the hydrogens of every XH3 rotor cyclically at random: symmetry of any energy without labels.

        Args:
            y: (B, D).
            generator: draws one of the three labellings a rotor and frame.
        """
        n, out = self.n_atoms, y.clone()
        for first, second, third in self.zmatrix.rotors(self.elements):
            shift = torch.randint(0, 3, (y.shape[0],), generator=generator, device=generator.device).to(y.device)
            rows = torch.tensor([first, second, third], device=y.device)
            order = (torch.arange(3, device=y.device) + shift[:, None]) % 3
            for offset in (-1, n - 3):  # columns of the bonds and of the angles of those rows
                out[:, rows + offset] = y[:, rows + offset].gather(1, order)
            turn = y[:, rows + 2 * n - 6].clone()
            turn[:, 1:] += turn[:, :1]
            turn = turn.gather(1, order)
            turn[:, 1:] -= turn[:, :1].clone()
            out[:, rows + 2 * n - 6] = turn
        return self.wrap(out)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready record from which :meth:`from_json` rebuilds the coordinates."""
        record = asdict(self)
        # JSON has no infinity: a bond has no upper end
        record["domains"] = [[d.kind, d.lower, None if math.isinf(d.width) else d.width] for d in self.domains]
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> InternalCoordinates:
        """Rebuild coordinates written by :meth:`to_json`."""
        z = record["zmatrix"]
        zmatrix = ZMatrix(
            tuple((int(a), int(b), int(c), int(d)) for a, b, c, d in z["rows"]),
            tuple(bool(o) for o in z["offset"]),
            tuple(tuple(int(a) for a in n) for n in z["neighbours"]),
        )
        domains = tuple(Domain(k, float(a), math.inf if w is None else float(w)) for k, a, w in record["domains"])
        return cls(
            tuple(record["elements"]),
            tuple(record["names"]),
            zmatrix,
            domains,
            tuple(map(float, record["reference"])),
        )

    @property
    def restriction(self) -> str | None:
        """What the half-circle domains exclude, in words; None when they exclude nothing."""
        count = sum(self._stereo_rows())
        if count == 0:
            return None
        return f"stereoisomer and hydrogen labels of the reference structure ({count} half-circle torsions)"

    def _stereo_rows(self) -> list[bool]:
        """Per torsion: does it tell stereoisomers apart? True for siblings at a centre with four neighbours."""
        z = self.zmatrix
        return [z.offset[i] and len(z.neighbours[z.rows[i][1]]) == 4 for i in range(3, z.n_atoms)]

    def _references(self, device: torch.device) -> Tensor:
        # rows without a reference point at an atom that exists; those columns are sliced away by the caller
        return torch.tensor(self.zmatrix.rows, device=device).clamp(min=0)


def random_rotations(n: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw n rotation matrices (n, 3, 3) uniformly (Haar), from unit quaternions."""
    q = torch.randn(n, 4, generator=generator, dtype=dtype, device=generator.device)
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _plain_domains(zmatrix: ZMatrix) -> tuple[Domain, ...]:
    n = zmatrix.n_atoms
    bonds = [Domain("bond")] * (n - 1)
    angles = [Domain("angle", 0.0, math.pi)] * (n - 2)
    return tuple(bonds + angles + [Domain("circular", -math.pi, 2.0 * math.pi)] * (n - 3))


def _unit(vector: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return vector / length


def _angle(a: Tensor, b: Tensor) -> Tensor:
    # atan2 keeps its precision near 0 and pi, where arccos of the cosine loses half the digits
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))


def _dihedral(i: Tensor, j: Tensor, k: Tensor, m: Tensor) -> Tensor:
    """Torsion i-j-k-m in (-pi, pi], IUPAC sign (the sign of OpenMM and mdtraj)."""
    first, axis, last = j - i, k - j, m - k
    normal_first, normal_last = torch.linalg.cross(first, axis), torch.linalg.cross(axis, last)
    sine = axis.norm(dim=-1) * (first * normal_last).sum(-1)
    return torch.atan2(sine, (normal_first * normal_last).sum(-1))
