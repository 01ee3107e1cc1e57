"""A training run: frames from dynamics, a flow fitted to them, a checkpoint with its card."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from ...fkc.checkpoint import exists, load_state, save_state
from ...flows import InternalCoordinateFlow, InternalCoordinates, save_flow
from ...flows.training import Frames, Phase, TrainingProgress, fit
from ...molecular.energies import Energy
from ...molecular.systems import MolecularSystem
from ..build import build_energy, with_system
from ..kinds import JobKind
from ..run_folder import RunFolder
from .flow_config import TrainConfig
from .frames import draw_frames, training_inputs

__all__ = ["KIND", "TrainingJob"]

_CHUNK = 20_000
"""Frames turned into internal coordinates at a time."""

_HELD_OUT = 10_000
"""Held-out frames that judge the flow; more cost time at every evaluation and tell no more."""


@dataclass(frozen=True)
class TrainingJob:
    """What a training config stands for, built before any folder is made."""

    config: TrainConfig
    system: MolecularSystem
    energy: Energy

    @classmethod
    def build(cls, config: TrainConfig, system: MolecularSystem) -> TrainingJob:
        """Build system and energy. Raises what these raise."""
        return cls(config, system, build_energy(config.energy, system, config.system.temperature))

    def execute(self, folder: RunFolder, console: Console) -> None:
        """Run the stages that are not done yet, then write ``flow/`` and ``results.json``."""
        positions, energies = self._frames(folder, console)
        flow, training, held_out = self._flow(positions, energies)
        reports = self._fit(folder, console, flow, training, held_out)
        card = self._card(reports, positions)
        with folder.results_stage({"training": card}) as stage:
            save_flow(flow, stage / "flow", card=card)
        _show(console, folder, card)

    def _frames(self, folder: RunFolder, console: Console) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (T, L, N, 3) nm and energies (T, L) kJ/mol, from the folder if they are there."""
        place = folder.path / "frames"
        if not exists(place):
            ensemble = draw_frames(self.config, self.system, self.energy, console)
            meta = {
                "acceptance": ensemble.acceptance.tolist(),
                "round_trips": ensemble.round_trips,
                "energy_calls": ensemble.energy_calls,
            }
            save_state(place, {"positions": ensemble.positions, "energy": ensemble.energy}, meta)
        tensors, _ = load_state(place)
        return tensors["positions"], tensors["energy"]

    def _flow(self, positions: torch.Tensor, energies: torch.Tensor) -> tuple[InternalCoordinateFlow, Frames, Frames]:
        """The flow at its start, the training frames and those of the held-out ladders."""
        coordinates = InternalCoordinates.from_topology(self.system.topology, self.system.positions)
        split = positions.shape[1] - self.config.training.held_out_ladders
        thin = math.ceil(positions[:, split:, 0, 0].numel() / _HELD_OUT)
        parts = []
        for part, energy in (
            (positions[:, :split], energies[:, :split]),
            (positions[::thin, split:], energies[::thin, split:]),
        ):
            rows = torch.split(part.flatten(0, 1), _CHUNK)
            y = torch.cat([coordinates.forward(x.double())[0].float() for x in rows])
            parts.append((y, (energy.flatten() / self.energy.kT).float()))
        coordinates = coordinates.fitted(parts[0][0])
        (y, u), (held_y, held_u) = ((coordinates.wrap(y), u) for y, u in parts)
        flow = InternalCoordinateFlow.from_data(coordinates, y, **self.config.flow.model_dump())
        training, _ = Frames(y, u).inside(flow)
        held_out, _ = Frames(held_y, held_u).inside(flow)
        return flow, training, held_out

    def _fit(
        self,
        folder: RunFolder,
        console: Console,
        flow: InternalCoordinateFlow,
        training: Frames,
        held_out: Frames,
    ) -> list[TrainingProgress]:
        t = self.config.training

        def progress(report: TrainingProgress) -> None:
            folder.append_metrics({k: _plain(v) for k, v in asdict(report).items()})
            console.print(Text(_line(report)), soft_wrap=True)

        return fit(
            flow,
            training,
            phases=[Phase(**phase.model_dump()) for phase in t.phases],
            seed=t.seed,
            validation=held_out,
            energy=self.energy,
            augment=flow.coordinates.relabelled,
            ema_decay=t.ema_decay,
            evaluate_every=t.evaluate_every,
            ess_draws=t.ess_draws,
            checkpoint=folder.checkpoint,
            progress=progress,
        )

    def _card(self, reports: list[TrainingProgress], positions: torch.Tensor) -> dict[str, Any]:
        """What a user of the checkpoint should know."""
        card: dict[str, Any] = {
            "name": self.config.name,
            "force_field": list(self.config.system.force_field),
            "temperature_K": self.config.system.temperature,
            "frames": positions.shape[0] * positions.shape[1],
            "config": self.config.model_dump(mode="json", exclude_none=True),
        }
        if reports:
            last = asdict(reports[-1])
            card["quality"] = {k: _plain(last[k]) for k in ("validation", "residual", "data_ess", "ess")}
        return card


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _line(report: TrainingProgress) -> str:
    return (
        f"  phase {report.phase + 1}, step {report.step}: loss {report.train:.3f}, "
        f"held-out {report.validation:.3f}, residual {report.residual:.3f} kT, ESS {report.ess:.1%}"
    )


def _show(console: Console, folder: RunFolder, card: dict[str, Any]) -> None:
    for key, value in card.get("quality", {}).items():
        console.print(Text(f"  {key:<12} {value}"), soft_wrap=True)
    console.print(Text(f"  checkpoint   {folder.path / 'flow'}"), soft_wrap=True)


KIND = JobKind(
    config=TrainConfig,
    building="building system and energy",
    build=lambda config, folder: TrainingJob.build(*with_system(config)),
    inputs=training_inputs,
    headline=lambda job: "training",
)
