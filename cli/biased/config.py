"""The config of a run of biased dynamics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from ...molecular.units import kT as thermal_energy
from ..config import (
    AnalysisConfig,
    Bins,
    DifferenceConfig,
    EnergyConfig,
    ExistingPath,
    RunName,
    Section,
    Seed,
    SurfaceConfig,
    SystemConfig,
    VariableName,
)
from ..variable_config import VariableConfig, wrong_units
from .problems import (
    CLIFF,
    Loc,
    complain,
    far_region,
    meeting_kernel,
    moved,
    problem,
    strange_range,
    whole_circle,
    wide_sigmas,
)
from .sections import BiasConfig, DynamicsConfig, RestraintConfig

__all__ = ["NEEDS_RANGE", "FindingsConfig", "MetadynamicsConfig"]

NEEDS_RANGE = "has no period, so it needs a range for the grid of the bias, wider than where walkers go"


class FindingsConfig(Section):
    """What to compute from the weighted samples, as in the ``analysis`` of other jobs."""

    surface: SurfaceConfig | None = None
    profiles: tuple[str, ...] = ()
    profile_bins: Bins = 72
    difference: DifferenceConfig | None = None


class SeedConfig(Section):
    """The seed of all noise."""

    seed: Seed


class MetadynamicsConfig(Section):
    """`feynkac run`: walkers fill a bias along collective variables and sample under it when it is frozen.

    ``reference``: JSON of numbers from elsewhere that are printed beside.
    """

    job: Literal["metadynamics"]
    name: RunName
    system: SystemConfig
    energy: EnergyConfig = EnergyConfig()
    variables: Annotated[dict[VariableName, VariableConfig], Field(min_length=1)]
    bias: BiasConfig
    restraints: dict[VariableName, RestraintConfig] = Field(default_factory=dict)
    dynamics: DynamicsConfig
    sampling: SeedConfig
    analysis: FindingsConfig = FindingsConfig()
    reference: ExistingPath | None = None

    @model_validator(mode="after")
    def _names_and_units(self) -> MetadynamicsConfig:
        named: dict[Loc, str] = {("bias", "variables", name): name for name in self.bias.variables}
        named |= {("restraints", name, "variable"): r.variable for name, r in self.restraints.items()}
        known = ", ".join(self.variables)
        unknown = [(place, name) for place, name in named.items() if name not in self.variables]
        complain([problem(place, f"{name!r} is none of the variables; defined: {known}") for place, name in unknown])
        endless = [name for name, v in self.variables.items() if v.open and v.range is None]
        endless = [name for name in endless if name in self.bias.variables and self.bias.variables[name].range is None]
        if self.bias.on_a_grid:
            complain([problem(("bias", "variables", name), NEEDS_RANGE) for name in endless])
        wrong = wrong_units(self.variables, self._quantities())
        if wrong is not None:
            raise wrong
        complain([*self._strange_biases(), *self._strange_region(), *self._one_sided_walls()])
        complain(wide_sigmas(self.sigma_shares()))
        if self.system.constraints != "none":
            complain([problem(("system", "constraints"), "must be none: the walkers move every bond")])
        _ = self.request
        return self

    @property
    def request(self) -> AnalysisConfig:
        """Variables and analysis in the form of other jobs.

        Raises:
            ValidationError: at the places of this config.
        """
        parts = {name: getattr(self.analysis, name) for name in type(self.analysis).model_fields}
        try:
            return AnalysisConfig(variables=self.variables, **parts)
        except ValidationError as error:
            raise moved(error, lambda at: at if at[:1] == ("variables",) else ("analysis", *at)) from error

    def sigma_shares(self) -> dict[str, float]:
        """Each sigma over the length of its variable's range, for biased variables that have one."""
        found = {}
        for name, biased in self.bias.variables.items():
            span = biased.range or self.variables[name].range
            if span is not None and span.upper > span.lower:
                found[name] = biased.sigma.value / (span.upper - span.lower)
        return found

    def _strange_biases(self) -> list[InitErrorDetails]:
        found, thermal = [], thermal_energy(self.system.temperature)
        for name, biased in self.bias.variables.items():
            variable, place = self.variables[name], ("bias", "variables", name)
            found += meeting_kernel((*place, "sigma"), biased.sigma, variable.circle)
            found += strange_range((*place, "range"), name, biased.range, periodic=variable.periodic)
        if self.bias.kind == "opes" and self.bias.barrier is not None and self.bias.barrier <= thermal:
            text = f"expected more than kT, {thermal:.3g} kJ/mol at {self.system.temperature:g} K"
            found.append(problem(("bias", "barrier"), text))
        return found

    def _strange_region(self) -> list[InitErrorDetails]:
        wanted, place = self.analysis.difference, ("analysis", "difference", "region")
        if wanted is None or wanted.variable not in self.variables:
            return []
        variable, biased = self.variables[wanted.variable], self.bias.variables.get(wanted.variable)
        if variable.periodic:
            return whole_circle(place, wanted.region, variable.circle)
        spans = (variable.range, None if biased is None else biased.range)
        return far_region(place, wanted.variable, wanted.region, spans)

    def _one_sided_walls(self) -> list[InitErrorDetails]:
        return [
            problem(("restraints", name, "kind"), CLIFF)
            for name, restraint in self.restraints.items()
            if restraint.kind.endswith("_wall") and self.variables[restraint.variable].periodic
        ]

    def _quantities(self) -> list[tuple[Loc, str, Any]]:
        found: list[tuple[Loc, str, Any]] = []
        for name, variable in self.bias.variables.items():
            found += [(("bias", "variables", name, key), name, getattr(variable, key)) for key in ("sigma", "range")]
        for name, restraint in self.restraints.items():
            keys = ("at", "scale", "half_width")
            found += [(("restraints", name, key), restraint.variable, getattr(restraint, key)) for key in keys]
        return [entry for entry in found if entry[2] is not None]
