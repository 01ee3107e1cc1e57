"""Distances and signed volumes of a molecule seen through noise, standardised at every noise level.

For y = x + w eps, with x a frame and eps standard normal, the network looks at the distance d of every pair of atoms
and at the signed volume V = (b - a) . ((c - a) x (d - a)) of some quadruples. Distances do not change under a
reflection and volumes change sign: together they tell a molecule from its mirror image. Both are standardised by their
mean and standard deviation over data and noise, so that a bond shows its strain whatever the noise:

    E d^2 = m + 6 w^2             var d ~ v + 2 w^2 (1 - q s),  s = 6 w^2 / (m + 6 w^2)
    E V = V_0                     var V = v_V + 4 (w^2 e_2 + 2 w^4 e_1 + 6 w^6)

with m = E d^2 and v = var d over the data; q = 8 / pi - 2 makes pure noise (the Maxwell law) exact. var V is exact:
with R the rows b - a, c - a, d - a, and w^2 K their noise covariance (K = 1 + the matrix of ones, det K = 4),
det(R + noise)^2 = det K det(B + w G)^2 with B = K^(-1/2) R and G standard normal, and E det(B + w G)^2 =
e_3 + w^2 e_2 + 2 w^4 e_1 + 6 w^6 in the elementary symmetric polynomials e_k of the eigenvalues of B^T B.

The positions that come in are scaled to unit variance, u = y / sqrt(1 + w^2); with signal = 1 / sqrt(1 + w^2) and
noise = w / sqrt(1 + w^2) everything above stays finite for w from nothing to infinity.
"""

from collections.abc import Sequence
from itertools import combinations
from math import pi

import torch
from torch import Tensor, nn

__all__ = ["Invariants", "bonded_quadruples"]

_MAXWELL = 3.0 - 8.0 / pi  # variance of the length of a standard normal vector in space
_TINY = 1e-12
_CHUNK = 20_000


def bonded_quadruples(bonds: Sequence[tuple[int, int]]) -> tuple[tuple[int, int, int, int], ...]:
    """All chains of three bonds (proper torsions), and every atom with each three of its neighbours.

    The first have a volume that follows the sine of the torsion; the second tell a chiral centre's hands apart and a
    planar one's two sides.
    """
    neighbours: dict[int, list[int]] = {}
    for i, j in bonds:
        neighbours.setdefault(i, []).append(j)
        neighbours.setdefault(j, []).append(i)
    chains = [
        (i, j, k, m)
        for j, k in sorted(tuple(sorted(bond)) for bond in bonds)
        for i in sorted(neighbours[j])
        for m in sorted(neighbours[k])
        if len({i, j, k, m}) == 4
    ]
    stars = [(centre, *three) for centre in sorted(neighbours) for three in combinations(sorted(neighbours[centre]), 3)]
    return tuple(chains + stars)


class Invariants(nn.Module):
    """What rotations and translations leave alone, and the vectors along which they change.

    Args:
        n_atoms: N.
        quadruples: (Q) atom indices (a, b, c, d); any N >= 4 atoms, Q may be 0 (then mirror images look alike).

    The statistics of the data are buffers: :meth:`fit` measures them, a checkpoint carries them.
    """

    edges: Tensor
    star: Tensor
    pair_mean_square: Tensor
    pair_variance: Tensor
    volume_mean: Tensor
    volume_variance: Tensor
    volume_e1: Tensor
    volume_e2: Tensor

    def __init__(self, n_atoms: int, quadruples: Sequence[Sequence[int]]) -> None:
        super().__init__()
        i, j = torch.triu_indices(n_atoms, n_atoms, 1)
        unit = torch.eye(n_atoms)
        self.n_pairs, self.n_volumes = len(i), len(quadruples)
        a, b, c, d = torch.tensor([list(q) for q in quadruples], dtype=torch.long).reshape(-1, 4).unbind(1)
        self.register_buffer("edges", (unit[i] - unit[j]).T.contiguous(), persistent=False)
        star = torch.cat([unit[b] - unit[a], unit[c] - unit[a], unit[d] - unit[a]])
        self.register_buffer("star", star.T.contiguous(), persistent=False)
        for name in ("pair_mean_square", "pair_variance"):
            self.register_buffer(name, torch.ones(self.n_pairs))
        for name in ("volume_mean", "volume_variance", "volume_e1", "volume_e2"):
            self.register_buffer(name, torch.ones(self.n_volumes))

    @property
    def size(self) -> int:
        """Number of invariants."""
        return self.n_pairs + self.n_volumes

    @torch.no_grad()
    def fit(self, frames: Tensor) -> None:
        """Measure the statistics on ``frames`` (n, N, 3), in the network's unit of length."""
        distances, volumes, first, second = [], [], [], []
        inverse = torch.eye(3, dtype=torch.float64) - 0.25  # of K = 1 + ones
        for part in torch.split(frames, _CHUNK):
            pairs, sides, normals = self._vectors(part.double())
            distances.append(pairs.square().sum(1).sqrt())
            volumes.append((sides[:, :, 0] * normals[:, :, 0]).sum(1))
            gram = torch.einsum("bksq,st,bltq->bqkl", sides, inverse, sides)
            trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
            first.append(trace.mean(0) * len(part))
            second.append((trace.square() - gram.square().sum((-2, -1))).mean(0) * 0.5 * len(part))
        d, v = torch.cat(distances), torch.cat(volumes)
        self.pair_mean_square.copy_(d.square().mean(0))
        self.pair_variance.copy_((d - d.mean(0)).square().mean(0))
        self.volume_mean.copy_(v.mean(0))
        self.volume_variance.copy_((v - v.mean(0)).square().mean(0))
        self.volume_e1.copy_(torch.stack(first).sum(0) / len(d))
        self.volume_e2.copy_(torch.stack(second).sum(0) / len(d))

    def forward(self, u: Tensor, signal: Tensor, noise: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Standardised invariants, and the vectors that :meth:`forces` needs.

        Args:
            u: (B, N, 3) positions of unit variance.
            signal, noise: (B, 1), signal^2 + noise^2 = 1.

        Returns:
            (B, P + Q) invariants; (B, 3, P) vectors between pairs and (B, 3, 3, Q) gradients of volumes, of order 1.
        """
        pairs, sides, normals = self._vectors(u)
        s2, n2 = signal.square(), noise.square()
        square = s2 * self.pair_mean_square + 6.0 * n2
        share = 6.0 * n2 / square
        variance = s2 * self.pair_variance + 2.0 * n2 * (1.0 - (1.0 - _MAXWELL) * share)
        mean = (square - variance).clamp(min=0.0).sqrt()
        distance = (pairs.square().sum(1) + _TINY).sqrt()
        z = (distance - mean) / variance.sqrt()
        volume = (sides[:, :, 0] * normals[:, :, 0]).sum(1)
        grown = 4.0 * n2 * (s2.square() * self.volume_e2 + 2.0 * s2 * n2 * self.volume_e1 + 6.0 * n2.square())
        spread = (s2**3 * self.volume_variance + grown).sqrt()
        z_volume = (volume - s2 * signal * self.volume_mean) / spread
        slope = 2.0 * (s2.square() * self.volume_e2 + 4.0 * s2 * n2 * self.volume_e1 + 18.0 * n2.square()).sqrt()
        return torch.cat([z, z_volume], 1), (pairs / square.sqrt()[:, None], normals / slope[:, None, None])

    def forces(self, coefficients: Tensor, vectors: tuple[Tensor, Tensor]) -> Tensor:
        """Sum over invariants of coefficient (B, P + Q) times gradient: (B, N, 3), without net translation."""
        pairs, normals = vectors
        pair, volume = coefficients[:, : self.n_pairs], coefficients[:, self.n_pairs :]
        along = (pair[:, None] * pairs) @ self.edges.T
        around = (volume[:, None, None] * normals).flatten(2) @ self.star.T
        total: Tensor = along + around
        return total.transpose(1, 2)

    def _vectors(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, P) pair vectors, (B, 3, 3, Q) sides b-a, c-a, d-a, and (B, 3, 3, Q) volumes' gradients at b, c, d."""
        columns = u.transpose(1, 2)
        pairs = columns @ self.edges.to(u)
        sides = (columns @ self.star.to(u)).reshape(len(u), 3, 3, self.n_volumes)
        b, c, d = sides.unbind(2)
        normals = torch.stack(
            [torch.linalg.cross(c, d, dim=1), torch.linalg.cross(d, b, dim=1), torch.linalg.cross(b, c, dim=1)], 2
        )
        return pairs, sides, normals
