"""The regions of ``--deltaf`` and ``--against``, and the numbers that come of them without samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UserError
from ..results import Number
from .landscape import Landscape
from .options import FesOptions
from .plots import Unit
from .texts import Box, parse_box

__all__ = ["Regions", "NO_ERROR"]

NO_ERROR = "no error bar"


@dataclass(frozen=True)
class Regions:
    """Two regions, or one against the rest.

    Attributes:
        inside: of ``--deltaf``; None without one.
        outside: of ``--against``; None for the rest.
    """

    inside: Box | None = None
    outside: Box | None = None

    @classmethod
    def of(cls, options: FesOptions, periods: Mapping[str, float | None]) -> Regions:
        """As typed.

        Args:
            options: with the texts.
            periods: of the variables that may be named.

        Raises:
            UserError: regions that cannot be used.
        """
        if options.deltaf is None:
            return cls()
        inside = parse_box("--deltaf", options.deltaf, periods)
        if options.against is None:
            return cls(inside)
        outside = parse_box("--against", options.against, periods)
        if inside.overlaps(outside):
            raise UserError(f"--deltaf and --against: {inside.text} and {outside.text} overlap")
        return cls(inside, outside)

    @property
    def text(self) -> str:
        """In words."""
        inside = "" if self.inside is None else self.inside.text
        return f"{inside} against {'the rest' if self.outside is None else self.outside.text}"

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Those that there are."""
        return tuple(box for box in (self.inside, self.outside) if box is not None)

    def shown_on(self, landscape: Landscape) -> tuple[Box, ...]:
        """Those whose variables a picture has."""
        return tuple(box for box in self.boxes if all(name in landscape.names for name, _ in box.sides))

    def on(self, landscape: Landscape, options: FesOptions) -> float | None:
        """Delta F in kJ/mol by integrating exp(-F/kT); None without regions.

        Raises:
            UserError: without a kT, or regions that the grid does not touch or that overlap.
        """
        if self.inside is None:
            return None
        return landscape.difference(self.inside, self.outside, options.needed_kT("--deltaf"))

    def numbers(self, value: float | None, kT: float | None, unit: Unit) -> list[Number]:
        """Delta F in the unit shown and in kT."""
        if value is None or kT is None:
            return []
        label = f"ΔF of {self.text}"
        found = [Number("delta_f", label, value * unit.factor, None, unit.name, NO_ERROR)]
        if unit.name != "kT":
            found.append(Number("delta_f_kT", label, value / kT, None, "kT"))
        if not math.isfinite(value):
            raise UserError(f"--deltaf: nothing is known of F in {self.text}")
        return found
