"""A value fit: rollouts of the pipeline, a network fitted to them, its card and its picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ...steering.controls import every
from ...steering.learned import (
    FitProgress,
    Fitting,
    LearnedValue,
    LevelQuality,
    Rollouts,
    assess,
    collect_rollouts,
    fit_network,
)
from ...steering.learned.quality import binned
from ...steering.rewards import Reward, load_reward
from ...steering.rewards.calls import reward_name
from ..errors import UserError
from ..kinds import JobKind
from ..paths import resolve
from ..run_folder import RunFolder
from .value_config import ValueConfig

__all__ = ["KIND", "ValueJob", "value_inputs"]

_SHIPPED = "data:"


def value_inputs(config: ValueConfig) -> dict[str, Path]:
    """Folders and files whose contents a resumed run must find unchanged."""
    inputs = {"pipeline": resolve(config.pipeline.folder, Path())}
    for key, option in _located(config.reward.options).items():
        if isinstance(option, str) and Path(option).exists():
            inputs[f"reward.{key}"] = Path(option)
    return inputs


def _located(options: dict[str, Any]) -> dict[str, Any]:
    def place(option: Any) -> Any:
        shipped = isinstance(option, str) and option.startswith(_SHIPPED)
        try:
            return str(resolve(option, Path())) if shipped else option
        except ValueError as error:
            raise UserError(f"reward.options: {error}") from error

    return {key: place(option) for key, option in options.items()}


@dataclass(frozen=True, eq=False)
class ValueJob:
    """What a value config stands for, built before any folder is made."""

    config: ValueConfig
    pipe: Any
    reward: Reward

    @classmethod
    def build(cls, config: ValueConfig) -> ValueJob:
        """Load pipeline and reward.

        Raises:
            UserError: diffusers is missing, or one of them cannot be loaded.
        """
        try:
            from ...steering.pixel_pipeline import load_pipeline

            pipe = load_pipeline(resolve(config.pipeline.folder, Path()))
            reward = load_reward(config.reward.name, **_located(config.reward.options))
        except (ImportError, FileNotFoundError, ValueError) as error:
            raise UserError(str(error)) from error
        pipe.set_progress_bar_config(disable=True)
        return cls(config, pipe, reward)

    def execute(self, folder: RunFolder, console: Console) -> None:
        """Do what is not done yet, then write ``value/`` with its card, ``quality.png`` and ``results.json``."""
        folder.keep_metrics()
        rollouts = self._rollouts(folder, console)
        value, history = self._fit(rollouts, folder, console)
        held_out = rollouts.split(self._held_out)[1]
        levels = assess(value, held_out)
        card = self._card(levels, history, held_out)
        with folder.results_stage({"training": card}) as stage:
            value.save_pretrained(stage / "value")
            (stage / "value" / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            (stage / "quality.png").write_bytes(self._picture(value, levels, held_out))
        _show(console, folder, card)

    @property
    def _held_out(self) -> int:
        return max(1, round(self.config.fitting.held_out * self.config.rollouts.count))

    def _rollouts(self, folder: RunFolder, console: Console) -> Rollouts:
        r, p = self.config.rollouts, self.config.pipeline
        return collect_rollouts(
            self.pipe,
            self.reward,
            r.count,
            seed=r.seed,
            call=p.call,
            batch_size=r.batch_size,
            on=self.config.reward.samples,
            when=every(r.every),
            clean=self.config.fitting.denoised,
            baseline=r.baseline,
            transition=p.transition,
            kernel_eta=p.kernel_eta,
            folder=folder.path / "rollouts",
            progress=console.is_terminal,
        )

    def _fit(self, rollouts: Rollouts, folder: RunFolder, console: Console) -> tuple[LearnedValue, list[FitProgress]]:
        f = self.config.fitting
        options = f.model_dump(exclude={"loss", "denoised", "seed"})

        def report(entry: FitProgress) -> None:
            folder.append_metrics(asdict(entry))
            line = f"  step {entry.step}: loss {entry.train:.4f}, held-out {entry.held_out:.4f}"
            console.print(Text(line + (" (best)" if entry.best else "")), soft_wrap=True)

        return fit_network(
            rollouts,
            temperature=self.config.temperature,
            seed=f.seed,
            loss=f.loss,
            fitting=Fitting(**options),
            reward=reward_name(self.reward),
            checkpoint=folder.checkpoint,
            report=report,
            progress=console.is_terminal,
        )

    def _card(self, levels: list[LevelQuality], history: list[FitProgress], held_out: Rollouts) -> dict[str, Any]:
        """What a user of the value should know."""
        best = [entry for entry in history if entry.best][-1]
        return {
            "name": self.config.name,
            "reward": reward_name(self.reward),
            "temperature": self.config.temperature,
            "loss": self.config.fitting.loss,
            "rollouts": self.config.rollouts.count,
            "held_out_rollouts": len(held_out),
            "best_step": best.step,
            "held_out_loss": _plain(best.held_out),
            "quality": [{key: _plain(entry) for key, entry in asdict(level).items()} for level in levels],
            "config": self.config.model_dump(mode="json"),
        }

    def _picture(self, value: LearnedValue, levels: list[LevelQuality], held_out: Rollouts) -> bytes:
        from ..report.style import png
        from ..report.value import draw_value

        return png(draw_value(levels, *binned(value, held_out), loss=self.config.fitting.loss))


def _plain(entry: Any) -> Any:
    return None if isinstance(entry, float) and not math.isfinite(entry) else entry


def _show(console: Console, folder: RunFolder, card: dict[str, Any]) -> None:
    quality = card["quality"]
    for name, level in (("first", quality[0]), ("middle", quality[len(quality) // 2]), ("last", quality[-1])):
        figures = [f"{key} {level[key]:.3f}" for key in ("explained", "correlation", "bias") if level[key] is not None]
        console.print(Text(f"  {name:<7} move {level['move']}: {', '.join(figures)}"), soft_wrap=True)
    console.print(Text(f"  value   {folder.path / 'value'}"), soft_wrap=True)


KIND = JobKind(
    config=ValueConfig,
    building="loading pipeline and reward",
    build=lambda config, folder: ValueJob.build(config),
    inputs=value_inputs,
    headline=lambda job: f"{job.config.rollouts.count:,} rollouts",
)
