"""The bias that a config of biased dynamics asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...fkc.bias import BiasVariable, GridAxis, RepulsionBias, WellTemperedBias
from ...fkc.bias.grid import n_nodes
from ...molecular.cvs import CollectiveVariable
from ...molecular.io import hills_of, opes_bias_of, read_hills, read_opes_state
from ..errors import UserError
from ..paths import resolve
from .config import NEEDS_RANGE, MetadynamicsConfig

__all__ = ["asked_nodes", "build_bias", "rct_points", "with_ranges"]

_NODES_A_WIDTH = {"well_tempered": 5, "opes": 10}
_MOST_NODES = 3_000_000
"""Of a grid: its values, the coefficients of its spline and a copy in every checkpoint are 24 MB each."""
_RCT_POINTS = 4096
"""On which c(t) is computed where there are too many variables for a grid: a Sobol sequence."""


def with_ranges(config: MetadynamicsConfig, named: Mapping[str, CollectiveVariable]) -> MetadynamicsConfig:
    """The config with the range of each open variable as that of the bias's grid, where there is to be a grid and it
    has none of its own."""
    if not config.bias.on_a_grid:
        return config
    sections = dict(config.bias.variables)
    for name, section in sections.items():
        own = config.variables[name].range
        if section.range is None and own is not None and named[name].period is None:
            sections[name] = section.model_copy(update={"range": own})
    bias = config.bias.model_copy(update={"variables": sections})
    return config.model_copy(update={"bias": bias})


def build_bias(config: MetadynamicsConfig, named: Mapping[str, CollectiveVariable], kT: float) -> RepulsionBias:
    """The bias at the start of a run.

    Args:
        config: of the run.
        named: its variables.
        kT: kJ/mol.

    Raises:
        UserError: for settings that do not fit each other or the variables, or hills that cannot be used.
        FileFormatError: the file that the bias starts from cannot be read.
    """
    b = config.bias
    try:
        variables = [
            BiasVariable(name, v.sigma.value, named[name].period, named[name].unit) for name, v in b.variables.items()
        ]
        grid = _affordable(config, _grid(config, variables))
        if b.kind == "opes":
            empty: RepulsionBias = RepulsionBias.opes(
                variables,
                kT=kT,
                barrier=float(b.barrier or math.nan),
                bias_factor=b.bias_factor,
                explore=bool(b.explore),
                compression=1.0 if b.compression is None else b.compression,
                adaptive_width=b.adaptive_width is not False,
                grid=grid,
            )
        else:
            empty = RepulsionBias.well_tempered(
                variables,
                kT=kT,
                bias_factor=float(b.bias_factor or math.nan),
                height=float(b.height or math.nan),
                shape=b.shape or "gaussian",
                compression=b.compression,
                grid=grid,
            )
    except UserError:  # has its place in it
        raise
    except ValueError as error:
        raise UserError(f"bias: {error}") from error
    return _started(config, empty) if b.start_from else empty


def _asks_for_grid(config: MetadynamicsConfig) -> bool:
    return any(v.range is not None or v.bins is not None for v in config.bias.variables.values())


def _grid(config: MetadynamicsConfig, variables: Sequence[BiasVariable]) -> list[GridAxis] | None:
    """The axes that the config asks for; None leaves the choice to the bias."""
    sections = config.bias.variables
    if not _asks_for_grid(config):
        if config.bias.on_a_grid:
            _need_ends(variables)
        return None
    axes = []
    for variable in variables:
        section = sections[variable.name]
        if variable.period is not None and section.range is not None:
            raise UserError(f"bias.variables.{variable.name}.range: the variable has a period and takes no range")
        ends = (None, None) if section.range is None else (section.range.lower, section.range.upper)
        if variable.period is None and section.range is None:
            _need_ends([variable])
        axis = GridAxis.fine_enough(variable, *ends, nodes_a_width=_NODES_A_WIDTH[config.bias.kind])
        bins = axis.bins if section.bins is None else section.bins
        axes.append(GridAxis(axis.lower, axis.upper, bins, axis.periodic))
    return axes


def asked_nodes(config: MetadynamicsConfig, variables: Sequence[BiasVariable]) -> int:
    """Nodes of the grid that the config asks for; 0 where it leaves the choice to the bias."""
    axes = _grid(config, variables) if _asks_for_grid(config) else None
    return 0 if axes is None else n_nodes(axes)


def _affordable(config: MetadynamicsConfig, axes: list[GridAxis] | None) -> list[GridAxis] | None:
    """The grid, or none where kernels of OPES are summed instead."""
    if axes is None or n_nodes(axes) <= _MOST_NODES:
        return axes
    if config.bias.kind == "opes":
        return None
    raise UserError(
        f"bias.variables: the grid of the bias would have {n_nodes(axes):,} nodes, at most {_MOST_NODES:,} are "
        "possible: choose wider sigma, shorter ranges or fewer bins, or set bias.compression and leave out the ranges "
        "and bins of bias.variables, for kernels without a grid"
    )


def _need_ends(variables: Sequence[BiasVariable]) -> None:
    for variable in variables:
        if variable.period is None:
            raise UserError(f"bias.variables.{variable.name}: {NEEDS_RANGE}")


def rct_points(config: MetadynamicsConfig, bias: RepulsionBias) -> Tensor | None:
    """Points over the domain for c(t) of hills without a grid."""
    if not isinstance(bias, WellTemperedBias) or bias.grid is not None:
        return None
    ends = []
    for variable in bias.variables:
        span = config.variables[variable.name].range
        if variable.period is not None:
            ends.append((-variable.period / 2, variable.period / 2))
        elif span is not None:
            ends.append((span.lower, span.upper))
        else:
            raise UserError(f"variables.{variable.name}: needs a range, over which c(t) of the bias is computed")
    lower, upper = torch.tensor(ends, dtype=torch.float64).T
    sobol = torch.quasirandom.SobolEngine(len(ends))  # type: ignore[no-untyped-call]
    points: Tensor = lower + (upper - lower) * sobol.draw(_RCT_POINTS, dtype=torch.float64)
    return points


def _started(config: MetadynamicsConfig, empty: RepulsionBias) -> RepulsionBias:
    """The bias of an earlier run, or of another program."""
    paths = [resolve(text, Path()) for text in config.bias.start_from]
    try:
        if isinstance(empty, WellTemperedBias):
            table = read_hills(paths)
            if table.names != empty.names:
                raise ValueError(
                    f"the hills are along {', '.join(table.names)}, the bias along {', '.join(empty.names)}"
                )
            return empty.with_hills(hills_of(table))
        found = opes_bias_of(
            read_opes_state(paths[0]),
            empty.variables,
            kT=empty.kT,
            adaptive_width=config.bias.adaptive_width is not False,
            grid=empty.grid_axes,
        )
    except ValueError as error:
        raise UserError(f"bias.start_from: {error}") from error
    if not math.isclose(found.barrier, float(config.bias.barrier or math.nan), rel_tol=1e-6):
        raise UserError(f"bias.start_from: the file is of a barrier of {found.barrier:g} kJ/mol, not of bias.barrier")
    return found
