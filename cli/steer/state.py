"""A steered run as tensors and back, and the runs of several seeds as one with a population for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from ...fkc import Population
from ...steering import Calls, Run, StepRecord

__all__ = ["as_one_population", "from_state", "join_runs", "to_state"]

_FIELDS = tuple(field.name for field in fields(Population))


def to_state(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON-ready values of a finished run; the samples themselves are left out."""
    assert run.population is not None
    n, shape = len(run.records), run.log_weights.shape
    tensors = {f"final.{name}": value for name, value in run.population.state_dict().items()}
    for name in _FIELDS:
        values = [getattr(record.population, name) for record in run.records]
        tensors[f"move.{name}"] = torch.stack(values) if n else torch.zeros(0)
    tensors |= _optional("ancestors", [record.ancestors for record in run.records], _identity(shape))
    blank = torch.full(shape, torch.nan, dtype=torch.float64)
    tensors |= _optional("log_potential", [record.log_potential for record in run.records], blank)
    names = list(run.rewards_by_control)
    for i, name in enumerate(names):
        tensors[f"reward.{i}"] = run.rewards_by_control[name]
        tensors |= _optional(f"trace.{i}", [record.rewards.get(name) for record in run.records], blank)
        if name in run.scales:
            tensors[f"scale.{i}"] = run.scales[name]
    if run.log_tilt is not None:
        tensors["log_tilt"] = run.log_tilt
    meta = {
        "moves": n,
        "index": [record.index for record in run.records],
        "controls": names,
        "calls": asdict(run.calls),
        "exact": run.exact,
        "notes": run.notes,
    }
    return tensors, meta


def from_state(tensors: dict[str, Tensor], meta: dict[str, Any]) -> Run:
    """Inverse of :func:`to_state`."""
    names = meta["controls"]
    given = {name: tensors[f"{name}.given"] for name in ("ancestors", "log_potential")}
    records = []
    for i, index in enumerate(meta["index"]):
        scored = {name: tensors[f"trace.{c}"][i] for c, name in enumerate(names) if tensors[f"trace.{c}.given"][i]}
        records.append(
            StepRecord(
                index,
                Population(**{name: tensors[f"move.{name}"][i] for name in _FIELDS}),
                tensors["ancestors"][i] if given["ancestors"][i] else None,
                tensors["log_potential"][i] if given["log_potential"][i] else None,
                scored,
            )
        )
    return Run(
        population=Population(**{name: tensors[f"final.{name}"] for name in _FIELDS}),
        records=records,
        calls=Calls(**meta["calls"]),
        rewards_by_control={name: tensors[f"reward.{c}"] for c, name in enumerate(names)},
        log_tilt=tensors.get("log_tilt"),
        scales={name: tensors[f"scale.{c}"] for c, name in enumerate(names) if f"scale.{c}" in tensors},
        exact=meta["exact"],
        notes=list(meta["notes"]),
    )


def _optional(name: str, values: Sequence[Tensor | None], blank: Tensor) -> dict[str, Tensor]:
    """A stack with blanks where there is no value, and which entries are given."""
    filled = [blank if value is None else value for value in values]
    stacked = torch.stack(filled) if filled else blank[None][:0]
    return {name: stacked, f"{name}.given": torch.tensor([value is not None for value in values], dtype=torch.bool)}


def _identity(shape: torch.Size) -> Tensor:
    return torch.arange(shape[1]).expand(shape).clone()


def join_runs(runs: Sequence[Run]) -> Run:
    """Runs of equal length as one, whose populations are theirs one after the other."""
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    notes = list(dict.fromkeys(note for run in runs for note in run.notes))
    tilts = [run.log_tilt for run in runs if run.log_tilt is not None]
    return Run(
        population=_join_populations([run.population for run in runs if run.population is not None]),
        records=[_join_records([run.records[i] for run in runs]) for i in range(len(first.records))],
        calls=Calls(*(sum(values) for values in zip(*(asdict(r.calls).values() for r in runs), strict=True))),
        rewards_by_control={
            name: torch.cat([run.rewards_by_control[name] for run in runs]) for name in first.rewards_by_control
        },
        log_tilt=torch.cat(tilts) if len(tilts) == len(runs) else None,
        scales={name: torch.cat([run.scales[name] for run in runs]) for name in first.scales},
        exact=all(run.exact for run in runs),
        notes=notes,
    )


def _join_populations(populations: Sequence[Population]) -> Population:
    return Population(**{name: torch.cat([getattr(p, name) for p in populations]) for name in _FIELDS})


def _join_records(records: Sequence[StepRecord]) -> StepRecord:
    population = _join_populations([record.population for record in records])
    ancestors = potential = None
    if any(record.ancestors is not None for record in records):
        parts = [
            _identity(record.population.log_weights.shape) if record.ancestors is None else record.ancestors
            for record in records
        ]
        ancestors = torch.cat(parts)
    potentials = [record.log_potential for record in records if record.log_potential is not None]
    if len(potentials) == len(records):
        potential = torch.cat(potentials)
    rewards = {
        name: torch.cat([record.rewards[name] for record in records])
        for name in records[0].rewards
        if all(name in record.rewards for record in records)
    }
    return StepRecord(records[0].index, population, ancestors, potential, rewards)


def as_one_population(run: Run) -> Run:
    """K populations of one particle each, which never met, as one of K."""
    size = len(run.log_weights)
    untouched = Population.uniform(1, size)
    return Run(
        population=untouched.reweighted(run.log_weights.T, on_collapse="keep"),
        records=[StepRecord(record.index, untouched, None, None) for record in run.records],
        calls=run.calls,
        rewards_by_control={name: values.T.contiguous() for name, values in run.rewards_by_control.items()},
        log_tilt=None if run.log_tilt is None else run.log_tilt.T.contiguous(),
        scales={name: values[:1] for name, values in run.scales.items()},
        exact=run.exact,
        notes=run.notes,
    )
