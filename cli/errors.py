"""Errors that are the user's to mend: one clear line and exit code 2. Others keep their traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.text import Text

__all__ = ["UserError", "explained", "first_line", "named_errors", "user_errors"]

P = ParamSpec("P")
R = TypeVar("R")


class UserError(ValueError):
    """Something in the command, its config or its files that the user can mend; the message says what."""


def user_errors() -> tuple[type[Exception], ...]:
    """The exception classes that are shown as one line.

    They carry messages written for users: what was found, what was expected.  Plain ValueError and the like are not
    among them: coming from the depths they are defects of the program and keep their traceback.
    """
    from ..fkc.errors import CheckpointError, PopulationCollapsed, WeightError
    from ..flows.checkpoint import MoleculeMismatch
    from ..molecular.cvs import UnknownAtomError
    from ..molecular.energies import EnergyInputError, UnsupportedForceError
    from ..molecular.io import FileFormatError
    from ..molecular.systems import SystemBuildError
    from ..steering.errors import SteeringError

    return (
        UserError,
        CheckpointError,
        PopulationCollapsed,
        WeightError,
        MoleculeMismatch,
        UnknownAtomError,
        EnergyInputError,
        UnsupportedForceError,
        SystemBuildError,
        SteeringError,
        FileFormatError,
        FileExistsError,
    )


def explained(command: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors of `user_errors` into a line on stderr and exit code 2; Ctrl-C into exit code 130."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            _complain("stopped", "")
            raise typer.Exit(130) from None
        except user_errors() as error:
            for line in str(error).splitlines() or [type(error).__name__]:
                _complain("error: ", line)
            raise typer.Exit(2) from None

    return run


@contextmanager
def named_errors(field: str) -> Iterator[None]:
    """What goes wrong inside is the user's to mend, and stands after the field's name."""
    from ..steering.errors import SteeringError

    try:
        yield
    except (SteeringError, ImportError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{field}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Of its message, or its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _complain(label: str, text: str) -> None:
    # soft_wrap: a message stays one line, whatever the width of the terminal.
    Console(stderr=True).print(Text.assemble((label, "bold red"), text), soft_wrap=True)
