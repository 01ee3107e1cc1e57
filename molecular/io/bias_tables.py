"""From biases to the tables of files, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...fkc.bias import (
    BiasVariable,
    Counts,
    GridAxis,
    Hills,
    Kernels,
    OpesBias,
    OpesSums,
    RepulsionBias,
    WellTemperedBias,
)
from ...fkc.bias.variables import shortest
from ..free_energy import Axis
from .grid import PlumedGrid, grid_axis
from .hills import HillsTable
from .opes_table import OpesState, OpesTable

__all__ = ["bias_grid", "hills_of", "opes_bias_of", "opes_kernels_of", "opes_table_of", "table_of"]

_POINTS_AT_ONCE = 100_000
_CUTOFF_TOLERANCE = 1e-4
"""Relative; PLUMED prints settings with six decimals."""


def hills_of(table: HillsTable) -> Hills:
    """The hills of a table for ``WellTemperedBias.with_hills``; periodic centres go to [-period/2, period/2].

    Raises:
        ValueError: for multivariate hills, which no bias here takes; `evaluate_hills` sums them.
    """
    if table.multivariate:
        raise ValueError(
            "hills with full covariances cannot become diagonal kernels; evaluate_hills sums them as they are"
        )
    return Hills(_around(table.centers, table.periods), table.sigmas, table.heights, table.times)


def table_of(bias: WellTemperedBias, hills: Hills, *, clocks: Tensor | None = None) -> HillsTable:
    """Hills that ``bias`` deposited, as the rows of a HILLS file.

    Heights are taken to be in kJ/mol and times in ps, PLUMED's units. PLUMED has no Gaussian without an end: such
    kernels become ``gaussian``, which ends at 3.5 widths, where they have 0.2 % of their height.

    Args:
        bias: with finite bias factor, or inf (``biasf`` -1).
        hills: its.
        clocks: (M,) seconds, for a file of one among several walkers.
    """
    m = len(hills)
    return HillsTable(
        names=bias.names,
        domains=_domains(bias),
        centers=hills.centers,
        sigmas=hills.widths,
        heights=hills.heights,
        biasf=torch.full((m,), -1.0 if math.isinf(bias.bias_factor) else bias.bias_factor, dtype=torch.float64),
        times=hills.times,
        kernel="stretched-gaussian" if bias.shape == "stretched-gaussian" else "gaussian",
        clocks=clocks,
    )


def opes_table_of(bias: OpesBias, *, time: float = 0.0) -> OpesTable:
    """The state of an OPES bias, as a STATE file has it.

    Args:
        bias: any; energies are in kJ/mol.
        time: in ps, of every row.
    """
    state = OpesState(bias.sums.zed, bias.sums.weights, bias.sums.squares, bias.sums.counter)
    times = torch.full((len(bias.kernels),), float(time), dtype=torch.float64)
    return _opes_table(bias, bias.kernels, times, state, None)


def opes_kernels_of(bias: OpesBias, hills: Hills, log_weights: Tensor | None = None) -> OpesTable:
    """Kernels as they are deposited, as the rows of a KERNELS file.

    Args:
        bias: before the deposit.
        hills: what it made of the samples (``bias.hills``).
        log_weights: (M,) log of n W e^{V/kT} of each sample; None for equally weighted samples, V/kT.
    """
    logs = bias(hills.centers) / bias.kT if log_weights is None else log_weights
    return _opes_table(bias, hills, hills.times, None, logs)


def _opes_table(
    bias: OpesBias, kernels: Kernels, times: Tensor, state: OpesState | None, log_weights: Tensor | None
) -> OpesTable:
    return OpesTable(
        names=bias.names,
        domains=_domains(bias),
        centers=kernels.centers,
        sigmas=kernels.widths,
        heights=kernels.heights,
        times=times,
        bias_factor=bias.bias_factor,
        epsilon=bias.epsilon,
        kernel_cutoff=bias.shape.reach,
        compression_threshold=bias.compression,
        log_weights=log_weights,
        action="OPES_METAD_EXPLORE" if bias.explore else "OPES_METAD",
        state=state,
    )


def opes_bias_of(
    table: OpesTable,
    variables: Sequence[BiasVariable],
    *,
    kT: float,
    adaptive_width: bool = True,
    grid: Sequence[GridAxis] | None = None,
) -> OpesBias:
    """An OPES bias that goes on from a STATE file.

    Args:
        table: read by `read_opes_state`.
        variables: as the table names them; their ``sigma`` is the first width (PLUMED's SIGMA), which the file does
            not hold.
        kT: in kJ/mol; the file does not hold it.
        adaptive_width: False where PLUMED ran with FIXED_SIGMA.
        grid: as in :meth:`RepulsionBias.opes`.

    Raises:
        ValueError: no state, other variables or periods, a cutoff or an adaptive width that `OpesBias` has not.
    """
    if table.state is None:
        raise ValueError("a KERNELS file does not hold the sums of OPES; read the STATE file")
    if table.state.adaptive:
        raise ValueError("the run measured its widths (ADAPTIVE sigma); only runs with a given SIGMA can be continued")
    found = [(variable.name, variable.period) for variable in variables]
    if not _same(found, list(zip(table.names, table.periods, strict=True))):
        raise ValueError(f"variables {found} are not those of the file, {table.names} with periods {table.periods}")
    prefactor = table.bias_factor - 1.0 if table.explore else 1.0 - 1.0 / table.bias_factor
    bias = OpesBias.create(
        variables,
        kT=kT,
        barrier=-prefactor * kT * math.log(table.epsilon),
        bias_factor=table.bias_factor,
        explore=table.explore,
        compression=table.compression_threshold,
        adaptive_width=adaptive_width,
        grid=grid,
    )
    if not math.isclose(bias.shape.reach, table.kernel_cutoff, rel_tol=_CUTOFF_TOLERANCE):
        raise ValueError(
            f"kernel_cutoff {table.kernel_cutoff:g} is not {bias.shape.reach:g}, which follows from epsilon and the "
            "bias factor; a bias with a cutoff of its own is not supported"
        )
    state = table.state
    kernels = Kernels(_around(table.centers, table.periods), table.sigmas, table.heights)
    sums = OpesSums(state.counter, state.sum_weights, state.sum_weights2, state.zed)
    return replace(bias.with_kernels(kernels, sums), counts=Counts(hills=state.counter - 1))


def bias_grid(bias: RepulsionBias, axes: Sequence[Axis] | None = None, *, label: str = "metad") -> PlumedGrid:
    """A bias and its gradient on a grid, as the columns of a GRID file.

    Args:
        bias: of one to three variables; energies are in kJ/mol.
        axes: of the grid; None for the bias's own.
        label: of the METAD action that is to read the file.

    Raises:
        ValueError: no axes and a bias without a grid, or axes that do not fit.
    """
    if axes is None:
        if bias.grid_axes is None:
            raise ValueError("a bias without a grid needs axes")
        axes = [
            grid_axis(v.name, a.lower, a.upper, len(a.nodes()), periodic=a.periodic, unit=v.unit)
            for v, a in zip(bias.variables, bias.grid_axes, strict=True)
        ]
    if tuple(axis.name for axis in axes) != bias.names:
        raise ValueError(f"axes {[axis.name for axis in axes]} are not the variables {list(bias.names)}")
    points = PlumedGrid(tuple(axes), {}).points()
    parts = [bias.value_and_gradient(part) for part in torch.split(points.reshape(-1, len(axes)), _POINTS_AT_ONCE)]
    value, gradient = (torch.cat(column) for column in zip(*parts, strict=True))
    slopes = {f"der_{axis.name}": gradient[:, k].reshape(points.shape[:-1]) for k, axis in enumerate(axes)}
    return PlumedGrid(tuple(axes), {f"{label}.bias": value.reshape(points.shape[:-1]), **slopes})


def _domains(bias: RepulsionBias) -> tuple[tuple[float, float] | None, ...]:
    return tuple(None if v.period is None else (-v.period / 2, v.period / 2) for v in bias.variables)


def _around(centers: Tensor, periods: Sequence[float | None]) -> Tensor:
    """Centres of periodic variables within half a period of zero."""
    columns = [shortest(column, period) for column, period in zip(centers.unbind(1), periods, strict=True)]
    return torch.stack(columns, dim=1)


def _same(found: list[tuple[str, float | None]], wanted: list[tuple[str, float | None]]) -> bool:
    return len(found) == len(wanted) and all(
        a == b and (p == q or (p is not None and q is not None and math.isclose(p, q, rel_tol=1e-9)))
        for (a, p), (b, q) in zip(found, wanted, strict=True)
    )
