"""A molecule's model sampled at another temperature: one population after the other, each kept when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from ...fkc.checkpoint import exists, load_state, save_state
from ...molecular.io import read_weights, write_colvar, write_trajectory
from ...molecular.io import write_weights as save_arrays
from ..caught import collected_warnings
from ..conclude import conclude
from ..kinds import JobKind
from ..run_folder import RunFolder
from ..tables import write_tables
from .build import Molecule, input_files
from .config import MoleculeConfig
from .page import write_molecule_report
from .progress import watching_moves
from .results import Outcome, arrays_of, numbers, outcome_of, warnings_of

__all__ = ["KIND", "MoleculeJob"]

_MODEL, _PLAIN = "model", "unweighted"


def _redraw(folder: RunFolder, config: MoleculeConfig, console: Console) -> None:
    """`feynkac report`: pictures and report again, from ``weights.npz``.

    Raises:
        UserError: the run is not complete, or its arrays are missing.
    """
    arrays = read_weights(folder.finished_file("weights.npz"))
    molecule = Molecule.build(config)
    with collected_warnings() as caught:
        outcome = outcome_of(molecule, arrays)
    _conclude(folder, console, outcome, None, caught)


# --- the job --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MoleculeJob:
    """What a config stands for, built and checked before any folder is made."""

    molecule: Molecule

    @property
    def config(self) -> MoleculeConfig:
        """Settled."""
        return self.molecule.config

    @property
    def units(self) -> dict[str, int]:
        """Steps of each part of the work, by its name: the model's own draws, the populations, the plain moves."""
        config = self.molecule.config
        names = [f"population-{p:03d}" for p in range(config.sampling.populations)]
        names += [_PLAIN] if config.sampling.compare else []
        s = config.sampling
        chunks = -(-config.model.draws // (s.chunk_size or config.model.draws))
        return {_MODEL: config.model.steps * chunks, **dict.fromkeys(names, s.steps)}

    def execute(self, folder: RunFolder, console: Console) -> None:
        """Run what is not done yet, then write every result, and print the numbers."""
        with collected_warnings() as caught:
            self._sample(folder, console)
            with console.status("computing free energies"):
                states = {unit: load_state(folder.checkpoint / unit)[0] for unit in self.units}
                outcome = outcome_of(self.molecule, arrays_of(self.molecule, states))
        _conclude(folder, console, outcome, states, caught)

    def _sample(self, folder: RunFolder, console: Console) -> None:
        done = {unit for unit in self.units if exists(folder.checkpoint / unit)}
        folder.keep_metrics(lambda line: line.get("unit") in done)
        waiting = [unit for unit in self.units if unit not in done]
        made, every = sum(self.units[unit] for unit in done), sum(self.units.values())
        molecule, spread = self.molecule, None
        with watching_moves(console, folder, molecule.pipe, every, made) as watch:
            for unit in waiting:
                watch.begin(unit)
                if unit == _MODEL:
                    save_state(folder.checkpoint / unit, molecule.draw_model(), {})
                    continue
                if spread is None:
                    spread = molecule.spread(load_state(folder.checkpoint / _MODEL)[0]["positions"])
                number = 0 if unit == _PLAIN else int(unit.rpartition("-")[2])
                found = molecule.draw_cold(number, spread, watch.began, weighted=unit != _PLAIN)
                save_state(folder.checkpoint / unit, found, {})


def _conclude(
    folder: RunFolder,
    console: Console,
    outcome: Outcome,
    states: dict[str, dict[str, Tensor]] | None,
    caught: list[str],
) -> None:
    """Write the results of a run that has just been made (with its ``states``), or the pictures alone; then print."""
    conclude(
        console,
        folder,
        numbers(outcome),
        warnings_of(outcome, caught),
        data=None if states is None else lambda stage: _write_data(stage, outcome, states),
        report=lambda stage, frame: write_molecule_report(stage, frame, outcome=outcome),
    )


def _write_data(stage: Path, outcome: Outcome, states: dict[str, dict[str, Tensor]]) -> None:
    """Frames, weights, variables and surfaces."""
    topology = outcome.molecule.system.topology
    cold = [state["positions"] for unit, state in states.items() if unit not in (_MODEL, _PLAIN)]
    for name, positions in (("samples", torch.cat(cold)), ("model", states[_MODEL]["positions"])):
        write_trajectory(stage / f"{name}.dcd", stage / f"{name}.pdb", positions, topology)
    save_arrays(stage / "weights.npz", outcome.arrays)
    _write_colvars(stage, outcome)
    _write_surfaces(stage, outcome)


def _write_colvars(stage: Path, outcome: Outcome) -> None:
    """``COLVAR`` of the cold draws with both weights as biases, ``COLVAR.model`` of the model's."""
    periods = {v.name: v.period for v in outcome.molecule.variables}
    cold, model = outcome.frames["corrected"], outcome.frames["model"]
    biases = {f"{way}.bias": cold.kT * outcome.frames[way].log_weights for way in ("annealed", "corrected")}
    write_colvar(stage / "COLVAR", {**cold.variables, **biases, "energy": cold.energies}, periods=periods)
    write_colvar(stage / "COLVAR.model", {**model.variables, "energy": model.energies}, periods=periods)


def _write_surfaces(stage: Path, outcome: Outcome) -> None:
    """``fes*.dat`` of the energy-corrected draws, those of the others in ``annealed`` and ``model``."""
    for way, analysis in outcome.analyses.items():
        place = stage if way == "corrected" else stage / way
        place.mkdir(exist_ok=True)
        write_tables(place, analysis)


def _headline(job: MoleculeJob) -> str:
    config, s = job.config, job.config.sampling
    return (
        f"{config.model_temperature:g} K to {config.system.temperature:g} K, exponent {config.exponent:g}; "
        f"{s.populations} x {s.particles:,} particles"
    )


KIND = JobKind(
    config=MoleculeConfig,
    building="loading model and force field",
    build=lambda config, folder: MoleculeJob(Molecule.build(config)),
    inputs=input_files,
    headline=_headline,
    redraw=_redraw,
)
