"""Config of a collective variable: exactly one kind, with its options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from .paths import resolve
from .quantities import Interval, Width
from .sections import Section
from .variable_options import (
    ContactMapConfig,
    CoordinationConfig,
    GyrationConfig,
    HeightConfig,
    LateralConfig,
    LinearConfig,
    PathConfig,
    RmsdConfig,
    TorchScriptConfig,
)
from .variable_types import Atom, CellVectors, IntervalText, WidthText

__all__ = ["IntervalText", "VariableConfig", "WidthText", "dimension_of", "wrong_units"]

_KINDS = {
    "torsion": "[4 atoms]",
    "distance": "[2 atoms]",
    "angle": "[3 atoms]",
    **dict.fromkeys(
        ("coordination", "gyration", "rmsd", "path", "linear", "contact_map", "height", "lateral"), "{...}"
    ),
    "torchscript": "{file: ...}",
    "plugin": "NAME",
}
_IN_CELLS = ("distance", "coordination", "contact_map", "height", "lateral")
_UNITS = {"torsion": "rad", "distance": "nm", "angle": "rad", "coordination": "", "gyration": "nm", "rmsd": "nm"}
_UNITS |= {"contact_map": "", "height": "nm", "lateral": "nm"}
_RANGES = {
    "rad": "0 rad .. 2 rad",
    "nm": "0.2 nm .. 1.0 nm",
    "nm^2": "0 nm^2 .. 0.1 nm^2",
}
_WIDTHS = {"rad": "0.3 rad", "nm": "0.02 nm", "nm^2": "0.01 nm^2"}
_DIMENSIONS = {"rad": "angle", "nm": "length", "nm^2": "area"}


def dimension_of(unit: str) -> str:
    """The dimension in which quantities of a variable with this unit are written: a plain number for all others."""
    return _DIMENSIONS.get(unit, "number")


class VariableConfig(Section):
    """A collective variable: exactly one kind with its options.

    ``cell``: the periodic cell, for kinds that take nearest images.  ``range``: of the axis of an open variable.
    """

    torsion: Annotated[tuple[Atom, ...], Field(min_length=4, max_length=4)] | None = None
    distance: Annotated[tuple[Atom, ...], Field(min_length=2, max_length=2)] | None = None
    angle: Annotated[tuple[Atom, ...], Field(min_length=3, max_length=3)] | None = None
    coordination: CoordinationConfig | None = None
    gyration: GyrationConfig | None = None
    rmsd: RmsdConfig | None = None
    path: PathConfig | None = None
    linear: LinearConfig | None = None
    contact_map: ContactMapConfig | None = None
    height: HeightConfig | None = None
    lateral: LateralConfig | None = None
    torchscript: TorchScriptConfig | None = None
    plugin: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    cell: CellVectors | None = None
    range: IntervalText | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> VariableConfig:
        given = [k for k in _KINDS if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(f'{k}: {v}' for k, v in _KINDS.items())}")
        if self.options and self.plugin is None:
            raise ValueError("options are for plugins")
        if self.cell is not None and self.kind not in _IN_CELLS:
            raise ValueError(f"a {self.kind} takes no cell; these do: {', '.join(_IN_CELLS)}")
        if self.lateral is not None and self.cell is None:
            raise ValueError("lateral needs a cell, such as cell: [3 nm, 3 nm, 5 nm]")
        if self.height is not None and self.height.lowest is not None and self.cell is None:
            raise ValueError("lowest is for a periodic cell")
        self._check_range()
        return self

    def _check_range(self) -> None:
        if self.range is None:
            return
        if self.periodic:
            raise ValueError(f"a {self.kind} always covers the whole circle and takes no range")
        if not self.range.lower < self.range.upper:
            raise ValueError("the range must run from its lower to its upper end")
        if self.unit is not None and self.range.dimension != dimension_of(self.unit):
            raise ValueError(f"the range must be in the unit of the variable, such as range: {self.example_range}")

    @property
    def kind(self) -> str:
        """torsion, distance and so on, or plugin."""
        return next(k for k in _KINDS if getattr(self, k) is not None)

    @property
    def periodic(self) -> bool:
        """Whether the kind, as configured, has a period; a plugin may have one all the same."""
        options = getattr(self, self.kind)
        return self.kind in ("torsion", "lateral") or getattr(options, "period", None) is not None

    @property
    def open(self) -> bool:
        """Whether it certainly has no period."""
        return self.plugin is None and not self.periodic

    @property
    def circle(self) -> float | None:
        """Its period, where the config says it."""
        if self.kind == "torsion":
            return 2.0 * math.pi
        period = getattr(getattr(self, self.kind), "period", None)
        return period.value if isinstance(period, Width) else None

    @property
    def unit(self) -> str | None:
        """Of the values, or None where only the variable itself can say."""
        if self.path is not None:
            of_structures = "nm^2" if self.path.reference is not None else None
            return "" if self.path.component == "progress" else of_structures
        if self.linear is not None:
            return self.linear.unit
        if self.torchscript is not None:
            return self.torchscript.unit
        return _UNITS.get(self.kind)

    @property
    def example_range(self) -> str:
        """A range in the right unit."""
        return _RANGES.get(self.unit or "", "0 .. 10")

    @property
    def files(self) -> dict[str, Path]:
        """Files that the options name, by option: a resumed run must find them unchanged."""
        options = getattr(self, self.kind)
        given = {name: getattr(options, name, None) for name in _FILES} if isinstance(options, Section) else {}
        return {name: resolve(path, Path()) for name, path in given.items() if path is not None}

    @property
    def plain(self) -> Any:
        """Options as `feynkac.molecular.cvs.build_variable` takes them: numbers in nm and rad, paths resolved."""
        written = getattr(self, self.kind)
        given = {"atoms": written} if isinstance(written, tuple) else _plain(written)
        return given if self.cell is None else {**given, "cell": self.cell}


_FILES = ("reference", "structure", "file")


def _plain(section: Section) -> dict[str, Any]:
    options = {name: getattr(section, name) for name in type(section).model_fields}
    found = {name: _value(value) for name, value in options.items() if value is not None}
    return found | {n: str(resolve(found[n], Path())) for n in _FILES if n in found}


def _value(value: Any) -> Any:
    if isinstance(value, Width):
        return value.value
    return tuple(_value(v) for v in value) if isinstance(value, tuple) else value


Given = tuple[tuple[str | int, ...], str, Interval | Width]
"""Where in the config a quantity is, the variable it belongs to, and the quantity."""


def wrong_units(variables: Mapping[str, VariableConfig], given: Sequence[Given]) -> ValidationError | None:
    """Complaints, each at its place, about quantities in another unit than their variable's, as far as it is known."""
    entries = [*given, *(entry for name, v in variables.items() for entry in _of_nodes(name, v))]
    details = []
    for place, name, quantity in entries:
        unit = variables[name].unit if name in variables else None
        if unit is None or quantity.dimension == dimension_of(unit):
            continue
        shown = variables[name].example_range if isinstance(quantity, Interval) else _WIDTHS.get(unit, "0.3")
        expected = f"{name} is measured in {unit or 'plain numbers'}; expected such as {shown}"
        error = PydanticCustomError("value_error", "{expected}", {"expected": expected})
        details.append(InitErrorDetails(type=error, loc=place, input=str(quantity)))
    return ValidationError.from_exception_data("analysis", details) if details else None


def _of_nodes(name: str, variable: VariableConfig) -> list[Given]:
    path = variable.path
    if path is None or path.nodes is None or path.variables is None:
        return []
    here = ("variables", name, "path")
    nodes = [
        ((*here, "nodes", row, column), other, amount)
        for row, amounts in enumerate(path.nodes)
        for column, (other, amount) in enumerate(zip(path.variables, amounts, strict=True))
    ]
    scales = [
        ((*here, "scales", column), other, scale)
        for column, (other, scale) in enumerate(zip(path.variables, path.scales or (), strict=False))
    ]
    return [*nodes, *scales]
