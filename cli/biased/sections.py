"""Sections of the config of a run of biased dynamics: the bias, walls, the dynamics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, model_validator

from ..config import ExistingPath, Positive, Section
from ..quantities import Duration, Energy, Mass, Rate, Temperature, Time, Width
from ..variable_config import IntervalText, WidthText
from ..variable_options import parse_amount
from .problems import complain, missing, problem

__all__ = ["BiasConfig", "BiasVariableConfig", "DynamicsConfig", "RestraintConfig"]

AmountText = Annotated[Width, PlainValidator(parse_amount), PlainSerializer(str, return_type=str)]
_MOST_GRID_VARIABLES = 3
_FEWEST_RECORDS = 20
"""The convergence report compares five stretches of time, of at least four records each."""

_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "well_tempered": (("height", "bias_factor"), ("shape",)),
    "opes": (("barrier",), ("bias_factor", "explore", "adaptive_width")),
}
"""Keys that a kind of bias needs, and further ones that it may have; ``compression`` is for both."""


class BiasVariableConfig(Section):
    """One biased variable: the width of its kernels, and perhaps a grid of its own.

    ``range``: ends of the grid along an open variable, by default those of the variable's own; ``bins``: intervals of
    the grid.
    """

    sigma: WidthText
    range: IntervalText | None = None
    bins: Annotated[int, Field(ge=4)] | None = None


def _listed(paths: Any) -> Any:
    if isinstance(paths, str):
        raise ValueError(f"expected a list, such as start_from: [{paths}]")
    return tuple(paths) if isinstance(paths, list) else paths


class BiasConfig(Section):
    """How the bias grows.

    ``height``: what a deposit of all walkers together adds where the bias is zero; ``start_from``: HILLS files, or the
    STATE file of OPES, of an earlier run.
    """

    kind: Literal["well_tempered", "opes"]
    variables: Annotated[dict[str, BiasVariableConfig], Field(min_length=1)]
    bias_factor: Annotated[float, Field(gt=1.0)] | None = None
    height: Energy | None = None
    barrier: Energy | None = None
    shape: Literal["gaussian", "stretched-gaussian", "truncated-gaussian"] | None = None
    explore: bool | None = None
    adaptive_width: bool | None = None
    compression: Annotated[float, Field(gt=0.0)] | None = None
    start_from: Annotated[tuple[ExistingPath, ...], BeforeValidator(_listed)] = ()

    @property
    def on_a_grid(self) -> bool:
        """Whether hills are to be summed on a grid, which needs ends along open variables."""
        asked = any(v.range is not None or v.bins is not None for v in self.variables.values())
        few = len(self.variables) <= _MOST_GRID_VARIABLES and self.compression is None
        return asked or (self.kind == "well_tempered" and few)

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> BiasConfig:
        needed, possible = _KINDS[self.kind]
        strange = {key for needs, more in _KINDS.values() for key in (*needs, *more)} - {*needed, *possible}
        problems = [missing((key,)) for key in needed if getattr(self, key) is None]
        for key in sorted(strange):
            if getattr(self, key) is not None:
                problems.append(
                    problem((key,), f"is not for kind {self.kind}, which has {', '.join((*needed, *possible))}")
                )
        if self.kind == "opes" and len(self.start_from) > 1:
            problems.append(problem(("start_from",), "OPES starts from one STATE file"))
        complain(problems)
        return self


class RestraintConfig(Section):
    """A wall or restraint on one variable, biased or not; it belongs to the target.

    ``stiffness`` is the energy of a wall one ``scale`` beyond ``at``, and twice that of a restraint one ``scale`` from
    it (or from the flat part of ``half_width`` to both sides).
    """

    kind: Literal["upper_wall", "lower_wall", "harmonic", "flat_bottom"]
    variable: str
    at: AmountText
    stiffness: Energy
    scale: WidthText
    exponent: Annotated[float, Field(ge=1.0)] | None = None
    half_width: WidthText | None = None

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> RestraintConfig:
        problems = []
        if self.exponent is not None and not self.kind.endswith("_wall"):
            problems.append(problem(("exponent",), "is for walls"))
        if self.half_width is not None and self.kind != "flat_bottom":
            problems.append(problem(("half_width",), "is for kind flat_bottom"))
        if self.half_width is None and self.kind == "flat_bottom":
            problems.append(missing(("half_width",)))
        complain(problems)
        return self


class DynamicsConfig(Section):
    """Walkers and how long they go: ``melt`` hot and without bias, ``fill`` while the bias grows, then under the frozen
    bias ``burn_in``, which is dropped, and ``production``; the first three may be zero.

    ``pace``: steps between deposits; ``record``: time between records; ``frames``: how many structures are kept.
    """

    walkers: Positive
    time_step: Time
    friction: Rate
    mass: Mass = 12.0
    pace: Positive = 50
    melt: Duration | None = None
    melt_temperature: Temperature = 600.0
    fill: Duration
    burn_in: Duration
    production: Time
    record: Time
    frames: Positive = 1000

    @model_validator(mode="after")
    def _lengths_fit(self) -> DynamicsConfig:
        problems = []
        if self.record < self.time_step:
            problems.append(problem(("record",), f"is shorter than the time step, {self.time_step:g} ps"))
        elif self.production < _FEWEST_RECORDS * self.record:
            text = f"holds fewer than {_FEWEST_RECORDS} records of {self.record:g} ps: too few to judge convergence"
            problems.append(problem(("production",), text))
        if 0.0 < self.fill < self.pace * self.time_step:
            text = f"ends before the first deposit, after {self.pace * self.time_step:g} ps"
            problems.append(problem(("fill",), text))
        complain(problems)
        return self
