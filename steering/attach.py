"""The three-line hook: attach controls to a diffusers pipeline, call it as always, read the weights.

with attach(pipe, FKSteering(reward, scale=2.0), particles=8, seed=0) as run:
    images = pipe("a cat", num_images_per_prompt=8).images
run.log_weights, run.log_evidence, run.ess
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ..fkc.errors import PopulationCollapsed
from ..fkc.run_state import Checkpoint
from .controller import Controller, Settings
from .controls import Control
from .decode.around_run import RunDecoding
from .decode.tail import tiles_of
from .denoiser import DenoiserTap
from .errors import SteeringError
from .hook import listening
from .moves import Transition
from .particles import Final
from .resume import TrajectoryStore
from .run import Run

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
    checkpoint: Checkpoint | None = None,
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
        checkpoint: folder, and after how many calls of the scheduler's step the whole state is written to it.
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
    _check_numbers(particles, populations, ess_threshold, chunk_size, final, transition, kernel_eta)
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
    run = Run()
    recorded = any(getattr(getattr(c, "gradient", None), "through", None) == "denoiser" for c in controls)
    tap = DenoiserTap(pipe, chunk_size=chunk_size, record=recorded)
    decoding = RunDecoding(pipe, decode, preview, chunk_size)
    store = None if checkpoint is None else TrajectoryStore(pipe, checkpoint, resume, _identity(settings, controls))
    controller = Controller(controls, settings, run, decoding, tap, tiles_of(pipe) if controls else 1, store)
    with listening(scheduler, controller), tap.attached():
        yield run
    if run.population is not None and bool(run.population.collapsed.any()):
        dead = run.population.collapsed.nonzero().flatten().tolist()
        raise PopulationCollapsed(dead, len(run.records), particles, run)


def _identity(settings: Settings, controls: tuple[Control, ...]) -> dict[str, Any]:
    """What must be the same in a run that goes on with another's checkpoint; chunks may differ."""
    named = {name: value for name, value in asdict(settings).items() if name != "chunk_size"}
    return {**named, "controls": [f"{type(control).__name__}({control.name})" for control in controls]}


def _check_numbers(
    particles: int,
    populations: int | None,
    ess_threshold: float,
    chunk_size: int | None,
    final: str,
    transition: str,
    kernel_eta: float,
) -> None:
    for name, value in (("particles", particles), ("populations", populations), ("chunk_size", chunk_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if not ess_threshold >= 0.0:
        raise ValueError(f"ess_threshold: got {ess_threshold}, expected a fraction of the particles, at least 0")
    if final not in ("weighted", "resampled", "best"):
        raise ValueError(f"final: got {final!r}, expected 'weighted', 'resampled' or 'best'")
    if transition not in ("native", "stochastic", "auto"):
        raise ValueError(f"transition: got {transition!r}, expected 'native', 'stochastic' or 'auto'")
    if not 0.0 <= kernel_eta <= 1.0:
        raise ValueError(f"kernel_eta: got {kernel_eta}, expected a number between 0 and 1")
