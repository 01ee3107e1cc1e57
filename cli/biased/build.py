"""From the config of biased dynamics to the objects that do the work, all checked before a folder is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...fkc.bias import (
    FlatBottom,
    Harmonic,
    LowerWall,
    RepulsionBias,
    UpperWall,
    Wall,
    WellTemperedBias,
)
from ...molecular.cvs import CollectiveVariable
from ...molecular.dynamics import Metadynamics, MetadynamicsSettings, Restrained
from ...molecular.energies import Energy
from ...molecular.pipeline import AnalysisRequest
from ...molecular.systems import MolecularSystem
from ..build import (
    build_energy,
    build_request,
    build_system,
    build_variables,
    choose_device,
    settle_energy,
    try_variables,
)
from ..errors import UserError
from ..paths import resolve
from ..reference import read_reference
from .bias import build_bias, rct_points, with_ranges
from .config import MetadynamicsConfig
from .problems import CLIFF
from .sections import RestraintConfig

__all__ = ["Setup", "input_files"]

_ATOMS_A_THREAD = 20_000
"""Of all walkers together."""


def input_files(config: MetadynamicsConfig) -> dict[str, Path]:
    """Files whose contents a resumed run must find unchanged."""
    files = {"system.pdb": resolve(config.system.pdb, Path())}
    files |= {f"bias.start_from[{k}]": resolve(text, Path()) for k, text in enumerate(config.bias.start_from)}
    if config.reference is not None:
        files["reference"] = resolve(config.reference, Path())
    return files | {name: Path(name) for name in config.system.force_field if Path(name).is_file()}


@dataclass(frozen=True, eq=False)
class Setup:
    """What a config stands for, built and checked.

    Attributes:
        config: settled: "auto" replaced by what it means here.
        system: the molecule.
        energy: without bias.
        variables: all that the config defines, in its order.
        bias: at the start.
        restraints: walls and restraints.
        settings: lengths and steps of the dynamics.
        request: what to compute.
        reference: numbers from elsewhere; empty without.
        method: the dynamics.
    """

    config: MetadynamicsConfig
    system: MolecularSystem
    energy: Energy
    variables: list[CollectiveVariable]
    bias: RepulsionBias
    restraints: tuple[Restrained, ...]
    settings: MetadynamicsSettings
    request: AnalysisRequest
    reference: dict[str, Any]
    method: Metadynamics

    @classmethod
    def build(cls, config: MetadynamicsConfig) -> Setup:
        """Build everything.

        Raises:
            UserError: for what cannot be used; the message names it.
            UnknownAtomError: an atom is not in the molecule.
            UnsupportedForceError: the engine cannot evaluate the force field.
            FileFormatError: ``start_from`` cannot be read.
        """
        reference = read_reference(config.reference, config.system.temperature)
        system = build_system(config.system)
        config = config.model_copy(update={"energy": settle_energy(config.energy, system)})
        try:
            variables = build_variables(config.request, system.topology)
            request = build_request(config.request, variables, config.sampling.seed)
        except UserError as error:  # here the variables are a section of their own
            raise UserError(str(error).replace("analysis.variables", "variables")) from error
        _threads_that_pay(config.dynamics.walkers * system.n_atoms)
        energy = build_energy(config.energy, system, config.system.temperature)
        named = {variable.name: variable for variable in variables}
        steering = {*config.bias.variables, *(r.variable for r in config.restraints.values())}
        try_variables(variables, _as_met(config, system), where="variables", steering=steering)
        config = with_ranges(config, named)
        bias = build_bias(config, named, energy.kT)
        restraints = tuple(_restrained(name, r, named) for name, r in config.restraints.items())
        biased = [named[name] for name in config.bias.variables]
        try:
            settings = _settings(config)
            method = settings.method(energy, biased, bias, restraints, rct_points=rct_points(config, bias))
        except ValueError as error:
            raise UserError(f"dynamics: {error}") from error
        return cls(config, system, energy, variables, bias, restraints, settings, request, reference, method)

    @property
    def device(self) -> torch.device:
        """Where walkers live."""
        here = self.config.energy.engine == "batched"
        return choose_device(self.config.energy.device) if here else torch.device("cpu")

    @property
    def others(self) -> list[CollectiveVariable]:
        """Variables that are not biased."""
        return [variable for variable in self.variables if variable.name not in self.bias.names]

    @property
    def label(self) -> str:
        """Of the bias in COLVAR files."""
        return "metad" if isinstance(self.bias, WellTemperedBias) else "opes"


def _threads_that_pay(atoms: int) -> None:
    """As many threads as a batch of so many atoms keeps busy.

    Threads that meet after a tenth of a millisecond bring little on free cores (alanine dipeptide, two threads: 1.2
    times at 256 walkers), and where other programs run each of these meetings waits for a turn of the scheduler.
    """
    torch.set_num_threads(min(torch.get_num_threads(), max(1, atoms // _ATOMS_A_THREAD)))


def _as_met(config: MetadynamicsConfig, system: MolecularSystem) -> Tensor:
    """The structure (N, 3) in nm as variables meet it in the run."""
    if config.energy.engine != "batched":
        return system.positions
    dtype = torch.float32 if config.energy.precision == "single" else torch.float64
    return system.positions.to(choose_device(config.energy.device), dtype)


def _settings(config: MetadynamicsConfig) -> MetadynamicsSettings:
    d = config.dynamics
    return MetadynamicsSettings(
        walkers=d.walkers,
        fill_ps=d.fill,
        burn_in_ps=d.burn_in,
        production_ps=d.production,
        temperature=config.system.temperature,
        melt_ps=d.melt or 0.0,
        melt_temperature=d.melt_temperature,
        pace=d.pace,
        record_steps=max(1, round(d.record / d.time_step)),
        time_step=d.time_step,
        friction=d.friction,
        mass=d.mass,
    )


def _restrained(name: str, config: RestraintConfig, named: dict[str, CollectiveVariable]) -> Restrained:
    variable = named[config.variable]
    if variable.period is not None and config.kind.endswith("_wall"):
        raise UserError(f"restraints.{name}.kind: {config.kind} {CLIFF}")
    return Restrained(variable, _wall(config, variable.period), name)


def _wall(config: RestraintConfig, period: float | None) -> Wall:
    at, scale = config.at.value, config.scale.value
    if config.kind in ("upper_wall", "lower_wall"):
        kind = UpperWall if config.kind == "upper_wall" else LowerWall
        return kind(at, config.stiffness, 2.0 if config.exponent is None else config.exponent, scale)
    stiffness = config.stiffness / scale**2
    if config.half_width is not None:
        return FlatBottom(at, config.half_width.value, stiffness, period)
    return Harmonic(at, stiffness, period)
