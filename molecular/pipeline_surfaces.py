"""Surfaces and profiles from weighted samples, and in words what keeps samples out of them.

One variable that an axis misses, or that is not finite, costs what needs it and nothing else: everything else of a long
run can still be written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..fkc.weights import normalize
from .free_energy import Axis, FreeEnergySurface, free_energy_surface
from .free_energy.surface import EmptySurface

__all__ = ["SurfaceRequest", "Surfaces", "known_log_weights", "surfaces_of", "weightless"]

_MUCH = 0.05
"""Share of the weight outside an axis that is worth a word."""


@dataclass(frozen=True, kw_only=True)
class SurfaceRequest:
    """A surface along the variables that the axes are named after."""

    axes: tuple[Axis, ...]
    method: Literal["histogram", "kde"] = "histogram"
    bandwidth: tuple[float, ...] | None = None
    bootstrap: int


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """What could be made of the requests.

    Attributes:
        surface: None if it was not asked for, or if no weight lies inside its axes.
        profiles: those that hold any weight.
        notes: sentences on values that are not finite, on weight outside axes, and on what was left out.
    """

    surface: FreeEnergySurface | None
    profiles: tuple[FreeEnergySurface, ...]
    notes: tuple[str, ...]


def weightless(log_weights: Tensor) -> bool:
    """Whether no sample has a weight."""
    return not bool((log_weights > -math.inf).any())


def known_log_weights(log_weights: Tensor, *values: Tensor) -> Tensor:
    """Log-weights of samples all of whose ``values`` (same shape) are finite; -inf for the others."""
    unknown = torch.zeros_like(log_weights, dtype=torch.bool)
    for value in values:
        unknown |= ~torch.isfinite(value.to(unknown.device))
    return log_weights.masked_fill(unknown, -math.inf)


def surfaces_of(
    values: Mapping[str, Tensor],
    log_weights: Tensor,
    *,
    surface: SurfaceRequest | None,
    profiles: Sequence[SurfaceRequest],
    kT: float,
    seed: int,
    groups: Tensor | None = None,
) -> Surfaces:
    """Surface and profiles, as far as there is weight inside their axes.

    Samples whose values are not finite are left out of what needs these values, and of its normalisation.

    Args:
        values: (n,) by name of the variable, for every axis.
        log_weights: (n,) raw, -inf for zero weight.
        surface, profiles: what was asked for.
        kT: kJ/mol.
        seed: of the bootstraps.
        groups: (n,) labels of independent groups.

    Raises:
        WeightError: no sample has a weight.
    """
    notes = list(_not_finite(values, log_weights))

    def made(wanted: SurfaceRequest, what: str) -> FreeEnergySurface | None:
        columns = [values[axis.name] for axis in wanted.axes]
        known = known_log_weights(log_weights, *columns)
        names = " and ".join(axis.name for axis in wanted.axes)
        if weightless(known) and not weightless(log_weights):
            notes.append(f"{names}: no sample has both a weight and finite values; the {what} is left out")
            return None
        notes.extend(_outside(wanted.axes, columns, known))
        try:
            return free_energy_surface(
                torch.stack(columns, dim=1),
                known,
                kT=kT,
                axes=wanted.axes,
                method=wanted.method,
                bandwidth=wanted.bandwidth,
                bootstrap=wanted.bootstrap,
                seed=seed,
                groups=groups,
            )
        except EmptySurface:
            notes.append(f"no sample with a weight lies inside the axes of {names}: the {what} is left out")
            return None

    made_surface = None if surface is None else made(surface, "surface")
    made_profiles = [made(profile, f"profile of {profile.axes[0].name}") for profile in profiles]
    return Surfaces(
        surface=made_surface,
        profiles=tuple(profile for profile in made_profiles if profile is not None),
        notes=tuple(dict.fromkeys(notes)),
    )


def _not_finite(values: Mapping[str, Tensor], log_weights: Tensor) -> Iterator[str]:
    weighted = log_weights > -math.inf
    for name, value in values.items():
        count = int((weighted & ~torch.isfinite(value)).sum())
        if count:
            yield (
                f"{name} is not finite in {count:,} of {int(weighted.sum()):,} samples with a weight: they are left "
                "out of everything that needs it"
            )


def _outside(axes: Sequence[Axis], columns: Sequence[Tensor], log_weights: Tensor) -> Iterator[str]:
    weights = normalize(log_weights)
    for axis, column in zip(axes, columns, strict=True):
        share = float(weights[(weights > 0) & (axis.cell(column) < 0)].sum())
        if not axis.periodic and share > _MUCH:
            found = column[weights > 0]
            unit = f" {axis.unit}" if axis.unit else ""
            yield (
                f"{_percent(share)} of the weight lies outside the axis of {axis.name}, {axis.lower:g} to "
                f"{axis.upper:g}{unit}: the samples are between {float(found.min()):.3g} and "
                f"{float(found.max()):.3g}{unit}; give {axis.name} a range that holds them"
            )


def _percent(share: float) -> str:
    """In whole per cent, without rounding up to all."""
    return "more than 99%" if 0.995 <= share < 1.0 - 1e-9 else f"{min(share, 1.0):.0%}"
