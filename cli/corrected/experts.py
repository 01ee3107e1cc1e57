"""Experts of a corrected run, by kind. A further kind is a section in the config and a builder in ``BUILDERS``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...fkc import Annealed, Diffusion, Expert, sample_corrected
from ...fkc.testing.experts import MixtureLaw
from ...steering import expert_of
from ..errors import UserError, named_errors
from ..paths import resolve
from ..steer.build import PipelineCalls, check_folder, load_model, one_thread_for_tiny_models
from ..steer.config import ModelConfig
from .config import CorrectedConfig, ExpertConfig, MixtureConfig, PathConfig, PipelineConfig

__all__ = ["BUILDERS", "Moments", "build_experts", "expert_inputs", "mixture_law"]

Moments = Mapping[str, tuple[Tensor, float]]
"""Name of an expert -> mean (event) and standard deviation of its data."""

_DRAWS, _STEPS, _SEED = 128, 40, 0
"""With which the moments of an expert are estimated that gives none."""

_ROWS = 64
"""Samples that a denoiser sees at a time, where the config does not say."""


@dataclass(frozen=True)
class Built:
    """An expert; ``guessed``: its mean and deviation are not known yet."""

    expert: Expert
    guessed: bool


def build_experts(config: CorrectedConfig, known: Moments) -> tuple[dict[str, Expert], Moments]:
    """All experts of a config, with their moments.

    Args:
        config: names and kinds.
        known: moments that an earlier call returned.

    Returns:
        Experts by name, and the moments of those that had to be estimated.

    Raises:
        UserError: one cannot be built; its name comes first.
    """
    pipes: dict[ModelConfig, Any] = {}
    experts: dict[str, Expert] = {}
    moments: dict[str, tuple[Tensor, float]] = {}
    for name, section in config.experts.items():
        built = BUILDERS[section.kind](f"experts.{name}", section, pipes, _rows(config))
        expert = built.expert
        if section.mean is not None and section.std is not None:
            expert = replace(expert, mean=section.mean, std=section.std)
        elif built.guessed:
            moments[name] = known[name] if name in known else _estimated(expert, config)
            expert = replace(expert, mean=moments[name][0], std=moments[name][1])
        experts[name] = expert
    return experts, moments


def expert_inputs(config: CorrectedConfig) -> dict[str, Path]:
    """Folders whose contents a resumed run must find unchanged."""
    found = {}
    for name, section in config.experts.items():
        if section.pipeline is not None:
            found[f"experts.{name}"] = check_folder(section.pipeline)
    if config.classifier is not None:
        found["classifier"] = resolve(config.classifier, Path())
    return found


def _rows(config: CorrectedConfig) -> int:
    """Samples that a denoiser sees at a time: all in equal parts."""
    total = config.sampling.particles * config.sampling.populations
    parts = math.ceil(total / (config.sampling.chunk_size or _ROWS))
    return math.ceil(total / parts)


def _estimated(expert: Expert, config: CorrectedConfig) -> tuple[Tensor, float]:
    """Mean (event) and one standard deviation of an expert's own draws, without weights from a standard normal
    reference."""
    low, high = (float(expert.diffusion.noise(t)) for t in (expert.diffusion.t_min, expert.diffusion.t_max))
    top, bottom = (high ** (1 / 7), low ** (1 / 7))
    sigmas = [(top + (bottom - top) * i / _STEPS) ** 7 for i in range(_STEPS + 1)]
    drawn = sample_corrected(
        Annealed(expert, 1.0),
        particles=_DRAWS,
        levels=[high, *sigmas[1:-1], low],
        weights="none",
        seed=_SEED,
        chunk_size=config.sampling.chunk_size,
    )
    x = drawn.x[0].double()
    mean = x.mean(dim=0)
    return mean, float((x - mean).square().mean().sqrt())


# --- mixtures -------------------------------------------------------------------------------------------------------


def mixture_law(config: MixtureConfig) -> MixtureLaw:
    """The law of the data.

    ``gmm40``: forty equal Gaussians with means uniform in [-40, 40]^2 (seed 0) and width log(1 + e^2), all over 50
    (Midgley et al. 2023, the mixture on which annealing is measured by Skreta et al. 2025).
    """
    if config.case is not None:
        spots = torch.rand((40, 2), generator=torch.Generator().manual_seed(0))
        return MixtureLaw((spots.double() - 0.5) * 80.0 / 50.0, (1.0,) * 40, math.log1p(math.exp(2.0)) / 50.0)
    assert config.means is not None
    assert config.std is not None
    means = torch.tensor(config.means, dtype=torch.float64)
    return MixtureLaw(means, config.weights or (1.0,) * len(means), config.std)


def _path(config: PathConfig) -> Diffusion:
    if config.kind == "vp":
        return Diffusion.vp()
    if config.kind == "flow":
        return Diffusion.flow()
    low, high = config.sigma_min or 0.01, config.sigma_max or 10.0
    return Diffusion.ve(low, high) if config.kind == "ve" else Diffusion.edm(low, high)


def _mixture(where: str, section: ExpertConfig, pipes: dict[ModelConfig, Any], rows: int) -> Built:
    assert section.mixture is not None
    with named_errors(f"{where}.mixture.path"):
        path = _path(section.mixture.path)
    law = mixture_law(section.mixture)
    mean, variance = law.moments()
    known = section.mixture.known_density
    return Built(law.expert(path, reference=(mean, variance**0.5), known_density=known), guessed=False)


# --- pipelines ------------------------------------------------------------------------------------------------------


def _pipeline(where: str, section: ExpertConfig, pipes: dict[ModelConfig, Any], rows: int) -> Built:
    assert section.pipeline is not None
    options = section.pipeline
    model = ModelConfig.model_construct(**options.model_dump(exclude={"class_label", "call"}))
    if model not in pipes:
        try:
            pipes[model] = load_model(model)
        except UserError as error:
            raise UserError(f"{where}.pipeline.{str(error).removeprefix('model.')}") from error
        one_thread_for_tiny_models(pipes[model])
    call = _call(f"{where}.pipeline", PipelineCalls.of(pipes[model]), options)
    with named_errors(f"{where}.pipeline"):
        return Built(expert_of(pipes[model], rows=rows, seed=_SEED, **call), guessed=True)


def _call(where: str, pipe: PipelineCalls, options: PipelineConfig) -> dict[str, Any]:
    """What the pipeline is called with.

    Raises:
        UserError: it takes no such argument, or needs another.
    """
    call = dict(options.call)
    if options.class_label is not None:
        if "class_labels" not in pipe.accepted:
            raise UserError(f"{where}.class_label = {options.class_label}: {pipe.name} takes no class; leave it out")
        call["class_labels"] = options.class_label
    elif "class_labels" in pipe.required:
        call.setdefault("class_labels", None)
    for name in sorted(call.keys() - pipe.accepted):
        raise UserError(f"{where}.call: {pipe.name} takes no {name}; it takes {', '.join(sorted(pipe.accepted))}")
    missing = sorted(pipe.required - call.keys())
    if missing:
        raise UserError(f"{where}.call: {pipe.name} needs {', '.join(missing)}, which is not given")
    return call


Builder = Callable[[str, ExpertConfig, dict[ModelConfig, Any], int], Built]
BUILDERS: dict[str, Builder] = {"mixture": _mixture, "pipeline": _pipeline}
"""Kind -> builder: (place in the config, its section, pipelines loaded so far, samples at a time) -> expert."""
