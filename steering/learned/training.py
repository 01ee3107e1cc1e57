"""The state of a regression: one step, one evaluation, saved and restored to the bit."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...fkc.checkpoint import exists, load_state, save_state
from .rollouts import Rollouts

__all__ = ["FitProgress", "FitRun", "Fitting"]

_JUDGED = 20_000
"""Held-out pairs at an evaluation; more cost time and tell no more."""

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Size of the network and length of the training.

    Attributes:
        steps: of the optimiser (AdamW, linear warm-up, half a cosine).
        learning_rate: at the top.
        batch_size: pairs a step.
        held_out: share of the trajectories that judge.
        evaluate_every: steps between evaluations, each of which may become the best checkpoint.
        warmup: steps.
        weight_decay: of AdamW.
        ema_decay: of the averaged parameters, which are the ones judged and kept.
        clip: a gradient longer than this many times the running mean of its length is shortened to that. A gradient
            that is clipped often biases "exp" low, since it is the rare high rewards that are clipped.
        width: of the layers.
        blocks: residual blocks.
    """

    steps: int = 2000
    learning_rate: float = 2e-3
    batch_size: int = 256
    held_out: float = 0.1
    evaluate_every: int = 100
    warmup: int = 100
    weight_decay: float = 1e-4
    ema_decay: float = 0.99
    clip: float = 10.0
    width: int = 64
    blocks: int = 2

    def __post_init__(self) -> None:
        whole = (self.steps, self.batch_size, self.evaluate_every, self.width, self.blocks)
        if min(whole) < 1 or self.warmup < 0:
            raise ValueError(f"steps, batch_size, evaluate_every, width, blocks: got {whole}, expected at least 1 each")
        if not (0.0 < self.held_out < 1.0 and 0.0 <= self.ema_decay < 1.0):
            raise ValueError(
                f"held_out, ema_decay: got {self.held_out}, {self.ema_decay}; expected fractions below one"
            )
        if not (self.learning_rate > 0.0 and self.clip > 0.0 and self.weight_decay >= 0.0):
            raise ValueError(
                f"learning_rate, clip, weight_decay: got {self.learning_rate}, {self.clip}, {self.weight_decay}; "
                "expected positive numbers"
            )

    def rate(self, step: int) -> float:
        """Learning rate at ``step``."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return self.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / self.steps)))


@dataclass(frozen=True)
class FitProgress:
    """One evaluation.

    Attributes:
        step: optimiser steps so far.
        train: mean loss since the last evaluation.
        held_out: loss of the averaged parameters on held-out trajectories.
        best: whether these parameters are the best so far.
    """

    step: int
    train: float
    held_out: float
    best: bool


class FitRun:
    """A regression under way.

    Args:
        network: (states, levels, clean) -> values; trained in place.
        training: rollouts to learn from.
        held_out: rollouts that judge.
        objective: (values (B,), rewards (B,)) -> mean loss.
        fitting: settings.
        seed: of the batches.
    """

    def __init__(
        self,
        network: nn.Module,
        training: Rollouts,
        held_out: Rollouts,
        objective: Callable[[Tensor, Tensor], Tensor],
        fitting: Fitting,
        seed: int,
    ) -> None:
        self.network, self.training, self.held_out = network.train(), training, held_out
        self.objective, self.fitting = objective, fitting
        self.generator = torch.Generator().manual_seed(seed)
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = [parameter for _, parameter in network.named_parameters()]
        self.average = [p.detach().clone() for p in self.parameters]
        self.best = [p.clone() for p in self.average]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=fitting.learning_rate, betas=(0.9, 0.99), weight_decay=fitting.weight_decay
        )
        self.step, self.norm, self.loss_sum, self.loss_count = 0, 0.0, 0.0, 0
        self.history: list[FitProgress] = []

    def advance(self) -> None:
        """One step of the optimiser.

        Raises:
            FloatingPointError: the gradient is not finite.
        """
        pairs = len(self.training) * len(self.training.moves)
        index = torch.randint(pairs, (self.fitting.batch_size,), generator=self.generator)
        loss = self._loss(self.training, index)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        bound = self.fitting.clip * self.norm if self.step else math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, bound))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {self.step} (loss {loss.item():.4g})")
        norm = min(norm, bound)
        self.norm = norm if self.step == 0 else 0.98 * self.norm + 0.02 * norm
        for group in self.optimiser.param_groups:
            group["lr"] = self.fitting.rate(self.step)
        self.optimiser.step()
        self.step += 1
        decay = min(self.fitting.ema_decay, (1.0 + self.step) / (10.0 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)
        self.loss_sum, self.loss_count = self.loss_sum + loss.item(), self.loss_count + 1

    def _loss(self, rollouts: Rollouts, index: Tensor) -> Tensor:
        states, levels, clean, rewards = rollouts.pick(index)
        device = self.parameters[0].device
        values = self.network(states.to(device), levels.to(device), None if clean is None else clean.to(device))
        return self.objective(values, rewards.to(device, values.dtype))

    @torch.no_grad()
    def evaluate(self) -> None:
        """Judge the averaged parameters on the held-out trajectories; keep them if they are the best so far."""
        pairs = len(self.held_out) * len(self.held_out.moves)
        # spread over all trajectories and, since the spacing is no whole number, over all levels
        index = torch.arange(pairs) if pairs <= _JUDGED else torch.linspace(0, pairs - 1, _JUDGED).long()
        with self._averaged():
            parts = [(len(rows), self._loss(self.held_out, rows).item()) for rows in torch.split(index, 2048)]
        held_out = sum(count * loss for count, loss in parts) / len(index)
        best = held_out < min((entry.held_out for entry in self.history), default=math.inf)
        if best:
            self.best = [p.clone() for p in self.average]
        self.history.append(FitProgress(self.step, self.loss_sum / max(1, self.loss_count), held_out, best))
        self.loss_sum, self.loss_count = 0.0, 0

    def finish(self) -> None:
        """The network has the best averaged parameters, and is in evaluation mode."""
        self._load(self.best)
        self.network.eval()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        live = [p.detach().clone() for p in self.parameters]
        self._load(self.average)
        try:
            yield
        finally:
            self._load(live)

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    # --- on disk -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path, plan: dict[str, Any]) -> None:
        """Write the whole state."""
        tensors = {"generator": self.generator.get_state()}
        for name, live, mean, best in zip(self.names, self.parameters, self.average, self.best, strict=True):
            tensors |= {f"live/{name}": live.detach(), f"average/{name}": mean, f"best/{name}": best}
            tensors |= {f"{key}/{name}": value for key, value in self.optimiser.state[live].items()}
        history = [asdict(entry) for entry in self.history]
        save_state(folder, tensors, {"plan": plan, "step": self.step, "norm": self.norm, "history": history})

    def restore(self, folder: Path, plan: dict[str, Any]) -> None:
        """Load what :meth:`save` wrote, if there is something.

        Raises:
            ValueError: it is of another fit.
            CheckpointError: it is damaged.
        """
        if not exists(folder):
            return
        tensors, meta = load_state(folder)
        for key, value in plan.items():
            if meta["plan"].get(key) != value:
                raise ValueError(f"{folder} holds a fit with another {key}: {meta['plan'].get(key)!r}, not {value!r}")
        self.step, self.norm = meta["step"], meta["norm"]
        self.history = [FitProgress(**entry) for entry in meta["history"]]
        self.generator.set_state(tensors["generator"])
        device = self.parameters[0].device
        self._load([tensors[f"live/{name}"] for name in self.names])
        self.average = [tensors[f"average/{name}"].to(device) for name in self.names]
        self.best = [tensors[f"best/{name}"].to(device) for name in self.names]
        for name, parameter in zip(self.names, self.parameters, strict=True):
            moments = {key: tensors[f"{key}/{name}"] for key in _MOMENTS}
            self.optimiser.state[parameter] = {k: v if k == "step" else v.to(device) for k, v in moments.items()}
