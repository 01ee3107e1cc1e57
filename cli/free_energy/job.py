"""A free-energy run from its config to the finished folder; `run`, `resume` and `report` are parts of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from ...flows.importance import ImportanceResult, importance_sample
from ...flows.proposal import Proposal
from ...molecular.cvs import CollectiveVariable
from ...molecular.energies import Energy
from ...molecular.io import read_weights, write_colvar, write_trajectory
from ...molecular.io import write_weights as save_arrays
from ...molecular.pipeline import Analysis, AnalysisRequest, WeightedDraws, analyse, evaluate_variables
from ...molecular.systems import MolecularSystem
from ..build import build_energy, build_request, build_system, build_variables, try_variables, with_system
from ..caught import collected_warnings
from ..conclude import conclude
from ..errors import UserError
from ..kinds import JobKind
from ..paths import resolve
from ..results import KHAT_LIMIT
from ..run_folder import RunFolder
from ..tables import VARIABLE, write_tables
from .config import FreeEnergyConfig
from .numbers import numbers
from .page import write_report
from .progress import sampling_progress
from .proposal import build_proposal

__all__ = ["KIND", "FreeEnergyJob"]


def _input_files(config: FreeEnergyConfig) -> dict[str, Path]:
    """Files whose contents a resumed run must find unchanged."""
    files = {"system.pdb": resolve(config.system.pdb, Path())}
    if config.proposal.checkpoint is not None:
        files["proposal.checkpoint"] = resolve(config.proposal.checkpoint, Path())
    for name in config.system.force_field:
        if Path(name).is_file():
            files[name] = Path(name)
    return files


@dataclass(frozen=True)
class FreeEnergyJob:
    """Everything that a config stands for, built and checked before any folder is made."""

    config: FreeEnergyConfig
    system: MolecularSystem
    energy: Energy
    proposal: Proposal
    variables: list[CollectiveVariable]
    request: AnalysisRequest

    @classmethod
    def build(cls, config: FreeEnergyConfig, system: MolecularSystem) -> FreeEnergyJob:
        """Build system, energy, proposal and variables. Raises what these raise."""
        variables = build_variables(config.analysis, system.topology)
        try_variables(variables, system.positions.double(), where="analysis.variables")
        return cls(
            config=config,
            system=system,
            energy=build_energy(config.energy, system, config.system.temperature),
            proposal=build_proposal(config.proposal, system),
            variables=variables,
            request=build_request(config.analysis, variables, config.sampling.seed),
        )

    def execute(self, folder: RunFolder, console: Console) -> None:
        """Draw (or go on drawing), analyse, write every result, and print the numbers."""
        with collected_warnings() as caught:
            result = self._sample(folder, console)
            with console.status("computing free energies"):
                draws = self._reduce(result)
                analysis = analyse(draws, self.request)
        conclude(
            console,
            folder,
            numbers(analysis, self.request.difference, result.n_energy_calls),
            _notes(analysis, caught),
            data=lambda stage: self._write_data(stage, result, draws, analysis),
            report=lambda stage, frame: write_report(
                stage, frame, config=self.config, draws=draws, request=self.request, analysis=analysis
            ),
        )

    def _sample(self, folder: RunFolder, console: Console) -> ImportanceResult:
        sampling = self.config.sampling
        with sampling_progress(console, folder, self.energy.kT) as progress:
            return importance_sample(
                self.proposal,
                self.energy,
                sampling.samples,
                seed=sampling.seed,
                chunk_size=sampling.chunk_size,
                checkpoint=folder.checkpoint,
                progress=progress,
            )

    def _reduce(self, result: ImportanceResult) -> WeightedDraws:
        return WeightedDraws(
            log_weights=result.log_weights.cpu(),
            log_q=result.log_q.cpu(),
            energies=result.energies.cpu(),
            variables=evaluate_variables(self.variables, result.x.double()),
            kT=self.energy.kT,
        )

    def _write_data(self, stage: Path, result: ImportanceResult, draws: WeightedDraws, analysis: Analysis) -> None:
        write_trajectory(stage / "samples.dcd", stage / "samples.pdb", result.x, self.system.topology)
        save_arrays(stage / "weights.npz", _arrays(draws, analysis))
        _write_colvar(stage / "COLVAR", draws, self.variables)
        write_tables(stage, analysis)


def _redraw(folder: RunFolder, config: FreeEnergyConfig, console: Console) -> None:
    """Draw pictures and report of a finished run again, from its ``weights.npz``."""
    recorded = folder.results()
    draws = _read_draws(folder)
    variables = build_variables(config.analysis, build_system(config.system).topology)
    request = build_request(config.analysis, variables, config.sampling.seed)
    with collected_warnings() as caught:
        analysis = analyse(draws, request)
    calls = int(recorded["numbers"]["energy_calls"]["value"])
    conclude(
        console,
        folder,
        numbers(analysis, request.difference, calls),
        _notes(analysis, caught),
        data=None,
        report=lambda stage, frame: write_report(
            stage, frame, config=config, draws=draws, request=request, analysis=analysis
        ),
    )


def _read_draws(folder: RunFolder) -> WeightedDraws:
    """The weighted draws of a finished run.

    Raises:
        FileFormatError: if ``weights.npz`` is damaged.
        UserError: if it lacks an array.
    """
    path = folder.finished_file("weights.npz")
    arrays = read_weights(path)
    try:
        return WeightedDraws(
            log_weights=arrays["log_weights"],
            log_q=arrays["log_q"],
            energies=arrays["energies"],
            variables={k.removeprefix(VARIABLE): v for k, v in arrays.items() if k.startswith(VARIABLE)},
            kT=float(arrays["kT"]),
        )
    except KeyError as error:
        raise UserError(f"{path}: has no array {error}") from error


def _arrays(draws: WeightedDraws, analysis: Analysis) -> dict[str, torch.Tensor]:
    return {
        "log_weights": draws.log_weights,
        "log_weights_smoothed": analysis.smoothed_log_weights,
        "log_q": draws.log_q,
        "energies": draws.energies,
        "kT": torch.tensor(draws.kT, dtype=torch.float64),
        **{VARIABLE + name: values for name, values in draws.variables.items()},
    }


def _write_colvar(path: Path, draws: WeightedDraws, variables: list[CollectiveVariable]) -> None:
    # exp(bias / kT) is the weight, which is how PLUMED's reweighting reads a column called *.bias.
    columns = {**draws.variables, "proposal.bias": draws.kT * draws.log_weights, "energy": draws.energies}
    write_colvar(path, columns, periods={v.name: v.period for v in variables})


def _notes(analysis: Analysis, caught: list[str]) -> list[str]:
    notes = [*dict.fromkeys(caught), *analysis.notes]
    if analysis.khat > KHAT_LIMIT:
        notes.append(
            f"Pareto k-hat is {analysis.khat:.2f}, above {KHAT_LIMIT}: the weights have too heavy a tail "
            "for any number here to be trusted; use a better proposal"
        )
    if analysis.n_zero_weight:
        notes.append(f"{analysis.n_zero_weight} of {analysis.n_samples} samples have weight zero")
    return notes


KIND = JobKind(
    config=FreeEnergyConfig,
    building="building system, energy and proposal",
    build=lambda config, folder: FreeEnergyJob.build(*with_system(config)),
    inputs=_input_files,
    headline=lambda job: f"{job.config.sampling.samples:,} samples",
    redraw=_redraw,
)
