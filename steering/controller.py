"""The controller: one step of weighting, choosing, resampling and moving, in the scheduler's place.

Order in a step: read x0-hat, weigh, choose among candidates, resample, move. In that order the children drawn by one
move are judged by the pipeline's own denoiser call of the next, and nothing is evaluated twice.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..fkc import Population, Streams
from ..fkc.streams import uniform
from .context import StepContext
from .controls import Control, Memory
from .errors import DeterministicStep, SteeringError
from .gather import gather_arguments, gather_caches, gather_history, gather_output
from .kernel import gaussian_step
from .layout import Layout
from .predictions import clean_prediction
from .run import Run, StepRecord
from .schedulers import Level, SchedulerRule, rule_for, step_position

__all__ = ["Controller", "Settings"]

Final = Literal["weighted", "resampled", "best"]
Transition = Literal["native", "stochastic"]


@dataclass(frozen=True)
class Settings:
    """How a run is steered; see :func:`feynkac.steering.attach`."""

    particles: int
    populations: int | None
    ess_threshold: float
    resampler: str
    seed: int
    final: Final
    transition: Transition
    eta: float
    exact: bool


class Controller:
    """Listens to one scheduler (and to copies of it) during one attachment."""

    def __init__(
        self, controls: Sequence[Control], settings: Settings, run: Run, decode: Callable[[Tensor], Any], tiles: int = 1
    ) -> None:
        self.controls, self.settings, self.run, self.decode = tuple(controls), settings, run, decode
        self.tiles = tiles
        self.candidates = max([c.candidates for c in controls] + [1])
        self.denoisers: list[nn.Module] = []
        self._primary: Any = None
        self._reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Controller":
        return self

    def _reset(self) -> None:
        self.layout: Layout | None = None
        self.levels: tuple[Level, ...] = ()
        self.first = 0
        self.position = -1
        self.rows: Tensor | None = None
        self.memory: list[Memory] = []
        self.applied: list[Tensor] = []
        self.streams: Streams | None = None

    def on_run(self, scheduler: Any) -> None:
        """A run begins: forget the one before."""
        if self._primary is None or scheduler is self._primary:
            self._primary = scheduler
            self._reset()

    def on_step(self, scheduler: Any, base_step: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        """Weigh, choose, resample, then let the base (or the stochastic kernel) move."""
        if scheduler is not self._primary and self._primary is not None:
            return self._follow(scheduler, base_step, bound)
        self._primary = scheduler
        rule = rule_for(scheduler)
        arguments = {k: v for k, v in bound.arguments.items() if k != "self"}
        if self.layout is None:
            self._start(scheduler, rule, arguments)
        place = step_position(scheduler, arguments["timestep"])
        if not place.first:  # the second evaluation of a two-stage solver: same move, same particles
            self.run.calls.denoiser += len(arguments["sample"])
            return self._native(scheduler, base_step, bound, arguments)
        self.position = place.move - self.first
        context = self._context(scheduler, rule, arguments)
        self.run.calls.denoiser += len(arguments["sample"])
        self.rows = self._weigh_and_choose(context)
        if self.rows is not None:
            arguments = self._gather(scheduler, arguments, self.rows)
        output = self._move(scheduler, base_step, bound, arguments, rule)
        if self.position == len(self.levels) - 2:
            output = self._finish(output)
        return output

    # --- beginning -------------------------------------------------------------------------------------------------

    def _start(self, scheduler: Any, rule: SchedulerRule, arguments: dict[str, Any]) -> None:
        s = self.settings
        rows = len(arguments["sample"])
        self.layout = Layout.of_batch(
            rows, populations=s.populations, particles=s.particles, candidates=self.candidates, tiles=self.tiles
        )
        self.first = step_position(scheduler, arguments["timestep"]).move  # image-to-image begins in the middle
        self.levels = rule.levels(scheduler)[self.first :]
        if s.transition == "stochastic" and self.controls and (rule.stages > 1 or not rule.posterior_mean):
            raise SteeringError(
                f"{type(scheduler).__name__}: the stochastic step needs one evaluation a move and a clean prediction "
                'that is a posterior mean; use transition="native" or another scheduler'
            )
        if rule.clips(scheduler):
            note = (
                f"{type(scheduler).__name__} clips its clean prediction: the law steered is that of the clipped sampler"
            )
            if s.exact:
                raise SteeringError(
                    note + "; exact=True refuses it: set clip_sample and thresholding to False in its config"
                )
            self._note(note, biased=False)
        moves_alone = s.transition == "native" and not rule.stochastic(scheduler, arguments)
        if self.controls and s.particles * self.candidates > 1 and moves_alone:
            raise DeterministicStep(
                f"{type(scheduler).__name__} adds no noise in this setting, so copies of a particle would stay copies. "
                'Use transition="stochastic" (a step that keeps the marginals), a stochastic scheduler, or eta > 0'
            )
        self.streams = Streams.from_seed(s.seed, self.layout.populations)
        self.run.population = Population.uniform(self.layout.populations, s.particles)
        self.run.records.clear()
        self.memory = [c.begin(self.layout.rows) for c in self.controls]
        self.applied = [torch.zeros(self.layout.rows, dtype=torch.float64) for _ in self.controls]

    def _note(self, text: str, *, biased: bool) -> None:
        if text not in self.run.notes:
            self.run.notes.append(text)
        if biased:
            self.run.exact = False

    # --- weights ---------------------------------------------------------------------------------------------------

    def _context(self, scheduler: Any, rule: SchedulerRule, arguments: dict[str, Any]) -> StepContext:
        layout = self._layout()
        sample, output = arguments["sample"], arguments["model_output"]
        if (
            output.ndim == sample.ndim
            and output.shape[1:2] != sample.shape[1:2]
            and output.shape[1] == 2 * sample.shape[1]
        ):
            output = output.split(sample.shape[1], dim=1)[0]  # the learned-variance half is no prediction
        return StepContext(
            index=self.position,
            n_moves=len(self.levels) - 1,
            timestep=arguments["timestep"],
            level=self.levels[self.position],
            following=self.levels[self.position + 1],
            sample=sample[: layout.rows],
            output=output[: layout.rows],
            prediction=rule.prediction(scheduler),
            exploding=rule.family in ("ve", "edm"),
            layout=(layout.populations, layout.particles, layout.candidates),
            decode=self._decode,
        )

    def _weigh_and_choose(self, context: StepContext) -> Tensor | None:
        """Row indices to move on from, or None if nothing changes places."""
        potential = torch.zeros(self._layout().rows, dtype=torch.float64)
        scored = False
        for i, control in enumerate(self.controls):
            weighed = control.weigh(context, self.memory[i])
            if weighed is not None:
                scored = True
                self.memory[i] = weighed.memory
                self.applied[i] = self.applied[i] + weighed.log_potential
                potential = potential + weighed.log_potential
        if not scored:
            self._record(None, None)
            return None
        return self._select(potential)

    def _select(self, potential: Tensor) -> Tensor | None:
        """Choose one candidate a particle, reweight, resample; the rows that go on."""
        layout = self._layout()
        child, increment = self._choose(layout.grouped(potential))
        population = self._population().reweighted(increment, on_collapse="keep")
        self.run.population = population
        resampled, ancestors = population.resampled(
            self._streams().resampling, scheme=self.settings.resampler, threshold=self.settings.ess_threshold
        )
        self._record(ancestors, increment)
        self.run.population = resampled
        if ancestors is None and layout.candidates == 1:
            return None
        if ancestors is None:
            ancestors = torch.arange(layout.particles).expand(layout.populations, -1)
        rows = layout.rows_of(ancestors, child)
        self.memory = [{name: value[rows] for name, value in memory.items()} for memory in self.memory]
        self.applied = [value[rows] for value in self.applied]
        return rows

    def _choose(self, potential: Tensor) -> tuple[Tensor, Tensor]:
        """One of M candidates a particle in proportion to exp(potential) (P, K, M), and the particle's log-weight
        increment."""
        layout = self._layout()
        if layout.candidates == 1:
            return torch.zeros(potential.shape[:2], dtype=torch.int64), potential[:, :, 0]
        if any(getattr(c, "greedy", False) for c in self.controls):
            self._note(
                "temperature 0 keeps the best candidate: outputs are not weighted draws of a target", biased=True
            )
            return potential.argmax(dim=2), torch.zeros(potential.shape[:2], dtype=torch.float64)
        increment = potential.logsumexp(dim=2) - torch.log(torch.tensor(float(layout.candidates), dtype=torch.float64))
        shares = torch.nan_to_num((potential - potential.logsumexp(dim=2, keepdim=True)).exp()).cumsum(dim=2)
        draw = uniform(self._streams().resampling, (layout.particles,))[:, :, None] * shares[:, :, -1:]
        return (shares <= draw).sum(dim=2).clamp(max=layout.candidates - 1), increment

    def _record(self, ancestors: Tensor | None, increment: Tensor | None) -> None:
        population = self._population()
        self.run.records.append(
            StepRecord(self.position, population.ess, population.log_evidence, ancestors, increment)
        )

    # --- moving ----------------------------------------------------------------------------------------------------

    def _gather(self, scheduler: Any, arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        tiled = self._layout().tiled(rows)
        gather_history(scheduler, tiled, arguments["sample"].ndim)
        gather_caches(self.denoisers, tiled)
        return gather_arguments(arguments, tiled)

    def _follow(self, scheduler: Any, base_step: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        """A second stream (audio beside video): the primary's ancestors of this step, then its own move."""
        arguments = {k: v for k, v in bound.arguments.items() if k != "self"}
        if self.rows is not None:
            arguments = self._gather(scheduler, arguments, self.rows)
        return self._native(scheduler, base_step, bound, arguments)

    def _native(
        self, scheduler: Any, base_step: Callable[..., Any], bound: inspect.BoundArguments, arguments: dict[str, Any]
    ) -> Any:
        call = inspect.BoundArguments(bound.signature, bound.arguments.copy())
        call.arguments.update(arguments)
        return base_step(*call.args, **call.kwargs)

    def _move(
        self,
        scheduler: Any,
        base_step: Callable[..., Any],
        bound: inspect.BoundArguments,
        arguments: dict[str, Any],
        rule: SchedulerRule,
    ) -> Any:
        if self.settings.transition == "native" or not self.controls:
            return self._native(scheduler, base_step, bound, self._with_generators(bound, arguments))
        generator = arguments.get("generator")
        aside = {**arguments}
        if "generator" in bound.signature.parameters:
            aside["generator"] = torch.Generator().manual_seed(
                0
            )  # the base only advances its counters; its noise is unused
        output = self._native(scheduler, base_step, bound, aside)
        level, following = self.levels[self.position], self.levels[self.position + 1]
        sample = arguments["sample"]
        clean = clean_prediction(
            sample, arguments["model_output"], level, rule.prediction(scheduler), exploding=rule.family in ("ve", "edm")
        )
        noise = (sample.to(clean.dtype) - level.alpha * clean) / level.sigma
        step = gaussian_step(clean, noise, level, following, self.settings.eta)
        moved = step.mean
        if step.std > 0.0:
            moved = moved + step.std * self._noise(moved, generator)
        return _with_previous(output, moved)

    def _noise(self, like: Tensor, generator: Any) -> Tensor:
        from diffusers.utils.torch_utils import randn_tensor

        generators = generator if generator is not None else self._row_generators(len(like))
        noise: Tensor = randn_tensor(like.shape, generator=generators, device=like.device, dtype=like.dtype)
        return noise

    def _with_generators(self, bound: inspect.BoundArguments, arguments: dict[str, Any]) -> dict[str, Any]:
        """Hand the rows' own generators to a step that takes one where the pipeline passed none."""
        takes = "generator" in bound.signature.parameters
        if not takes or arguments.get("generator") is not None or not self.controls:
            return arguments
        return {**arguments, "generator": self._row_generators(len(arguments["sample"]))}

    def _row_generators(self, rows: int) -> list[torch.Generator]:
        """A generator for every row: that of its population, so that a population's noise is its own."""
        per = rows // self._layout().populations
        return [g for g in self._streams().noise for _ in range(per)]

    # --- the end ---------------------------------------------------------------------------------------------------

    def _finish(self, output: Any) -> Any:
        """The last correction: exactly exp(log_target) in the end, whatever was applied on the way."""
        layout = self._layout()
        final = _previous(output)[: layout.rows]
        if self.controls:
            targets = [c.log_target(final, self._decode) for c in self.controls]
            total = torch.stack(targets).sum(dim=0)
            correction = torch.stack(
                [torch.where(t > -torch.inf, t - a, -torch.inf) for t, a in zip(targets, self.applied, strict=True)]
            ).sum(dim=0)
            child, increment = self._choose(layout.grouped(correction))
            self.run.population = self._population().reweighted(increment, on_collapse="keep")
            identity = torch.arange(layout.particles).expand(layout.populations, -1)
            ancestors, self.run.population = self._final_ancestors(total, child, identity)
            rows = layout.rows_of(ancestors, child)[:: layout.candidates]
            self.run.rewards = total[rows].reshape(layout.populations, layout.particles)
            tiled = torch.cat([rows + tile * layout.rows for tile in range(layout.tiles)])
            output = gather_output(output, tiled, final.ndim, layout.rows * layout.tiles)
            final = final.index_select(0, rows.to(final.device))
        self.run._samples = final.detach().clone()
        return output

    def _final_ancestors(self, total: Tensor, child: Tensor, identity: Tensor) -> tuple[Tensor, Population]:
        population = self._population()
        if self.settings.final == "weighted":
            return identity, population
        if self.settings.final == "resampled":
            resampled, ancestors = population.resampled(
                self._streams().resampling, scheme=self.settings.resampler, threshold=1.1
            )
            return (identity if ancestors is None else ancestors), resampled
        self._note('final="best" returns the best sample for every particle: not a weighted draw', biased=True)
        chosen = self._layout().grouped(total).gather(2, child[:, :, None])[:, :, 0]
        best = chosen.argmax(dim=1, keepdim=True).expand_as(identity)
        return best, replace(
            population, log_weights=torch.zeros_like(population.log_weights), log_base=population.log_evidence
        )

    # --- small things ----------------------------------------------------------------------------------------------

    def _decode(self, clean: Tensor) -> Any:
        self.run.calls.decoder += len(clean)
        return self.decode(clean)

    def _layout(self) -> Layout:
        if self.layout is None:
            raise SteeringError("the scheduler stepped before a run began")
        return self.layout

    def _population(self) -> Population:
        if self.run.population is None:
            raise SteeringError("the scheduler stepped before a run began")
        return self.run.population

    def _streams(self) -> Streams:
        if self.streams is None:
            raise SteeringError("the scheduler stepped before a run began")
        return self.streams


def _previous(output: Any) -> Tensor:
    previous: Tensor = output[0] if isinstance(output, tuple) else output.prev_sample
    return previous


def _with_previous(output: Any, moved: Tensor) -> Any:
    """The base's own form of output, with another previous sample in the base's dtype."""
    moved = moved.to(_previous(output).dtype)
    if type(output) is tuple:
        return (moved, *output[1:])
    output["prev_sample"] = moved
    return output
