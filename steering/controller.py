"""The controller: one step of weighting, choosing, resampling and moving, in the scheduler's place.

Order in a step: read x0-hat, weigh, choose among candidates, resample, move. In that order the children drawn by one
move are judged by the pipeline's own denoiser call of the next, and nothing is evaluated twice.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..fkc import Streams
from ..fkc.streams import split_seed
from .checks import check_law
from .controls import Control
from .denoiser import DenoiserTap, has_caches
from .errors import SteeringError
from .gather import gather_arguments, gather_caches, gather_history, gather_output
from .layout import Layout
from .moves import GaussianMove, Step, native_move, previous_sample, row_generators
from .particles import Particles
from .reading import Decoding, Reader
from .resume import Restored, TrajectoryStore
from .run import Run
from .schedulers import SchedulerRule, rule_for, step_position
from .settings import Settings
from .trajectory import Trajectory

__all__ = ["Controller"]

_LATER_RUNS = 2**30  # an index that no population has


class Controller:
    """Listens to one scheduler (and to copies of it) during one attachment."""

    def __init__(
        self,
        scheduler: Any,
        controls: Sequence[Control],
        settings: Settings,
        run: Run,
        decoding: Decoding,
        tap: DenoiserTap,
        tiles: Callable[[], int] = lambda: 1,
        store: TrajectoryStore | None = None,
    ) -> None:
        self.primary, self.controls, self.settings, self.run = scheduler, tuple(controls), settings, run
        self.tap, self.tiles, self.store = tap, tiles, store
        guided = (c for c in controls if getattr(c, "gradient", None) is not None)
        pictures = any(getattr(c, "on", "images") == "images" for c in guided)
        self.reader = Reader(run, tap, decoding, settings, pictures)
        self.candidates = max([c.candidates for c in controls] + [1])
        self.trajectory: Trajectory | None = None
        self.runs = 0
        self._saved: Restored | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Controller":
        return self

    def on_run(self, scheduler: Any) -> None:
        """A run begins: forget the one before."""
        if scheduler is not self.primary:
            return
        self.trajectory = None
        s, tiles = self.settings, self.tiles()
        rows = None if s.populations is None else s.populations * s.particles * self.candidates * tiles
        self.tap.begin_run(rows)
        if self.controls:
            self.tap.check_layout(s.populations, s.particles * self.candidates)
        if any(getattr(control, "on", None) == "images" for control in self.controls):
            self.reader.decoding.begin()
        self._saved = None if self.store is None else self.store.saved()
        self.tap.silent = self._saved is not None

    def on_step(self, scheduler: Any, base_step: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        """Weigh, choose, resample, then let the base (or the stochastic kernel) move."""
        step = Step.of(scheduler, base_step, bound)
        if scheduler is not self.primary:
            return self._follow(step)
        if self.trajectory is None:
            self.trajectory = self._started(step)
        trajectory = self.trajectory
        trajectory.calls += 1
        if self._saved is not None:
            return self._forwarded(step, trajectory, self._saved)
        place = step_position(scheduler, step.arguments["timestep"])
        self.run.calls.denoiser += trajectory.particles.live.rows
        last = False
        if place.first:
            trajectory.position = place.move - trajectory.first
            trajectory.rows = self._weighed(step, trajectory)
            if trajectory.rows is not None:
                step = self._gathered(step, trajectory)
            output = self._moved(step, trajectory)
            last = trajectory.position == trajectory.n_moves - 1
        else:  # the second evaluation of a two-stage solver: same move, same particles
            output = step.made()
        if last:
            output = self._finished(output, trajectory)
        elif self.store is not None and self.store.due(trajectory.calls):
            self.store.write(trajectory.calls, scheduler, output, trajectory.particles.state(), self.run)
        self.tap.end_step()
        return output

    def _forwarded(self, step: Step, trajectory: Trajectory, saved: Restored) -> Any:
        """A call that the checkpoint has behind it: advance the scheduler's counters; at its own call put all back."""
        if step.takes_generator:
            step = step.with_arguments({**step.arguments, "generator": torch.Generator().manual_seed(0)})
        place = step_position(step.scheduler, step.arguments["timestep"])
        if place.first:
            trajectory.position = place.move - trajectory.first
        output = step.made()
        self.tap.end_step()
        if trajectory.calls < saved.calls:
            return output
        assert self.store is not None
        saved.restore_scheduler(step.scheduler)
        trajectory.particles.restore(saved.part("particles"))
        saved.restore_run(self.run)
        saved.restore_generators(self.store.pipe)
        self._saved, self.tap.silent = None, False
        self._skip_copies(trajectory)
        return saved.output(output)

    # --- beginning ---------------------------------------------------------------------------------------------------

    def _started(self, step: Step) -> Trajectory:
        s, scheduler = self.settings, step.scheduler
        self.run.reset()
        rule = rule_for(scheduler)
        layout = Layout.of_batch(
            len(step.arguments["sample"]),
            populations=s.populations,
            particles=s.particles,
            candidates=self.candidates,
            tiles=self.tiles(),
        )
        move = self._chosen_move(step, rule)
        cached = any(has_caches(module) for module in self.tap.modules)
        if cached and self.store is not None:
            raise SteeringError("checkpoint: the denoiser's feature cache is not saved; disable it")
        if rule.clean is None and any(getattr(control, "on", None) == "tokens" for control in self.controls):
            raise SteeringError(f"{type(scheduler).__name__} samples no tokens; judge on='images' or on='latents'")
        check_law(step, rule, move, self.controls, s, self.run, rows=layout.rows, cached=cached)
        self.tap.confirm_rows(layout.rows * layout.tiles)
        first = step_position(scheduler, step.arguments["timestep"]).move
        seed = s.seed if self.runs == 0 else split_seed(s.seed, _LATER_RUNS + self.runs)
        self.runs += 1
        streams = Streams.from_seed(seed, layout.populations, first=s.first_population)
        particles = Particles(
            self.controls, layout, streams, ess_threshold=s.ess_threshold, resampler=s.resampler, run=self.run
        )
        levels = rule.levels(scheduler)[first:]
        return Trajectory(layout, rule, levels, first, particles, streams, move, cached, seed)

    def _chosen_move(self, step: Step, rule: SchedulerRule) -> GaussianMove | None:
        """The Gaussian move, or None where the scheduler makes its own."""
        transition = self.settings.transition
        planned = any(getattr(control, "plans_moves", False) for control in self.controls)
        natural = transition == "auto" and not planned and rule.stochastic(step.scheduler, step.arguments)
        own = transition == "native" or natural
        if own or not self.controls:
            return None
        move = GaussianMove(rule, self.settings.eta)
        move.refuse(step.scheduler)
        if transition == "auto":
            name = type(step.scheduler).__name__
            self.run.note(f"{name} adds no noise: moves are made by the Gaussian step that keeps the marginals")
        return move

    # --- weights -----------------------------------------------------------------------------------------------------

    def _weighed(self, step: Step, trajectory: Trajectory) -> Tensor | None:
        if not self.controls:
            trajectory.particles.skip(trajectory.position)
            return None
        particles = trajectory.particles
        rows = particles.weigh(self.reader.context(step, trajectory))
        self._skip_copies(trajectory)
        return rows

    def _skip_copies(self, trajectory: Trajectory) -> None:
        """Tell the denoiser which of the coming rows are copies that nobody will judge."""
        live = trajectory.particles.live.candidates
        self.tap.keep = None if live == trajectory.layout.candidates else trajectory.layout.standing_for(live)

    # --- moving ------------------------------------------------------------------------------------------------------

    def _gathered(self, step: Step, trajectory: Trajectory) -> Step:
        assert trajectory.rows is not None
        tiled = trajectory.layout.tiled(trajectory.rows)
        gather_history(step.scheduler, tiled, step.arguments["sample"].ndim)
        if trajectory.cached:
            gather_caches(self.tap.modules, tiled)
        return step.with_arguments(gather_arguments(step.arguments, tiled))

    def _follow(self, step: Step) -> Any:
        """A second stream (sound beside video): the primary's ancestors of this step, its own move, and in the end the
        primary's last choice."""
        trajectory = self.trajectory
        if self.store is not None:
            raise SteeringError("checkpoint: a pipeline with two streams is not saved")
        if trajectory is None:
            if self.controls:
                raise SteeringError(
                    f"a copy of {type(step.scheduler).__name__} steps before the pipeline's own scheduler, so that its "
                    "rows would move before the particles are weighed"
                )
            return step.made()
        if trajectory.rows is not None:
            step = self._gathered(step, trajectory)
        if not self.controls:
            return step.made()
        generators = row_generators(trajectory.streams, trajectory.layout)
        if trajectory.move is None:
            output = native_move(step, trajectory.streams, trajectory.layout)
        else:
            rule = rule_for(step.scheduler)
            place = step_position(step.scheduler, step.arguments["timestep"]).move
            levels = rule.levels(step.scheduler)
            move = GaussianMove(rule, trajectory.move.eta)
            output, _ = move(step, (levels[place], levels[place + 1]), generators, None)
        if trajectory.final_rows is not None:
            final = previous_sample(output)
            output = gather_output(output, trajectory.final_rows, final.ndim, len(final))
        return output

    def _moved(self, step: Step, trajectory: Trajectory) -> Any:
        if not self.controls:
            return step.made()
        if trajectory.move is None:
            if trajectory.particles.gradient is not None:
                raise SteeringError('gradient: a shifted proposal needs transition="stochastic"')
            if trajectory.particles.planned is not None:
                raise SteeringError('composition: its moves need transition="stochastic"')
            return native_move(step, trajectory.streams, trajectory.layout)
        generators = row_generators(trajectory.streams, trajectory.layout)
        particles = trajectory.particles
        output, log_ratio = trajectory.move(step, trajectory.around, generators, particles.gradient, particles.planned)
        if log_ratio is not None:
            particles.add_ratio(log_ratio)
        return output

    # --- the end -----------------------------------------------------------------------------------------------------

    def _finished(self, output: Any, trajectory: Trajectory) -> Any:
        layout, particles = trajectory.layout, trajectory.particles
        final = previous_sample(output)[: layout.rows]
        if self.controls:
            rows = particles.conclude(final, self.reader.develop, self.settings.final, self.settings.chunk_size)
            trajectory.final_rows = layout.tiled(rows)
            output = gather_output(output, trajectory.final_rows, final.ndim, layout.rows * layout.tiles)
            final = final.index_select(0, rows.to(final.device))
        self.run.finish(particles.population, final.detach().clone())
        return output
