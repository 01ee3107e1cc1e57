"""Complaints of a config's validators at the very places that they are about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from ..quantities import Interval, Width

__all__ = [
    "CLIFF",
    "Loc",
    "complain",
    "far_region",
    "meeting_kernel",
    "missing",
    "moved",
    "problem",
    "strange_range",
    "whole_circle",
    "wide_sigmas",
]

_WIDEST_SIGMA = 0.5
"""Of an open variable's range."""
_CIRCLE = 7.0
"""Sigmas that a circle must hold, by `feynkac.fkc.bias.BiasVariable`."""

CLIFF = "is for open variables: on a circle it would have a cliff at the seam; use kind: flat_bottom, an arc"

Loc = tuple[str | int, ...]
"""Keys and indices that lead to a place, from the section whose validator complains."""


def problem(place: Loc, text: str) -> InitErrorDetails:
    """What is wrong at a place."""
    return InitErrorDetails(type=PydanticCustomError("value_error", "{text}", {"text": text}), loc=place, input=None)


def missing(place: Loc) -> InitErrorDetails:
    """A key is missing."""
    return InitErrorDetails(type="missing", loc=place, input={})


def complain(problems: Sequence[InitErrorDetails]) -> None:
    """Raise all problems at once, if there are any.

    Raises:
        ValidationError: with every problem at its place.
    """
    if problems:
        raise ValidationError.from_exception_data("config", list(problems))


def moved(error: ValidationError, place: Callable[[Loc], Loc]) -> ValidationError:
    """The same complaints at other places."""
    details = [problem(place(each["loc"]), each["msg"].removeprefix("Value error, ")) for each in error.errors()]
    return ValidationError.from_exception_data("config", details)


def wide_sigmas(shares: Mapping[str, float]) -> list[InitErrorDetails]:
    """Biased variables whose sigma is too large a share of their range."""
    return [
        problem(
            ("bias", "variables", name, "sigma"),
            f"is {share:.2g} of the variable's range: kernels as wide as the range tell nothing apart; expected at "
            f"most {_WIDEST_SIGMA:g}, better a tenth",
        )
        for name, share in shares.items()
        if share > _WIDEST_SIGMA
    ]


def far_region(place: Loc, variable: str, region: Interval, spans: Sequence[Interval | None]) -> list[InitErrorDetails]:
    """A region that lies wholly beyond every range that its variable has."""
    known = [span for span in spans if span is not None]
    if not known or any(region.lower < span.upper and span.lower < region.upper for span in known):
        return []
    return [problem(place, f"lies outside the range of {variable}, {' and '.join(map(str, known))}")]


def meeting_kernel(place: Loc, sigma: Width, circle: float | None) -> list[InitErrorDetails]:
    """A sigma so large a share of its variable's circle that a kernel would meet itself on the other side."""
    if circle is None or _CIRCLE * sigma.value <= circle:
        return []
    most = circle / _CIRCLE
    limit = f"{math.degrees(most):.0f} deg" if sigma.dimension == "angle" else f"{most:.2g}"
    return [
        problem(
            place,
            "is more than a seventh of the period: a kernel would meet itself on the other side of the circle; "
            f"expected at most {limit}",
        )
    ]


def strange_range(place: Loc, variable: str, span: Interval | None, *, periodic: bool) -> list[InitErrorDetails]:
    """A range of the bias's grid that its variable cannot have."""
    if span is None:
        return []
    if periodic:
        return [problem(place, f"{variable} has a period: the grid covers its whole circle, and takes no range")]
    return [] if span.lower < span.upper else [problem(place, "must run from its lower to its upper end")]


def whole_circle(place: Loc, region: Interval, circle: float | None) -> list[InitErrorDetails]:
    """A region that leaves nothing of its variable's circle to compare with."""
    if circle is None or abs(region.upper - region.lower) < circle:
        return []
    return [problem(place, "is the whole circle: nothing is left to compare with")]
