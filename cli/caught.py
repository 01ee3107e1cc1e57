"""Warnings raised while a run is made."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..fkc.errors import NonFiniteWeightWarning, ParetoWarning
from ..molecular.dynamics import WalkerRestartedWarning, WalkerRetiredWarning

__all__ = ["collected_warnings"]


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Messages of the warnings raised inside."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("always", RuntimeWarning)
        yield messages
    # The analysis says the same of k-hat, zero weights and lost walkers, also when only the report is drawn again.
    known = (ParetoWarning, NonFiniteWeightWarning, WalkerRestartedWarning, WalkerRetiredWarning)
    messages += [str(w.message) for w in caught if not issubclass(w.category, known)]
