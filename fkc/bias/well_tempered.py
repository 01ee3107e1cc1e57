r"""Well-tempered hills.

.. math:: V_{k+1}(s) = V_k(s) + h \sum_i W_i\, e^{-V_k(s_i) / (kT (\gamma - 1))}\, G(s - s_i)

W_i are the samples' weights, 1/n where they carry none: h is what a whole batch adds, so that a run acts the same with
other numbers of walkers. As the bias converges V goes to -(1 - 1/gamma) F + const (Barducci, Bussi, Parrinello 2008,
Phys. Rev. Lett. 100, 020603; Dama, Parrinello, Voth 2014, Phys. Rev. Lett. 112, 240602).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..weights import log_mean_exp, log_sum_exp
from .base import RepulsionBias
from .grid import Grid, GridAxis, interpolation_error, n_nodes
from .kernels import Hills, Kernels, merged
from .shapes import SHAPES, Shape
from .variables import BiasVariable, check_values, check_variables, check_widths

__all__ = ["WellTemperedBias", "tiwary_parrinello"]

_GRID_DIMENSIONS = 3
_COMPRESSION = 0.5
_MOST_DEFAULT_NODES = 3_000_000
_NODES_A_WIDTH, _DEFAULT_NODES_A_WIDTH = 2.0, 5
_SETTINGS = ("height", "shape", "compression", "narrowest")


def tiwary_parrinello(bias: Tensor, kT: float, bias_factor: float) -> float:
    """c(t) = kT ln( sum exp(gamma V / (kT (gamma - 1))) / sum exp(V / (kT (gamma - 1))) ) over nodes of a regular grid.

    Without tempering (gamma = inf) kT ln( mean exp(V / kT) ), as PLUMED's CALC_RCT has it (Tiwary, Parrinello 2015, J.
    Phys. Chem. B 119, 736). Samples of the growing bias then have weights exp((V - c) / kT).

    Args:
        bias: V on the nodes, any shape.
        kT: in the unit of V.
        bias_factor: gamma, above 1.
    """
    if not bias_factor > 1.0:
        raise ValueError(f"bias_factor: got {bias_factor!r}, expected a number above 1 (inf: untempered)")
    reduced = bias.double().reshape(-1) / kT
    if math.isinf(bias_factor):
        return kT * float(log_mean_exp(reduced))
    damped = reduced / (bias_factor - 1.0)
    return kT * float(log_sum_exp(bias_factor * damped) - log_sum_exp(damped))


@dataclass(frozen=True, kw_only=True, eq=False)
class WellTemperedBias(RepulsionBias):
    """Hills on a grid, or kept one by one, or merged.

    Attributes:
        height: h, what one batch adds where V = 0.
        shape: name of a kernel's shape in :data:`SHAPES`.
        grid: the sum on nodes, with cubic splines between; None for an exact sum.
        kernels: all of them, without a grid.
        compression: kernels closer than so many widths are merged; None for never.
        narrowest: width (d) of the narrowest hills so far.
    """

    height: float
    shape: str = "gaussian"
    kernels: Kernels
    compression: float | None = None
    narrowest: tuple[float, ...] = ()

    _kind: ClassVar[str] = "well_tempered"

    @classmethod
    def create(
        cls,
        variables: Sequence[BiasVariable],
        *,
        kT: float,
        bias_factor: float,
        height: float,
        grid: Sequence[GridAxis | None] | None = None,
        shape: str = "gaussian",
        compression: float | None = None,
    ) -> Self:
        """A bias without hills.

        Args:
            variables: d of them.
            kT: thermal energy; energies are in its unit.
            bias_factor: gamma, above 1; inf for plain metadynamics.
            height: h, positive.
            grid: an axis a variable, up to three; None among them for a whole circle. Without one, up to three
                variables on circles get a grid of five nodes a width, unless that takes more than three million nodes;
                others keep kernels.
            shape: ``gaussian``, or PLUMED's ``stretched-gaussian`` or ``truncated-gaussian``, which end at 3.5 widths.
            compression: merge kernels closer than so many widths; by default 0.5 for variables on circles too many or
                too finely resolved for a grid, and for more than three, else never. Not with a grid.

        Raises:
            ValueError: naming what does not fit.
        """
        chosen = check_variables(variables)
        if not (height > 0.0 and math.isfinite(height)):
            raise ValueError(f"height: got {height!r}, expected a positive number")
        if shape not in SHAPES:
            raise ValueError(f"shape: got {shape!r}, expected one of {', '.join(SHAPES)}")
        if compression is not None and not (compression > 0.0 and math.isfinite(compression)):
            raise ValueError(f"compression: got {compression!r}, expected a positive number of widths, or None")
        if grid is not None and compression is not None:
            raise ValueError("compression: a grid keeps no kernels to merge; choose one of the two")
        small, around = len(chosen) <= _GRID_DIMENSIONS, all(v.period is not None for v in chosen)
        if grid is not None and not small:
            raise ValueError(f"grid: {len(chosen)} variables, expected at most {_GRID_DIMENSIONS}; leave the grid out")
        axes = None if grid is None else GridAxis.complete(grid, chosen, _DEFAULT_NODES_A_WIDTH)
        if grid is None and compression is None and small and around:
            fine = GridAxis.complete([None] * len(chosen), chosen, _DEFAULT_NODES_A_WIDTH)
            axes = fine if n_nodes(fine) <= _MOST_DEFAULT_NODES else None
        if axes is None and compression is None and (around or not small):
            compression = _COMPRESSION
        return cls(
            variables=chosen,
            kT=kT,
            bias_factor=bias_factor,
            height=height,
            shape=shape,
            grid=None if axes is None else Grid.empty(axes, chosen, nodes_a_width=_NODES_A_WIDTH),
            narrowest=tuple(variable.sigma for variable in chosen),
            kernels=Kernels.none(len(chosen)),
            compression=compression,
        )

    def with_hills(self, hills: Kernels) -> Self:
        """With hills from elsewhere: heights as V gains them.

        Raises:
            ValueError: hills of another number of variables, that are not finite, wider than a seventh of a period, or
                too narrow for the grid.
        """
        if hills.centers.shape[1] != self.dimension:
            raise ValueError(f"hills: of {hills.centers.shape[1]} variables, expected {self.dimension}")
        parts = (hills.centers, hills.widths, hills.heights)
        if not all(bool(torch.isfinite(part).all()) for part in parts) or not bool((hills.widths > 0).all()):
            raise ValueError("hills: centers, widths and heights must be finite, and widths positive")
        if not len(hills):
            return self
        least = hills.widths.amin(dim=0).tolist()
        for k, (variable, widest) in enumerate(zip(self.variables, hills.widths.amax(dim=0).tolist(), strict=True)):
            check_widths(variable.name, widest, variable.period)
            if self.grid is not None and least[k] < _NODES_A_WIDTH * self.grid.axes[k].spacing * (1.0 - 1e-9):
                raise ValueError(
                    f"hills: {variable.name} has one of width {least[k]:g}, but the nodes of the grid are "
                    f"{self.grid.axes[k].spacing:.3g} apart: use a grid of at most half the width"
                )
        grown = self._plus(Kernels(*(part.double() for part in parts)))
        narrowest = tuple(min(a, b) for a, b in zip(self.narrowest, least, strict=True))
        return replace(grown, counts=self.counts.plus(hills=len(hills)), narrowest=narrowest)

    def rct(self, points: Tensor | None = None) -> float:
        """c(t), in the unit of kT; over the grid, or over ``points`` (n, d) that cover the domain evenly.

        Raises:
            ValueError: neither.
        """
        if points is not None:
            return tiwary_parrinello(self(check_values(points, self.dimension)), self.kT, self.bias_factor)
        if self.grid is None:
            raise ValueError("rct: a bias without a grid needs points that cover the domain")
        return tiwary_parrinello(self.grid.values, self.kT, self.bias_factor)

    @property
    def n_kernels(self) -> int:
        """Kernels that are summed at every evaluation; 0 with a grid."""
        return len(self.kernels)

    @property
    def interpolation_error(self) -> float:
        """Largest error of the grid's spline for one of the narrowest hills, in units of its height; 0 without a grid.

        It is measured. The error of V is at most this times the heights of all hills in reach.
        """
        return 0.0 if self.grid is None else interpolation_error(self.grid.axes, self.narrowest, self._shape)

    @property
    def _shape(self) -> Shape:
        return SHAPES[self.shape]

    def _evaluate(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.grid is not None:
            return self.grid.value_and_gradient(values)
        return self.kernels.value_and_gradient(values, self.periods, self._shape)

    def _grown(self, values: Tensor, weights: Tensor, time: float) -> tuple[Self, Hills]:
        damping = torch.exp(-self._evaluate(values)[0] / (self.kT * (self.bias_factor - 1.0)))
        widths = torch.tensor(self.sigmas, dtype=torch.float64).expand(len(values), -1).contiguous()
        hills = Hills(values, widths, self.height * weights * damping, torch.full_like(weights, time))
        return self._plus(hills), hills

    def _plus(self, kernels: Kernels) -> Self:
        if self.grid is not None:
            return replace(self, grid=self.grid.plus(kernels, self.periods, self._shape))
        if self.compression is not None:
            return replace(self, kernels=merged(self.kernels, kernels, self.periods, self.compression, "volume"))
        return replace(self, kernels=self.kernels.plus(kernels))

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        settings: dict[str, Any] = {name: getattr(self, name) for name in _SETTINGS}
        settings["grid"] = None
        if self.grid is not None:
            settings["grid"] = [asdict(axis) for axis in self.grid.axes]
            return settings, {"grid": self.grid.values}
        k = self.kernels
        return settings, {"centers": k.centers, "widths": k.widths, "heights": k.heights}

    @classmethod
    def _restored(cls, common: dict[str, Any], settings: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        grid, kernels = None, Kernels.none(len(common["variables"]))
        if settings["grid"] is not None:
            grid = Grid(tuple(GridAxis(**axis) for axis in settings["grid"]), state["grid"])
        else:
            kernels = Kernels(state["centers"], state["widths"], state["heights"])
        own = {name: settings[name] for name in _SETTINGS}
        return cls(**common, **(own | {"narrowest": tuple(own["narrowest"])}), grid=grid, kernels=kernels)
