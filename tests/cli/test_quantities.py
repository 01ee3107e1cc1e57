"""Quantities with units: what is read, what is refused, and that text made of a value reads back the same."""

import math

import pytest

from feynkac.cli.quantities import DIMENSIONS, Interval, Width, parse_interval, parse_quantity, parse_width


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("300 K", "temperature", 300.0),
        ("2.0 nm", "length", 2.0),
        ("15 A", "length", 1.5),
        ("1 fs", "time", 1e-3),
        ("1 /ps", "rate", 1.0),
        ("1/ps", "rate", 1.0),
        ("90 deg", "angle", math.pi / 2),
        ("1 kcal/mol", "energy", 4.184),
        ("4 Da", "mass", 4.0),
        ("  1e-1nm ", "length", 0.1),
    ],
)
def test_values_in_the_units_used_inside(text, dimension, value):
    assert parse_quantity(text, DIMENSIONS[dimension]) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("dimension", DIMENSIONS.values(), ids=lambda d: d.name)
def test_text_of_a_value_reads_back_the_same(dimension):
    for value in (0.1, 1 / 3, 1e-17, 298.15):
        assert parse_quantity(dimension.format(value), dimension) == value
    parse_quantity(dimension.example, dimension)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (300, "the unit is missing"),
        ("300", "the unit is missing"),
        ("300 nm", r"wrong unit 'nm'; expected a temperature such as '300 K' \(units: K\)"),
        ("300 k", "wrong unit 'k'"),
        ("warm", "expected a temperature"),
        ("3 0 K", "expected a temperature"),
        (None, "expected a temperature"),
        (True, "expected a temperature"),
    ],
)
def test_wrong_quantities_say_what_was_expected(text, message):
    with pytest.raises(ValueError, match=message):
        parse_quantity(text, DIMENSIONS["temperature"])


def test_intervals():
    assert parse_interval("0 rad .. 2 rad") == Interval(0.0, 2.0, "angle")
    assert parse_interval("2 A .. 0.5 nm") == Interval(0.2, 0.5, "length")
    assert parse_interval("-90 deg .. 0.5 rad").lower == pytest.approx(-math.pi / 2)
    assert parse_interval(str(Interval(0.1, 1 / 3, "angle"))) == Interval(0.1, 1 / 3, "angle")
    for wrong in ("0 .. 2", "0 rad", "0 rad .. 2 nm", "0 rad .. 2 rad .. 3 rad", 3, "0 rad .. 0 rad"):
        with pytest.raises(ValueError, match="interval"):
            parse_interval(wrong)


def test_intervals_are_kept_as_they_were_written():
    found = parse_interval("0  deg .. 57.3 deg")
    assert str(found) == "0 deg .. 57.3 deg"
    assert parse_interval(str(found)) == found
    assert (parse_interval(str(found)).lower, parse_interval(str(found)).upper) == (found.lower, found.upper)
    assert found.written == (0.0, 57.3, "deg")
    assert parse_interval("2 A .. 0.5 nm").written is None
    assert Interval(0.0, 1.0, "angle").written is None
    assert str(Interval(0.0, 1.0, "angle")) == "0.0 rad .. 1.0 rad"
    assert found != parse_interval("0 deg .. 57.4 deg")


def test_widths():
    assert parse_width("0.1 rad") == Width(0.1, "angle")
    assert parse_width(str(Width(1 / 3, "length"))) == Width(1 / 3, "length")
    for wrong in ("0.1", 0.1, "-1 rad", "0 nm", "1 K"):
        with pytest.raises(ValueError, match="positive width"):
            parse_width(wrong)
