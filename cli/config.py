"""Configs of the jobs: frozen, strict models in which an unknown key is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    model_validator,
)

from .quantities import Length, Temperature
from .sections import ExistingPath, Section
from .variable_config import VariableConfig, wrong_units
from .variable_types import IntervalText, WidthText

__all__ = [
    "AnalysisConfig",
    "EnergyConfig",
    "ExistingPath",
    "Section",
    "SystemConfig",
    "VariableConfig",
    "absolute_paths",
    "matching",
]


def absolute_paths(options: Any, info: ValidationInfo) -> Any:
    """Paths among options, texts with a slash that lead somewhere, made absolute: a run may go on from elsewhere."""
    if not isinstance(options, dict):
        return options
    bases = (Path((info.context or {}).get("base", ".")), Path())

    def absolute(value: Any) -> Any:
        if not isinstance(value, str) or "/" not in value or value.startswith("data:"):
            return value
        found = (base / Path(value).expanduser() for base in bases)
        return next((str(path.resolve()) for path in found if path.exists()), value)

    return {name: absolute(value) for name, value in options.items()}


def _xml(text: Any, info: ValidationInfo) -> str:
    """A force-field file: one beside the config if there is one, else a name that OpenMM knows."""
    if not isinstance(text, str):
        raise ValueError("expected the name of an OpenMM force-field file, such as amber99sbildn.xml")
    local = Path((info.context or {}).get("base", ".")) / text
    return str(local.resolve()) if local.is_file() else text


def matching(pattern: str, expectation: str) -> AfterValidator:
    """Texts that match the whole of ``pattern``; others are told what was expected."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"expected {expectation}")
        return text

    return AfterValidator(check)


XmlFile = Annotated[str, BeforeValidator(_xml)]
RunName = Annotated[str, matching(r"[A-Za-z0-9][\w.-]*", "letters, digits, '_', '-' and '.', for a folder name")]
VariableName = Annotated[str, matching(r"[A-Za-z]\w*", "a letter, then letters, digits or '_'")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0)]
Bins = Annotated[int, Field(ge=2, le=100_000)]
Replicates = Annotated[int, Field(ge=2, le=100_000)]


class SystemConfig(Section):
    """The molecule and its force field."""

    pdb: ExistingPath
    force_field: Annotated[tuple[XmlFile, ...], Field(min_length=1)]
    nonbonded_method: Literal["NoCutoff", "CutoffNonPeriodic"] = "NoCutoff"
    cutoff: Length | None = None
    constraints: Literal["none", "HBonds", "AllBonds", "HAngles"] = "none"
    temperature: Temperature

    @model_validator(mode="after")
    def _cutoff_fits(self) -> SystemConfig:
        if self.nonbonded_method == "CutoffNonPeriodic" and self.cutoff is None:
            raise ValueError("nonbonded_method CutoffNonPeriodic needs a cutoff, such as cutoff: 2.0 nm")
        return self


class EnergyConfig(Section):
    """What evaluates the energy: ``batched``, ``openmm`` on one of its platforms, or a plugin with its options."""

    engine: str = "batched"
    precision: Literal["single", "double"] = "double"
    device: Annotated[str, matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:NUMBER")] = "auto"
    platform: str = "auto"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _engine_known(self) -> EnergyConfig:
        if self.platform != "auto" and self.engine != "openmm":
            raise ValueError("platform is for engine openmm")
        if self.options and self.engine in ("batched", "openmm"):
            raise ValueError(f"options are for plugins; engine {self.engine} has none")
        return self


class SurfaceConfig(Section):
    """The free-energy surface along one or two variables."""

    variables: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    bins: Annotated[tuple[Bins, ...], Field(min_length=1, max_length=2)]
    method: Literal["histogram", "kde"] = "histogram"
    bandwidth: Annotated[tuple[WidthText, ...], Field(min_length=1, max_length=2)] | None = None
    bootstrap: Replicates = 100

    @model_validator(mode="after")
    def _lengths_fit(self) -> SurfaceConfig:
        if len(self.bins) != len(self.variables):
            raise ValueError(f"bins needs a number for each of the {len(self.variables)} variables")
        if self.method == "kde" and (self.bandwidth is None or len(self.bandwidth) != len(self.variables)):
            raise ValueError("method kde needs bandwidth: [0.1 rad, ...], one for each variable")
        if self.method == "histogram" and self.bandwidth is not None:
            raise ValueError("a histogram has no bandwidth")
        return self


class DifferenceConfig(Section):
    """Free energy of a region of one variable against the rest."""

    variable: str
    region: IntervalText
    bootstrap: Replicates = 200


class AnalysisConfig(Section):
    """What to compute from the weighted samples."""

    variables: dict[VariableName, VariableConfig]
    surface: SurfaceConfig | None = None
    profiles: tuple[str, ...] = ()
    profile_bins: Bins = 72
    difference: DifferenceConfig | None = None

    @model_validator(mode="after")
    def _names_known(self) -> AnalysisConfig:
        used = [*(self.surface.variables if self.surface else ()), *self.profiles]
        unknown = [
            n for n in [*used, *([self.difference.variable] if self.difference else [])] if n not in self.variables
        ]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of the variables; defined: {', '.join(self.variables) or 'none'}")
        for name in used:
            variable = self.variables[name]
            if variable.open and variable.range is None:
                raise ValueError(f"{name} needs a range for its axis, such as range: {variable.example_range}")
        return self

    @model_validator(mode="after")
    def _units_fit(self) -> AnalysisConfig:
        given: list[tuple[tuple[str | int, ...], str, Any]] = []
        if self.difference is not None:
            given.append((("difference", "region"), self.difference.variable, self.difference.region))
        if self.surface is not None:
            widths = zip(self.surface.variables, self.surface.bandwidth or (), strict=False)
            given += [(("surface", "bandwidth", k), name, width) for k, (name, width) in enumerate(widths)]
        wrong = wrong_units(self.variables, given)
        if wrong is not None:
            raise wrong
        return self
