"""What a control is shown of a step, and the decoding of what it asks for, counted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Generator, Tensor

from .context import StepContext
from .denoiser import Branches, DenoiserTap
from .moves import Step
from .run import Run
from .settings import Settings
from .trajectory import Trajectory

__all__ = ["Decoding", "Reader"]


class Decoding(Protocol):
    """What turns clean states into what rewards on images see."""

    def begin(self) -> None:
        """A run begins (inside the pipeline's call)."""
        ...

    def on_the_way(self, clean: Tensor) -> Any:
        """Images of x0-hat."""
        ...

    def at_the_end(self, final: Tensor) -> Any:
        """Images of the final states."""
        ...

    @property
    def differentiable(self) -> Callable[[Tensor], Tensor] | None:
        """x0-hat -> images as a tensor with a graph, or None."""
        ...


@dataclass(frozen=True, eq=False)
class Reader:
    """Makes the context of every step.

    Attributes:
        run: where calls are counted.
        tap: on the denoiser.
        decoding: of clean states.
        settings: of the attachment.
        pictures: some control follows the gradient of a reward on images.
    """

    run: Run
    tap: DenoiserTap
    decoding: Decoding
    settings: Settings
    pictures: bool

    def context(self, step: Step, trajectory: Trajectory) -> StepContext:
        """The live rows of a step, before they move."""
        layout, particles, rule = trajectory.layout, trajectory.particles, trajectory.rule
        scheduler = step.scheduler
        sample, output = step.arguments["sample"], step.arguments["model_output"]
        if output.ndim == sample.ndim and output.shape[1] == 2 * sample.shape[1]:
            output = output.split(sample.shape[1], dim=1)[0]  # the learned-variance half is no prediction
        level, following = trajectory.around
        live = particles.live_rows
        mine = slice(layout.rows) if live is None else live

        def read(sample: Tensor, output: Tensor) -> Tensor:
            assert rule.clean is not None
            return rule.clean(scheduler, sample, output)

        def draw(sample: Tensor, output: Tensor, n: int, generators: list[Generator]) -> Tensor:
            assert rule.draws is not None
            return rule.draws(scheduler, sample, output, n, generators)

        def differentiable() -> tuple[Tensor, Tensor, slice | Tensor]:
            self.run.calls.denoiser += particles.live.rows
            return *self.tap.differentiable(step.arguments["sample"], step.arguments["model_output"]), mine

        def branches() -> Branches:
            found = self.tap.branches(step.arguments["model_output"])
            return replace(found, predictions=tuple(p[mine] for p in found.predictions))

        return StepContext(
            index=trajectory.position,
            n_moves=trajectory.n_moves,
            timestep=step.arguments["timestep"],
            level=level,
            following=following,
            sample=sample[mine],
            output=output[mine],
            prediction=rule.prediction(scheduler),
            exploding=rule.family in ("ve", "edm"),
            layout=(layout.populations, layout.particles, particles.live.candidates),
            decode=self.preview,
            log_weights=particles.population.log_weights,
            seed=trajectory.seed,
            first_population=self.settings.first_population,
            chunk_size=self.settings.chunk_size,
            read_clean=None if rule.clean is None else read,
            draw_clean=None if rule.draws is None else draw,
            differentiable=differentiable,
            branches=branches if self.tap.record else None,
            pictures=self._differentiable_pictures() if self.pictures else None,
            deviation=0.0 if trajectory.move is None else trajectory.move.deviation(level, following),
            levels=trajectory.levels,
            start_deviation=float(getattr(scheduler, "init_noise_sigma", 1.0)),
            skipped=trajectory.first,
        )

    def _differentiable_pictures(self) -> Callable[[Tensor], Tensor] | None:
        decode = self.decoding.differentiable
        if decode is None:
            return None

        def counted(clean: Tensor) -> Tensor:
            self.run.calls.decoder += len(clean)
            return decode(clean)

        return counted

    def preview(self, clean: Tensor) -> Any:
        """Images of x0-hat."""
        self.run.calls.decoder += len(clean)
        return self.decoding.on_the_way(clean)

    def develop(self, final: Tensor) -> Any:
        """Images of the final states."""
        self.run.calls.decoder += len(final)
        return self.decoding.at_the_end(final)
