"""Records of biased dynamics as rows of arrays, for ``weights.npz``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...molecular.dynamics import Record, Staged
from ...molecular.pipeline import evaluate_variables
from ..tables import VARIABLE
from .build import Setup

__all__ = ["RESTRAINT", "Rows", "values_of"]

RESTRAINT = "restraint_"
"""Prefix of the energies of restraints among the arrays."""

_FOLLOWED = 8
"""Walkers whose variables are kept through all stages, for pictures."""


def values_of(setup: Setup, record: Record) -> dict[str, Tensor]:
    """Every variable (B,) of a record, in the order of the config."""
    biased = dict(zip(setup.bias.names, record.values.unbind(1), strict=True))
    others = evaluate_variables(setup.others, record.positions) if setup.others else {}
    return {v.name: biased[v.name] if v.name in biased else others[v.name] for v in setup.variables}


class Rows:
    """Gathers rows until they are taken to a checkpoint.

    Arrays of T production records of B walkers: ``time`` (T,) ps; ``variable_NAME``, ``bias``, ``energy``,
    ``restraint_NAME`` and ``log_weights`` (T, B). Of the filling and the burn-in, as ``fill.*`` and ``burn-in.*``:
    ``time``, and ``series`` (., walkers, d) of the biased variables of a few walkers; of the filling also ``bias_min``,
    ``bias_mean``, ``bias_max`` over the walkers, ``rct`` and ``kernels``. Of k structures:
    ``frames.positions`` (k, N, 3) nm, ``frames.record`` and ``frames.walker`` (k,).

    Args:
        setup: what is run.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        d, settings = setup.config.dynamics, setup.settings
        self._fill_every = max(1, round(d.record / (d.pace * d.time_step)))
        self._frames_every = _stride(settings.records * d.walkers, d.frames, d.walkers)
        self._rows: dict[str, list[Tensor]] = {}

    def due(self, staged: Staged) -> bool:
        """Whether this record is kept: every one under the frozen bias, and as often while it grows."""
        return staged.stage != "fill" or staged.done % self._fill_every == 0 or staged.done == staged.total

    def number(self, staged: Staged) -> int:
        """Of this record in its stage, from 1."""
        return math.ceil(staged.done / self._fill_every) if staged.stage == "fill" else staged.done

    def total(self, staged: Staged) -> int:
        """Records of this stage."""
        return math.ceil(staged.total / self._fill_every) if staged.stage == "fill" else staged.total

    def add(self, staged: Staged, values: Mapping[str, Tensor]) -> None:
        """Keep a record with its variables (B,) by name."""
        record = staged.record
        if staged.stage != "sample":
            row = {"time": torch.tensor(record.time, dtype=torch.float64), "series": record.values[:_FOLLOWED]}
            if staged.stage == "fill":
                row |= _bias_range(record)
                row["kernels"] = torch.tensor(float(staged.state.bias.n_kernels), dtype=torch.float64)
            self._keep(row, f"{staged.stage}.")
            return
        row = {
            "time": torch.tensor(record.time, dtype=torch.float64),
            **{VARIABLE + name: value for name, value in values.items()},
            **{RESTRAINT + name: value for name, value in record.restraints.items()},
            "bias": record.bias,
            "energy": record.energy,
            "log_weights": record.log_weights,
        }
        self._keep(row)
        self._keep_frames(staged)

    def taken(self) -> dict[str, Tensor]:
        """What was gathered since the last call, the first axis that of records."""
        found = {name: torch.cat(rows) for name, rows in self._rows.items()}
        self._rows = {}
        return found

    def _keep(self, row: Mapping[str, Tensor], prefix: str = "") -> None:
        for name, value in row.items():
            self._rows.setdefault(prefix + name, []).append(value.detach().cpu()[None].clone())

    def _keep_frames(self, staged: Staged) -> None:
        record, count = staged.record, len(staged.record.alive)
        flat = torch.arange(count) + (staged.done - 1) * count
        walkers = ((flat % self._frames_every == 0) & record.alive).nonzero()[:, 0]
        if len(walkers):
            found = {
                "positions": record.positions[walkers.to(record.positions.device)].detach().cpu().float(),
                "record": torch.full_like(walkers, staged.done - 1),
                "walker": walkers,
            }
            for name, value in found.items():
                self._rows.setdefault(f"frames.{name}", []).append(value)


def _bias_range(record: Record) -> dict[str, Tensor]:
    bias = record.bias[record.alive]
    rct = torch.tensor(record.rct, dtype=torch.float64)
    return {"bias_min": bias.min(), "bias_mean": bias.mean(), "bias_max": bias.max(), "rct": rct}


def _stride(samples: int, frames: int, walkers: int) -> int:
    """Between kept frames in the row of all samples: prime to the number of walkers, so that all have their turn."""
    stride = max(1, samples // frames)
    while math.gcd(stride, walkers) > 1:
        stride += 1
    return stride
