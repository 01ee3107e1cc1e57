r"""Clusters of identical particles, the usual tests of samplers on symmetric many-body laws.

The energies depend on nothing but relative positions, so the Boltzmann law lives on configurations whose centre of
mass is at the origin. Coordinates z of that subspace (n - 1, d) are those of an orthonormal basis: a standard normal in
z is the mean-free standard normal in x, and densities need no constraint.

References:
    Kohler, Klein and Noe (2020), Equivariant flows, ICML, section 6.1: both forms. Klein, Kramer and Noe (2023),
    Equivariant flow matching, NeurIPS; Akhound-Sadegh et al. (2024), Iterated denoising energy matching, ICML: the
    Lennard-Jones sum over ordered pairs, which makes every well 2 deep; Kohler et al. and Midgley et al. (2023), Flow
    annealed importance sampling bootstrap, ICLR, halve it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..diffusion import Diffusion
from ..experts import Expert
from ..mean_free import mean_free_basis

__all__ = ["Cluster", "wasserstein"]

Denoiser = Callable[[Tensor, Tensor], Tensor]
Pair = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Squared distances -> pair energies and their derivatives by the squared distance."""


@dataclass(frozen=True, eq=False)
class Cluster:
    """n particles in d dimensions with a pair energy and a harmonic pull to their centre of mass; no units.

    Attributes:
        particles: n.
        dimensions: d.
        pair: energy of a pair.
        trap: force constant.
    """

    particles: int
    dimensions: int
    pair: Pair
    trap: float = 0.0

    @classmethod
    def lennard_jones(cls, particles: int = 13, *, depth: float = 2.0, trap: float = 1.0) -> Cluster:
        r""":math:`E = \epsilon\sum_{i<j}(d_{ij}^{-12} - 2 d_{ij}^{-6}) + \frac{k}{2}\sum_i |x_i - \bar x|^2` in three
        dimensions.

        Args:
            particles: n.
            depth: epsilon, the depth of a pair's well at distance 1; 2: the sum over ordered pairs with unit depth.
            trap: k.
        """

        def pair(squared: Tensor) -> tuple[Tensor, Tensor]:
            inverse = 1.0 / squared
            sixth = inverse**3
            return depth * sixth * (sixth - 2.0), 6.0 * depth * inverse * sixth * (1.0 - sixth)

        return cls(particles, 3, pair, trap)

    @classmethod
    def double_well(cls, particles: int = 4, *, quadratic: float = -4.0, quartic: float = 0.9) -> Cluster:
        r""":math:`E = \sum_{i<j} b(d_{ij} - 4)^2 + c(d_{ij} - 4)^4` in the plane.

        Args:
            particles: n.
            quadratic: b.
            quartic: c.
        """

        def pair(squared: Tensor) -> tuple[Tensor, Tensor]:
            distance = squared.sqrt()
            offset = distance - 4.0
            square = offset.square()
            slope = offset * (2.0 * quadratic + 4.0 * quartic * square)
            return square * (quadratic + quartic * square), 0.5 * slope / distance

        return cls(particles, 2, pair)

    @property
    def shape(self) -> tuple[int, int]:
        """(n - 1, d), of mean-free coordinates."""
        return self.particles - 1, self.dimensions

    @cached_property
    def _basis(self) -> Tensor:
        return mean_free_basis(self.particles)

    @cached_property
    def _incidence(self) -> Tensor:
        """(pairs, n): +1 at the first of a pair, -1 at the second."""
        first, second = torch.triu_indices(self.particles, self.particles, offset=1)
        eye = torch.eye(self.particles, dtype=torch.float64)
        return eye[first] - eye[second]

    def positions(self, z: Tensor) -> Tensor:
        """Mean-free positions x (..., n, d) of coordinates z (..., n - 1, d)."""
        return self._basis.to(z) @ z

    def coordinates(self, x: Tensor) -> Tensor:
        """Coordinates z (..., n - 1, d) of positions x (..., n, d); forgets the centre of mass."""
        return self._basis.T.to(x) @ x

    def distances(self, x: Tensor) -> Tensor:
        """(..., n (n - 1) / 2) of all pairs in x (..., n, d)."""
        return (self._incidence.to(x) @ x).square().sum(dim=-1).sqrt()

    def expert(self, denoise: Denoiser, diffusion: Diffusion, *, std: float, probes: int | None = None) -> Expert:
        """A denoiser of positions as an expert on mean-free coordinates, for a variance-exploding path.

        Args:
            denoise: (y (B, n, d), sigma (B,)) -> clean positions (B, n, d), equivariant under translations.
            diffusion: with alpha = 1.
            std: of a coordinate of the data.
            probes: for divergences, see :class:`feynkac.fkc.Expert`.
        """

        def predict(z: Tensor, t: Tensor) -> Tensor:
            return self.coordinates(denoise(self.positions(z), diffusion.sigma(t))).to(z)

        return Expert(predict, diffusion, "denoised", std=std, divergence=probes, shape=self.shape)

    def energy(self, x: Tensor) -> Tensor:
        """(...) of x (..., n, d); infinite or NaN where two particles coincide."""
        return self.energy_and_gradient(x)[0]

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(...) and (..., n, d), the second in closed form."""
        incidence = self._incidence.to(x)
        apart = incidence @ x
        value, slope = self.pair(apart.square().sum(dim=-1))
        centred = x - x.mean(dim=-2, keepdim=True)
        energy = value.sum(dim=-1) + 0.5 * self.trap * centred.square().sum(dim=(-2, -1))
        return energy, incidence.T @ (2.0 * slope[..., None] * apart) + self.trap * centred


def wasserstein(values: Tensor, weights: Tensor, reference: Tensor, power: int) -> float:
    """W_p between laws on the line: weighted values (n,) and m equal masses ``reference``, ascending; exact.

    Both quantile functions are steps, so their difference is constant between the marks of either.
    """
    order = values.argsort()
    ends = weights[order].double().cumsum(dim=0)
    marks = torch.arange(1, len(reference) + 1, dtype=torch.float64) / len(reference)
    edges = torch.cat([torch.zeros(1).double(), ends / ends[-1], marks]).sort().values
    widths, middles = edges.diff(), 0.5 * (edges[1:] + edges[:-1])
    here = values[order][torch.searchsorted(ends / ends[-1], middles).clamp(max=len(values) - 1)].double()
    there = reference[(middles * len(reference)).long().clamp(max=len(reference) - 1)].double()
    return float((widths * (here - there).abs() ** power).sum() ** (1.0 / power))
