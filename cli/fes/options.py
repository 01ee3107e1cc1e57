"""The options of `feynkac fes`, parsed, and checked against the kind of input."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ...molecular.units import GAS_CONSTANT
from ...molecular.units import kT as thermal_energy
from ..errors import UserError
from ..results import Number
from .inputs import Inputs
from .texts import Skip, names_of, numbers_of, parse_skip

__all__ = ["UNITS", "FesOptions", "implied_temperature", "parse_options"]

_NO_SKIP = Skip()
UNITS = ("kJ/mol", "kcal/mol", "kT")

_GRID = ("bin", "min", "max", "spacing")
_ALLOWED = {
    "hills": (*_GRID, "stride", "nohistory", "negbias", "idw"),
    "colvar": (*_GRID, "cv", "bias", "weights", "rct", "blocks", "walkers", "skip", "kde"),
    "kernels": (*_GRID, "idw"),
    "state": (*_GRID, "idw"),
    "grid": ("idw", "negbias", "bias_factor"),
    "openmm": ("min", "max", "cv", "periodic", "bias_factor", "negbias", "idw"),
}
"""Beside those that every kind takes: kt, temperature, mintozero, deltaf, against, outfile, units, plots."""


@dataclass(frozen=True, kw_only=True)
class FesOptions:
    """Options as values; None or empty where they were not given.

    Attributes:
        kT: kJ/mol.
        bin: numbers of bins; ``min``, ``max``, ``spacing`` of the grid.
        stride: hills a file; ``nohistory`` each file from its own hills alone.
        idw: variables that stay in a projection.
        cv: variables of a COLVAR, or names of those of OpenMM.
        bias: columns of biases; ("none",) for samples without one.
        skip: what is left out at the start.
        kde: kernel widths.
        deltaf, against: regions, as typed.
    """

    kT: float | None = None
    mintozero: bool = False
    deltaf: str | None = None
    against: str | None = None
    outfile: Path | None = None
    units: str = "kJ/mol"
    plots: bool = True
    bin: tuple[int, ...] | None = None
    min: tuple[float, ...] | None = None
    max: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    stride: int | None = None
    nohistory: bool = False
    negbias: bool = False
    idw: tuple[str, ...] = ()
    cv: tuple[str, ...] = ()
    bias: tuple[str, ...] = ()
    weights: str | None = None
    rct: bool = False
    blocks: int | None = None
    walkers: int | None = None
    skip: Skip = _NO_SKIP
    kde: tuple[float, ...] | None = None
    bias_factor: float | None = None
    periodic: bool = False

    def check_for(self, inputs: Inputs) -> None:
        """Refuse an option that the kind of input has no use for.

        Raises:
            UserError: naming option and input.
        """
        allowed = _ALLOWED[inputs.kind]
        limited = {name for names in _ALLOWED.values() for name in names}
        for field in fields(self):
            if field.name in limited and field.name not in allowed and getattr(self, field.name) != field.default:
                name = "--" + field.name.replace("_", "-")
                raise UserError(f"{name} has no meaning for {inputs.paths[0]}, which is {inputs.text}")

    def needed_kT(self, why: str) -> float:
        """The thermal energy, kJ/mol.

        Raises:
            UserError: it was not given.
        """
        if self.kT is None:
            raise UserError(f"{why} needs --kt in kJ/mol (2.494 at 300 K), or --temperature in K")
        return self.kT


_PLAUSIBLE = (100.0, 1000.0)
"""K; outside of these a unit is likely to be mistaken."""


def implied_temperature(kT: float | None) -> tuple[list[Number], list[str]]:
    """The temperature of a thermal energy in kJ/mol as a number, and a warning where it is implausible."""
    if kT is None:
        return [], []
    kelvin = kT / GAS_CONSTANT
    numbers = [Number("temperature", "temperature implied by kT", round(kelvin, 2), None, "K", f"kT = {kT:.4g} kJ/mol")]
    if _PLAUSIBLE[0] <= kelvin <= _PLAUSIBLE[1]:
        return numbers, []
    hint = "was it kcal/mol?" if kelvin < _PLAUSIBLE[0] else "was it K, which --temperature takes, or kcal/mol?"
    return numbers, [f"kT = {kT:.4g} kJ/mol is {kelvin:.4g} K; --kt is in kJ/mol, 2.494 at 300 K: {hint}"]


def parse_options(
    *,
    kt: float | None,
    temperature: float | None,
    bin: str | None,  # noqa: A002
    min: str | None,  # noqa: A002
    max: str | None,  # noqa: A002
    spacing: str | None,
    idw: Sequence[str],
    cv: Sequence[str],
    bias: Sequence[str],
    skip: str | None,
    kde: str | None,
    units: str,
    stride: int | None,
    blocks: int | None,
    walkers: int | None,
    bias_factor: float | None,
    weights: str | None,
    rct: bool,
    nohistory: bool,
    mintozero: bool,
    negbias: bool,
    deltaf: str | None,
    against: str | None,
    outfile: str | None,
    periodic: bool,
    plots: bool,
) -> FesOptions:
    """What was typed, as values.

    Raises:
        UserError: naming the option that cannot be used.
    """
    if kt is not None and temperature is not None:
        raise UserError("--kt and --temperature say the same; give one")
    for option, number in (("--kt", kt), ("--temperature", temperature)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise UserError(f"{option}: got {number}, expected a positive number")
    for option, count, least in (("--stride", stride, 1), ("--blocks", blocks, 2), ("--walkers", walkers, 1)):
        if count is not None and count < least:
            raise UserError(f"{option}: got {count}, expected a whole number from {least} on")
    if units not in UNITS:
        raise UserError(f"--units: got {units!r}, expected {', '.join(UNITS)}")
    lower, upper, steps = numbers_of("--min", min), numbers_of("--max", max), numbers_of("--spacing", spacing)
    if (lower is None) != (upper is None):
        raise UserError("--min and --max: give both or neither")
    _positive("--spacing", steps)
    kernels = numbers_of("--kde", kde)
    _positive("--kde", kernels)
    if nohistory and stride is None:
        raise UserError("--nohistory needs --stride")
    if negbias and deltaf is not None:
        raise UserError("--deltaf: the negative bias is no free energy; leave --negbias out")
    if against is not None and deltaf is None:
        raise UserError("--against needs --deltaf")
    if weights is not None and (bias or rct):
        raise UserError("--weights takes the place of biases: leave --bias and --rct out")
    if bias_factor is not None and not bias_factor > 1:
        raise UserError(f"--bias-factor: got {bias_factor}, expected a number above 1 (inf without tempering)")
    thermal = thermal_energy(temperature) if temperature is not None else kt
    return FesOptions(
        kT=thermal,
        bin=_bins(bin),
        min=lower,
        max=upper,
        spacing=steps,
        idw=names_of("--idw", idw),
        cv=names_of("--cv", cv),
        bias=names_of("--bias", bias),
        skip=parse_skip(skip),
        kde=kernels,
        units=units,
        stride=stride,
        blocks=blocks,
        walkers=walkers,
        bias_factor=bias_factor,
        weights=weights,
        rct=rct,
        nohistory=nohistory,
        mintozero=mintozero,
        negbias=negbias,
        deltaf=deltaf,
        against=against,
        outfile=_outfile(outfile),
        periodic=periodic,
        plots=plots,
    )


def _outfile(text: str | None) -> Path | None:
    if text is not None and text.endswith(("/", os.sep)) and not Path(text).is_dir():
        raise UserError(f"--outfile: there is no folder {text}")
    return None if text is None else Path(text)


def _positive(option: str, values: tuple[float, ...] | None) -> None:
    if values is not None and not all(value > 0 for value in values):
        raise UserError(f"{option}: got {', '.join(f'{v:g}' for v in values)}, expected positive numbers")


def _bins(text: str | None) -> tuple[int, ...] | None:
    found = numbers_of("--bin", text)
    if found is None:
        return None
    if not all(value == int(value) and value >= 2 for value in found):
        raise UserError(f"--bin: got {text!r}, expected whole numbers from 2 on")
    return tuple(int(value) for value in found)
