"""Training of a denoiser on frames: see :mod:`.targets` for what it is regressed on."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...fkc.checkpoint import exists, load_state, save_state
from ...fkc.errors import CheckpointError
from .levels import Level
from .network import MoleculeDenoiser
from .settings import FitProgress, FitSettings
from .targets import target_of, training_levels

__all__ = ["DenoiserFit", "FitProgress", "FitSettings", "fit_denoiser"]

_HELD_OUT_SEED = 7919
_STATISTICS = 40_000
_LAW = ("lowest", "highest", "centre", "spread", "share_uniform")


def fit_denoiser(
    network: MoleculeDenoiser,
    frames: Tensor,
    settings: FitSettings,
    *,
    scores: Tensor | None = None,
    held_out: Tensor | None = None,
    held_out_scores: Tensor | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[FitProgress], None] | None = None,
    tick: Callable[[int], None] | None = None,
) -> list[FitProgress]:
    """Train ``network`` in place; it ends with the averaged parameters.

    Args:
        network: its statistics are measured on the frames first.
        frames: (n, N, 3) in the network's unit of length, mean-free.
        settings: of the fit.
        scores: -grad U / kT of the frames in the network's unit, (n, N, 3).
        held_out: frames of other trajectories, for the reports; the training frames if None.
        held_out_scores: of those.
        checkpoint: folder in which the whole state is kept; a second call goes on from it and ends with the same bits.
        progress: called with each report.
        tick: called with the number of steps done, after every step.

    Returns:
        All reports, those of an interrupted call included.

    Raises:
        ValueError: shapes that do not fit.
        FloatingPointError: training diverged.
        CheckpointError: the checkpoint is of another fit.
    """
    for name, value, like in (("frames", frames, frames), ("scores", scores, frames), ("held_out", held_out, frames)):
        if value is not None and (value.ndim != 3 or value.shape[1:] != like.shape[1:] or value.shape[2] != 3):
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected (n, N, 3)")
    if scores is not None and len(scores) != len(frames):
        raise ValueError(f"scores: got {len(scores)}, expected one a frame, {len(frames)}")
    run = DenoiserFit(network, frames, scores, settings)
    if held_out is not None:
        run.held_out, run.held_out_scores = held_out, held_out_scores
    if checkpoint is not None and exists(checkpoint):
        run.restore(checkpoint)
    while run.step < settings.steps:
        run.advance()
        if tick is not None:
            tick(run.step)
        if run.step % settings.evaluate_every == 0 or run.step == settings.steps:
            report = run.evaluate()
            if progress is not None:
                progress(report)
            if checkpoint is not None:
                run.save(checkpoint)
    run.finish()
    return run.reports


class DenoiserFit:
    """The state of a fit, and its step."""

    def __init__(self, network: MoleculeDenoiser, frames: Tensor, scores: Tensor | None, settings: FitSettings) -> None:
        self.network, self.frames, self.scores, self.settings = network, frames, scores, settings
        self.held_out, self.held_out_scores = frames, scores
        self.stiffness = 0.0
        self.dimension = 3 * (frames.shape[1] - 1)
        if scores is not None:
            self.stiffness = float(scores.double().square().sum((1, 2)).mean() / self.dimension)
        self.generator = torch.Generator().manual_seed(settings.seed)
        shown = frames[:: math.ceil(len(frames) / _STATISTICS)]
        network.invariants.fit(shown)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.step, self.seconds, self.loss_sum, self.loss_count = 0, 0.0, 0.0, 0
        self.reports: list[FitProgress] = []

    def advance(self) -> None:
        """One step of the optimiser.

        Raises:
            FloatingPointError: the gradient is not finite.
        """
        s = self.settings
        started = time.perf_counter()
        index = torch.randint(len(self.frames), (s.batch_size,), generator=self.generator)
        x, scores = self.frames[index], None if self.scores is None else self.scores[index]
        self.network.fast = s.fast
        law = {name: getattr(s, name) for name in _LAW}
        w = training_levels(s.batch_size, self.generator, **law)
        loss = self._errors(x, scores, w, self.generator).mean()
        self.network.fast = False
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, s.clip_norm)
        if not bool(norm.isfinite()):
            raise FloatingPointError(f"the gradient is not finite at step {self.step} (loss {loss.item():.4g})")
        for group in self.optimiser.param_groups:
            group["lr"] = s.learning_rate * self._rate()
        self.optimiser.step()
        self.step += 1
        decay = min(s.ema_decay, (1.0 + self.step) / (10.0 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)
        self.loss_sum, self.loss_count = self.loss_sum + loss.item(), self.loss_count + 1
        self.seconds += time.perf_counter() - started

    def _rate(self) -> float:
        s = self.settings
        if self.step < s.warmup:
            return (self.step + 1) / s.warmup
        return 0.5 * (1.0 + math.cos(math.pi * (self.step - s.warmup) / max(1, s.steps - s.warmup)))

    def _errors(self, x: Tensor, scores: Tensor | None, w: Tensor, generator: torch.Generator) -> Tensor:
        """Square errors of F a degree of freedom (B,)."""
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        noise = noise - noise.mean(1, keepdim=True)
        u = (x + w * noise) * (1.0 + w * w).rsqrt()
        output = self.network.output(u, Level(torch.ones_like(w).double(), w.double()))
        target = target_of(x, scores, noise, w, self.stiffness)
        return (output - target).square().sum((1, 2)) / self.dimension

    @torch.no_grad()
    def evaluate(self) -> FitProgress:
        """The averaged parameters on held-out frames, at the same levels with the same noise every time."""
        live = [p.detach().clone() for p in self.parameters]
        self._load(self.average)
        s = self.settings
        levels = torch.logspace(math.log10(s.lowest), math.log10(s.highest), 12, dtype=torch.float64)
        generator = torch.Generator().manual_seed(_HELD_OUT_SEED)
        count = min(2000, len(self.held_out))
        stride = len(self.held_out) // count
        x = self.held_out[::stride][:count]
        scores = None if self.held_out_scores is None else self.held_out_scores[::stride][:count]
        errors = [
            float(self._errors(x, scores, torch.full((count, 1, 1), w, dtype=x.dtype), generator).mean())
            for w in levels.tolist()
        ]
        self._load(live)
        report = FitProgress(
            self.step,
            round(self.seconds, 1),
            self.loss_sum / max(1, self.loss_count),
            sum(errors) / len(errors),
            tuple(levels.tolist()),
            tuple(errors),
        )
        self.loss_sum, self.loss_count = 0.0, 0
        self.reports.append(report)
        return report

    def finish(self) -> None:
        """The network takes the averaged parameters."""
        self._load(self.average)
        self.network.eval()

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def save(self, folder: Path) -> None:
        """Everything the next step needs."""
        tensors = {"generator": self.generator.get_state()}
        for i, parameter in enumerate(self.parameters):
            tensors[f"parameter.{i}"], tensors[f"average.{i}"] = parameter, self.average[i]
            for name, value in self.optimiser.state[parameter].items():
                tensors[f"optimiser.{i}.{name}"] = value
        meta = {
            "plan": self._plan(),
            "step": self.step,
            "seconds": self.seconds,
            "reports": list(map(asdict, self.reports)),
        }
        save_state(folder, tensors, meta)

    def restore(self, folder: Path) -> None:
        """Go on from what :meth:`save` wrote.

        Raises:
            CheckpointError: it is of another fit, or damaged.
        """
        tensors, meta = load_state(folder)
        if meta["plan"] != self._plan():
            raise CheckpointError(f"{folder} is the checkpoint of another fit: its plan is {meta['plan']}")
        self.generator.set_state(tensors["generator"])
        self._load([tensors[f"parameter.{i}"] for i in range(len(self.parameters))])
        self.average = [tensors[f"average.{i}"] for i in range(len(self.parameters))]
        for i, parameter in enumerate(self.parameters):
            start = f"optimiser.{i}."
            found = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            self.optimiser.state[parameter] = found
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        self.reports = [_report(entry) for entry in meta["reports"]]

    def _plan(self) -> dict[str, Any]:
        plan = asdict(self.settings) | {"frames": list(self.frames.shape), "forces": self.scores is not None}
        return plan | {"parameters": sum(p.numel() for p in self.parameters)}


def _report(entry: dict[str, Any]) -> FitProgress:
    lists = {name: tuple(entry[name]) for name in ("levels", "held_out_by_level")}
    return FitProgress(**{**entry, **lists})
