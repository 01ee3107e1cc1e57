"""Tables and arrays that runs of several kinds write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..molecular.free_energy import FreeEnergySurface
from ..molecular.io import write_fes, write_fes_uncertainty

__all__ = ["VARIABLE", "write_arrays", "write_tables"]

VARIABLE = "variable_"
"""Prefix of the collective variables among the arrays of ``weights.npz``."""


class _Surfaces(Protocol):
    """What has a surface, or none, and profiles."""

    @property
    def surface(self) -> FreeEnergySurface | None: ...

    @property
    def profiles(self) -> tuple[FreeEnergySurface, ...]: ...


def write_tables(stage: Path, analysis: _Surfaces) -> None:
    """The surface and the profiles, with their errors, in PLUMED's layout."""
    if analysis.surface is not None:
        write_fes(stage / "fes.dat", analysis.surface)
        write_fes_uncertainty(stage / "fes_uncertainty.dat", analysis.surface)
    for profile in analysis.profiles:
        name = profile.axes[0].name
        write_fes(stage / f"fes_{name}.dat", profile)
        write_fes_uncertainty(stage / f"fes_{name}_uncertainty.dat", profile)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write an ``.npz`` of plain arrays, nothing pickled, equal input giving equal bytes.

    Raises:
        FileExistsError: if ``path`` exists.
    """
    with open(path, "xb") as file:
        np.savez(file, allow_pickle=False, **arrays)
