"""What a target of mixtures is exactly, from its section of the config."""

from __future__ import annotations

import math

from ...fkc.testing.experts import MixtureLaw
from ...fkc.testing.quadrature import ExactTarget, exact_target
from .config import CorrectedConfig, TargetConfig
from .experts import mixture_law

__all__ = ["final_powers", "truth_of"]


def final_powers(target: TargetConfig) -> dict[str, float]:
    """Exponent of each expert where the path ends; an expert named twice counts twice."""
    if target.form == "guidance":
        assert target.weight is not None
        values = [1.0 - target.weight.end, target.weight.end]
    elif target.exponents is not None:
        values = [exponent.end for exponent in target.exponents]
    else:
        values = [1.0 if target.exponent is None else target.exponent.end] * len(target.experts)
    powers: dict[str, float] = {}
    for name, value in zip(target.experts, values, strict=True):
        powers[name] = powers.get(name, 0.0) + value
    return powers


def truth_of(config: CorrectedConfig, name: str) -> ExactTarget | None:
    """The exact answers for a target of a settled config at its last noise level; None where none is known."""
    powers = final_powers(config.targets[name])
    assert config.levels.sigma_min is not None
    laws = []
    for expert in powers:
        section = config.experts[expert].mixture
        if section is None:
            return None
        law = mixture_law(section)
        assert isinstance(law.std, float)
        laws.append(MixtureLaw(law.means, law.weights, math.hypot(law.std, config.levels.sigma_min)))
    return exact_target(laws, list(powers.values()))
