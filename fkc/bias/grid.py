"""A grid that carries the sum of all kernels as a cubic spline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops import cubic_spline, spline_coefficients
from .kernels import Kernels
from .shapes import Shape
from .variables import BiasVariable, differences

__all__ = ["Grid", "GridAxis", "interpolation_error", "n_nodes"]

_PLACES = 32
"""Of a hill between two nodes, at which the interpolation is judged."""

_MOST_NODES = 20_000_000
_ELEMENTS_AT_ONCE = 20_000_000
"""Of (kernels, nodes) arrays: 160 MB of float64."""
_WIDTH_CLASSES = 8


@dataclass(frozen=True)
class GridAxis:
    """Nodes along one variable.

    A periodic axis covers one period and leaves out its last node (``bins`` nodes); an open one has both ends
    (``bins`` + 1 nodes). These are PLUMED's grids.

    Attributes:
        lower: first node.
        upper: last node, or the first one a period on.
        bins: intervals.
        periodic: do the ends meet?

    Raises:
        ValueError: ends out of order, or fewer than 4 bins.
    """

    lower: float
    upper: float
    bins: int
    periodic: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lower) and math.isfinite(self.upper) and self.lower < self.upper):
            raise ValueError(f"grid: ends must be finite and in order, got {self.lower}, {self.upper}")
        if self.bins < 4:
            raise ValueError(f"grid: bins = {self.bins}, expected at least 4")

    @classmethod
    def fine_enough(
        cls, variable: BiasVariable, lower: float | None = None, upper: float | None = None, *, nodes_a_width: int = 5
    ) -> GridAxis:
        """Five nodes a width (PLUMED's default), which interpolates a Gaussian hill to 1.3e-5 of its height an axis.

        Raises:
            ValueError: an open variable without both ends.
        """
        if variable.period is not None:
            lower, upper = -variable.period / 2, variable.period / 2
        if lower is None or upper is None:
            raise ValueError(f"grid: {variable.name} is open, so its axis needs a lower and an upper end")
        bins = math.ceil((upper - lower) * nodes_a_width / variable.sigma - 1e-9)
        return cls(lower, upper, max(4, bins), variable.period is not None)

    @classmethod
    def complete(
        cls,
        axes: Sequence[GridAxis | None],
        variables: Sequence[BiasVariable],
        nodes_a_width: int,
    ) -> list[GridAxis]:
        """One axis a variable: None stands for the whole circle of a periodic one, finely enough resolved.

        Raises:
            ValueError: another number of axes, or None for an open variable.
        """
        if len(axes) != len(variables):
            raise ValueError(f"grid: {len(axes)} axes for {len(variables)} variables")
        pairs = zip(axes, variables, strict=True)
        return [cls.fine_enough(v, nodes_a_width=nodes_a_width) if axis is None else axis for axis, v in pairs]

    @property
    def spacing(self) -> float:
        """Between nodes."""
        return (self.upper - self.lower) / self.bins

    def nodes(self) -> Tensor:
        """(bins,) or (bins + 1,) float64."""
        return self.lower + self.spacing * torch.arange(self.bins + (not self.periodic), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Grid:
    """The sum of kernels on nodes, and between them by a cubic spline.

    Attributes:
        axes: d of them.
        values: (n_1, ..., n_d) float64 on the nodes, exact.
    """

    axes: tuple[GridAxis, ...]
    values: Tensor
    _coefficients: Tensor = field(init=False, repr=False)
    _frame: tuple[Tensor, Tensor, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        expected = [axis.bins + (not axis.periodic) for axis in self.axes]
        if list(self.values.shape) != expected:
            raise ValueError(f"grid: values of {list(self.values.shape)} nodes, the axes have {expected}")
        around = [axis.periodic for axis in self.axes]
        object.__setattr__(self, "_coefficients", spline_coefficients(self.values, around))
        lower = torch.tensor([axis.lower for axis in self.axes], dtype=torch.float64)
        spacing = torch.tensor([axis.spacing for axis in self.axes], dtype=torch.float64)
        object.__setattr__(self, "_frame", (lower, spacing, torch.tensor(around)))

    @classmethod
    def empty(cls, axes: Sequence[GridAxis], variables: Sequence[BiasVariable], *, nodes_a_width: float = 2.0) -> Grid:
        """Zero everywhere.

        Args:
            axes: one a variable.
            variables: their widths are what the spacing must resolve.
            nodes_a_width: at least.

        Raises:
            ValueError: axes that do not fit the variables, or too many nodes.
        """
        if len(axes) != len(variables):
            raise ValueError(f"grid: {len(axes)} axes for {len(variables)} variables")
        for axis, variable in zip(axes, variables, strict=True):
            _check(axis, variable, nodes_a_width)
        if n_nodes(axes) > _MOST_NODES:
            raise ValueError(
                f"grid: {' x '.join(str(axis.bins) for axis in axes)} bins are more than {_MOST_NODES:,}; "
                "use fewer bins, or no grid and compression"
            )
        return cls(tuple(axes), torch.zeros([len(axis.nodes()) for axis in axes], dtype=torch.float64))

    def filled(self, value: float) -> Grid:
        """The same nodes with one value everywhere."""
        return Grid(self.axes, torch.full_like(self.values, value))

    def plus(self, kernels: Kernels, periods: Tensor, shape: Shape) -> Grid:
        """With kernels added on the nodes."""
        if not len(kernels):
            return self
        values = self.values.clone()
        if shape.separable:
            for some in torch.split(torch.arange(len(kernels)), max(1, _ELEMENTS_AT_ONCE // values[..., 0].numel())):
                values += self._products(kernels.rows(some), periods)
            return Grid(self.axes, values)
        # kernels of like width together: the widest of a few decides how many nodes are looked at
        by_width = torch.argsort(kernels.widths.prod(dim=1))
        for few in torch.split(by_width, max(1, math.ceil(len(kernels) / _WIDTH_CLASSES))):
            boxes = [self._reach(k, kernels.rows(few), shape) for k in range(len(self.axes))]
            size = math.prod(len(box) for box in boxes)
            for some in torch.split(few, max(1, _ELEMENTS_AT_ONCE // size)):
                self._add_local(values, kernels.rows(some), periods, shape, boxes)
        return Grid(self.axes, values)

    def _reach(self, k: int, kernels: Kernels, shape: Shape) -> Tensor:
        """Steps from the node nearest to a center that can lie within the reach of a kernel, along axis k."""
        axis = self.axes[k]
        steps = math.ceil(shape.reach * float(kernels.widths[:, k].max()) / axis.spacing) + 1
        if axis.periodic and 2 * steps + 1 > axis.bins:  # once around
            return torch.arange(axis.bins) - axis.bins // 2
        return torch.arange(-steps, steps + 1)

    def _add_local(
        self, values: Tensor, kernels: Kernels, periods: Tensor, shape: Shape, boxes: Sequence[Tensor]
    ) -> None:
        """Adds kernels that end, on the nodes around each."""
        count, dimension = kernels.centers.shape
        q = torch.zeros((count,) + (1,) * dimension, dtype=torch.float64)
        flat = torch.zeros((count,) + (1,) * dimension, dtype=torch.int64)
        for k, (axis, box) in enumerate(zip(self.axes, boxes, strict=True)):
            index = torch.round((kernels.centers[:, k, None] - axis.lower) / axis.spacing).long() + box
            away = differences(axis.lower + axis.spacing * index.double(), kernels.centers[:, k, None], periods[k])
            part = 0.5 * (away / kernels.widths[:, k, None]).square()
            size = values.shape[k]
            if axis.periodic:
                index = index % size
            else:
                part = torch.where((index < 0) | (index >= size), math.inf, part)
                index = index.clamp(0, size - 1)
            along = [len(box) if j == k else 1 for j in range(dimension)]
            q = q + part.reshape(count, *along)
            flat = flat * size + index.reshape(count, *along)
        heights = kernels.heights.reshape((count,) + (1,) * dimension)
        added = torch.where(q < shape.cutoff, heights * (shape.scale * torch.exp(-q) + shape.shift), 0.0)
        values.view(-1).index_add_(0, flat.reshape(-1), added.reshape(-1))

    def _products(self, kernels: Kernels, periods: Tensor) -> Tensor:
        """Sum of products of one factor an axis: matrix products instead of an exponential a node and kernel."""
        total = None
        for k, axis in enumerate(self.axes):
            away = differences(axis.nodes()[None], kernels.centers[:, k, None], periods[k])
            factor = torch.exp(-0.5 * (away / kernels.widths[:, k, None]).square())
            if total is None:
                total = kernels.heights[:, None] * factor
            elif k == len(self.axes) - 1:
                return (total.reshape(len(kernels), -1).T @ factor).reshape(self.values.shape)
            else:
                total = (total.reshape(len(kernels), -1, 1) * factor[:, None]).reshape(len(kernels), -1)
        assert total is not None
        return total.sum(dim=0)

    def value_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The spline at points (B, d): (B,) and (B, d)."""
        found: tuple[Tensor, Tensor] = cubic_spline(points, self._coefficients, *self._frame)
        return found

    def points(self) -> Tensor:
        """All nodes (n_1 ... n_d, d), the last axis fastest."""
        return torch.cartesian_prod(*(axis.nodes() for axis in self.axes)).reshape(-1, len(self.axes))

    def outside(self, points: Tensor) -> Tensor:
        """Which points (B, d) lie beyond an end of an open axis, (B,)."""
        lower = torch.tensor([-math.inf if a.periodic else a.lower for a in self.axes], dtype=torch.float64)
        upper = torch.tensor([math.inf if a.periodic else a.upper for a in self.axes], dtype=torch.float64)
        return ((points < lower) | (points > upper)).any(dim=1)


def interpolation_error(axes: Sequence[GridAxis], widths: Sequence[float], shape: Shape) -> float:
    """Largest error of the spline of one hill, in units of its height: measured along each axis, and added up.

    Along an axis a hill is put at 32 places between two nodes, and its spline is compared with it at sixteen points of
    every cell, around the whole circle on a periodic axis, and where kernels that end do so, on both sides.
    """
    total = 0.0
    for axis, width in zip(axes, widths, strict=True):
        local, period = axis, axis.upper - axis.lower
        if not axis.periodic:
            reach = math.ceil((min(shape.reach, 6.0) + 1.0) * width / axis.spacing) + 4
            local, period = GridAxis(-reach * axis.spacing, reach * axis.spacing, 2 * reach), 0.0
        middle = (local.lower + local.upper) / 2
        cells = torch.linspace(local.lower, local.upper, 16 * local.bins + 1, dtype=torch.float64)
        ends = torch.tensor([-1.0, 1.0], dtype=torch.float64) * min(shape.reach, 6.0) * width
        ends = torch.cat([ends * (1.0 - 1e-9), ends * (1.0 + 1e-9)])
        periods = torch.tensor([period], dtype=torch.float64)
        worst = 0.0
        for place in range(_PLACES):
            center = torch.full((1, 1), middle + place / _PLACES * axis.spacing, dtype=torch.float64)
            points = torch.cat([cells, center[0] + ends])[:, None]
            one = torch.ones(1, dtype=torch.float64)
            hill = Kernels(center, torch.full((1, 1), width, dtype=torch.float64), one)
            spline = Grid((local,), torch.zeros(len(local.nodes()), dtype=torch.float64)).plus(hill, periods, shape)
            exact = hill.value_and_gradient(points, periods, shape)[0]
            worst = max(worst, float((spline.value_and_gradient(points)[0] - exact).abs().max()))
        total += worst
    return total


def n_nodes(axes: Sequence[GridAxis]) -> int:
    """Of a grid."""
    return math.prod(axis.bins + (not axis.periodic) for axis in axes)


def _check(axis: GridAxis, variable: BiasVariable, nodes_a_width: float) -> None:
    if axis.periodic != (variable.period is not None):
        raise ValueError(
            f"grid: {variable.name} is {'open' if variable.period is None else 'periodic'}, its axis is not"
        )
    if variable.period is not None and not math.isclose(axis.upper - axis.lower, variable.period, rel_tol=1e-9):
        raise ValueError(
            f"grid: the axis of {variable.name} is {axis.upper - axis.lower:g} long, its period is {variable.period:g}"
        )
    if axis.spacing > variable.sigma / nodes_a_width * (1.0 + 1e-9):
        fewest = math.ceil(nodes_a_width * (axis.upper - axis.lower) / variable.sigma)
        raise ValueError(
            f"grid: {axis.bins} bins make a spacing of {axis.spacing:.3g} along {variable.name}, more than "
            f"1/{nodes_a_width:g} of its sigma {variable.sigma:g}: use at least {fewest} bins"
        )
