"""Draws from several components, the log-densities of all components at all of them, and functions on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Function", "MixtureSample", "evaluate_functions", "with_one"]

Function = Callable[[Tensor], Tensor]

_ROUNDING = 1e-10  # a control that is nowhere larger is zero


@dataclass(frozen=True, eq=False)
class MixtureSample:
    """Draws and their log-densities.

    Attributes:
        x: (N, ...) draws, round after round.
        component: (N,) int64, which one each was drawn from.
        round_index: (N,) int64.
        log_densities: (N, J) float64, of every component at every draw.
        log_target: (N,) float64, unnormalised, ``-inf`` for weight zero.
    """

    x: Tensor
    component: Tensor
    round_index: Tensor
    log_densities: Tensor
    log_target: Tensor

    def cat(self, other: MixtureSample) -> MixtureSample:
        """This sample and a further round."""
        return MixtureSample(
            *(torch.cat([getattr(self, name), getattr(other, name)]) for name in self.__dataclass_fields__)
        )

    def select(self, rows: Tensor) -> MixtureSample:
        """Some of the draws, (N,) bool: as a sample of their own, with its own mixture."""
        return MixtureSample(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @cached_property
    def counts(self) -> Tensor:
        """(J,) int64, draws of each component."""
        return self.component.bincount(minlength=self.log_densities.shape[1])

    @cached_property
    def log_mixture(self) -> Tensor:
        """(N,) log-density of the mixture in which every component has the share of draws that it had."""
        shares = self.counts.to(torch.float64) / len(self.component)
        return (self.log_densities + shares.log()).logsumexp(dim=1)

    @cached_property
    def log_weights(self) -> Tensor:
        """(N,) log of target over mixture."""
        return self.log_target - self.log_mixture

    @cached_property
    def ratios(self) -> Tensor:
        """(N, J) density of each component over that of the mixture, at most ``N / N_j``."""
        return (self.log_densities - self.log_mixture[:, None]).exp()

    @cached_property
    def controls(self) -> Tensor:
        """(N, J) ``ratios - 1``, of mean zero; a column that is zero up to rounding is zero."""
        difference = self.ratios - 1
        return difference * (difference.abs().amax(dim=0) > _ROUNDING)


def evaluate_functions(functions: Mapping[str, Function], x: Tensor, alive: Tensor) -> Tensor:
    """Values (n, m) float64 of functions at draws; 0 where the weight is zero.

    Args:
        functions: each takes (n, ...) and returns (n,).
        x: (n, ...).
        alive: (n,) bool, whether the weight is positive.

    Raises:
        ValueError: a wrong shape, or a value at a draw of positive weight that is not finite.
    """
    columns = [torch.empty(len(x), 0, dtype=torch.float64)]
    for name, function in functions.items():
        found = function(x)
        if found.shape != (len(x),):
            raise ValueError(f"function {name!r}: got shape {tuple(found.shape)}, expected ({len(x)},)")
        column = found.detach().to("cpu", torch.float64)
        if not bool(column[alive].isfinite().all()):
            raise ValueError(f"function {name!r} is not finite at {int((~column[alive].isfinite()).sum())} draws")
        columns.append(torch.where(alive, column, 0.0)[:, None])
    return torch.cat(columns, dim=1)


def with_one(values: Tensor) -> Tensor:
    """Values (n, m + 1): a last function that is one."""
    return torch.cat([values, values.new_ones(len(values), 1)], dim=1)
