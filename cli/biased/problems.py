"""Complaints of a config's validators at the very places that they are about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from ..quantities import Interval

__all__ = ["Loc", "complain", "far_region", "missing", "moved", "problem", "wide_sigmas"]

_WIDEST_SIGMA = 0.5
"""Of an open variable's range."""

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
