"""Bonded terms in plain torch: the reference that every compiled kernel is compared with.

Positions come as (N, 3, B): the batch is the contiguous axis. Every function returns (B,) energies in kJ/mol.
"""

import torch
from torch import Tensor, nn

from .tables import AngleTable, BondTable, CmapTable, TorsionTable

__all__ = ["Angles", "Bonds", "Cmaps", "Torsions", "torsion_cosine_sine"]


def _buffer(array: object, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(array).to(dtype if torch.as_tensor(array).is_floating_point() else torch.int64)


def torsion_cosine_sine(positions: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of torsions, each (n, B), for ``atoms`` (n, 4) and positions (N, 3, B). IUPAC sign."""
    a, b, c, d = (positions[atoms[:, i]] for i in range(4))
    b1, b2, b3 = b - a, c - b, d - c
    n1 = torch.linalg.cross(b1, b2, dim=1)
    n2 = torch.linalg.cross(b2, b3, dim=1)
    x = (n1 * n2).sum(dim=1)
    y = (b1 * n2).sum(dim=1) * b2.square().sum(dim=1).sqrt()
    norm = torch.rsqrt(x.square() + y.square())
    return x * norm, y * norm


class Bonds(nn.Module):
    """Harmonic bonds, E = sum k (r - r0)^2 / 2."""

    atoms: Tensor
    length: Tensor
    k: Tensor

    def __init__(self, table: BondTable, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("atoms", _buffer(table.atoms, dtype))
        self.register_buffer("length", _buffer(table.length, dtype)[:, None])
        self.register_buffer("k", _buffer(table.k, dtype)[:, None])

    def forward(self, positions: Tensor) -> Tensor:
        """Energies (B,)."""
        r = (positions[self.atoms[:, 0]] - positions[self.atoms[:, 1]]).square().sum(dim=1).sqrt()
        return (0.5 * self.k * (r - self.length).square()).sum(dim=0)


class Angles(nn.Module):
    """Harmonic angles, E = sum k (theta - theta0)^2 / 2, with theta from atan2 (accurate also near 0 and pi)."""

    atoms: Tensor
    angle: Tensor
    k: Tensor

    def __init__(self, table: AngleTable, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("atoms", _buffer(table.atoms, dtype))
        self.register_buffer("angle", _buffer(table.angle, dtype)[:, None])
        self.register_buffer("k", _buffer(table.k, dtype)[:, None])

    def forward(self, positions: Tensor) -> Tensor:
        """Energies (B,)."""
        a, b, c = (positions[self.atoms[:, i]] for i in range(3))
        u, v = a - b, c - b
        normal = torch.linalg.cross(u, v, dim=1).square().sum(dim=1)
        # an exactly straight angle has |u x v| = 0, where the square root has no derivative
        theta = torch.atan2(normal.clamp_min(torch.finfo(normal.dtype).tiny).sqrt(), (u * v).sum(dim=1))
        return (0.5 * self.k * (theta - self.angle).square()).sum(dim=0)


class Torsions(nn.Module):
    """Torsions as Fourier series; cos(n phi) and sin(n phi) by the angle-addition recurrence, without any arc
    function."""

    atoms: Tensor
    constant: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(self, table: TorsionTable, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("atoms", _buffer(table.atoms, dtype))
        self.register_buffer("constant", _buffer(table.constant, dtype))
        self.register_buffer("cosine", _buffer(table.cosine, dtype))
        self.register_buffer("sine", _buffer(table.sine, dtype))

    def forward(self, positions: Tensor) -> Tensor:
        """Energies (B,)."""
        c1, s1 = torsion_cosine_sine(positions, self.atoms)
        energy = self.constant.sum() + torch.zeros_like(c1[0])
        c, s = c1, s1
        for n in range(self.cosine.shape[1]):
            energy = energy + (self.cosine[:, n, None] * c + self.sine[:, n, None] * s).sum(dim=0)
            c, s = c * c1 - s * s1, s * c1 + c * s1
        return energy


class Cmaps(nn.Module):
    """Torsion-pair correction maps by bicubic interpolation."""

    def __init__(self, table: CmapTable, dtype: torch.dtype) -> None:
        super().__init__()
        self._maps: list[tuple[Tensor, Tensor, Tensor]] = []
        for index, patches in enumerate(table.coefficients):
            rows = table.map_index == index
            if rows.any():
                self.register_buffer(f"patches_{index}", _buffer(patches, dtype))
                self.register_buffer(f"first_{index}", _buffer(table.first[rows], dtype))
                self.register_buffer(f"second_{index}", _buffer(table.second[rows], dtype))
        self._present = sorted(set(table.map_index.tolist()))

    def forward(self, positions: Tensor) -> Tensor:
        """Energies (B,)."""
        total = positions.new_zeros(positions.shape[2])
        for index in self._present:
            patches = self.get_buffer(f"patches_{index}")
            i, t = self._cell(positions, self.get_buffer(f"first_{index}"), len(patches))
            j, u = self._cell(positions, self.get_buffer(f"second_{index}"), len(patches))
            powers_t = torch.stack([t**n for n in range(4)], dim=-1)
            powers_u = torch.stack([u**n for n in range(4)], dim=-1)
            total = total + torch.einsum("nbpq,nbp,nbq->b", patches[i, j], powers_t, powers_u)
        return total

    @staticmethod
    def _cell(positions: Tensor, atoms: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Grid cell (n, B) and fraction of a step of each torsion."""
        cosine, sine = torsion_cosine_sine(positions, atoms)
        step = torch.remainder(torch.atan2(sine, cosine) / (2.0 * torch.pi), 1.0) * size
        # a NaN torsion must not become an arbitrary index: the fraction stays NaN and so does the energy
        cell = torch.nan_to_num(step.detach()).floor().clamp(0, size - 1)
        return cell.to(torch.int64), step - cell
