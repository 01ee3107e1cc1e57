"""Training of an internal-coordinate flow: maximum likelihood, then regression on known energies.

Maximum likelihood on correlated frames overfits long before it is precise. Where the reduced energy u(x) of a frame is
known, log q(x) + u(x) must be one constant; the variance of that number over a batch (Richter et al., "VarGrad",
2020; Midgley et al., FAB, 2023, use relatives of it) is a loss whose gradient has no noise at the
optimum. It may be taken over any law of frames: the data, and fresh draws of the flow itself. A Huber form keeps single
clashes from dominating.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..fkc.weights import effective_sample_size
from .importance import EnergyFunction
from .molecule_flow import InternalCoordinateFlow

__all__ = ["DrawBuffer", "Frames", "Phase", "TrainingProgress", "fit"]


@dataclass(frozen=True)
class Frames:
    """Training data in internal coordinates.

    Attributes:
        y: (n, D) coordinates inside the domains of the flow, float32 is enough.
        reduced_energies: (n,) U/kT of those frames, needed for regression on data.
        log_weights: (n,) weights of the likelihood term; equal if None.
    """

    y: Tensor
    reduced_energies: Tensor | None = None
    log_weights: Tensor | None = None

    def inside(self, flow: InternalCoordinateFlow) -> tuple[Frames, int]:
        """The frames in the domain of ``flow`` and the number of others (another stereoisomer, a swapped label)."""
        kept = flow.coordinates.contains(self.y) & self.y.isfinite().all(-1)
        if bool(kept.all()):
            return self, 0
        energies = None if self.reduced_energies is None else self.reduced_energies[kept]
        weights = None if self.log_weights is None else self.log_weights[kept]
        return Frames(self.y[kept], energies, weights), int((~kept).sum())


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training: a cosine learning rate and the weights of the three terms of the loss.

    Attributes:
        steps: optimiser steps.
        learning_rate: at the top of the cosine, after ``warmup`` steps.
        batch_size: frames a step and term.
        likelihood: factor of -log q over the data.
        data_regression: factor of the regression loss over the data (half the variance for small residuals).
        draw_regression: the same over the flow's own draws; needs an energy.
        huber: residual, in kT, beyond which the regression loss grows linearly.
    """

    steps: int
    learning_rate: float
    batch_size: int = 1024
    warmup: int = 100
    likelihood: float = 1.0
    data_regression: float = 0.0
    draw_regression: float = 0.0
    huber: float = 3.0
    weight_decay: float = 0.0
    clip_norm: float = 5.0


@dataclass(frozen=True, kw_only=True)
class DrawBuffer:
    """How draws of the flow are kept: every ``every`` steps ``draws`` new ones replace the oldest of ``capacity``.

    A draw whose residual log q + u lies more than ``cap`` kT above the median (a clash) has its energy lowered to that
    bound: its density is pushed down by exp(-cap), after which it is worth nothing anyway, and not without end, which
    would drive the parameters away. This shapes the loss only, never a weight.
    """

    capacity: int = 16384
    draws: int = 1024
    every: int = 20
    cap: float = 30.0


@dataclass(frozen=True)
class TrainingProgress:
    """What one evaluation saw. Energies in kT; ``nan`` where something was not measured.

    Attributes:
        step: optimiser steps so far, over all phases.
        train: mean loss since the last report.
        validation: -log q (held-out mean) of the averaged parameters.
        residual: standard deviation of log q + u over held-out frames, 1 % cut at either end.
        data_ess: 1 / (E[e^r] E[e^-r]) over held-out frames, r that residual: an optimistic view of the ESS fraction.
        ess: effective sample size fraction of fresh draws.
        n_nonfinite: draws so far without a finite energy or density.
        best: whether these parameters are the best of the phase so far.
    """

    step: int
    phase: int
    seconds: float
    train: float
    validation: float
    residual: float
    data_ess: float
    ess: float
    n_nonfinite: int
    best: bool


def fit(
    flow: InternalCoordinateFlow,
    frames: Frames,
    *,
    phases: Sequence[Phase],
    seed: int,
    validation: Frames | None = None,
    energy: EnergyFunction | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    draws: DrawBuffer | None = None,
    ema_decay: float = 0.999,
    evaluate_every: int = 250,
    ess_draws: int = 2048,
    checkpoint: Path | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> list[TrainingProgress]:
    """Train ``flow`` in place; it ends with the averaged parameters that were best on held-out frames.

    Args:
        flow: as from :meth:`InternalCoordinateFlow.from_data`.
        frames: training data, all inside the flow's domains (:meth:`Frames.inside`).
        phases: run one after the other, each with a fresh optimiser.
        seed: of batches, augmentation and draws.
        validation: held-out frames of *other* trajectories. Without them the last averaged parameters are kept.
        energy: for regression on fresh draws, and to report the ESS of the flow.
        augment: applied to likelihood batches, such as ``flow.coordinates.relabelled``. Energies must not change.
        draws: bookkeeping of fresh draws.
        ema_decay: of the running average of the parameters.
        evaluate_every: steps between evaluations, reports and checkpoints.
        ess_draws: draws of each ESS report; 0 switches it off.
        checkpoint: folder in which the whole state is kept; a second call goes on from it.
        progress: called with each report.

    Returns:
        The reports of this call.

    Raises:
        ValueError: a term of the loss lacks its data, or frames lie outside the domains.
        FloatingPointError: training diverged; nothing is skipped over.
    """
    for phase in phases:
        _check(phase, frames, energy)
    for name, given in (("training", frames), ("validation", validation)):
        if given is not None and given.inside(flow)[1]:
            raise ValueError(f"{given.inside(flow)[1]} {name} frames lie outside the flow's domains; see Frames.inside")
    run = _Run(flow, frames, validation, energy, augment, draws or DrawBuffer(), seed, ema_decay, ess_draws)
    plan = {"phases": [asdict(p) for p in phases], "seed": seed, "frames": list(frames.y.shape), "ema": ema_decay}
    if checkpoint is not None:
        run.restore(checkpoint, plan)
    reports = []
    while run.phase < len(phases):
        phase = phases[run.phase]
        run.begin(phase)
        while run.step < phase.steps:
            run.advance(phase)
            if run.step % evaluate_every == 0 or run.step == phase.steps:
                report = run.evaluate(phase)
                reports.append(report)
                if progress is not None:
                    progress(report)
                if checkpoint is not None:
                    run.save(checkpoint, plan)
        run.finish_phase()
    if checkpoint is not None:
        run.save(checkpoint, plan)
    return reports


def _check(phase: Phase, frames: Frames, energy: EnergyFunction | None) -> None:
    if phase.data_regression and frames.reduced_energies is None:
        raise ValueError("data_regression needs the reduced energies of the frames")
    if phase.draw_regression and energy is None:
        raise ValueError("draw_regression needs an energy")
    if not (phase.likelihood or phase.data_regression or phase.draw_regression):
        raise ValueError("a phase needs at least one term with a factor above zero")


def regression_loss(residual: Tensor, huber: float) -> Tensor:
    """Huber loss of ``residual`` (B,) about its own Huber location: half the variance while residuals are small."""
    centre = residual.detach().median()
    for _ in range(5):
        centre = centre + (residual.detach() - centre).clamp(-huber, huber).mean()
    return functional.huber_loss(residual, centre.expand_as(residual), delta=huber)


class _Run:
    """The state of a training run, and its step."""

    def __init__(
        self,
        flow: InternalCoordinateFlow,
        frames: Frames,
        validation: Frames | None,
        energy: EnergyFunction | None,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None,
        draws: DrawBuffer,
        seed: int,
        ema_decay: float,
        ess_draws: int,
    ) -> None:
        self.flow, self.frames, self.validation, self.energy = flow, frames, validation, energy
        self.augment, self.draws, self.ema_decay, self.ess_draws = augment, draws, ema_decay, ess_draws
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.names = [name for name, _ in flow.named_parameters()]
        self.parameters = [parameter for _, parameter in flow.named_parameters()]
        self.average = [p.detach().clone() for p in self.parameters]
        self.best = [p.clone() for p in self.average]
        self.best_value = math.inf
        self.phase, self.step, self.done = 0, 0, 0
        self.loss_sum, self.loss_count, self.n_nonfinite, self.seconds = 0.0, 0, 0, 0.0
        dtype = frames.y.dtype
        self.buffer_y = torch.empty(0, flow.coordinates.dimension, dtype=dtype)
        self.buffer_u = torch.empty(0, dtype=dtype)
        weights = frames.log_weights
        self.probabilities = None if weights is None else weights.double().softmax(-1).cumsum(-1)
        self.optimiser: torch.optim.Optimizer | None = None

    def begin(self, phase: Phase) -> None:
        """Start a phase with a fresh optimiser, unless the phase was restored half-way."""
        if self.optimiser is None:
            self.optimiser = self._new_optimiser(phase)
            self.best_value = math.inf

    def _new_optimiser(self, phase: Phase) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters, lr=phase.learning_rate, betas=(0.9, 0.99), weight_decay=phase.weight_decay, fused=True
        )

    def advance(self, phase: Phase) -> None:
        """One optimiser step."""
        assert self.optimiser is not None
        started = time.perf_counter()
        loss = self._loss(phase)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, phase.clip_norm)
        if not bool(norm.isfinite()):
            raise FloatingPointError(f"the gradient is not finite at step {self.done} (loss {loss.item():.4g})")
        for group in self.optimiser.param_groups:
            group["lr"] = phase.learning_rate * _schedule(self.step, phase)
        self.optimiser.step()
        self.step += 1
        self.done += 1
        decay = min(self.ema_decay, (1.0 + self.done) / (10.0 + self.done))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1.0 - decay)
        self.loss_sum, self.loss_count = self.loss_sum + loss.item(), self.loss_count + 1
        self.seconds += time.perf_counter() - started

    def _loss(self, phase: Phase) -> Tensor:
        loss = torch.zeros(())
        if phase.likelihood or phase.data_regression:
            index = self._batch(phase.batch_size)
            y = self.frames.y[index]
            if self.augment is not None:
                y = self.augment(y, self.generator)
            log_q = self.flow.density.log_prob(y)
            if phase.likelihood:
                loss = loss - phase.likelihood * log_q.mean()
            if phase.data_regression and self.frames.reduced_energies is not None:
                residual = self._residual(log_q, y, self.frames.reduced_energies[index])
                loss = loss + phase.data_regression * regression_loss(residual, phase.huber)
        if phase.draw_regression:
            if self.step % self.draws.every == 0 or len(self.buffer_u) == 0:
                self._refill()
            index = torch.randint(len(self.buffer_u), (phase.batch_size,), generator=self.generator)
            y = self.buffer_y[index]
            residual = self._residual(self.flow.density.log_prob(y), y, self.buffer_u[index])
            loss = loss + phase.draw_regression * regression_loss(residual, phase.huber)
        return loss

    def _batch(self, size: int) -> Tensor:
        if self.probabilities is None:
            return torch.randint(len(self.frames.y), (size,), generator=self.generator)
        uniform = torch.rand(size, generator=self.generator, dtype=torch.float64)
        return torch.searchsorted(self.probabilities, uniform).clamp(max=len(self.frames.y) - 1)

    def _residual(self, log_q: Tensor, y: Tensor, reduced_energy: Tensor) -> Tensor:
        """log q(x) + u(x), from the density over internal coordinates."""
        return log_q + self.flow.coordinates.log_jacobian(y) + reduced_energy

    @torch.no_grad()
    def _refill(self) -> None:
        """Draw from the current parameters and keep the newest ``capacity`` draws.

        A draw without a finite energy counts like a clash: leaving it out would let the flow put mass there unpunished.
        """
        y, u = self._draw(self.draws.draws, self.generator)
        y, u = y.to(self.buffer_y.dtype), u.to(self.buffer_u.dtype)
        log_q = self._residual(self.flow.density.log_prob(y), y, torch.zeros_like(u))
        residual = log_q + u
        self.n_nonfinite += int((~residual.isfinite()).sum())
        if not bool(residual.isfinite().any()):
            if len(self.buffer_u) == 0:
                raise ValueError("no draw of the flow has a finite energy: train by likelihood first")
            return
        u = torch.minimum(u.nan_to_num(nan=torch.inf), residual[residual.isfinite()].median() + self.draws.cap - log_q)
        kept = log_q.isfinite()
        self.buffer_y = torch.cat([self.buffer_y, y[kept]])[-self.draws.capacity :]
        self.buffer_u = torch.cat([self.buffer_u, u[kept]])[-self.draws.capacity :]

    def _draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert self.energy is not None
        y = self.flow.density.sample(n, generator=generator)
        x, _ = self.flow.coordinates.inverse(y)
        u = self.energy(x.to(self.flow.dtype)).detach().double() / self.energy.kT
        return y, torch.where(u.isnan(), torch.inf, u)

    @torch.no_grad()
    def evaluate(self, phase: Phase) -> TrainingProgress:
        """Judge the averaged parameters on held-out frames and, with an energy, on fresh draws."""
        live = [p.detach().clone() for p in self.parameters]
        self._load(self.average)
        nll = residual_sd = data_ess = ess = math.nan
        objective = -math.inf
        if self.validation is not None:
            y = self.validation.y
            log_q = self.flow.log_prob_internal(y)
            nll = -log_q.double().mean().item()
            objective = phase.likelihood * nll
            if self.validation.reduced_energies is not None:
                residual = self._residual(log_q, y, self.validation.reduced_energies).double()
                residual_sd, data_ess = _spread(residual), _data_ess(residual)
                factor = phase.data_regression + phase.draw_regression
                objective += factor * regression_loss(residual, phase.huber).item()
        if self.energy is not None and self.ess_draws:
            ess = self._ess()
        best = objective < self.best_value or self.validation is None
        if best:
            self.best_value, self.best = objective, [p.clone() for p in self.average]
        self._load(live)
        train = self.loss_sum / max(1, self.loss_count)
        self.loss_sum, self.loss_count = 0.0, 0
        return TrainingProgress(
            self.done, self.phase, self.seconds, train, nll, residual_sd, data_ess, ess, self.n_nonfinite, best
        )

    def _ess(self) -> float:
        y, u = self._draw(self.ess_draws, torch.Generator().manual_seed(self.seed + 1))
        log_weights = -self._residual(self.flow.log_prob_internal(y), y, u)
        log_weights = torch.where(log_weights.isfinite(), log_weights, -torch.inf)
        return effective_sample_size(log_weights).item() / self.ess_draws

    def finish_phase(self) -> None:
        """Go on, or end, with the best averaged parameters of the phase."""
        self._load(self.best)
        self.average = [p.clone() for p in self.best]
        self.phase, self.step, self.optimiser = self.phase + 1, 0, None

    @torch.no_grad()
    def _load(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def save(self, folder: Path, plan: dict[str, Any]) -> None:
        """Write the whole state: parameters, averages, optimiser moments, generator, buffer."""
        from ..fkc.checkpoint import save_state

        tensors = {"generator": self.generator.get_state(), "buffer_y": self.buffer_y, "buffer_u": self.buffer_u}
        for name, live, mean, best in zip(self.names, self.parameters, self.average, self.best, strict=True):
            tensors |= {f"live/{name}": live.detach(), f"average/{name}": mean, f"best/{name}": best}
        if self.optimiser is not None:
            for name, parameter in zip(self.names, self.parameters, strict=True):
                for key, value in self.optimiser.state[parameter].items():
                    tensors[f"optimiser/{name}/{key}"] = value
        counters = {
            key: getattr(self, key) for key in ("phase", "step", "done", "best_value", "n_nonfinite", "seconds")
        }
        save_state(folder, tensors, {"plan": plan, "counters": counters})

    def restore(self, folder: Path, plan: dict[str, Any]) -> None:
        """Load the state written by :meth:`save`, if there is one."""
        from ..fkc.checkpoint import exists, load_state

        if not exists(folder):
            return
        tensors, meta = load_state(folder)
        for key, value in plan.items():
            if meta["plan"].get(key) != value:
                raise ValueError(f"{folder} holds a training run with another {key!r}: {meta['plan'].get(key)!r}")
        for key, value in meta["counters"].items():
            setattr(self, key, value)
        self.generator.set_state(tensors["generator"])
        self.buffer_y, self.buffer_u = tensors["buffer_y"], tensors["buffer_u"]
        self._load([tensors[f"live/{name}"] for name in self.names])
        self.average = [tensors[f"average/{name}"] for name in self.names]
        self.best = [tensors[f"best/{name}"] for name in self.names]
        if self.phase < len(plan["phases"]) and f"optimiser/{self.names[0]}/step" in tensors:
            self.optimiser = self._new_optimiser(Phase(**plan["phases"][self.phase]))
            for name, parameter in zip(self.names, self.parameters, strict=True):
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.optimiser.state[parameter] = {key: tensors[f"optimiser/{name}/{key}"] for key in keys}


def _schedule(step: int, phase: Phase) -> float:
    warm = min(1.0, (step + 1) / max(1, phase.warmup))
    return warm * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / phase.steps)))


def _spread(residual: Tensor) -> float:
    low, high = residual.quantile(torch.tensor([0.01, 0.99], dtype=residual.dtype))
    return residual[(residual >= low) & (residual <= high)].std(correction=0).item()


def _data_ess(residual: Tensor) -> float:
    n = math.log(len(residual))
    centred = residual - residual.median()
    return math.exp(-(centred.logsumexp(0) + (-centred).logsumexp(0) - 2 * n).item())
