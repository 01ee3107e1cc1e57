r"""OPES: on-the-fly probability enhanced sampling.

The density P of the unbiased law is estimated by kernels with weights e^{V/kT}; kernels that come close are merged;

.. math:: V(s) = (1 - 1/\gamma)\, kT \ln\bigl(P(s)/Z + \epsilon\bigr), \quad
   \epsilon = e^{-\Delta E / (kT (1 - 1/\gamma))}

with Delta E the ``barrier``, the one parameter: V stays between -Delta E and about 0. Z is the mean of P over the
kernels' centers, the volume that has been explored. Widths shrink as the effective number of samples grows, by
Silverman's rule (Invernizzi, Parrinello 2020, J. Phys. Chem. Lett. 11, 2731). With ``explore`` P is the density of the
*biased* law, which needs no weights, and V = (gamma - 1) kT ln(P/Z + epsilon) (Invernizzi, Parrinello 2022, J. Chem.
Theory Comput. 18, 3988). Conventions are those of PLUMED's OPES_METAD and OPES_METAD_EXPLORE with fixed SIGMA.

With a grid V is tabulated after every deposit and interpolated by a cubic spline, and widths stop shrinking at two and
a half nodes: the cost of a step no longer depends on the number of kernels. Weights belong to the bias that acts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .base import RepulsionBias
from .grid import Grid, GridAxis, n_nodes
from .kernels import Hills, Kernels, merged
from .shapes import Shape
from .variables import WIDTHS_A_PERIOD, BiasVariable, check_variables

__all__ = ["OpesBias", "OpesSums"]

_NODES_A_WIDTH, _FEWEST_NODES_A_WIDTH = 10, 5
_FEWEST_NODES = 2.5
"""In the narrowest kernel that a grid carries."""
_HIGHEST = 500.0
"""kT: weights of the first samples are exp(-barrier/kT)."""
_PROBES = 16_384
_MOST_NODES = 3_000_000


@dataclass(frozen=True)
class OpesSums:
    """Running sums over all samples, started as PLUMED does: as if one sample of weight exp(-barrier/kT) were there.

    Attributes:
        counter: samples, plus one.
        weights: sum of weights.
        squares: sum of squared weights.
        zed: Z, the mean of P over the centers.
    """

    counter: int
    weights: float
    squares: float
    zed: float = 1.0

    @property
    def effective(self) -> float:
        """(1 + sum w)^2 / (1 + sum w^2)."""
        return (1.0 + self.weights) ** 2 / (1.0 + self.squares)


@dataclass(frozen=True, kw_only=True, eq=False)
class OpesBias(RepulsionBias):
    """A bias from a density estimate.

    Attributes:
        barrier: Delta E, about the highest barrier to be crossed, in the unit of kT.
        explore: estimate the biased density.
        compression: kernels closer than so many widths are merged.
        adaptive_width: let widths shrink.
        kernels: merged ones; heights are those of the density's kernels, not energies.
        sums: running sums.
        grid: V on nodes; None to sum the kernels at every evaluation.
    """

    barrier: float
    explore: bool
    compression: float
    adaptive_width: bool
    kernels: Kernels
    sums: OpesSums

    _kind: ClassVar[str] = "opes"

    @classmethod
    def create(
        cls,
        variables: Sequence[BiasVariable],
        *,
        kT: float,
        barrier: float,
        bias_factor: float | None = None,
        explore: bool = False,
        compression: float = 1.0,
        adaptive_width: bool = True,
        grid: Sequence[GridAxis | None] | None = None,
    ) -> Self:
        """A bias without kernels: -barrier everywhere.

        Args:
            variables: d of them; ``sigma`` is the first width, about the fluctuation in one basin.
            kT: thermal energy; energies are in its unit.
            barrier: above kT.
            bias_factor: gamma; barrier / kT by default; inf for a flat law (not with ``explore``).
            explore: estimate the biased density: faster to explore, slower to converge.
            compression: in widths.
            adaptive_width: let widths shrink.
            grid: an axis a variable, up to three, of at least five nodes a width, three million in all; None for a
                whole circle. Without one, up to two variables on circles get a grid of ten.

        Raises:
            ValueError: naming what does not fit.
        """
        chosen = check_variables(variables)
        if not (kT > 0.0 and math.isfinite(kT)):
            raise ValueError(f"kT: got {kT!r}, expected a positive number")
        if not (barrier > kT and math.isfinite(barrier)):
            raise ValueError(f"barrier: got {barrier!r}, expected more than kT = {kT:g}")
        if not (compression > 0.0 and math.isfinite(compression)):
            raise ValueError(f"compression: got {compression!r}, expected a positive number of widths")
        gamma = barrier / kT if bias_factor is None else bias_factor
        if explore and math.isinf(gamma):
            raise ValueError("bias_factor: explore needs a finite one")
        if barrier > _HIGHEST * kT:
            raise ValueError(f"barrier: got {barrier:g}, {barrier / kT:,.0f} kT; is it in the unit of kT = {kT:g}?")
        if grid is not None and len(chosen) > 3:
            raise ValueError(f"grid: {len(chosen)} variables, expected at most 3; leave the grid out")
        if grid is None and len(chosen) <= 2 and all(variable.period is not None for variable in chosen):
            grid = [None] * len(chosen)
        axes = None if grid is None else GridAxis.complete(grid, chosen, _NODES_A_WIDTH)
        if axes is not None and n_nodes(axes) > _MOST_NODES:
            raise ValueError(
                f"grid: {n_nodes(axes):,} nodes, expected at most {_MOST_NODES:,}: V is tabulated after every deposit; "
                "use fewer bins, or no grid"
            )
        none = Kernels.none(len(chosen))
        empty = cls(
            variables=chosen,
            kT=kT,
            bias_factor=gamma,
            barrier=barrier,
            explore=explore,
            compression=compression,
            adaptive_width=adaptive_width,
            kernels=none,
            sums=OpesSums(1, 1.0, 1.0),
        )
        first = empty.epsilon**empty.prefactor
        started = replace(empty, sums=OpesSums(1, first, first * first))
        return started if axes is None else replace(started, grid=_empty(axes, chosen).filled(-barrier))

    @property
    def prefactor(self) -> float:
        """What multiplies kT ln(P/Z + epsilon)."""
        return self.bias_factor - 1.0 if self.explore else 1.0 - 1.0 / self.bias_factor

    @property
    def epsilon(self) -> float:
        """Bounds the bias from below at -barrier."""
        return math.exp(-self.barrier / (self.prefactor * self.kT))

    @property
    def shape(self) -> Shape:
        """Of the density's kernels: they end where their height is lost in epsilon (exp(-barrier/kT) to explore)."""
        prefactor = 1.0 if self.explore else self.prefactor
        return Shape.ending_at(math.sqrt(2.0 * self.barrier / (prefactor * self.kT)))

    @property
    def n_kernels(self) -> int:
        """Merged kernels, which are summed at every evaluation unless there is a grid."""
        return len(self.kernels)

    @property
    def interpolation_error(self) -> float:
        """Largest difference of the spline from V, in the unit of kT, at 16,384 points spread over all that kernels
        reach; 0 without a grid. Weights do not suffer: they belong to the spline."""
        if self.grid is None or not len(self.kernels):
            return 0.0
        probes = torch.arange(_PROBES)
        kernel = self.kernels.rows(probes % len(self.kernels))
        irrational = torch.tensor([0.7548776662, 0.5698402910, 0.8191725134], dtype=torch.float64)[: self.dimension]
        spread = torch.remainder(probes.double()[:, None] * irrational, 1.0) - 0.5
        points = kernel.centers + 2.0 * (self.shape.reach + 1.0) * spread * kernel.widths
        points = points[~self.grid.outside(points)]
        exact = replace(self, grid=None)
        return float((self._evaluate(points)[0] - exact._evaluate(points)[0]).abs().max()) if len(points) else 0.0

    def rct(self, points: Tensor | None = None) -> float:
        """Not for OPES: its bias is quasi-static from early on, and weights are exp(V/kT).

        Raises:
            ValueError: always.
        """
        raise ValueError("rct: OPES has no c(t); its weights are exp(V/kT)")

    def density(self, values: Tensor) -> Tensor:
        """P/Z (B,) at values (B, d): one on average over the centers."""
        return self._density(values)[0]

    def _density(self, values: Tensor) -> tuple[Tensor, Tensor]:
        total, slope = self.kernels.value_and_gradient(values, self.periods, self.shape)
        scale = 1.0 / (self._mass(self.sums) * self.sums.zed)
        return total * scale, slope * scale

    def _evaluate(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.grid is not None:
            return self.grid.value_and_gradient(values)
        energy = self.prefactor * self.kT
        density, slope = self._density(values)
        raised = density + self.epsilon + 0.0 * values.sum(dim=1)  # NaN in, NaN out, with no kernel as well
        return energy * raised.log(), energy * slope / raised[:, None]

    def _mass(self, sums: OpesSums) -> float:
        return float(sums.counter) if self.explore else sums.weights

    def _grown(self, values: Tensor, weights: Tensor, time: float) -> tuple[Self, Hills]:
        n = len(values)
        bias = self._evaluate(values)[0]
        heights = n * weights * torch.exp(bias / self.kT)
        sums = OpesSums(
            self.sums.counter + n,
            self.sums.weights + float(heights.sum()),
            self.sums.squares + float(heights.square().sum()),
        )
        if self.explore:
            heights = n * weights
        sigma = torch.tensor(self.sigmas, dtype=torch.float64)
        if self.explore:
            broad = sigma * math.sqrt(self.bias_factor)  # the biased law is as much broader in each basin
            around = self.periods
            sigma = torch.where(around > 0, torch.minimum(broad, around / WIDTHS_A_PERIOD), broad)
        if self.adaptive_width:
            size = float(sums.counter) if self.explore else sums.effective
            shrink = (size * (self.dimension + 2.0) / 4.0) ** (-1.0 / (self.dimension + 4.0))
            narrow = torch.maximum(sigma * shrink, torch.minimum(sigma, self._narrowest()))
            sigma, heights = narrow, heights * (sigma / narrow).prod()
        hills = Hills(values, sigma.expand(n, -1).contiguous(), heights, torch.full_like(weights, time))
        kernels = merged(self.kernels, hills, self.periods, self.compression, "height")
        if self.grid is None:
            total = kernels.value_and_gradient(kernels.centers, self.periods, self.shape)[0]
            return self.with_kernels(kernels, replace(sums, zed=float(total.mean()) / self._mass(sums))), hills
        table = self.grid.filled(0.0).plus(kernels, self.periods, self.shape)
        zed = float(table.value_and_gradient(kernels.centers)[0].mean()) / self._mass(sums)
        return self._tabulated(kernels, replace(sums, zed=zed), table), hills

    def with_kernels(self, kernels: Kernels, sums: OpesSums) -> Self:
        """With another density: merged kernels and the sums that belong to them, as a file of PLUMED has them."""
        if self.grid is None:
            return replace(self, kernels=kernels, sums=sums)
        return self._tabulated(kernels, sums, self.grid.filled(0.0).plus(kernels, self.periods, self.shape))

    def _tabulated(self, kernels: Kernels, sums: OpesSums, table: Grid) -> Self:
        """With V on the nodes from the sum of the kernels on them."""
        density = table.values / (self._mass(sums) * sums.zed)
        grid = Grid(table.axes, self.prefactor * self.kT * (density + self.epsilon).log())
        return replace(self, kernels=kernels, sums=sums, grid=grid)

    def _narrowest(self) -> Tensor:
        """Widths (d,) that the grid can carry."""
        axes = self.grid_axes
        if axes is None:
            return torch.zeros(self.dimension, dtype=torch.float64)
        return torch.tensor([_FEWEST_NODES * axis.spacing for axis in axes], dtype=torch.float64)

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        settings = {
            "barrier": self.barrier,
            "explore": self.explore,
            "compression": self.compression,
            "adaptive_width": self.adaptive_width,
            "grid": None if self.grid is None else [asdict(axis) for axis in self.grid.axes],
            "sums": [self.sums.counter, self.sums.weights, self.sums.squares, self.sums.zed],
        }
        k = self.kernels
        table = {} if self.grid is None else {"grid": self.grid.values}
        return settings, {"centers": k.centers, "widths": k.widths, "heights": k.heights, **table}

    @classmethod
    def _restored(cls, common: dict[str, Any], settings: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        own = {name: settings[name] for name in ("barrier", "explore", "compression", "adaptive_width")}
        kernels = Kernels(state["centers"], state["widths"], state["heights"])
        grid = None
        if settings["grid"] is not None:
            grid = Grid(tuple(GridAxis(**axis) for axis in settings["grid"]), state["grid"])
        return cls(**common, **own, kernels=kernels, sums=OpesSums(*settings["sums"]), grid=grid)


def _empty(axes: Sequence[GridAxis], variables: Sequence[BiasVariable]) -> Grid:
    return Grid.empty(axes, variables, nodes_a_width=_FEWEST_NODES_A_WIDTH)
