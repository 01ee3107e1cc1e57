"""The three-line hook: attach controls to a diffusers pipeline, call it as always, read the weights.

with attach(pipe, FKSteering(reward, scale=2.0), particles=8, seed=0) as run:
    images = pipe("a cat", num_images_per_prompt=8).images
run.log_weights, run.log_evidence, run.ess
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..fkc.errors import PopulationCollapsed
from .controller import Controller, Final, Settings, Transition
from .controls import Control
from .decode import decoder_for
from .decode.tail import tiles_of
from .errors import SteeringError
from .hook import listening
from .run import Run

__all__ = ["attach", "steer"]

_BATCH_ARGUMENTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_images_per_label", "batch_size")


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
) -> Iterator[Run]:
    """Steer every call of ``pipe`` made inside the block.

    Args:
        pipe: a diffusers pipeline; its scheduler's class is swapped inside the block and restored after it. controls:
        what to steer to; their tilts multiply. particles: K. The pipeline must run P prompts x K (x candidates) rows,
        a prompt's rows side by side. populations: P, checked if given. ess_threshold: resample a prompt's particles
        when their ESS falls below this fraction of K. resampler: multinomial, stratified, systematic, residual or
        ssp. seed: of resampling, and of noise where the pipeline passes no generator to its scheduler. chunk_size:
        samples decoded at a time. final: ``"weighted"``: outputs carry ``run.log_weights``; ``"resampled"``: equally
        weighted outputs; ``"best"``: the best
            sample of each prompt, K times (biased).
        transition: ``"native"``: the scheduler's own step, which must add noise; ``"stochastic"``: the Gaussian step of
            :mod:`feynkac.steering.kernel` with ``kernel_eta`` in its place, for deterministic and flow-matching
            schedulers.
        kernel_eta: noise of the stochastic step, 0 to 1.
        exact: refuse anything that changes the law, such as a clipped clean prediction.
        decode: clean latents -> what rewards on images see; the pipeline's own decoding if None.

    Yields:
        The :class:`Run`, filled when the pipeline has returned.

    Raises:
        SteeringError: unknown scheduler, wrong number of rows, a deterministic step; before or at the first step.
        PopulationCollapsed: all samples of a prompt are impossible; raised at the end of the block, with the other
            prompts' outputs intact.
    """
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None:
        raise SteeringError(f"{type(pipe).__name__} has no scheduler to attach to")
    if particles < 1:
        raise ValueError(f"particles: got {particles}, expected at least 1")
    if seed is None and controls:
        raise ValueError("seed: is needed: without it the same call would give other samples each time")
    settings = Settings(
        particles, populations, ess_threshold, resampler, seed or 0, final, transition, kernel_eta, exact
    )
    run = Run()
    tiles = tiles_of(pipe) if controls else 1
    controller = Controller(controls, settings, run, decode or _pipeline_decoder(pipe, chunk_size), tiles)
    controller.denoisers = [m for m in getattr(pipe, "components", {}).values() if isinstance(m, nn.Module)]
    with listening(scheduler, controller):
        yield run
    if run.population is not None and bool(run.population.collapsed.any()):
        dead = run.population.collapsed.nonzero().flatten().tolist()
        raise PopulationCollapsed(dead, len(run.records), particles, run)


def _pipeline_decoder(pipe: Any, chunk_size: int | None) -> Callable[[Tensor], Any]:
    """The pipeline's own decoding, made at its first use: steering on latents needs none."""
    made: list[Callable[[Tensor], Any]] = []

    def decode(latents: Tensor) -> Any:
        if not made:
            made.append(decoder_for(pipe, chunk_size=chunk_size))
        return made[0](latents)

    return decode


def steer(pipe: Any, *controls: Control, particles: int, seed: int, **call: Any) -> tuple[Any, Run]:
    """One-liner: attach, ask the pipeline for the right number of samples, call it.

    Args:
        pipe, controls, particles, seed: as for :func:`attach`; options of attach may be among ``call``.
        call: arguments of the pipeline.

    Returns:
        The pipeline's output and the run.

    Raises:
        SteeringError: as for :func:`attach`, or no known argument asks this pipeline for several samples.
    """
    import inspect

    options = {name: call.pop(name) for name in list(call) if name in inspect.signature(attach).parameters}
    accepted = inspect.signature(type(pipe).__call__).parameters
    count = particles * max([c.candidates for c in controls] + [1])
    known = [name for name in _BATCH_ARGUMENTS if name in accepted]
    if not known:
        raise SteeringError(
            f"{type(pipe).__name__} takes none of {', '.join(_BATCH_ARGUMENTS)}; repeat its prompts and use attach"
        )
    with attach(pipe, *controls, particles=particles, seed=seed, **options) as run:
        output = pipe(**{known[0]: count, **call})
    return output, run
