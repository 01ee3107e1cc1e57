"""The energy of a repulsion as a reward, and what the features of final samples were when it was measured."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..fkc.bias import RepulsionBias
from .rewards.calls import WrongLength, reward_name

__all__ = ["BiasEnergy", "Features"]

Features = Callable[[Any], Tensor]
"""Samples, as ``on`` says, -> their features (rows, d), or (rows,) for one. NaN: the sample weighs nothing."""


class BiasEnergy:
    """The reward -V(xi)/kT, and a record of the features that final samples had.

    The record is found by the bits of the final state and of its energy, so that it does not matter how rows were
    permuted after they were measured. It lives as long as the control, d numbers and a digest a sample.
    """

    def __init__(self, bias: RepulsionBias, features: Features) -> None:
        self.bias, self.features = bias, features
        self._tape: list[Tensor] | None = None
        self._record: dict[bytes, Tensor] = {}

    @property
    def name(self) -> str:
        """Names of the variables."""
        return f"repulsion({', '.join(self.bias.names)})"

    def __call__(self, samples: Any) -> Tensor:
        """(rows,) float64, with a graph where features have one."""
        d, rows = self.bias.dimension, len(samples)
        try:
            values = self.features(samples)
        except Exception:
            if rows == 1 and self._tape is not None:  # contained, one by one: the row stays, without a value
                self._tape.append(torch.full((1, d), math.nan, dtype=torch.float64))
            raise
        values = torch.as_tensor(values)
        values = values[:, None] if d == 1 and values.ndim == 1 else values
        if values.shape != (rows, d):
            raise WrongLength(
                f"features {reward_name(self.features)}: returned {tuple(values.shape)} for {rows} samples, expected "
                f"({rows}, {d}), one number for each variable of the bias"
            )
        values = values.double().cpu()
        values = torch.where(values.isfinite(), values, math.nan)
        if self._tape is not None:
            self._tape.append(values.detach().clone())
        return -self.bias(values) / self.bias.kT

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Inside, features are written down as they are measured."""
        tape: list[Tensor] = []
        self._tape = tape
        try:
            yield tape
        finally:
            self._tape = None

    def keep(self, samples: Tensor, energies: Tensor, tape: Sequence[Tensor]) -> None:
        """Remember features of final samples (rows, ...)."""
        values = torch.cat(list(tape))
        for key, row in zip(_keys(samples, energies), values, strict=True):
            self._record[key] = row

    def recalled(self, samples: Tensor, energies: Tensor) -> Tensor | None:
        """Features (rows, d) of samples, None if any is not in the record."""
        found = [self._record.get(key) for key in _keys(samples, energies)]
        return None if any(row is None for row in found) else torch.stack([row for row in found if row is not None])


def _keys(samples: Tensor, energies: Tensor) -> list[bytes]:
    """A digest of each row's bits and energy."""
    rows = samples.detach().cpu().contiguous().reshape(len(samples), -1)
    states, numbers = rows.view(torch.uint8).numpy(), energies.double().numpy()
    return [
        hashlib.blake2b(state.tobytes() + number.tobytes(), digest_size=16).digest()
        for state, number in zip(states, numbers, strict=True)
    ]
