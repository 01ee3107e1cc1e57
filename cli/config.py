"""Configs of the jobs: frozen, strict models in which an unknown key is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from .paths import resolve
from .quantities import Interval, Length, Temperature, Width, parse_interval, parse_width

__all__ = ["AnalysisConfig", "RunConfig", "Section", "SystemConfig", "VariableConfig", "absolute_paths", "matching"]


class Section(BaseModel):
    """A section of a config."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


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


def _existing(text: Any, info: ValidationInfo) -> str:
    """An existing path: ``data:...`` is kept as written, anything else made absolute.

    Relative paths are taken from the config's folder, or else (values of --set) from the working folder.
    """
    if not isinstance(text, str):
        raise ValueError("expected a path, relative to the config, or data:NAME")
    base = Path((info.context or {}).get("base", "."))
    if not text.startswith("data:") and not (base / text).exists() and Path(text).exists():
        base = Path()
    path = resolve(text, base)
    return text if text.startswith("data:") else str(path)


def _xml(text: Any, info: ValidationInfo) -> str:
    """A force-field file: one beside the config if there is one, else a name that OpenMM knows."""
    if not isinstance(text, str):
        raise ValueError("expected the name of an OpenMM force-field file, such as amber99sbildn.xml")
    local = Path((info.context or {}).get("base", ".")) / text
    return str(local.resolve()) if local.is_file() else text


def _atom(atom: Any) -> int | str:
    if isinstance(atom, bool) or not isinstance(atom, int | str) or (isinstance(atom, int) and atom < 0):
        raise ValueError("expected an atom index from 0 on, or a name such as ALA2:CA")
    return atom


def matching(pattern: str, expectation: str) -> AfterValidator:
    """Texts that match the whole of ``pattern``; others are told what was expected."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"expected {expectation}")
        return text

    return AfterValidator(check)


ExistingPath = Annotated[str, BeforeValidator(_existing)]
XmlFile = Annotated[str, BeforeValidator(_xml)]
Atom = Annotated[int | str, PlainValidator(_atom)]
RunName = Annotated[str, matching(r"[A-Za-z0-9][\w.-]*", "letters, digits, '_', '-' and '.', for a folder name")]
VariableName = Annotated[str, matching(r"[A-Za-z]\w*", "a letter, then letters, digits or '_'")]
IntervalText = Annotated[Interval, PlainValidator(parse_interval), PlainSerializer(str, return_type=str)]
WidthText = Annotated[Width, PlainValidator(parse_width), PlainSerializer(str, return_type=str)]
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
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _engine_known(self) -> EnergyConfig:
        if self.platform != "auto" and self.engine != "openmm":
            raise ValueError("platform is for engine openmm")
        if self.options and self.engine in ("batched", "openmm"):
            raise ValueError(f"options are for plugins; engine {self.engine} has none")
        return self


class ProposalConfig(Section):
    """Where proposed structures come from: a checkpoint folder, or a plugin with its options."""

    checkpoint: ExistingPath | None = None
    plugin: str | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_source(self) -> ProposalConfig:
        if (self.checkpoint is None) == (self.plugin is None):
            raise ValueError("needs either checkpoint: FOLDER or plugin: NAME, and not both")
        if self.checkpoint is not None and self.options:
            raise ValueError("options are for plugins; a checkpoint has none")
        return self


class SamplingConfig(Section):
    """How many draws, in chunks of which size, from which seed."""

    samples: Annotated[int, Field(ge=2)]
    chunk_size: Positive = 2000
    seed: Seed


class VariableConfig(Section):
    """A collective variable: exactly one of torsion, distance and plugin."""

    torsion: Annotated[tuple[Atom, ...], Field(min_length=4, max_length=4)] | None = None
    distance: Annotated[tuple[Atom, ...], Field(min_length=2, max_length=2)] | None = None
    plugin: str | None = None
    options: dict[str, Any] = {}
    range: IntervalText | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> VariableConfig:
        given = [k for k in ("torsion", "distance", "plugin") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError("needs exactly one of torsion: [4 atoms], distance: [2 atoms], plugin: NAME")
        if self.options and self.plugin is None:
            raise ValueError("options are for plugins")
        if self.torsion is not None and self.range is not None:
            raise ValueError("a torsion always covers the whole circle and takes no range")
        if self.range is not None and not self.range.lower < self.range.upper:
            raise ValueError("the range must run from its lower to its upper end")
        return self

    @property
    def kind(self) -> str:
        """torsion, distance or plugin."""
        return next(k for k in ("torsion", "distance", "plugin") if getattr(self, k) is not None)


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
            if variable.kind == "distance" and variable.range is None:
                raise ValueError(f"{name} needs a range for its axis, such as range: 0.2 nm .. 1.0 nm")
        return self


class RunConfig(Section):
    """`feynkac run`: draw from a proposal, weight by the energy, compute free energies."""

    job: Literal["free_energy"]
    name: RunName
    system: SystemConfig
    energy: EnergyConfig = EnergyConfig()
    proposal: ProposalConfig
    sampling: SamplingConfig
    analysis: AnalysisConfig
