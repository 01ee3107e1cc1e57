"""From a corrected config to targets and Feynman-Kac models; what cannot work is refused before any folder is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...fkc import (
    AnnealedProduct,
    Expert,
    GeometricAverage,
    PathCollapsed,
    Product,
    Target,
    UnstableNoise,
    corrected_model,
    sample_corrected,
)
from ...fkc.correctors import CorrectedModel, Weights
from ..errors import UserError
from .config import CorrectedConfig, LevelsConfig, TargetConfig
from .exponent import Exponent

__all__ = ["WAYS", "Unit", "build_model", "build_target", "level_sigmas", "sample", "settle", "units", "uses_rates"]

WAYS = ("weighted", "unweighted")
"""What is run of each target; the second to compare."""


@dataclass(frozen=True)
class Unit:
    """A target, sampled one way.

    Attributes:
        target: its name.
        way: one of ``WAYS``.
    """

    target: str
    way: str

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return f"{self.target}/{self.way}"


def units(config: CorrectedConfig) -> list[Unit]:
    """All of a run, a target's ways one after the other."""
    ways = WAYS if config.compare else WAYS[:1]
    return [Unit(name, way) for name in config.targets for way in ways]


def build_target(config: TargetConfig, experts: Mapping[str, Expert]) -> Target[Expert]:
    """The target of the core."""
    chosen = [experts[name] for name in config.experts]
    if config.form == "product":
        return Product(*chosen)
    if config.form == "guidance":
        assert config.weight is not None
        return GeometricAverage(chosen[0], chosen[1], _core(config.weight))
    if config.form == "powers":
        assert config.exponents is not None
        return Target(tuple(chosen), tuple(_core(exponent) for exponent in config.exponents))
    assert config.exponent is not None
    return AnnealedProduct(chosen, _core(config.exponent))


def _core(exponent: Exponent) -> Exponent | float:
    return exponent if exponent.moving else exponent.end


def uses_rates(config: CorrectedConfig, name: str) -> bool:
    """Whether a target's weights are rates, whose error falls with the number of steps, and not those of kernels."""
    sampling, target = config.sampling, config.targets[name]
    used = [config.experts[expert].mixture for expert in target.experts]
    known = all(mixture is not None and mixture.known_density for mixture in used)
    adaptive = sampling.gauge == "fitted" or sampling.control == "least_squares"
    kernel = known and target.noise != 0.0 and not adaptive
    return sampling.weights == "rate" or (sampling.weights == "auto" and not kernel)


def settle(config: CorrectedConfig, experts: Mapping[str, Expert]) -> CorrectedConfig:
    """The config with its noise levels and noise multipliers written out.

    Raises:
        UserError: levels that an expert does not reach, or a target that cannot be sampled like this.
    """
    path = next(iter(experts.values())).diffusion
    low, high = float(path.noise(path.t_min)), float(path.noise(path.t_max))
    levels = config.levels.model_copy(
        update={"sigma_max": config.levels.sigma_max or high, "sigma_min": config.levels.sigma_min or low}
    )
    _check_reach(levels, config, experts)
    config = config.model_copy(update={"levels": levels})
    targets = {
        name: section.model_copy(update={"noise": build_model(config, name, WAYS[0], experts).kappa})
        for name, section in config.targets.items()
    }
    return config.model_copy(update={"targets": targets})


def _check_reach(levels: LevelsConfig, config: CorrectedConfig, experts: Mapping[str, Expert]) -> None:
    assert levels.sigma_max is not None
    assert levels.sigma_min is not None
    if not levels.sigma_min < levels.sigma_max:
        raise UserError(f"levels: sigma_min = {levels.sigma_min:g} is not below sigma_max = {levels.sigma_max:g}")
    used = {name for target in config.targets.values() for name in target.experts}
    for name in sorted(used):
        path = experts[name].diffusion
        low, high = float(path.noise(path.t_min)), float(path.noise(path.t_max))
        for key, value in (("sigma_min", levels.sigma_min), ("sigma_max", levels.sigma_max)):
            if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
                raise UserError(
                    f"levels.{key} = {value:g}: expert {name} knows noise from {low:.4g} to {high:.4g}; "
                    "give levels within, or put the expert on another path"
                )


def _falling(config: CorrectedConfig) -> list[float]:
    top, bottom, rho = config.levels.sigma_max, config.levels.sigma_min, config.levels.rho
    assert top is not None
    assert bottom is not None
    n = config.sampling.steps
    if rho is None:
        inner = [math.exp(math.log(top) + math.log(bottom / top) * i / n) for i in range(1, n)]
    else:
        a, b = top ** (1 / rho), bottom ** (1 / rho)
        inner = [(a + (b - a) * i / n) ** rho for i in range(1, n)]
    return [top, *inner, bottom]


def level_sigmas(model: CorrectedModel) -> tuple[float, ...]:
    """Standard deviations of the noise at every step, the rises of churn among them."""
    return tuple(level.h**0.5 for level in model.levels)


def build_model(config: CorrectedConfig, name: str, way: str, experts: Mapping[str, Expert]) -> CorrectedModel:
    """The Feynman-Kac model of a target, of a config with its levels settled, to see that it can be sampled.

    Raises:
        UserError: it cannot be sampled like this; the message says what to change.
    """
    section, sampling = config.targets[name], config.sampling
    where = f"targets.{name}"
    shapes = {expert: experts[expert].shape for expert in section.experts}
    if None in shapes.values() or len(set(shapes.values())) > 1:
        raise UserError(f"{where}.experts: samples differ in shape: {', '.join(f'{k} {v}' for k, v in shapes.items())}")
    try:
        return corrected_model(
            build_target(section, experts),
            noise=section.noise,
            gauge=sampling.gauge,
            control=sampling.control,
            weights=weights_of(config, way),
            churn=sampling.churn,
            levels=_falling(config),
            force=sampling.force,
            chunk_size=sampling.chunk_size,
        )
    except PathCollapsed as error:
        raise UserError(
            f"{where}: cannot be normalised at noise {error.variance**0.5:.3g} (progress {error.progress:.2g}), where "
            f"its Gaussian reference has precision {error.precision:.3g}; lower the exponents that are above one, let "
            "them move (such as 0 .. 2), or give the experts mean and std that fit their data"
        ) from error
    except UnstableNoise as error:
        raise UserError(
            f"{where}.noise = {error.noise:g}: expected more than {error.bound:.4g}; below that the truth is not "
            "attracting for this target and the errors of sampling grow along the path; give more noise, or "
            "sampling.gauge: reference (or sampling.force: true, to see it fail)"
        ) from error
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def weights_of(config: CorrectedConfig, way: str) -> Weights:
    """How a way is weighted."""
    return "none" if way == "unweighted" else config.sampling.weights


def sample(config: CorrectedConfig, unit: Unit, experts: Mapping[str, Expert], **options: Any) -> None:
    """Sample a unit of a settled config.

    Args:
        config: settled.
        unit: what.
        experts: by name.
        **options: collectors, checkpoint and resume of :func:`feynkac.fkc.sample_corrected`.
    """
    section, s = config.targets[unit.target], config.sampling
    sample_corrected(
        build_target(section, experts),
        particles=s.particles,
        populations=s.populations,
        noise=section.noise,
        gauge=s.gauge,
        control=s.control,
        weights=weights_of(config, unit.way),
        churn=s.churn,
        levels=_falling(config),
        seed=s.seed,
        resampler=s.resampler,
        ess_threshold=s.ess_threshold,
        force=s.force,
        chunk_size=s.chunk_size,
        on_collapse="keep",
        **options,
    )
