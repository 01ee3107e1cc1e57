"""Quantities of a config: text with a unit ("300 K", "2.0 nm", "1 /ps"), turned into the unit used inside."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

__all__ = [
    "DIMENSIONS",
    "Dimension",
    "Duration",
    "EmptyInterval",
    "Energy",
    "Interval",
    "Length",
    "Mass",
    "Rate",
    "Temperature",
    "Time",
    "Width",
    "parse_interval",
    "parse_quantity",
    "parse_width",
]


@dataclass(frozen=True)
class Dimension:
    """What a quantity measures: its unit inside, an example, and what each accepted unit is worth in it."""

    name: str
    unit: str
    example: str
    units: dict[str, float]

    def format(self, value: float) -> str:
        """Text that reads back as the same float."""
        return f"{value!r} {self.unit}".rstrip()

    @property
    def expectation(self) -> str:
        """What to write, for error messages."""
        article = "an" if self.name[0] in "aeiou" else "a"
        if not self.unit:
            return f"{article} {self.name} such as {self.example!r}, without a unit"
        return f"{article} {self.name} such as {self.example!r} (units: {', '.join(self.units)})"


_DEGREE = math.pi / 180
DIMENSIONS = {
    d.name: d
    for d in (
        Dimension("temperature", "K", "300 K", {"K": 1.0}),
        Dimension("length", "nm", "2.0 nm", {"nm": 1.0, "A": 0.1, "pm": 1e-3}),
        Dimension("time", "ps", "1 fs", {"fs": 1e-3, "ps": 1.0, "ns": 1e3}),
        Dimension("rate", "/ps", "1 /ps", {"/ps": 1.0, "/fs": 1e3, "/ns": 1e-3}),
        Dimension("angle", "rad", "2 rad", {"rad": 1.0, "deg": _DEGREE}),
        Dimension("energy", "kJ/mol", "10 kJ/mol", {"kJ/mol": 1.0, "kcal/mol": 4.184}),
        Dimension("mass", "Da", "4 Da", {"Da": 1.0, "amu": 1.0}),
        Dimension("number", "", "3.5", {"": 1.0}),
        Dimension("area", "nm^2", "0.01 nm^2", {"nm^2": 1.0, "A^2": 0.01}),
        Dimension("inverse area", "/nm^2", "500 /nm^2", {"/nm^2": 1.0, "/A^2": 100.0}),
    )
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_QUANTITY = re.compile(rf"^\s*({_NUMBER})\s*([A-Za-z/][\w/^*-]*)?\s*$")


def parse_quantity(text: Any, dimension: Dimension) -> float:
    """The value of ``text`` in the unit used inside.

    Raises:
        ValueError: for a bare number, a unit of another dimension, or text that is no quantity; saying what
            was expected.
    """
    match = _QUANTITY.match(text) if isinstance(text, str) else None
    if match is None:
        if isinstance(text, int | float) and not isinstance(text, bool):
            raise ValueError(f"the unit is missing; expected {dimension.expectation}")
        raise ValueError(f"expected {dimension.expectation}")
    number, unit = match.groups(default="")
    if not unit and dimension.unit:
        raise ValueError(f"the unit is missing; expected {dimension.expectation}")
    if unit not in dimension.units:
        raise ValueError(f"wrong unit {unit!r}; expected {dimension.expectation}")
    return float(number) * dimension.units[unit]


@dataclass(frozen=True)
class Interval:
    """An interval of an angle or a length, in rad or nm; ``lower > upper`` reaches around a circle.

    ``text`` is what was written, which the interval is shown and kept as: it reads back as the same floats.
    """

    lower: float
    upper: float
    dimension: str
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        d = DIMENSIONS[self.dimension]
        return self.text or f"{d.format(self.lower)} .. {d.format(self.upper)}"

    @classmethod
    def read(cls, text: str, name: str) -> Interval:
        """The interval of a dimension that a text with one ``..`` stands for.

        Raises:
            ValueError: an end is no quantity of the dimension, or the ends are the same.
        """
        lower, upper = (parse_quantity(part, DIMENSIONS[name]) for part in text.split(".."))
        if lower == upper:
            raise EmptyInterval("the interval is empty")
        return cls(lower, upper, name, " ".join(text.split()))

    @property
    def written(self) -> tuple[float, float, str] | None:
        """Ends and unit as they were written; None where the ends had different units, or nothing was written."""
        ends = [match.groups(default="") for part in self.text.split("..") if (match := _QUANTITY.match(part))]
        if len(ends) != 2 or ends[0][1] != ends[1][1]:
            return None
        return float(ends[0][0]), float(ends[1][0]), ends[0][1]


class EmptyInterval(ValueError):
    """Both ends are the same."""


def parse_interval(text: Any) -> Interval:
    """The interval written as ``"0 rad .. 2 rad"``.

    Raises:
        ValueError: saying what was expected.
    """
    example = "expected an interval such as '0 rad .. 2 rad' or '0.2 nm .. 0.5 nm'"
    if isinstance(text, Interval):
        return text
    if not isinstance(text, str) or text.count("..") != 1:
        raise ValueError(example)
    for name in ("angle", "length"):
        try:
            return Interval.read(text, name)
        except EmptyInterval:
            raise
        except ValueError:
            continue
    raise ValueError(f"{example}; both ends need a unit of the same kind (rad, deg or nm, A, pm)")


@dataclass(frozen=True)
class Width:
    """A width along an angle or a length, in rad or nm."""

    value: float
    dimension: str

    def __str__(self) -> str:
        return DIMENSIONS[self.dimension].format(self.value)


def parse_width(text: Any) -> Width:
    """The width written as ``"0.1 rad"`` or ``"0.02 nm"``.

    Raises:
        ValueError: saying what was expected.
    """
    if isinstance(text, Width):
        return text
    for name in ("angle", "length"):
        try:
            value = parse_quantity(text, DIMENSIONS[name])
        except ValueError:
            continue
        if 0 < value < math.inf:
            return Width(value, name)
    raise ValueError("expected a positive width such as '0.1 rad' or '0.02 nm' (units: rad, deg or nm, A, pm)")


def _reader(name: str, *, zero: bool = False) -> Callable[[Any], float]:
    def read(text: Any) -> float:
        value = parse_quantity(text, DIMENSIONS[name])
        if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            wanted = "not be negative" if zero else "be positive"
            raise ValueError(f"must {wanted}; expected {DIMENSIONS[name].expectation}")
        return value

    return read


def _writer(name: str) -> PlainSerializer:
    return PlainSerializer(DIMENSIONS[name].format, return_type=str)


Temperature = Annotated[float, BeforeValidator(_reader("temperature")), _writer("temperature")]
Length = Annotated[float, BeforeValidator(_reader("length")), _writer("length")]
Time = Annotated[float, BeforeValidator(_reader("time")), _writer("time")]
Duration = Annotated[float, BeforeValidator(_reader("time", zero=True)), _writer("time")]
"""A time that may be zero."""
Rate = Annotated[float, BeforeValidator(_reader("rate")), _writer("rate")]
Energy = Annotated[float, BeforeValidator(_reader("energy")), _writer("energy")]
Mass = Annotated[float, BeforeValidator(_reader("mass")), _writer("mass")]
