"""Complaints of a config's validators at the very places that they are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

__all__ = ["Loc", "complain", "missing", "moved", "problem"]

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
