"""What an annealed molecule has found: the same numbers under every set of weights, side by side."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...fkc import effective_sample_size
from ...molecular.anneal import WeightedFrames
from ...molecular.free_energy import FreeEnergyDifference
from ...molecular.free_energy.difference import FEW_EFFECTIVE_SAMPLES, FewEffectiveSamplesWarning
from ...molecular.pipeline import Analysis, analyse, evaluate_variables
from ...molecular.pipeline_surfaces import known_log_weights, weightless
from ...molecular.units import kT
from ..errors import UserError
from ..results import KHAT_LIMIT, Number, region_text
from ..tables import VARIABLE
from .build import Molecule

__all__ = ["Outcome", "arrays_of", "numbers", "outcome_of", "title", "warnings_of"]

_SURFACES = ("model", "annealed", "corrected")
_FEW = 0.1
"""Below this share of distinct roots, or of effective samples, a warning is due."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run.

    Attributes:
        molecule: what was run.
        arrays: of ``weights.npz``, see :func:`arrays_of`.
        frames: by way: ``model`` as it draws at its own temperature, ``unweighted`` the moves alone, ``annealed`` with
            the weights of the moves, ``corrected`` with the true energy in the end too.
        analyses: surface and profiles of three of these.
        differences: free energies of the region against the rest, by way; empty if not asked for, and without ways
            in which its variable is finite in no sample with a weight.
    """

    molecule: Molecule
    arrays: Mapping[str, Tensor]
    frames: Mapping[str, WeightedFrames]
    analyses: Mapping[str, Analysis]
    differences: Mapping[str, FreeEnergyDifference]


def title(outcome: Outcome, way: str) -> str:
    """A way in words."""
    config = outcome.molecule.config
    return {
        "model": f"model, {config.model_temperature:g} K",
        "unweighted": "annealed, without weights",
        "annealed": "annealed, with weights",
        "corrected": "with weights and energies",
    }[way]


# --- arrays and what is made of them --------------------------------------------------------------------------------


def arrays_of(molecule: Molecule, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Everything but positions, for ``weights.npz``, from the units' checkpoints.

    P populations of K after n moves: ``log_weights`` and ``log_weights_energy`` (P, K), the evidence included, without
    and with the last correction; ``roots`` (P, K); ``ess``, ``distinct_roots``, ``log_evidence``, ``resampled`` (P, n).
    Of these draws, of the model's (n,) as ``model.*`` and of the moves alone (K,) as ``unweighted.*``: ``energies`` and
    ``bond_energies`` in kJ/mol, and ``variable_NAME``.
    """
    cold = [dict(state) for unit, state in states.items() if unit.startswith("population-")]
    found = {name: torch.stack([state[name] for state in cold]) for name in cold[0] if name != "positions"}
    frames = {"": torch.cat([state["positions"] for state in cold]), "model.": states["model"]["positions"]}
    frames |= {"unweighted.": states["unweighted"]["positions"]} if "unweighted" in states else {}
    for prefix, positions in frames.items():
        shape = found["log_weights"].shape if prefix == "" else (len(positions),)
        values = {
            "energies": molecule.energy(positions.double()).cpu(),
            "bond_energies": molecule.bonds(positions),
            **{VARIABLE + n: v for n, v in evaluate_variables(molecule.variables, positions.double()).items()},
        }
        found |= {prefix + name: value.reshape(shape) for name, value in values.items()}
    return found


def outcome_of(molecule: Molecule, arrays: Mapping[str, Tensor]) -> Outcome:
    """The numbers behind the report.

    Raises:
        UserError: an array is missing.
        WeightError: no draw has a weight.
    """
    try:
        frames = {way: _frames(molecule, arrays, way) for way in _ways(arrays)}
    except KeyError as error:
        raise UserError(f"weights.npz: has no array {error}") from error
    request = replace(molecule.request, difference=None)
    analyses = {way: analyse(frames[way].draws, request) for way in _SURFACES}
    wanted, differences = molecule.request.difference, {}
    if wanted is not None:
        with warnings.catch_warnings():  # said by `warnings_of`, with the way's name
            warnings.simplefilter("ignore", FewEffectiveSamplesWarning)
            for way, each in frames.items():
                known = known_log_weights(each.log_weights, each.variables[wanted.variable])
                if not weightless(known):
                    differences[way] = replace(each, log_weights=known).difference(wanted)
    return Outcome(molecule, arrays, frames, analyses, differences)


def _ways(arrays: Mapping[str, Tensor]) -> list[str]:
    plain = ["unweighted"] if "unweighted.energies" in arrays else []
    return ["model", *plain, "annealed", "corrected"]


def _frames(molecule: Molecule, arrays: Mapping[str, Tensor], way: str) -> WeightedFrames:
    prefix = f"{way}." if way in ("model", "unweighted") else ""
    energies = arrays[f"{prefix}energies"].reshape(-1)
    if prefix:
        log_weights, groups = torch.zeros_like(energies), torch.arange(len(energies))
    else:
        log_weights = arrays["log_weights_energy" if way == "corrected" else "log_weights"].reshape(-1)
        groups = _independent(arrays["roots"])
    temperature = molecule.config.model_temperature if way == "model" else molecule.config.system.temperature
    return WeightedFrames(
        log_weights=log_weights,
        groups=groups,
        energies=energies,
        bond_energies=arrays[f"{prefix}bond_energies"].reshape(-1),
        variables={v.name: arrays[f"{prefix}{VARIABLE}{v.name}"].reshape(-1) for v in molecule.variables},
        kT=kT(temperature),
    )


def _independent(roots: Tensor) -> Tensor:
    """(P K,) the population of each particle; of a single population, the initial particle that it descends from."""
    if len(roots) > 1:
        return torch.arange(len(roots)).repeat_interleave(roots.shape[1])
    families: Tensor = torch.unique(roots[0], return_inverse=True)[1]
    return families


# --- numbers --------------------------------------------------------------------------------------------------------


def numbers(outcome: Outcome) -> list[Number]:
    """Everything that a run has computed, quantity by quantity, the ways side by side."""
    config, arrays = outcome.molecule.config, outcome.arrays
    populations, particles = arrays["log_weights"].shape
    size = f"of {populations} x {particles:,}" if populations > 1 else f"of {particles:,}"
    found = [Number("exponent", "exponent of the model's law", config.exponent)]
    for way in ("annealed", "corrected"):
        ess = float(effective_sample_size(outcome.frames[way].log_weights))
        share = f"{size}, {ess / arrays['log_weights'].numel():.1%}"
        found.append(Number(f"{way}.ess", f"effective samples, {title(outcome, way)}", round(ess, 1), remark=share))
    khat = outcome.analyses["corrected"].khat
    remark = f"above {KHAT_LIMIT}: do not trust these weights" if khat > KHAT_LIMIT else f"below {KHAT_LIMIT}: reliable"
    found.append(Number("corrected.khat", f"Pareto k-hat, {title(outcome, 'corrected')}", khat, remark=remark))
    roots = [len(torch.unique(row)) for row in arrays["roots"]]
    least = f"least of {populations} populations, of {particles:,}" if populations > 1 else size
    found.append(Number("distinct_roots", "distinct roots", min(roots), remark=least))
    found.append(Number("resamplings", "resamplings", int(arrays["resampled"].sum(dim=1).max())))
    for rows in (_differences(outcome), _energies(outcome), _bonds(outcome)):
        found += rows
    return found


def _differences(outcome: Outcome) -> Iterator[Number]:
    request = outcome.molecule.request.difference
    if request is None:
        return
    region = region_text(request)
    results = outcome.differences
    key = f"probability_{request.region.lower:g}_{request.variable}_{request.region.upper:g}"
    known = outcome.molecule.reference
    for way, found in results.items():
        error = _known_error(outcome, way, found.probability_std_error)
        label = f"probability of {region}, {title(outcome, way)}"
        yield Number(f"{way}.probability", label, found.probability, error)
    yield from _reference(outcome, key, "probability", f"probability of {region}")
    for way, found in results.items():
        error = _known_error(outcome, way, found.std_error)
        label = f"ΔF of {region} against the rest, {title(outcome, way)}"
        few = min(found.ess_inside, found.ess_outside)
        yield Number(f"{way}.delta_f_kT", label, found.value, error, "kT", f"{few:.1f} effective samples on a side")
    if key in known:  # the reference's difference is that of this region
        yield from _reference(outcome, "delta_f_kT", "delta_f_kT", f"ΔF of {region} against the rest", "kT")


def _energies(outcome: Outcome) -> Iterator[Number]:
    for way, frames in outcome.frames.items():
        mean, error = frames.mean(frames.energies)
        variance = frames.mean((frames.energies - mean).square())[0]
        remark = f"standard deviation {math.sqrt(variance):.1f}"
        label = f"mean energy, {title(outcome, way)}"
        yield Number(f"{way}.energy", label, mean, _known_error(outcome, way, error), "kJ/mol", remark)
    deviation = outcome.molecule.reference.get("energy_std_kJ_mol")
    remark = f"standard deviation {deviation:.1f}" if isinstance(deviation, float) else ""
    yield from _reference(outcome, "energy_kJ_mol", "energy", "mean energy", "kJ/mol", remark)


def _bonds(outcome: Outcome) -> Iterator[Number]:
    for way, frames in outcome.frames.items():
        mean, error = frames.mean(frames.bond_energies)
        label = f"mean energy of the bonds, {title(outcome, way)}"
        remark = f"{mean / (0.5 * outcome.molecule.bonds.count * frames.kT):.3f} of n kT/2"
        yield Number(f"{way}.bond_energy", label, mean, _known_error(outcome, way, error), "kJ/mol", remark)


def _reference(outcome: Outcome, key: str, name: str, label: str, unit: str = "", remark: str = "") -> Iterator[Number]:
    entry: Any = outcome.molecule.reference.get(key)
    if isinstance(entry, dict) and "value" in entry:
        yield Number(f"reference.{name}", f"{label}, reference", entry["value"], entry.get("std_error"), unit, remark)


def _known_error(outcome: Outcome, way: str, error: float) -> float:
    """NaN where too few independent groups carry the weight, or all of it lies on one side of a region."""
    return error if error > 0.0 and outcome.frames[way].effective_groups >= 2.0 else math.nan


def warnings_of(outcome: Outcome, caught: Sequence[str]) -> list[str]:
    """What a reader of the numbers should know."""
    notes, arrays = list(dict.fromkeys(caught)), outcome.arrays
    for way, analysis in outcome.analyses.items():
        notes += [f"{title(outcome, way)}: {note}" for note in analysis.notes]
    populations, particles = arrays["log_weights"].shape
    for way in ("annealed", "corrected"):
        ess = float(effective_sample_size(outcome.frames[way].log_weights))
        if ess < _FEW * populations * particles:
            notes.append(f"{title(outcome, way)}: {ess:.1f} effective samples of {populations * particles:,}")
    roots = min(len(torch.unique(row)) for row in arrays["roots"])
    if roots < _FEW * particles:
        notes.append(f"all samples of a population descend from {roots} of its {particles:,} particles: use more")
    for way, found in outcome.differences.items():
        few = min(found.ess_inside, found.ess_outside)
        if few < FEW_EFFECTIVE_SAMPLES:
            notes.append(f"{title(outcome, way)}: {few:.1f} effective samples on one side of the region of ΔF")
    carried = outcome.frames["corrected"].effective_groups
    if carried < 2.0:
        notes.append(
            f"{title(outcome, 'corrected')}: {carried:.1f} independent groups carry the weight: no error is known"
        )
    if 1 < populations < 4:
        notes.append(f"errors from the spread of {populations} populations are rough; use four or more")
    return notes
