"""Options of each kind of collective variable, as a config writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, create_model, model_validator

from .quantities import Length
from .sections import ExistingPath, Section
from .variable_types import Amount, Atom, AtomsOf, Exponent, Extent, Names, Place, Sharpness, WidthText, parse_amount

__all__ = [
    "ContactMapConfig",
    "CoordinationConfig",
    "GyrationConfig",
    "HeightConfig",
    "LateralConfig",
    "LinearConfig",
    "PathConfig",
    "RmsdConfig",
    "TorchScriptConfig",
    "parse_amount",
]


class _SwitchConfig(Section):
    """A rational switching function."""

    r0: Length
    d0: Extent = 0.0
    n: Exponent = 6
    m: Exponent | None = None

    @model_validator(mode="after")
    def _falls(self) -> _SwitchConfig:
        if self.m is not None and self.m <= self.n:
            raise ValueError(f"the exponents need n < m, got n: {self.n}, m: {self.m}")
        return self


class CoordinationConfig(_SwitchConfig):
    """Switched contacts between two groups, or within one."""

    group_a: AtomsOf
    group_b: AtomsOf | None = None


class GyrationConfig(Section):
    """The radius of gyration of a group; of all atoms if none are given."""

    atoms: AtomsOf | None = None
    mass_weighted: bool = False


class RmsdConfig(Section):
    """Deviation from a structure, after superposition."""

    reference: ExistingPath
    atoms: AtomsOf | None = None
    align: AtomsOf | None = None
    mass_weighted: bool = False


class _PathOptions(Section):
    component: Literal["progress", "distance"] = "progress"
    reference: ExistingPath | None = None
    structure: ExistingPath | None = None
    atoms: AtomsOf | None = None
    align: AtomsOf | None = None
    mass_weighted: bool | None = None
    variables: Names | None = None
    nodes: Annotated[tuple[tuple[Amount, ...], ...], Field(min_length=2)] | None = None
    scales: tuple[WidthText, ...] | None = None

    @model_validator(mode="after")
    def _one_space(self) -> _PathOptions:
        if (self.reference is None) == (self.variables is None):
            raise ValueError("needs either reference: FILE of several structures, or variables: [...] with nodes")
        if (self.variables is None) != (self.nodes is None):
            raise ValueError("variables and nodes belong together: nodes: [[values at the first node], ...]")
        sharpness = getattr(self, "lambda")
        if sharpness != "auto" and (sharpness.dimension == "number") != (self.reference is None):
            raise ValueError(
                "lambda is a number such as 500 /nm^2 for structures, a plain number for variables, or auto"
            )
        for row in self.nodes or ():
            if len(row) != len(self.variables or ()):
                raise ValueError(f"each node needs a value for each of the {len(self.variables or ())} variables")
        return self


if TYPE_CHECKING:

    class PathConfig(_PathOptions):
        """Progress along a path, or distance from it."""

else:
    # the option is called lambda, a word that a class body cannot have
    PathConfig = create_model(
        "PathConfig",
        __base__=_PathOptions,
        __doc__="Progress along a path, or distance from it.",
        **{"lambda": (Sharpness, ...)},
    )


class LinearConfig(Section):
    """A linear combination of other variables."""

    variables: Names
    coefficients: Annotated[tuple[float, ...], Field(min_length=1)]
    means: tuple[Amount, ...] | None = None
    offset: Amount | None = None
    expand: bool = False
    period: WidthText | None = None
    unit: Literal["rad", "nm", "nm^2", ""] | None = None


class ContactMapConfig(_SwitchConfig):
    """Contacts compared with a reference."""

    pairs: Annotated[tuple[tuple[Atom, Atom], ...], Field(min_length=1)] | None = None
    atoms: AtomsOf | None = None
    within: Length | None = None
    separation: Annotated[int, Field(ge=0)] | None = None
    reference: ExistingPath | None = None
    weights: tuple[float, ...] | None = None
    normalise: bool = False
    mode: Literal["sum", "distance"] = "sum"

    @model_validator(mode="after")
    def _one_list(self) -> ContactMapConfig:
        if (self.pairs is None) == (self.atoms is None):
            raise ValueError("needs either pairs: [[a, b], ...], or atoms with within: 0.45 nm and reference: FILE")
        if self.atoms is not None and (self.within is None or self.reference is None):
            raise ValueError("contacts of atoms need within: 0.45 nm and reference: FILE")
        if self.mode == "distance" and self.reference is None:
            raise ValueError("mode distance needs reference: FILE")
        return self


class HeightConfig(Section):
    """Height of a group over a slab or a plane."""

    atoms: AtomsOf
    surface: AtomsOf | None = None
    plane: Place | None = None
    normal: Literal["x", "y", "z", "a", "b", "c"] | tuple[float, float, float] = "z"
    lowest: Place | None = None
    mass_weighted: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> HeightConfig:
        if (self.surface is None) == (self.plane is None):
            raise ValueError("needs either surface: ATOMS or plane: 0.5 nm")
        return self


class LateralConfig(Section):
    """Place of a group along a cell vector."""

    atoms: AtomsOf
    axis: Literal["a", "b", "c"]
    relative_to: AtomsOf | None = None
    mass_weighted: bool = False


class TorchScriptConfig(Section):
    """A saved module of positions, or of other variables."""

    file: ExistingPath
    variables: Names | None = None
    atoms: AtomsOf | None = None
    component: Annotated[int, Field(ge=0)] = 0
    unit: Literal["rad", "nm", "nm^2", ""] = ""
    period: WidthText | None = None

    @model_validator(mode="after")
    def _one_input(self) -> TorchScriptConfig:
        if self.variables is not None and self.atoms is not None:
            raise ValueError("atoms are for modules that take positions, not other variables")
        return self
