"""Draws of one molecule under several sets of weights: means with errors, and what its bonds should cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fkc import effective_sample_size
from .energies.bonded import Bonds
from .energies.read_system import read_system
from .free_energy import FreeEnergyDifference, free_energy_difference
from .free_energy._samples import normalized_weights
from .pipeline import DifferenceRequest, WeightedDraws

__all__ = ["BondEnergy", "WeightedFrames", "noise_ratios"]


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedFrames:
    """n frames of one molecule.

    Attributes:
        log_weights: (n,) raw; of several populations with their evidence included.
        groups: (n,) int64 labels; frames of different groups are independent.
        energies: (n,) kJ/mol.
        bond_energies: (n,) kJ/mol, of the bonds alone.
        variables: name -> (n,) values of a collective variable.
        kT: kJ/mol, of the law that the frames are meant to have.
    """

    log_weights: Tensor
    groups: Tensor
    energies: Tensor
    bond_energies: Tensor
    variables: Mapping[str, Tensor]
    kT: float

    @property
    def draws(self) -> WeightedDraws:
        """For :func:`feynkac.molecular.pipeline.analyse`; no density of a proposal is known."""
        return WeightedDraws(
            log_weights=self.log_weights,
            log_q=torch.full_like(self.log_weights, math.nan),
            energies=self.energies,
            variables=self.variables,
            kT=self.kT,
        )

    @property
    def effective_groups(self) -> float:
        """How many independent groups carry the weight: 1 over the sum of squares of their shares."""
        weights = normalized_weights(self.log_weights)
        shares = torch.zeros(int(self.groups.max()) + 1, dtype=torch.float64).index_add(0, self.groups, weights)
        return float(effective_sample_size(shares.log()))

    def mean(self, values: Tensor) -> tuple[float, float]:
        """Weighted mean of ``values`` (n,), and its standard error.

        The error of a ratio of sums over independent groups (Owen, Monte Carlo theory, methods and examples, 2013, eq.
        9.8); NaN with a single group.
        """
        weights = normalized_weights(self.log_weights)
        counted = torch.where(weights > 0.0, values.double(), 0.0)  # a frame without weight may have no finite energy
        mean = float((weights * counted).sum())
        count = int(self.groups.max()) + 1
        influence = torch.zeros(count, dtype=torch.float64).index_add(0, self.groups, weights * (counted - mean))
        spread = float(influence.square().sum())
        return mean, math.sqrt(spread * count / (count - 1)) if count > 1 else math.nan

    def difference(self, request: DifferenceRequest) -> FreeEnergyDifference:
        """Free energy of a region against the rest, its error from independent groups.

        Warns:
            FewEffectiveSamplesWarning: a side holds too few effective samples.
        """
        inside = request.region.contains(self.variables[request.variable])
        groups = self.groups if int(self.groups.max()) > 0 else None
        return free_energy_difference(inside, self.log_weights, kT=self.kT, bootstrap=0, groups=groups)


class BondEnergy:
    """Energies of the harmonic bonds of a System, the stiffest part of it.

    Args:
        system: an ``openmm.System``.

    Raises:
        UnsupportedForceError: for a force that the batched force field does not know.
    """

    def __init__(self, system: Any) -> None:
        table = read_system(system).bonds
        self.count = len(table.k)
        self._bonds = Bonds(table, torch.float64)

    def __call__(self, positions: Tensor) -> Tensor:
        """Energies (n,) kJ/mol of positions (n, N, 3) nm."""
        with torch.no_grad():
            energies: Tensor = self._bonds(positions.detach().cpu().double().permute(1, 2, 0))
        return energies

    def log_density(self, energies: Tensor, kT: float) -> Tensor:
        """Log of the density of the bonds' energy at ``kT``, as of ``count`` independent oscillators.

        A sum of n squares of Gaussians, each with mean kT/2: the Gamma law of shape n/2 and scale kT. It leaves out the
        volume element r^2 and the pull of angles and of unbonded atoms, which raise the mean: of alanine dipeptide by
        a tenth at 300 K.
        """
        shape = self.count / 2
        return (shape - 1.0) * energies.log() - energies / kT - math.lgamma(shape) - shape * math.log(kT)


def noise_ratios(lowest: float, highest: float, factor: float = 1.6) -> list[float]:
    """Rising noise-to-signal ratios in geometric progression that cover a range, at most ``factor`` apart.

    Raises:
        ValueError: not 0 < lowest < highest, or a factor that is not above one.
    """
    if not 0.0 < lowest < highest < math.inf or factor <= 1.0:
        raise ValueError(
            f"noise range: got {lowest} to {highest} by {factor}, expected 0 < lowest < highest, factor > 1"
        )
    steps = math.ceil(math.log(highest / lowest) / math.log(factor) - 1e-9)
    return [lowest * (highest / lowest) ** (k / steps) for k in range(steps + 1)]
