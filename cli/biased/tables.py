"""PLUMED's files of a run of biased dynamics, written on the way: HILLS or KERNELS, and COLVAR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...fkc.bias import Hills, OpesBias, WellTemperedBias
from ...molecular.dynamics import Staged
from ...molecular.io import (
    bias_columns,
    hills_of,
    opes_table_of,
    read_hills,
    table_of,
    write_colvar,
    write_hills,
    write_opes_kernels,
)
from ..paths import resolve
from .build import Setup
from .files import GrowingFiles

__all__ = ["Tables"]

COLVARS = {"fill": "COLVAR.fill", "sample": "COLVAR"}
"""The filling is apart: exp(bias / kT) are weights under the frozen bias only."""


class Tables:
    """Buffers rows, and appends them when told to.

    Args:
        setup: what is run.
        files: of the run folder.
    """

    def __init__(self, setup: Setup, files: GrowingFiles) -> None:
        self.setup, self.files = setup, files
        self._hills: list[Hills] = []
        self._log_weights: list[Tensor] = []
        self._visited: dict[str, list[dict[str, Tensor]]] = {stage: [] for stage in COLVARS}

    def begin(self) -> None:
        """Write the hills that the run starts from: HILLS then sums to the whole bias."""
        bias, paths = self.setup.bias, [resolve(p, Path()) for p in self.setup.config.bias.start_from]
        if isinstance(bias, WellTemperedBias) and paths:
            table = table_of(bias, hills_of(read_hills(paths)))
            self.files.append("HILLS", lambda path: write_hills(path, table))

    def deposited(self, staged: Staged) -> None:
        """Take in the hills of a record; one deposit at most."""
        for hills in staged.record.hills:
            self._hills.append(hills)
            if isinstance(self.setup.bias, OpesBias):
                record = staged.record
                used = record.alive & torch.isfinite(record.values).all(dim=1)
                self._log_weights.append(record.bias[used] / self.setup.bias.kT)

    def visited(self, staged: Staged, values: Mapping[str, Tensor]) -> None:
        """Take in a record for its COLVAR; retired walkers are left out."""
        if staged.stage not in COLVARS:
            return
        record, alive = staged.record, staged.record.alive
        count = len(alive)
        rct = None if isinstance(self.setup.bias, OpesBias) else record.rct
        columns = {
            **values,
            **bias_columns(self.setup.label, record.bias, rct),
            "energy": record.energy,
            **{f"{name}.restraint": value for name, value in record.restraints.items()},
            "walker": torch.arange(count, dtype=torch.float64),
            "time": torch.full((count,), record.time, dtype=torch.float64),
        }
        self._visited[staged.stage].append({name: column[alive] for name, column in columns.items()})

    def flush(self) -> None:
        """Append everything to the files."""
        if self._hills:
            self._flush_hills()
        for stage, rows in self._visited.items():
            if rows:
                columns = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
                self._append_colvar(COLVARS[stage], columns, columns.pop("time"))
                rows.clear()

    def _flush_hills(self) -> None:
        bias = self.setup.bias
        fields = ("centers", "widths", "heights", "times")
        joined = Hills(*(torch.cat([getattr(hills, name) for hills in self._hills]) for name in fields))
        if isinstance(bias, WellTemperedBias):
            table = table_of(bias, joined)
            self.files.append("HILLS", lambda path: write_hills(path, table))
        elif isinstance(bias, OpesBias):
            kernels = replace(
                opes_table_of(bias),
                centers=joined.centers,
                sigmas=joined.widths,
                heights=joined.heights,
                times=joined.times,
                log_weights=torch.cat(self._log_weights),
                state=None,
            )
            self.files.append("KERNELS", lambda path: write_opes_kernels(path, kernels))
        self._hills, self._log_weights = [], []

    def _append_colvar(self, name: str, columns: dict[str, Tensor], time: Tensor) -> None:
        periods = {variable.name: variable.period for variable in self.setup.variables}
        self.files.append(name, lambda path: write_colvar(path, columns, periods=periods, time=time))
