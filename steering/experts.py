"""A pipeline with its prompt as an expert: what its denoisers say, asked at any noise level.

The pipeline is called once, up to the first step of its scheduler; the denoisers' calls made for that step are kept
with their conditioning, and run again with other states and times. Guidance is part of the expert: the branches are
summed as the pipeline summed them.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..fkc.experts import Expert
from .asking import batched_call, populations_of, start_generators
from .denoiser import DenoiserTap
from .denoiser.branches import Fit, cut_blocks, fit_branches
from .denoiser.gradient import Recorded, first_tensor, hidden_with
from .errors import SteeringError
from .hook import listening
from .predictions import clean_prediction, upcast
from .schedulers import Level, rule_for
from .schedulers.paths import NoiseTable, noise_table

__all__ = ["expert_of"]

_TIMES = ("timestep", "timesteps", "t", "sigma")
"""Arguments of denoisers that say when."""


def expert_of(
    pipe: Any, *, rows: int = 1, mean: float | Tensor = 0.0, std: float = 1.0, seed: int = 0, **call: Any
) -> Expert:
    """The law that a pipeline samples when called with ``call``, as an expert in its latent space.

    expert = expert_of(other, prompt="a dog", rows=8)
    with attach(pipe, Product(expert), particles=8, seed=0, transition="stochastic") as run: ...

    Args:
        pipe: a diffusers pipeline; it is called once, up to its first step, and not changed.
        rows: samples evaluated at a time.
        mean: of its clean latents, a guess.
        std: of its clean latents, a guess.
        seed: of the noise of the one call, which does not matter.
        call: arguments of the pipeline for one prompt.

    Returns:
        An expert that predicts the clean latents, differentiable in them. It works inside a block that is attached to
        the same pipeline, too.

    Raises:
        SteeringError: the scheduler or the denoiser is not known, guidance is not linear, several prompts, or a model
            whose prediction is not a posterior mean.
    """
    if rows < 1:
        raise ValueError(f"rows: got {rows}, expected at least 1")
    if populations_of(call) != 1:
        raise SteeringError("expert_of: got several prompts, expected one; make an expert of each")
    rule = rule_for(pipe.scheduler)
    if not rule.posterior_mean or rule.clean is not None:
        raise SteeringError(f"{type(pipe.scheduler).__name__}: its model predicts no posterior mean of latents")
    captured = _capture(pipe, rows, seed, call)
    table = noise_table(pipe.scheduler)
    model = _Model(captured, table, rule.prediction(pipe.scheduler), rule.family in ("ve", "edm"))
    return Expert(model, table.diffusion(), "denoised", mean=mean, std=std, shape=tuple(captured.sample.shape[1:]))


@dataclass(frozen=True, eq=False)
class _Captured:
    """The denoisers' calls of one step.

    Attributes:
        records: of the calls.
        fit: how their outputs make the model output.
        sample: (rows, ...) what the scheduler was given.
        timestep: what the scheduler was told.
    """

    records: tuple[Recorded, ...]
    fit: Fit
    sample: Tensor
    timestep: float


class _Stop(Exception):
    """The first step was reached."""


class _Listener:
    """Stops a pipeline at its first step."""

    def __init__(self, tap: DenoiserTap) -> None:
        self.tap = tap
        self.captured: _Captured | None = None

    def on_run(self, scheduler: Any) -> None:
        """Nothing."""

    def on_step(self, scheduler: Any, base_step: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        """Keep what was said."""
        records = self.tap.records
        arguments = bound.arguments
        fit = fit_branches([record.output for record in records], arguments["model_output"])
        timestep = float(torch.as_tensor(arguments["timestep"]).flatten()[0])
        self.captured = _Captured(records, fit, arguments["sample"].detach().clone(), timestep)
        raise _Stop


def _capture(pipe: Any, rows: int, seed: int, call: dict[str, Any]) -> _Captured:
    tap = DenoiserTap(pipe, record=True)
    listener = _Listener(tap)
    generators = start_generators(pipe, rows, 1, seed)
    given = call if generators is None or "generator" in call else {**call, "generator": generators}
    bar = dict(getattr(pipe, "_progress_bar_config", {}))
    with listening(pipe.scheduler, listener), tap.attached(), torch.no_grad():
        try:
            pipe.set_progress_bar_config(**{**bar, "disable": True})
            pipe(**batched_call(pipe, rows, 1, given))
        except _Stop:
            pass
        finally:
            pipe.set_progress_bar_config(**bar)
    if listener.captured is None:
        raise SteeringError(f"{type(pipe).__name__} made no step")
    return listener.captured


class _Model:
    """(x (B, *event), t (B,)) -> clean predictions (B, *event), ``rows`` at a time."""

    def __init__(self, captured: _Captured, table: NoiseTable, prediction: str, exploding: bool) -> None:
        self.captured, self.table, self.prediction, self.exploding = captured, table, prediction, exploding

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """All rows are asked at the time of the first."""
        level, timestep, scale = self.table.at(float(t[0]))
        rows = len(self.captured.sample) // self.captured.fit.tiles
        parts = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):  # parameters may ask for gradients
            for part in torch.split(x.to(self.captured.sample.device), rows):
                padded = (
                    part
                    if len(part) == rows
                    else torch.cat([part, part[-1:].expand(rows - len(part), *part.shape[1:])])
                )
                parts.append(self._piece(padded, level, timestep, scale)[: len(part)])
            return torch.cat(parts).to(x.device)

    def _piece(self, x: Tensor, level: Level, timestep: float, scale: float) -> Tensor:
        captured = self.captured
        outputs = []
        for record in captured.records:
            name, hidden = record.call.hidden()
            call = record.call.replaced(name, hidden_with(scale * x, hidden))
            told = partial(_at, factor=timestep / captured.timestep)
            outputs.append(first_tensor(record.again(call.mapped(told))))
        blocks = cut_blocks(outputs, len(x), captured.sample[: len(x)])
        if blocks is None:
            raise SteeringError("the denoiser answered the same call with another shape")
        output = upcast(captured.fit.combined(blocks)[: len(x)]).to(x.dtype)
        return clean_prediction(x, output, level, self.prediction, exploding=self.exploding)


def _at(name: str, value: Tensor, factor: float) -> Tensor:
    """The time that the denoiser was told, in its own unit, at another timestep; between two whole numbers it is told
    a fraction, as schedulers with sigmas of their own do."""
    if name not in _TIMES:
        return value
    changed = value.double() * factor
    if value.is_floating_point():
        return changed.to(value.dtype)
    whole = changed.round()
    return whole.to(value.dtype) if bool(((changed - whole).abs() < 1e-6).all()) else changed.float()
