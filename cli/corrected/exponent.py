"""Exponents of a config: a number, or a straight line along the path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

__all__ = ["Exponent", "ExponentText"]


@dataclass(frozen=True)
class Exponent:
    """A number, or a straight line from ``start`` at the noise to ``end`` at the data, written ``1 .. 2``."""

    start: float
    end: float

    @property
    def moving(self) -> bool:
        """It changes along the path."""
        return self.start != self.end

    def __call__(self, progress: float) -> float:
        """Its value at a progress from 0 (noise) to 1 (data)."""
        return self.start + (self.end - self.start) * progress

    def __str__(self) -> str:
        return f"{self.start:g} .. {self.end:g}" if self.moving else f"{self.end:g}"


def _exponent(value: Any) -> Exponent:
    parts = value.split("..") if isinstance(value, str) and ".." in value else [value]
    try:
        numbers = [math.nan if isinstance(part, bool) else float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 2) or not all(math.isfinite(number) for number in numbers):
        raise ValueError("expected a number, or a line along the path such as 1 .. 2")
    return Exponent(numbers[0], numbers[-1])


def _written(exponent: Exponent) -> float | str:
    return f"{exponent.start!r} .. {exponent.end!r}" if exponent.moving else exponent.end


ExponentText = Annotated[Exponent, PlainValidator(_exponent), PlainSerializer(_written)]
