"""From a YAML file to a validated config; errors give file, line, key, value and what was expected."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import UserError
from .yaml_lines import Loc, LocatedData, load_yaml

__all__ = ["ConfigError", "load_config", "validated"]

Model = TypeVar("Model", bound=BaseModel)

PROVENANCE = "provenance"
"""Section that a run adds to its resolved config: versions, device, hashes. Not part of the config itself."""


class ConfigError(UserError):
    """A config that cannot be used; one line a problem."""


def load_config(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read, override and validate a config.

    Args:
        path: YAML file; relative paths in it are taken from its folder.
        model: what it must be.
        overrides: assignments ``a.b=value``.

    Raises:
        UserError: for an unreadable file or override.
        ConfigError: with every problem found, one a line.
    """
    located = load_yaml(path)
    located.data.pop(PROVENANCE, None)
    for assignment in overrides:
        located.override(assignment)
    return validated(located, model, path.parent)


def validated(located: LocatedData, model: type[Model], base: Path) -> Model:
    """The data as a config.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    try:
        # JSON keeps strictness where it helps (no "3" for 3) and still turns lists into tuples.
        return model.model_validate_json(json.dumps(located.data, default=str), context={"base": base})
    except ValidationError as error:
        lines = dict.fromkeys(_describe(located, model, details) for details in _causes(error.errors()))
        raise ConfigError("\n".join(lines)) from error


def _causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without complaints about a list's length that only follow from a bad entry in it."""
    locs = [error["loc"] for error in errors]
    return [
        e
        for e in errors
        if not (e["type"] == "too_short" and any(loc[: len(e["loc"])] == e["loc"] != loc for loc in locs))
    ]


def _describe(located: LocatedData, model: type[BaseModel], error: ErrorDetails) -> str:
    loc: Loc = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        valid = list(_fields(model, loc[:-1]))
        hint = _did_you_mean(str(loc[-1]), valid)
        return f"{located.where(loc)}: {_dotted(loc)}: unknown key{hint}; valid keys: {', '.join(valid) or 'none'}"
    if error["type"] == "missing":
        return f"{located.where(loc)}: {_dotted(loc)}: this key is missing"
    written = located.written(loc)
    where, value = located.where(written), located.value(written)
    shown = "" if isinstance(value, dict) else f" = {_short(value)}"
    return f"{where}: {_dotted(written) or 'config'}{shown}: {_expectation(error)}"


def _expectation(error: ErrorDetails) -> str:
    message = re.sub(r"^(Value error, |Input should be )", "", error["msg"])
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", message)
        return f"expected {' or '.join(choices)}{_did_you_mean(str(error['input']), choices)}"
    if error["type"] in ("too_short", "too_long"):
        bound = error["ctx"].get("min_length", error["ctx"].get("max_length"))
        few = "at least" if error["type"] == "too_short" else "at most"
        return f"expected {few} {bound} entries, got {error['ctx']['actual_length']}"
    if error["type"] == "value_error":
        return message
    return f"expected {message}" if error["msg"].startswith("Input should be ") else message


def _did_you_mean(word: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(word.lower(), [v.lower() for v in valid], n=1, cutoff=0.6)
    return f"; did you mean {next(v for v in valid if v.lower() == close[0])!r}?" if close else ""


def _dotted(loc: Loc) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields(model: type[BaseModel], loc: Loc) -> Iterator[str]:
    """Names of the fields of the section that ``loc`` leads to."""
    section: Any = model
    for part in loc:
        section = _inside(section, part)
    if section is not None:
        yield from section.model_fields


def _inside(section: Any, part: str | int) -> Any:
    """The section below ``section`` under the key ``part``, or None."""
    if isinstance(section, dict):
        return section.get("*")
    field = section.model_fields.get(part) if section is not None else None
    return None if field is None else _sections(field.annotation)


def _sections(annotation: Any) -> Any:
    """The section class in an annotation; ``{"*": class}`` for a mapping or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (dict, tuple):
        return {"*": _sections(arguments[origin is dict])}
    if origin in (Union, types.UnionType, Annotated):
        return next((found for a in arguments if (found := _sections(a)) is not None), None)
    return None
