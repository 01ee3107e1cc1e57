"""YAML read into plain data together with the line that every key and value stands on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

__all__ = ["LocatedData", "load_yaml", "parse_value"]

Loc = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads "1e-4" as a number (YAML 1.1 wants "1.0e-4") and leaves dates as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


@dataclass
class LocatedData:
    """Plain data and where each part of it was written.

    Attributes:
        source: name of the file, for messages.
        data: dicts, lists and scalars.
        lines: path of a value -> line of its key (or of the value in a list), from 1.
        overrides: paths that came from the command line instead.
    """

    source: str
    data: dict[str, Any]
    lines: dict[Loc, int]
    overrides: set[Loc] = field(default_factory=set)

    def where(self, loc: Loc) -> str:
        """``file, line 3`` for the deepest part of ``loc`` that was written, or the option that set it."""
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.overrides:
                return "--set"
            if loc[:end] in self.lines:
                return f"{self.source}, line {self.lines[loc[:end]]}"
        return self.source

    def written(self, loc: Loc) -> Loc:
        """The deepest part of ``loc`` that exists in the data."""
        value: Any = self.data
        for depth, key in enumerate(loc):
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return loc[:depth]
        return loc

    def value(self, loc: Loc) -> Any:
        """The value at a path that exists."""
        value: Any = self.data
        for key in loc:
            value = value[key]
        return value

    def override(self, assignment: str) -> None:
        """Apply ``a.b=value``; the value is read as YAML.

        Raises:
            UserError: if the assignment cannot be read, or runs through something that is no mapping.
        """
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise UserError(f"--set {assignment}: expected KEY.KEY=VALUE, such as sampling.seed=2")
        target = self.data
        for depth, key in enumerate(keys[:-1]):
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {assignment}: {'.'.join(keys[: depth + 1])} holds a value, no keys")
        target[keys[-1]] = parse_value(text, f"--set {assignment}")
        self.overrides.add(tuple(keys))


def load_yaml(path: Path) -> LocatedData:
    """Read a YAML mapping with the line of every key.

    Raises:
        UserError: if the file is missing, is no YAML, is no mapping, or names a key twice; with the line.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'there is no such file'}")
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=_Loader)
        lines: dict[Loc, int] = {}
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}, line 1: expected 'key: value' lines")
        _walk(str(path), root, (), lines)
        data = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file ({error.reason})") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not readable as YAML: {error.problem or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from error
    return LocatedData(str(path), data, lines)


def parse_value(text: str, where: str) -> Any:
    """A value of the command line, read as YAML.

    Raises:
        UserError: naming ``where``.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: the value is not readable as YAML") from error


def _walk(source: str, node: yaml.Node, loc: Loc, lines: dict[Loc, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise UserError(f"{source}, line {line}: keys must be plain words")
            if key.value in seen:
                raise UserError(f"{source}, line {line}: {key.value!r} is given twice, first in line {seen[key.value]}")
            seen[key.value] = line
            lines[(*loc, key.value)] = line
            _walk(source, value, (*loc, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*loc, index)] = item.start_mark.line + 1
            _walk(source, item, (*loc, index), lines)
