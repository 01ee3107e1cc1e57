"""What every repulsion bias can do."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ..weights import normalize
from .grid import Grid, GridAxis
from .kernels import Hills
from .variables import BiasVariable, check_values, check_variables

if TYPE_CHECKING:
    from .opes import OpesBias
    from .well_tempered import WellTemperedBias

__all__ = ["Counts", "RepulsionBias"]

_SETTINGS = "settings"


@dataclass(frozen=True)
class Counts:
    """What has been deposited, and what has not.

    Attributes:
        batches: deposits.
        hills: kernels in all of them, before any merging.
        invalid: samples without finite values: they left no kernel.
        outside: samples beyond an end of the grid; their kernels count with what reaches inside.
    """

    batches: int = 0
    hills: int = 0
    invalid: int = 0
    outside: int = 0

    def plus(self, *, batches: int = 0, hills: int = 0, invalid: int = 0, outside: int = 0) -> Counts:
        """With more."""
        return Counts(self.batches + batches, self.hills + hills, self.invalid + invalid, self.outside + outside)


class _Differentiable(torch.autograd.Function):
    """The value of a bias, with its gradient where values require one; once differentiable."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: RepulsionBias) -> Tensor:
        value, gradient = bias.value_and_gradient(values)
        ctx.save_for_backward(gradient.reshape(values.shape).to(values))
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0].to(slope).reshape([-1] + [1] * (slope.ndim - 1)), None


@dataclass(frozen=True, kw_only=True, eq=False)
class RepulsionBias(ABC):
    """A bias V(s) on d variables that grows where samples have been; immutable.

    Energies are in the unit of ``kT``.

    Attributes:
        variables: d of them.
        kT: thermal energy.
        bias_factor: gamma: the biased law of s is the unbiased one to the power 1/gamma; inf for a flat one.
        counts: what has been deposited.
        grid: that carries it, if any.

    Raises:
        ValueError: kT that is not positive, gamma not above 1, variables that share a name.
    """

    variables: tuple[BiasVariable, ...]
    kT: float
    bias_factor: float
    counts: Counts = Counts()
    grid: Grid | None = None

    def __post_init__(self) -> None:
        check_variables(self.variables)
        if not (self.kT > 0.0 and math.isfinite(self.kT)):
            raise ValueError(f"kT: got {self.kT!r}, expected a positive number")
        if not self.bias_factor > 1.0:
            raise ValueError(f"bias_factor: got {self.bias_factor!r}, expected a number above 1 (inf: untempered)")

    # --- making one ---------------------------------------------------------------------------------------------------

    @staticmethod
    def well_tempered(
        variables: Sequence[BiasVariable],
        *,
        kT: float,
        bias_factor: float,
        height: float,
        grid: Sequence[GridAxis | None] | None = None,
        shape: str = "gaussian",
        compression: float | None = None,
    ) -> WellTemperedBias:
        """Well-tempered hills; see :class:`WellTemperedBias`."""
        from .well_tempered import WellTemperedBias

        return WellTemperedBias.create(
            variables, kT=kT, bias_factor=bias_factor, height=height, grid=grid, shape=shape, compression=compression
        )

    @staticmethod
    def opes(
        variables: Sequence[BiasVariable],
        *,
        kT: float,
        barrier: float,
        bias_factor: float | None = None,
        explore: bool = False,
        compression: float = 1.0,
        adaptive_width: bool = True,
        grid: Sequence[GridAxis | None] | None = None,
    ) -> OpesBias:
        """A kernel density estimate turned into a bias; see :class:`OpesBias`."""
        from .opes import OpesBias

        return OpesBias.create(
            variables,
            kT=kT,
            barrier=barrier,
            bias_factor=bias_factor,
            explore=explore,
            compression=compression,
            adaptive_width=adaptive_width,
            grid=grid,
        )

    # --- reading it ---------------------------------------------------------------------------------------------------

    def __call__(self, values: Tensor) -> Tensor:
        """V (B,) float64 at values (B, d); differentiable once with respect to them."""
        if values.requires_grad and torch.is_grad_enabled():
            found: Tensor = _Differentiable.apply(values, self)  # type: ignore[no-untyped-call]
            return found
        return self.value_and_gradient(values)[0]

    def value_and_gradient(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """V (B,) and dV/ds (B, d), float64, at values (B, d).

        Beyond an end of an open grid axis V is that of the end, and dV/ds along this axis is exactly 0. Rows with a
        value that is not finite are NaN.

        Raises:
            ValueError: values of another shape.
        """
        values = check_values(values.detach().cpu(), self.dimension)
        value, gradient = self._evaluate(values)
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            lost = ~finite.all(dim=1)
            value, gradient = value.masked_fill(lost, math.nan), gradient.masked_fill(lost[:, None], math.nan)
        return value, gradient

    def reweight(self, values: Tensor, log_weights: Tensor | None = None) -> Tensor:
        """Log-weights (n,) of the law without the bias, for samples of the law with it: ``log_weights`` + V/kT.

        Args:
            values: (n, d). Samples without finite values get weight zero.
            log_weights: (n,) that the samples carry already.

        Returns:
            (n,) float64, raw.
        """
        values = check_values(values.detach().cpu(), self.dimension)
        finite = torch.isfinite(values).all(dim=1)
        carried = torch.zeros(len(values), dtype=torch.float64)
        if log_weights is not None:
            carried = _check_log_weights(log_weights, len(values))
        found = carried + self._evaluate(torch.where(finite[:, None], values, 0.0))[0] / self.kT
        return torch.where(finite, found, -math.inf)

    def free_energy(self, values: Tensor) -> Tensor:
        """The bias's own estimate of F (B,) at values (B, d), up to a constant: -gamma/(gamma - 1) V.

        It holds once the bias has converged, and has no error bar; weights from :meth:`reweight` have one.
        """
        factor = 1.0 if math.isinf(self.bias_factor) else self.bias_factor / (self.bias_factor - 1.0)
        return -factor * self(values.detach())

    @abstractmethod
    def rct(self, points: Tensor | None = None) -> float:
        """c(t) of Tiwary and Parrinello, in the unit of kT.

        Raises:
            ValueError: the bias has none, or no grid to integrate on.
        """

    # --- making it grow -----------------------------------------------------------------------------------------------

    def deposited(self, values: Tensor, log_weights: Tensor | None = None, *, time: float = 0.0) -> Self:
        """The bias after a batch of samples (n, d).

        All kernels of the batch are made with the bias before it. Samples without finite values, or of weight zero,
        leave none; the former are counted.

        Args:
            values: (n, d).
            log_weights: (n,) of the samples under the biased law; equal without.
            time: of the batch, for files.

        Raises:
            ValueError: shapes that do not fit.
        """
        return self.deposit(values, log_weights, time=time)[0]

    def hills(self, values: Tensor, log_weights: Tensor | None = None, *, time: float = 0.0) -> Hills:
        """The kernels that :meth:`deposited` makes of a batch, for files."""
        return self.deposit(values, log_weights, time=time)[1]

    def deposit(self, values: Tensor, log_weights: Tensor | None = None, *, time: float = 0.0) -> tuple[Self, Hills]:
        """:meth:`deposited` and :meth:`hills` at once."""
        values = check_values(values.detach().cpu(), self.dimension)
        finite = torch.isfinite(values).all(dim=1)
        invalid = int((~finite).sum())
        weights = torch.full((len(values),), 1.0, dtype=torch.float64)
        if log_weights is not None:
            carried = torch.where(finite, _check_log_weights(log_weights, len(values)), -math.inf)
            alive = bool((carried > -math.inf).any())
            weights = normalize(carried) if alive else torch.zeros(len(values), dtype=torch.float64)
        used = finite & (weights > 0.0)
        values, weights = values[used], weights[used]
        if not len(values):
            return replace(self, counts=self.counts.plus(batches=1, invalid=invalid)), self._no_hills()
        grown, hills = self._grown(values, weights / weights.sum(), time)
        outside = int(self.outside(values).sum())
        counts = self.counts.plus(batches=1, hills=len(hills), invalid=invalid, outside=outside)
        return replace(grown, counts=counts), hills

    # --- files --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors: :meth:`from_state_dict` gives the same bias, bit for bit."""
        common = {
            "kind": self._kind,
            "variables": [asdict(variable) for variable in self.variables],
            "kT": self.kT,
            "bias_factor": self.bias_factor,
            "counts": asdict(self.counts),
        }
        settings, tensors = self._state()
        text = json.dumps({**common, **settings}, sort_keys=True)
        mine = {name: tensor.clone() for name, tensor in tensors.items()}
        return {_SETTINGS: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8), **mine}

    @staticmethod
    def from_state_dict(state: Mapping[str, Tensor]) -> RepulsionBias:
        """The bias that :meth:`state_dict` was called on.

        Raises:
            ValueError: the state of something else.
        """
        from .opes import OpesBias
        from .well_tempered import WellTemperedBias

        if _SETTINGS not in state:
            raise ValueError(f"state: no {_SETTINGS!r} among {sorted(state)}; this is not the state of a bias")
        settings = json.loads(bytes(state[_SETTINGS].cpu().tolist()).decode())
        kinds: dict[str, type[WellTemperedBias] | type[OpesBias]] = {
            kind._kind: kind for kind in (WellTemperedBias, OpesBias)
        }
        if settings.get("kind") not in kinds:
            raise ValueError(f"state: kind = {settings.get('kind')!r}, expected one of {sorted(kinds)}")
        common = {
            "variables": tuple(BiasVariable(**variable) for variable in settings["variables"]),
            "kT": settings["kT"],
            "bias_factor": settings["bias_factor"],
            "counts": Counts(**settings["counts"]),
        }
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        try:
            return kinds[settings["kind"]]._restored(common, settings, tensors)
        except KeyError as error:
            raise ValueError(f"state: {error} is missing") from error

    # --- small things -------------------------------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """d."""
        return len(self.variables)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the variables."""
        return tuple(variable.name for variable in self.variables)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Kernel widths of the variables."""
        return tuple(variable.sigma for variable in self.variables)

    @property
    def periods(self) -> Tensor:
        """(d,) float64, 0 for an open variable."""
        return torch.tensor([variable.period or 0.0 for variable in self.variables], dtype=torch.float64)

    @property
    def grid_axes(self) -> tuple[GridAxis, ...] | None:
        """Axes of the grid, if there is one."""
        return None if self.grid is None else self.grid.axes

    @property
    @abstractmethod
    def n_kernels(self) -> int:
        """Kernels that are summed at every evaluation; 0 with a grid."""

    def outside(self, values: Tensor) -> Tensor:
        """Which values (n, d) lie beyond an end of an open grid axis, (n,) bool."""
        values = check_values(values.detach().cpu(), self.dimension)
        return torch.zeros(len(values), dtype=torch.bool) if self.grid is None else self.grid.outside(values)

    def _no_hills(self) -> Hills:
        empty = torch.zeros((0, self.dimension), dtype=torch.float64)
        none = torch.zeros(0, dtype=torch.float64)
        return Hills(empty, empty, none, none)

    # --- what a kind of bias defines ----------------------------------------------------------------------------------

    _kind: ClassVar[str] = ""

    @abstractmethod
    def _evaluate(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """V and dV/ds at values (B, d) float64."""

    @abstractmethod
    def _grown(self, values: Tensor, weights: Tensor, time: float) -> tuple[Self, Hills]:
        """The bias after finite values (n, d) with weights (n,) that sum to one, and its new kernels."""

    @abstractmethod
    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of this kind."""

    @classmethod
    @abstractmethod
    def _restored(cls, common: dict[str, Any], settings: dict[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The inverse of ``_state``."""


def _check_log_weights(log_weights: Tensor, count: int) -> Tensor:
    if log_weights.shape != (count,):
        raise ValueError(f"log_weights: got {tuple(log_weights.shape)}, expected ({count},)")
    return log_weights.detach().cpu().double()
