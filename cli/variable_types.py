"""Types of the options of collective variables: groups of atoms, cells, and quantities of several dimensions."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator

from .quantities import DIMENSIONS, EmptyInterval, Interval, Width, parse_interval, parse_quantity

__all__ = [
    "Amount",
    "Atom",
    "AtomsOf",
    "CellVectors",
    "Exponent",
    "Extent",
    "IntervalText",
    "Names",
    "Place",
    "Sharpness",
    "WidthText",
    "parse_amount",
]

_DIMENSIONS = ("angle", "length", "area", "number")


def _atom(atom: Any) -> int | str:
    if isinstance(atom, bool) or not isinstance(atom, int | str) or (isinstance(atom, int) and atom < 0):
        raise ValueError("expected an atom index from 0 on, a name such as ALA2:CA, or a selection such as name CA")
    return atom


def _selection(atoms: Any) -> tuple[int | str, ...]:
    entries = atoms if isinstance(atoms, list | tuple) else [atoms]
    if not entries:
        raise ValueError("expected at least one atom")
    return tuple(_atom(atom) for atom in entries)


def parse_amount(text: Any) -> Width:
    """An amount of what a variable measures: ``"0.3 nm"``, ``"90 deg"``, ``"0.01 nm^2"`` or a plain number.

    Raises:
        ValueError: saying what was expected.
    """
    if isinstance(text, Width):
        return text
    if isinstance(text, int | float) and not isinstance(text, bool):
        return Width(float(text), "number")
    for name in _DIMENSIONS:
        try:
            return Width(parse_quantity(text, DIMENSIONS[name]), name)
        except ValueError:
            continue
    raise ValueError("expected a quantity such as '0.3 nm', '90 deg', '0.01 nm^2', or a plain number")


def _interval(text: Any) -> Interval:
    try:
        return parse_interval(text)
    except ValueError as expected:
        for name in ("area", "number") if isinstance(text, str) and text.count("..") == 1 else ():
            try:
                return Interval.read(text, name)
            except EmptyInterval:
                raise
            except ValueError:
                continue
        raise expected from None


def _width(text: Any) -> Width:
    try:
        amount = parse_amount(text)
    except ValueError:
        amount = Width(math.nan, "number")
    if not 0 < amount.value < math.inf:
        raise ValueError("expected a positive width such as '0.1 rad', '0.02 nm', or a plain number")
    return amount


def _bounded(name: str, low: float, what: str) -> BeforeValidator:
    def read(text: Any) -> float:
        value = parse_quantity(text, DIMENSIONS[name])
        if not (math.isfinite(value) and value >= low):
            raise ValueError(f"must be {what}; expected {DIMENSIONS[name].expectation}")
        return value

    return BeforeValidator(read)


def _shown(name: str) -> PlainSerializer:
    return PlainSerializer(DIMENSIONS[name].format, return_type=str)


def _sharpness(text: Any) -> Width | str:
    """The lambda of a path: /nm^2 for deviations of structures, a plain number for distances along variables."""
    if isinstance(text, Width):
        return text
    if text == "auto":
        return "auto"
    if isinstance(text, int | float) and not isinstance(text, bool):
        amount = Width(float(text), "number")
    else:
        amount = Width(parse_quantity(text, DIMENSIONS["inverse area"]), "inverse area")
    if not 0 < amount.value < math.inf:
        raise ValueError("lambda must be positive")
    return amount


def _cell(cell: Any) -> str | tuple[float, ...] | tuple[tuple[float, ...], ...]:
    """Lengths and angles, or vectors, as `Cell.of` takes them; numbers alone are its own output, read again."""
    if cell == "structure":
        return "structure"
    expected = (
        "expected three lengths [3 nm, 3 nm, 5 nm], three lengths and three angles (90 deg), "
        "three vectors of lengths, or structure for the cell of the PDB file"
    )
    if not isinstance(cell, list | tuple) or len(cell) not in (3, 6):
        raise ValueError(expected)
    try:
        if all(isinstance(row, list | tuple) for row in cell):
            return tuple(tuple(parse_quantity(x, DIMENSIONS["length"]) for x in row) for row in cell)
        kinds = ("length",) * 3 + ("angle",) * 3
        return tuple(parse_quantity(x, DIMENSIONS[kind]) for x, kind in zip(cell, kinds, strict=False))
    except ValueError as error:
        raise ValueError(f"{expected} ({error})") from error


def _cell_text(cell: Any) -> Any:
    if isinstance(cell, str):
        return cell
    if all(isinstance(row, tuple) for row in cell):
        return [[DIMENSIONS["length"].format(x) for x in row] for row in cell]
    kinds = ("length",) * 3 + ("angle",) * 3
    return [DIMENSIONS[kind].format(x) for x, kind in zip(cell, kinds, strict=False)]


AtomsOf = Annotated[tuple[int | str, ...], PlainValidator(_selection), PlainSerializer(list)]
"""A group of atoms: an index, a name, a selection, or a list of these."""
Atom = Annotated[int | str, PlainValidator(_atom)]
IntervalText = Annotated[Interval, PlainValidator(_interval), PlainSerializer(str, return_type=str)]
WidthText = Annotated[Width, PlainValidator(_width), PlainSerializer(str, return_type=str)]
Amount = Annotated[Width, PlainValidator(parse_amount), PlainSerializer(str, return_type=str)]
CellVectors = Annotated[Any, PlainValidator(_cell), PlainSerializer(_cell_text)]
Extent = Annotated[float, _bounded("length", 0.0, "0 or more"), _shown("length")]
Place = Annotated[float, _bounded("length", -math.inf, "finite"), _shown("length")]
Exponent = Annotated[int, Field(gt=0, le=100)]
Sharpness = Annotated[Any, PlainValidator(_sharpness), PlainSerializer(str, return_type=str)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
