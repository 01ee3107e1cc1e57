"""Errors of the energies: one sentence each, naming what was found and what was expected."""

import warnings

__all__ = ["ConstraintsWarning", "EnergyInputError", "UnsupportedForceError", "report_constraints"]


class UnsupportedForceError(ValueError):
    """A System holds a force, or a setting of one, that the batched force field does not evaluate.

    Terms are never dropped: either every force is evaluated exactly or the conversion stops here.
    """


class EnergyInputError(ValueError):
    """Positions handed to an energy have the wrong shape, type or size."""


class ConstraintsWarning(UserWarning):
    """A System has constraints, which an energy cannot hold."""


def report_constraints(count: int) -> None:
    """Warn of ``count`` constraints, if there are any.

    OpenMM leaves out the harmonic term of a constrained bond, so the energy of free positions does not see that bond
    at all.
    """
    if count:
        warnings.warn(
            f"the System has {count} constraints; an energy of positions does not apply them, and OpenMM drops the "
            "bond terms that they replace: build the System without constraints to weigh free positions",
            ConstraintsWarning,
            stacklevel=3,
        )
