"""The three-line hook: attach controls to a diffusers pipeline, call it as always, read the weights.

with attach(pipe, FKSteering(reward, scale=2.0), particles=8, seed=0) as run:
    images = pipe("a cat", num_images_per_prompt=8).images
run.log_weights, run.log_evidence, run.ess
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..fkc.errors import PopulationCollapsed
from ..fkc.run_state import Checkpoint
from .checks import check_controls, check_settings
from .controller import Controller
from .controls import Control
from .decode.around_run import RunDecoding
from .decode.tail import running_tiles
from .denoiser import DenoiserTap
from .errors import SteeringError
from .hook import listening
from .moves import Transition
from .particles import Final
from .resume import TrajectoryStore, identity_of
from .run import Run
from .settings import Settings

__all__ = ["attach"]


@contextmanager
def attach(
    pipe: Any,
    *controls: Control,
    particles: int,
    populations: int | None = None,
    ess_threshold: float = 0.5,
    resampler: str = "systematic",
    seed: int | None = None,
    chunk_size: int | None = None,
    final: Final = "weighted",
    transition: Transition = "native",
    kernel_eta: float = 1.0,
    exact: bool = False,
    decode: Callable[[Tensor], Any] | None = None,
    preview: Callable[[Tensor], Any] | None = None,
    checkpoint: Checkpoint | str | Path | None = None,
    resume: bool = False,
    first_population: int = 0,
) -> Iterator[Run]:
    """Steer every call of ``pipe`` made inside the block.

    Args:
        pipe: a diffusers pipeline; its scheduler's class is swapped inside the block and restored after it.
        controls: what to steer to; their tilts multiply.
        particles: K. The pipeline must run P prompts x K (x candidates) rows, a prompt's rows side by side.
        populations: P, checked if given.
        ess_threshold: resample a prompt's particles when their ESS falls below this fraction of K.
        resampler: multinomial, stratified, systematic, residual or ssp.
        seed: of resampling, and of noise where the pipeline passes no generator to its scheduler.
        chunk_size: samples that the denoiser, the decoder and rewards see at a time, to bound memory.
        final: ``"weighted"``: outputs carry ``run.log_weights``; ``"resampled"``: equally weighted outputs;
            ``"best"``: the best sample of each prompt, K times (biased).
        transition: ``"native"``: the scheduler's own step, which must add noise; ``"stochastic"``: the Gaussian step of
            :mod:`feynkac.steering.kernel` with ``kernel_eta`` in its place, for deterministic and flow-matching
            schedulers; ``"auto"``: the scheduler's own where it adds noise, else the Gaussian one, with a note.
        kernel_eta: noise of the stochastic step, 0 to 1.
        exact: refuse anything that changes the law, such as a clipped clean prediction.
        decode: clean latents -> what rewards on images see; the pipeline's own decoding if None.
        preview: the same for x0-hat on the way alone, such as a small autoencoder; ``decode`` if None.
        checkpoint: ``Checkpoint(folder, every)``: folder, and after how many calls of the scheduler's step the whole
            state is written to it; a folder alone: every 10.
        resume: go on from the checkpoint, if there is one: call the pipeline with the same arguments, its denoiser is
            not asked again about steps already made, and the result has the bits of a run never stopped.
        first_population: number of the first prompt in a longer list that is worked through in several calls: its
            random streams are those it would have there.

    Yields:
        The :class:`Run`, filled when the pipeline has returned.

    Raises:
        SteeringError: unknown scheduler, wrong number of rows, a deterministic step; before or at the first step.
        CheckpointError: the folder holds a checkpoint and ``resume`` is False, or one of another run.
        PopulationCollapsed: all samples of a prompt are impossible; raised at the end of the block, with the other
            prompts' outputs intact.
    """
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise SteeringError(f"{type(pipe).__name__} has no scheduler to attach to")
    if seed is None and controls:
        raise ValueError("seed: is needed: without it the same call would give other samples each time")
    settings = Settings(
        particles,
        populations,
        ess_threshold,
        resampler,
        seed or 0,
        final,
        transition,
        kernel_eta,
        exact,
        chunk_size,
        first_population,
    )
    check_settings(settings)
    if resume and checkpoint is None:
        raise ValueError("resume: got True without a checkpoint to go on from")
    check_controls(controls, settings, pipe)
    if preview is not None and controls and not any(getattr(c, "on", "images") == "images" for c in controls):
        raise ValueError("preview: no control judges images")
    run = Run()
    recorded = any(
        getattr(getattr(control, "gradient", None), "through", None) == "denoiser"
        or getattr(control, "records_branches", False)
        for control in controls
    )
    tap = DenoiserTap(pipe, chunk_size=chunk_size, record=recorded)
    decoding = RunDecoding(pipe, decode, preview, chunk_size)
    store = None
    if checkpoint is not None:
        point = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(Path(checkpoint), 10)
        store = TrajectoryStore(pipe, point, resume, identity_of(settings, controls))
    controller = Controller(scheduler, controls, settings, run, decoding, tap, lambda: running_tiles(pipe), store)
    with listening(scheduler, controller), tap.attached():
        yield run
    _check_end(run, controls)


def _check_end(run: Run, controls: Sequence[Control]) -> None:
    """After the block: was the last step made, and is every prompt alive?"""
    if run.population is not None and not run.finished and controls:
        text = "the pipeline stopped before its last step: there was no last correction, so the weights mean nothing"
        if max(control.candidates for control in controls) > 1:
            raise SteeringError(text)
        run.note(text, biased=True, aloud=True)
    if run.finished and controls and run.population is not None:
        particles, roots = run.population.n_particles, int(run.distinct_roots.min())
        if roots < max(4, particles // 20) <= particles and roots < particles:
            run.note(
                f"all samples of a prompt descend from {roots} of its {particles} particles; the ESS does not tell"
            )
    if run.collapses:
        dead, steps, particles = run.collapses[0]
        raise PopulationCollapsed(dead, steps, particles, run)
