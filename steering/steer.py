"""The one-liner: attach, ask for enough samples, call."""

import inspect
from typing import Any, Literal

from ..fkc.errors import PopulationCollapsed
from .asking import batched_call, populations_of, single_calls, start_generators
from .attach import attach
from .checks import refuse_strangers
from .controls import Control
from .errors import SteeringError
from .lockstep import run_lockstep
from .run import Run

__all__ = ["steer"]

_OPTIONS = tuple(name for name in inspect.signature(attach).parameters if name not in ("pipe", "controls"))


def steer(
    pipe: Any,
    *controls: Control,
    particles: int,
    seed: int,
    runner: Literal["batch", "lockstep"] = "batch",
    **call: Any,
) -> tuple[Any, Run]:
    """Steer one call of a pipeline.

    output, run = steer(pipe, FKSteering(reward, scale=2.0), particles=8, seed=0, prompt="a cat", transition="auto")

    Args:
        pipe: a diffusers pipeline.
        controls: what to steer to.
        particles: K, samples of each prompt.
        seed: of everything: where the call names no ``generator``, the initial noise too, each row's own.
        runner: ``"batch"``: one call with P x K (x candidates) rows; ``"lockstep"``: as many calls of one sample that
            meet at every step, for pipelines that cannot batch or whose batch does not fit in memory.
        call: arguments of the pipeline, and options of :func:`attach` among them.

    Returns:
        What the pipeline returned (for ``"lockstep"`` a list, one output a sample), and the run.

    Raises:
        SteeringError: as for :func:`attach`, or nothing is known that asks this pipeline for several samples.
        PopulationCollapsed: as for :func:`attach`; its ``output`` is what the pipeline returned, the other prompts'
            samples intact.
    """
    if runner not in ("batch", "lockstep"):
        raise ValueError(f"runner: got {runner!r}, expected 'batch' or 'lockstep'")
    options = {name: call.pop(name) for name in list(call) if name in _OPTIONS}
    refuse_strangers(controls)
    samples = particles * max([control.candidates for control in controls] + [1])
    populations = options.get("populations") or populations_of(call)
    output: Any = None
    try:
        with attach(pipe, *controls, particles=particles, seed=seed, **options) as run:
            first = options.get("first_population", 0)
            if runner == "lockstep":
                output = _singly(pipe, samples, populations, seed, first, call)
            else:
                output = _batch(pipe, samples, populations, seed, first, call)
    except PopulationCollapsed as collapsed:
        collapsed.output = output  # type: ignore[attr-defined]
        raise
    return output, run


def _batch(pipe: Any, samples: int, populations: int, seed: int, first: int, call: dict[str, Any]) -> Any:
    if call.get("generator") is None:
        generators = start_generators(pipe, samples, populations, seed, first=first)
        call = call if generators is None else {**call, "generator": generators}
    return pipe(**batched_call(pipe, samples, populations, call))


def _singly(pipe: Any, samples: int, populations: int, seed: int, first: int, call: dict[str, Any]) -> list[Any]:
    """The same rows, with the same noise, as calls of one sample each."""
    rows, own = samples * populations, single_calls(samples, populations, call)
    shared = {name: value for name, value in call.items() if not own[0] or name not in own[0]}
    generators = start_generators(pipe, samples, populations, seed, first=first)
    if generators is None or shared.pop("generator", None) is not None:
        raise SteeringError(
            "runner='lockstep': takes its noise from the seed; for generators of your own, run_lockstep"
        )
    return run_lockstep(pipe, rows=rows, generators=generators, calls=own, **shared)
