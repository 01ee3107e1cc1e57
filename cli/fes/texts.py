"""The values of options as they are typed: numbers with pi, lists, regions, how much to skip."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...molecular.free_energy import Region
from ...molecular.io.plumed import parse_plumed_number
from ..errors import UserError

__all__ = ["Box", "Skip", "names_of", "numbers_of", "parse_box", "parse_number", "parse_skip"]

_TIME = {"fs": 1e-3, "ps": 1.0, "ns": 1e3, "us": 1e6}


def parse_number(option: str, text: str) -> float:
    """A finite number: ``-3.1``, ``pi``, ``-pi/2``, ``2*pi`` or ``90deg``.

    Raises:
        UserError: naming the option.
    """
    degrees = text.endswith("deg")
    try:
        value = parse_plumed_number(text.removesuffix("deg").strip())
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{option}: {text!r} is no number; expected one such as 1.5, -pi or 90deg")
    return math.radians(value) if degrees else value


def numbers_of(option: str, text: str | None) -> tuple[float, ...] | None:
    """Numbers separated by commas, or None where the option was not given."""
    return None if text is None else tuple(parse_number(option, part.strip()) for part in text.split(","))


def names_of(option: str, given: Sequence[str]) -> tuple[str, ...]:
    """Names of an option that is repeated, or holds several separated by commas.

    Raises:
        UserError: a name that is empty or occurs twice.
    """
    names = tuple(part.strip() for text in given for part in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise UserError(f"{option}: {', '.join(given)!r} has an empty name, or one that occurs twice")
    return names


@dataclass(frozen=True)
class Skip:
    """What is left out at the start: a share of the frames, or a stretch of time in ps."""

    share: float = 0.0
    time: float | None = None


def parse_skip(text: str | None) -> Skip:
    """``0.2``, ``20%`` or ``500ps``.

    Raises:
        UserError: anything else.
    """
    if text is None:
        return Skip()
    match = re.fullmatch(r"\s*([\d.]+(?:[eE][-+]?\d+)?)\s*(%|[a-z]*)\s*", text)
    try:
        value, unit = (float(match[1]), match[2]) if match else (math.nan, "")
    except ValueError:
        value, unit = math.nan, ""
    if unit in _TIME and math.isfinite(value):
        return Skip(time=value * _TIME[unit])
    share = value / 100 if unit == "%" else value
    if unit not in ("", "%") or not 0 <= share < 1:
        raise UserError(f"--skip: got {text!r}, expected a share such as 0.2 or 20%, or a time such as 500ps")
    return Skip(share=share)


@dataclass(frozen=True)
class Box:
    """A region: intervals of one or more variables, all of which hold.

    Attributes:
        sides: (variable, interval) of each.
        text: in words.
    """

    sides: tuple[tuple[str, Region], ...]
    text: str

    def contains(self, values: Mapping[str, Tensor]) -> Tensor:
        """Which samples lie inside, bool of the shape of each variable; NaN never does."""
        found: Tensor = torch.stack([region.contains(values[name]) for name, region in self.sides]).all(0)
        return found

    def overlaps(self, other: Box) -> bool:
        """Whether any point lies in both."""
        mine = dict(self.sides)
        return all(_meet(mine[name], region) for name, region in other.sides if name in mine)


def _meet(a: Region, b: Region) -> bool:
    if a.period is None:
        return a.lower < b.upper and b.lower < a.upper
    apart, length_a, length_b = b.lower - a.lower, a.upper - a.lower, b.upper - b.lower
    return apart % a.period < length_a % a.period or -apart % a.period < length_b % a.period


def parse_box(option: str, text: str, periods: Mapping[str, float | None]) -> Box:
    """A region from ``LOW..HIGH`` of the only variable, or ``VAR:LOW:HIGH``, several joined by commas.

    Args:
        option: for messages.
        text: as typed.
        periods: of the variables that there are.

    Raises:
        UserError: naming the option: no region, an unknown variable, one named twice, ends out of order.
    """
    sides: dict[str, Region] = {}
    for part in text.split(","):
        name, low, high = _side(option, part.strip(), periods)
        if name not in periods:
            raise UserError(f"{option}: no variable {name!r}; there are {', '.join(periods)}")
        if name in sides:
            raise UserError(f"{option}: {name} is named twice")
        try:
            sides[name] = Region(parse_number(option, low), parse_number(option, high), periods[name])
        except UserError:
            raise
        except ValueError as error:
            hint = _in_degrees(name, low, high, periods[name])
            raise UserError(f"{option}: {name}: {str(error).removeprefix('region: ')}{hint}") from error
    words = [f"{region.lower:g} < {name} < {region.upper:g}" for name, region in sides.items()]
    return Box(tuple(sides.items()), " and ".join(words))


def _in_degrees(name: str, low: str, high: str, period: float | None) -> str:
    """What to type instead of plain numbers that lie far off a circle in radians; empty where they do not."""
    if period is None or not math.isclose(period, 2 * math.pi, rel_tol=1e-6):
        return ""
    try:
        ends = [float(low), float(high)]
    except ValueError:  # pi or deg
        return ""
    if max(map(abs, ends)) <= 2 * period:
        return ""
    return f"; {name} is in rad, and degrees are typed {name}:{low}deg:{high}deg"


def _side(option: str, text: str, periods: Mapping[str, float | None]) -> tuple[str, str, str]:
    if text.count("..") == 1 and ":" not in text:
        low, high = text.split("..")
        if len(periods) != 1:
            raise UserError(
                f"{option}: {text!r} does not say of which variable; expected {next(iter(periods))}:{low}:{high}"
            )
        return next(iter(periods)), low.strip(), high.strip()
    parts = text.split(":")
    if len(parts) != 3:
        raise UserError(f"{option}: got {text!r}, expected LOW..HIGH or VARIABLE:LOW:HIGH")
    return parts[0].strip(), parts[1].strip(), parts[2].strip()
