"""From a validated config to the objects that do the work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..molecular.cvs import CollectiveVariable, UnknownAtomError, Variables
from ..molecular.cvs import build_variables as build_known_variables
from ..molecular.energies import BatchedForceField, Energy, OpenMMEnergy, measure_platforms
from ..molecular.free_energy import Axis, Region
from ..molecular.pipeline import AnalysisRequest, DifferenceRequest, SurfaceRequest
from ..molecular.systems import MolecularSystem, load_system
from .config import AnalysisConfig, EnergyConfig, SystemConfig, VariableConfig
from .errors import UserError, first_line
from .paths import resolve
from .plugins import GROUPS, call_plugin, load_plugin
from .variable_config import dimension_of

__all__ = [
    "build_energy",
    "build_request",
    "build_system",
    "build_variables",
    "choose_device",
    "settle_energy",
    "try_variables",
    "with_system",
]


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA where there is one.

    Raises:
        UserError: if a CUDA device is asked for that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"energy.device = {name!r}: there are {torch.cuda.device_count()} CUDA devices here")
    return device


def build_system(config: SystemConfig) -> MolecularSystem:
    """The molecule with its OpenMM System. Raises as `load_system`."""
    cutoff = {} if config.cutoff is None else {"cutoff": config.cutoff}
    return load_system(
        resolve(config.pdb, Path()),
        force_field=config.force_field,
        nonbonded_method=config.nonbonded_method,
        constraints=config.constraints,
        **cutoff,
    )


def settle_energy(config: EnergyConfig, system: MolecularSystem) -> EnergyConfig:
    """The config with "auto" replaced by what it means here, so that a resumed run computes the same bits."""
    changes: dict[str, str] = {}
    if config.engine == "batched" and config.device == "auto":
        changes["device"] = str(choose_device("auto"))
    if config.engine == "openmm" and config.platform == "auto":
        changes["platform"] = measure_platforms(system.system, system.positions)[0].platform
    return config.model_copy(update=changes)


def with_system(config: Any) -> tuple[Any, MolecularSystem]:
    """A config of a job on one molecule, with its energy settled, and its system.

    Raises:
        SystemBuildError: structure and force field do not fit.
    """
    system = build_system(config.system)
    return config.model_copy(update={"energy": settle_energy(config.energy, system)}), system


def build_energy(config: EnergyConfig, system: MolecularSystem, temperature: float) -> Energy:
    """The energy that the config names.

    Raises:
        UserError: for an unknown engine or device.
        UnsupportedForceError: if the batched force field cannot evaluate the System.
    """
    dtype = torch.float64 if config.precision == "double" else torch.float32
    if config.engine == "batched":
        return BatchedForceField.from_openmm(
            system.system,
            topology=system.topology,
            temperature=temperature,
            dtype=dtype,
            device=choose_device(config.device),
        )
    if config.engine == "openmm":
        return OpenMMEnergy(system.system, topology=system.topology, temperature=temperature, platform=config.platform)
    factory, group = load_plugin("feynkac.energies", config.engine), "feynkac.energies"
    energy: Energy = call_plugin(group, factory, config.engine, system, temperature=temperature, **config.options)
    return energy


def build_variables(config: AnalysisConfig, topology: Any) -> list[CollectiveVariable]:
    """The collective variables, in the order of the config.

    Raises:
        UnknownAtomError: for an atom that is not in the molecule.
        UserError: for an unknown plugin, options or files that do not fit, or wrong units.
    """
    plugged = {name: _variable(name, v) for name, v in config.variables.items() if v.plugin is not None}
    entries = {name: (v.kind, v.plain) for name, v in config.variables.items() if v.plugin is None}
    try:
        built = build_known_variables(entries, topology=topology, known=plugged)
    except UnknownAtomError:
        raise
    except ValueError as error:
        raise UserError(f"analysis.variables: {error}") from error
    variables = [plugged[name] if name in plugged else built[name] for name in config.variables]
    _check_units(config, {v.name: v for v in variables})
    return variables


def build_request(config: AnalysisConfig, variables: list[CollectiveVariable], seed: int) -> AnalysisRequest:
    """What to compute from the weighted draws.

    Raises:
        UserError: if an axis has neither a period nor a range, or the region is empty.
    """
    by_name = {v.name: v for v in variables}
    surface = None
    if config.surface is not None:
        s = config.surface
        surface = SurfaceRequest(
            axes=tuple(_axis(config, by_name[n], bins) for n, bins in zip(s.variables, s.bins, strict=True)),
            method=s.method,
            bandwidth=None if s.bandwidth is None else tuple(w.value for w in s.bandwidth),
            bootstrap=s.bootstrap,
        )
    replicates = config.surface.bootstrap if config.surface else 100
    profiles = tuple(
        SurfaceRequest(axes=(_axis(config, by_name[n], config.profile_bins),), bootstrap=replicates)
        for n in config.profiles
    )
    return AnalysisRequest(surface=surface, profiles=profiles, difference=_difference(config, by_name), seed=seed)


def _difference(config: AnalysisConfig, variables: dict[str, CollectiveVariable]) -> DifferenceRequest | None:
    if config.difference is None:
        return None
    d = config.difference
    try:
        region = Region(d.region.lower, d.region.upper, variables[d.variable].period)
    except ValueError as error:
        raise UserError(f"analysis.difference.region: {d.region} {empty_or_whole(variables[d.variable])}") from error
    written = d.region.written
    unit, shown = (variables[d.variable].unit, None) if written is None else (written[2], written[:2])
    return DifferenceRequest(variable=d.variable, region=region, bootstrap=d.bootstrap, unit=unit, shown=shown)


def empty_or_whole(variable: CollectiveVariable) -> str:
    """What is wrong with a region that a variable cannot have."""
    return "must run from its lower to its upper end" if variable.period is None else "is the whole circle"


def _variable(name: str, config: VariableConfig) -> CollectiveVariable:
    """The variable of a plugin.

    Raises:
        UserError: it makes no variable.
    """
    plugin, group = str(config.plugin), "feynkac.cvs"
    plugged = call_plugin(group, load_plugin(group, plugin), plugin, name=name, **config.options)
    if not isinstance(plugged, CollectiveVariable):
        raise UserError(f"plugin {plugin!r} made a {type(plugged).__name__}, expected {GROUPS[group]}")
    return plugged


def try_variables(
    variables: Sequence[CollectiveVariable],
    positions: Tensor,
    *,
    where: str,
    steering: Collection[str] = (),
) -> None:
    """Evaluate every variable on the molecule's own structure, before anything is made.

    Args:
        variables: to try.
        positions: (N, 3) nm, of the type and on the device that variables will meet.
        where: section of the config that defines them.
        steering: names of those that forces act through: they must be finite, and follow the positions.

    Raises:
        UserError: naming the variable that fails, makes other than one value a structure, or is not finite.
    """
    pair = positions.detach().expand(2, *positions.shape).contiguous()
    for variable in variables:
        try:
            values = (
                Variables([variable]).linearised(pair).values[:, 0]
                if variable.name in steering
                else _free(variable, pair)
            )
        except Exception as error:  # anything may go wrong in a plugin
            text = first_line(error).removeprefix(f"{variable.name}: ")
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise UserError(f"{where}.{variable.name}: fails on the structure of the molecule: {kind}{text}") from error
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape != (2,):
            raise UserError(f"{where}.{variable.name}: expected values of shape (2,) of two structures, got {shape}")
        if variable.name in steering and not bool(torch.isfinite(values).all()):
            raise UserError(
                f"{where}.{variable.name}: is {float(values[0])} on the structure of the molecule; a bias or restraint "
                "on it needs finite values from the start"
            )


def _free(variable: CollectiveVariable, positions: Tensor) -> Any:
    with torch.no_grad():
        return variable(positions)


def _axis(config: AnalysisConfig, variable: CollectiveVariable, bins: int) -> Axis:
    period, span = variable.period, config.variables[variable.name].range
    if period is not None:
        low, high = -period / 2, period / 2
    elif span is not None:
        low, high = span.lower, span.upper
    else:
        raise UserError(f"analysis.variables.{variable.name}: an axis that is not periodic needs a range")
    return Axis(name=variable.name, lower=low, upper=high, bins=bins, periodic=period is not None, unit=variable.unit)


def _check_units(config: AnalysisConfig, variables: dict[str, CollectiveVariable]) -> None:
    """An interval or width of a variable must be given in the variable's kind of unit."""
    given = [(f"analysis.variables.{n}.range", n, v.range) for n, v in config.variables.items() if v.range]
    if config.difference is not None:
        given.append(("analysis.difference.region", config.difference.variable, config.difference.region))
    checks = [(where, name, interval.dimension) for where, name, interval in given]
    if config.surface is not None and config.surface.bandwidth is not None:
        pairs = zip(config.surface.variables, config.surface.bandwidth, strict=True)
        checks += [("analysis.surface.bandwidth", name, width.dimension) for name, width in pairs]
    for where, name, dimension in checks:
        unit = variables[name].unit
        # a plugin that names no unit may mean any
        if dimension != dimension_of(unit) and not (config.variables[name].plugin is not None and not unit):
            kind = "a plain number" if dimension == "number" else f"a unit of {dimension}"
            raise UserError(f"{where}: {name} is measured in {unit or 'plain numbers'}, not in {kind}")
