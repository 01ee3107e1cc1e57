"""The config of a run of biased dynamics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

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
from .problems import Loc, complain, far_region, moved, problem, wide_sigmas
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
        endless = [name for name, v in self.bias.variables.items() if v.range is None and self.variables[name].open]
        if self.bias.on_a_grid:
            complain([problem(("bias", "variables", name), NEEDS_RANGE) for name in endless])
        wrong = wrong_units(self.variables, self._quantities())
        if wrong is not None:
            raise wrong
        complain([*wide_sigmas(self.sigma_shares()), *self._far_region()])
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

    def _far_region(self) -> list[InitErrorDetails]:
        wanted = self.analysis.difference
        if wanted is None or wanted.variable not in self.variables or self.variables[wanted.variable].periodic:
            return []
        biased = self.bias.variables.get(wanted.variable)
        spans = (self.variables[wanted.variable].range, None if biased is None else biased.range)
        return far_region(("analysis", "difference", "region"), wanted.variable, wanted.region, spans)

    def _quantities(self) -> list[tuple[Loc, str, Any]]:
        found: list[tuple[Loc, str, Any]] = []
        for name, variable in self.bias.variables.items():
            found += [(("bias", "variables", name, key), name, getattr(variable, key)) for key in ("sigma", "range")]
        for name, restraint in self.restraints.items():
            keys = ("at", "scale", "half_width")
            found += [(("restraints", name, key), restraint.variable, getattr(restraint, key)) for key in keys]
        return [entry for entry in found if entry[2] is not None]
