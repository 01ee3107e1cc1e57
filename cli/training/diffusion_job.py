"""A training run of a molecule's diffusion pipeline: frames from dynamics, the fit, its quality, the folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from ...fkc.checkpoint import exists, load_state, save_state
from ...molecular.energies import Energy
from ...molecular.systems import MolecularSystem
from ..build import build_energy, with_system
from ..errors import UserError
from ..kinds import JobKind
from ..run_folder import RunFolder, provenance
from .diffusion_config import DiffusionTrainConfig
from .frames import draw_frames, stage_bars, training_inputs

__all__ = ["KIND", "DiffusionTrainJob"]

_BATCH = 512
"""Samples drawn at a time when the model is judged."""


@dataclass(frozen=True)
class DiffusionTrainJob:
    """What a config stands for, built before any folder is made."""

    config: DiffusionTrainConfig
    system: MolecularSystem
    energy: Energy

    @classmethod
    def build(cls, config: DiffusionTrainConfig, system: MolecularSystem) -> DiffusionTrainJob:
        """Build system and energy.

        Raises:
            UserError: diffusers is missing, or a torsion names an atom that is not there.
        """
        try:
            from ...molecular import diffusion  # noqa: F401
        except ImportError as error:
            raise UserError(str(error)) from error
        for name, atoms in config.quality.torsions.items():
            if max(atoms) >= system.n_atoms:
                raise UserError(
                    f"quality.torsions.{name}: atom {max(atoms)}, but the molecule has {system.n_atoms} atoms"
                )
        return cls(config, system, build_energy(config.energy, system, config.system.temperature))

    def execute(self, folder: RunFolder, console: Console) -> None:
        """Run the stages that are not done yet, then write ``pipeline/`` with its card, and ``results.json``."""
        from ...molecular.diffusion import MoleculePipeline, molecule_scheduler

        folder.keep_metrics()
        positions = self._frames(folder, console)
        network, reports = self._fit(positions, folder, console)
        pipe = MoleculePipeline(network, molecule_scheduler(network))
        with folder.results_stage() as stage:
            pipe.save_pretrained(stage / "pipeline", half=True)
        judged = MoleculePipeline.from_pretrained(str(folder.path / "pipeline"), local_files_only=True)
        quality = self._quality(judged, positions, console)
        card = self._card(positions, reports)
        with folder.results_stage({"training": card, "quality": quality}):
            for name, content in (("card", card), ("quality", quality)):
                text = json.dumps(content, indent=1) + "\n"
                (folder.path / "pipeline" / f"{name}.json").write_text(text, encoding="utf-8")
        _show(console, folder, quality)

    def _frames(self, folder: RunFolder, console: Console) -> torch.Tensor:
        """Positions (T, L, N, 3) nm, from the folder if they are there."""
        place = folder.path / "frames"
        if not exists(place):
            ensemble = draw_frames(self.config, self.system, self.energy, console)
            kept = ensemble.positions.shape[1] - self.config.fitting.held_out_ladders
            stride = max(1, ensemble.positions.shape[0] * kept // self.config.fitting.frames)
            meta = {"acceptance": ensemble.acceptance.tolist(), "energy_calls": ensemble.energy_calls}
            save_state(place, {"positions": ensemble.positions[::stride]}, meta)
        return load_state(place)[0]["positions"]

    def _fit(self, positions: torch.Tensor, folder: RunFolder, console: Console) -> tuple[Any, list[Any]]:
        from ...molecular.diffusion import FitProgress, FitSettings, fit_denoiser
        from ...molecular.diffusion.frames import fit_data, unit_of

        f = self.config.fitting
        split = positions.shape[1] - f.held_out_ladders
        parts = [positions[:, :split].flatten(0, 1), positions[:, split:].flatten(0, 1)]
        unit = unit_of(parts[0])
        training, held_out = (fit_data(part, unit, self.energy if f.forces else None) for part in parts)
        network = self._network(unit)
        settings = FitSettings(**f.model_dump(exclude={"frames", "held_out_ladders", "forces"}))

        def report(entry: FitProgress) -> None:
            folder.append_metrics(asdict(entry))

        with stage_bars(console) as bar:
            reports = fit_denoiser(
                network,
                training.frames,
                settings,
                scores=training.scores,
                held_out=held_out.frames,
                held_out_scores=held_out.scores,
                checkpoint=folder.checkpoint,
                progress=report,
                tick=lambda done: bar("fit", done, f.steps),
            )
        return network, reports

    def _network(self, unit: float) -> Any:
        from ...molecular.diffusion import MoleculeTopology, new_denoiser

        d = self.config.denoiser
        return new_denoiser(
            MoleculeTopology.from_openmm(self.system.topology),
            unit,
            seed=d.seed,
            noise_range=(d.lowest_noise, d.highest_noise),
            num_train_timesteps=d.train_timesteps,
            width=d.width,
            blocks=d.blocks,
            passes=d.passes,
            embedding=d.embedding,
        )

    def _quality(self, pipe: Any, positions: torch.Tensor, console: Console) -> list[dict[str, Any]]:
        from ...molecular.diffusion.quality import compare_frames

        q = self.config.quality
        pipe.set_progress_bar_config(disable=True)
        found = []
        with stage_bars(console) as bar:
            for steps in q.steps:
                generator, parts = torch.Generator().manual_seed(q.seed), []
                for start in range(0, q.samples, _BATCH):
                    count = min(_BATCH, q.samples - start)
                    parts.append(pipe(count, steps, generator).positions)
                    bar(f"judge ({steps} steps)", start + count, q.samples)
                frames = positions.flatten(0, 1)
                compared = compare_frames(torch.cat(parts), frames, pipe.topology, self.energy, q.torsions)
                found.append({"scheduler": type(pipe.scheduler).__name__, "steps": steps} | compared)
        return found

    def _card(self, positions: torch.Tensor, reports: list[Any]) -> dict[str, Any]:
        """What a user of the pipeline should know."""
        return {
            "name": self.config.name,
            "force_field": list(self.config.system.force_field),
            "temperature_K": self.config.system.temperature,
            "frames": positions.shape[0] * positions.shape[1],
            "seeds": {
                "dynamics": self.config.dynamics.seed,
                "network": self.config.denoiser.seed,
                "fit": self.config.fitting.seed,
            },
            "versions": provenance({})["versions"],
            "config": self.config.model_dump(mode="json", exclude_none=True),
            "fit": asdict(reports[-1]) if reports else None,
        }


def _show(console: Console, folder: RunFolder, quality: list[dict[str, Any]]) -> None:
    for entry in quality:
        excess, hand = entry["energy"]["mean_excess_kT"], entry["hand"]
        text = f"  {entry['steps']} steps: energy {excess:+.2f} kT against dynamics"
        text += f", torsions differ by {entry['torsions']['total_variation']:.3f}"
        console.print(Text(text + ("" if hand is None else f", right hand {hand:.1%}")), soft_wrap=True)
    console.print(Text(f"  pipeline     {folder.path / 'pipeline'}"), soft_wrap=True)


KIND = JobKind(
    config=DiffusionTrainConfig,
    building="building system and energy",
    build=lambda config, folder: DiffusionTrainJob.build(*with_system(config)),
    inputs=training_inputs,
    headline=lambda job: "training",
)
