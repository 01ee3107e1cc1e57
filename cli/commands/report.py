"""`feynkac report`: pictures and report of a finished run, drawn again from its weights."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..config import RunConfig
from ..job import redraw
from ..run_folder import RunFolder
from ..validation import load_config
from ..yaml_lines import load_yaml

__all__ = ["report"]


def report(console: Console, path: Path) -> None:
    """Replace the pictures and ``report.html`` of the run in ``path``; its data stay as they are.

    Raises:
        UserError: if there is no complete run.
        FileFormatError: if ``weights.npz`` is damaged.
    """
    folder = RunFolder.open(path)
    kind = load_yaml(folder.config).data.get("job")
    if kind == "steer":
        _redraw_steering(console, folder)
        return
    if kind == "corrected":
        _redraw_corrected(console, folder)
        return
    if kind == "annealed_molecule":
        _redraw_molecule(console, folder)
        return
    if kind == "metadynamics":
        _redraw_biased(console, folder)
        return
    if kind == "repelled":
        _redraw_repelled(console, folder)
        return
    redraw(folder, load_config(folder.config, RunConfig), console)


def _redraw_steering(console: Console, folder: RunFolder) -> None:
    from ..steer_config import SteerConfig
    from ..steer_job import redraw_steering

    redraw_steering(folder, load_config(folder.config, SteerConfig), console)


def _redraw_corrected(console: Console, folder: RunFolder) -> None:
    from ..corrected_config import CorrectedConfig
    from ..corrected_job import redraw_corrected

    redraw_corrected(folder, load_config(folder.config, CorrectedConfig), console)


def _redraw_molecule(console: Console, folder: RunFolder) -> None:
    from ..molecule_config import MoleculeConfig
    from ..molecule_job import redraw_molecule

    redraw_molecule(folder, load_config(folder.config, MoleculeConfig), console)


def _redraw_biased(console: Console, folder: RunFolder) -> None:
    from ..biased.config import MetadynamicsConfig
    from ..biased.job import redraw_biased

    redraw_biased(folder, load_config(folder.config, MetadynamicsConfig), console)


def _redraw_repelled(console: Console, folder: RunFolder) -> None:
    from ..repelled.config import RepelledConfig
    from ..repelled.job import redraw_repelled

    redraw_repelled(folder, load_config(folder.config, RepelledConfig), console)
