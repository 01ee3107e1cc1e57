"""`feynkac fes`: free energies from HILLS, COLVAR and their like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..fes.inputs import recognise
from ..fes.options import FesOptions

__all__ = ["fes"]


def fes(console: Console, paths: Sequence[Path], options: FesOptions) -> None:
    """Tell what the files are, and do with them what is done with their kind.

    Raises:
        UserError: a file or an option that cannot be used.
        FileExistsError: an output is there already.
        FileFormatError: a damaged file.
    """
    inputs = recognise(paths)
    options.check_for(inputs)
    if options.units == "kT" and inputs.run is None:  # a run knows its temperature
        options.needed_kT("--units kT")
    if inputs.kind == "hills":
        from ..fes.from_hills import fes_from_hills as job
    elif inputs.kind == "colvar":
        from ..fes.from_samples import fes_from_samples as job
    else:
        from ..fes.from_bias import fes_from_bias as job
    job(console, inputs, options)
