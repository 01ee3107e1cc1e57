"""Progress along a path of reference structures and distance from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .rmsd import Superposition
from .variables import Variables

__all__ = ["NodeDistances", "PathDistance", "PathProgress", "smoothness"]


@dataclass(frozen=True, eq=False)
class NodeDistances:
    r"""Squared distances :math:`\sum_k ((s_k - n_k) / c_k)^2` in the space of collective variables, to nodes n.

    Differences of periodic variables are taken around the circle.

    Args:
        variables: the d variables.
        nodes: (F, d), values at the nodes, in the units of the variables.
        scales: c, one a variable; None for 1 in the unit of each.

    Raises:
        ValueError: for nodes or scales that do not fit the variables.
    """

    variables: Variables
    nodes: torch.Tensor
    scales: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        d = len(self.variables)
        if self.nodes.ndim != 2 or self.nodes.shape[1] != d or not torch.isfinite(self.nodes).all():
            raise ValueError(f"nodes must be finite, of shape (F, {d}), got {tuple(self.nodes.shape)}")
        object.__setattr__(self, "nodes", self.nodes.detach().double().clone())
        if self.scales is not None and (len(self.scales) != d or not all(c > 0 for c in self.scales)):
            raise ValueError(f"scales must be {d} positive numbers, got {self.scales}")

    def __repr__(self) -> str:
        """Names and sizes, not the nodes."""
        return f"NodeDistances({len(self.nodes)} nodes of {', '.join(self.variables.names)}, scales={self.scales})"

    @property
    def unit(self) -> str:
        """Of the squared distance: nm^2 where all variables are lengths and unscaled, rad^2 for angles, else none."""
        units = set(self.variables.units)
        return f"{units.pop()}^2" if self.scales is None and len(units) == 1 and units != {""} else ""

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Squared distances (B, F) of positions (B, N, 3) in nm."""
        return self.squared(self.variables(positions))

    def squared(self, values: torch.Tensor) -> torch.Tensor:
        """Squared distances (B, F) of values (B, d)."""
        difference = values[:, None] - self.nodes.to(values)
        periods = values.new_tensor([p if p is not None else math.inf for p in self.variables.periods])
        turns = torch.round(difference.detach() / periods)
        difference = difference - torch.where(turns == 0, torch.zeros_like(turns), turns * periods)
        if self.scales is not None:
            difference = difference / values.new_tensor(self.scales)
        return (difference * difference).sum(-1)


@dataclass(frozen=True, eq=False)
class _Path:
    """What progress and distance have in common.

    Args:
        distances: squared distances (B, F) to the F nodes: a `Superposition` for mean square deviations in nm^2, or
            `NodeDistances` in the space of other variables.
        sharpness: lambda, in the inverse unit of the squared distances; `smoothness` has the usual choice.
        name: label in files and plots.

    Raises:
        ValueError: for fewer than two nodes, or a lambda that is not positive.
    """

    distances: Superposition | NodeDistances
    sharpness: float
    name: str = "path"

    def __post_init__(self) -> None:
        if self.nodes < 2:
            raise ValueError(f"{self.name}: a path needs at least 2 nodes, got {self.nodes}")
        if not (math.isfinite(self.sharpness) and self.sharpness > 0):
            raise ValueError(f"{self.name}: lambda must be positive, got {self.sharpness}")

    @property
    def nodes(self) -> int:
        """Number of nodes F."""
        return len(self.distances.references if isinstance(self.distances, Superposition) else self.distances.nodes)

    @property
    def period(self) -> None:
        """Not periodic."""
        return


class PathProgress(_Path):
    r"""Progress :math:`s = \sum_i i\, e^{-\lambda d_i^2} / \sum_i e^{-\lambda d_i^2}`, from 1 to F along F nodes.

    Branduardi, Gervasio & Parrinello, J. Chem. Phys. 126, 054103 (2007), in PLUMED's scaling.
    """

    @property
    def unit(self) -> str:
        """A number."""
        return ""

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Progress (B,) of positions (B, N, 3) in nm."""
        closeness = torch.softmax(-self.sharpness * self.distances(positions), dim=-1)
        return (closeness * torch.arange(1, self.nodes + 1).to(closeness)).sum(-1)


class PathDistance(_Path):
    r"""Distance from the path :math:`z = -\lambda^{-1} \log \sum_i e^{-\lambda d_i^2}`, a squared distance.

    Branduardi, Gervasio & Parrinello (2007).  Near several nodes z is below the smallest squared distance, and
    may be negative.
    """

    @property
    def unit(self) -> str:
        """That of the squared distances."""
        return "nm^2" if isinstance(self.distances, Superposition) else self.distances.unit

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        """Distances (B,) of positions (B, N, 3) in nm."""
        return -torch.logsumexp(-self.sharpness * self.distances(positions), dim=-1) / self.sharpness


def smoothness(distances: Superposition | NodeDistances) -> float:
    """The usual lambda, 2.3 over the mean squared distance of neighbouring nodes.

    Raises:
        ValueError: if neighbouring nodes coincide.
    """
    between = (
        distances(distances.references) if isinstance(distances, Superposition) else distances.squared(distances.nodes)
    )
    mean = float(between.diagonal(1).mean())
    if not mean > 1e-14:
        raise ValueError("neighbouring nodes of the path coincide")
    return 2.3 / mean
