"""Which columns of a COLVAR make the weights of its frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...molecular.free_energy import log_weights_of_bias
from ...molecular.io import PlumedTable
from ..errors import UserError
from .options import FesOptions

__all__ = ["Weighting"]

_CHANGES = 1e-3
"""kT; by more than this c(t) of a bias that is frozen does not change."""


@dataclass(frozen=True)
class Weighting:
    """Log-weights from biases, from biases with c(t), from a column of weights, or equal ones.

    Attributes:
        kT: kJ/mol.
        added, taken: columns whose sum, and whose sum to subtract, is the energy in exp(energy / kT).
        weights: column of weights, in the place of energies.
        rct: whether c(t) is in.
    """

    kT: float
    added: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    weights: str | None = None
    rct: bool = False

    @classmethod
    def of(cls, path: Path, table: PlumedTable, options: FesOptions) -> Weighting:
        """As the options say, for a file with the columns of ``table``.

        Raises:
            UserError: a column that is missing, no bias, or no kT.
        """
        columns = list(table.columns)
        kT = options.needed_kT("reweighting samples")
        if options.weights is not None:
            if options.weights not in columns:
                raise UserError(f"--weights: {path} has no column {options.weights!r}; there are {', '.join(columns)}")
            return cls(kT, weights=options.weights)
        if options.bias == ("none",):
            return cls(kT)
        for name in options.bias:
            if name not in columns:
                raise UserError(f"--bias: {path} has no column {name!r}; there are {', '.join(columns)}")
        found = options.bias or tuple(name for name in columns if name.endswith(".bias"))
        if not found:
            raise UserError(
                f"{path}: no column ends in .bias among {', '.join(columns)}; name it with --bias, or --bias none for "
                "samples of no bias, or --weights for a column of weights"
            )
        return cls._with_rct(path, columns, kT, found) if options.rct else cls(kT, found)

    @classmethod
    def _with_rct(cls, path: Path, columns: list[str], kT: float, found: tuple[str, ...]) -> Weighting:
        """With V - c(t) in the place of V where the file has it."""
        added, taken = [], []
        for name in found:
            label = name.removesuffix(".bias")
            if name.endswith(".bias") and f"{label}.rbias" in columns:
                added.append(f"{label}.rbias")
            elif name.endswith(".bias") and f"{label}.rct" in columns:
                added.append(name)
                taken.append(f"{label}.rct")
            else:
                added.append(name)
        if not taken and not any(name.endswith(".rbias") for name in added):
            raise UserError(f"--rct: {path} has neither .rbias nor .rct of {', '.join(found)} (PLUMED: CALC_RCT)")
        return cls(kT, tuple(added), tuple(taken), rct=True)

    @property
    def text(self) -> str:
        """In words."""
        if self.weights is not None:
            return f"the column {self.weights}"
        if not self.added:
            return "equal"
        return f"exp(({' + '.join(self.added)}{''.join(f' - {name}' for name in self.taken)})/kT)"

    def log_weights(self, columns: Mapping[str, Tensor]) -> Tensor:
        """(n,) raw; -inf for a weight of zero, NaN where a number is not finite."""
        some = next(iter(columns.values()))
        if self.weights is not None:
            weights = columns[self.weights]
            return torch.where(torch.isfinite(weights) & (weights >= 0), weights.log(), math.nan)
        total = torch.zeros_like(some)
        for name in self.added:
            total = total + columns[name]
        for name in self.taken:
            total = total - columns[name]
        known = torch.isfinite(total)
        found = log_weights_of_bias(torch.where(known, total, 0.0), kT=self.kT)
        unknown = torch.where(total == -math.inf, -math.inf, math.nan)
        return torch.where(known, found, unknown)

    def notes(self, tables: Sequence[PlumedTable]) -> list[str]:
        """A bias that grew while the frames were taken, and negative weights."""
        found = []
        if self.weights is not None:
            negative = sum(int((table.columns[self.weights] < 0).sum()) for table in tables)
            if negative:
                found.append(f"{negative:,} rows have a negative weight in {self.weights} and were left out")
        for name in () if self.rct else self.added:
            label = name.removesuffix(".bias")
            column = f"{label}.rct"
            if column in tables[0].columns and any(_varies(table.columns[column], self.kT) for table in tables):
                found.append(
                    f"c(t) of {label} changes along the file: the bias grew while these frames were taken, and "
                    "exp(V/kT) are weights under a frozen bias only. Use --rct, or the frozen part (--skip)"
                )
        return found


def _varies(values: Tensor, kT: float) -> bool:
    finite = values[torch.isfinite(values)]
    return bool(len(finite)) and float(finite.max() - finite.min()) > _CHANGES * kT
