"""Errors of the energies: one sentence each, naming what was found and what was expected."""

__all__ = ["EnergyInputError", "UnsupportedForceError"]


class UnsupportedForceError(ValueError):
    """A System holds a force, or a setting of one, that the batched force field does not evaluate.

    Terms are never dropped: either every force is evaluated exactly or the conversion stops here.
    """


class EnergyInputError(ValueError):
    """Positions handed to an energy have the wrong shape, type or size."""
