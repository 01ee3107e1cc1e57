"""Hills of a metadynamics run, as PLUMED's HILLS file holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["KERNEL_TYPES", "HillsTable", "factor_of_file"]

KERNEL_TYPES = ("stretched-gaussian", "gaussian")
"""``kerneltype`` of a HILLS file: since PLUMED 2.8, and before. Both end at q = 6.25, 3.5 widths."""


@dataclass(frozen=True, eq=False)
class HillsTable:
    """M Gaussian hills on d variables, with what is needed to sum them.

    Heights are those that the bias V gained. The file stores them times gamma / (gamma - 1) where a bias factor
    gamma > 1 is in use, so that they sum to -F; ``file_heights`` has these.

    Attributes:
        names: d variables.
        domains: ends (lower, upper) of each periodic variable; None for an open one.
        centers: (M, d) float64.
        sigmas: (M, d) widths, or (M, d, d) lower Cholesky factors of the covariance (multivariate hills).
        heights: (M,) in kJ/mol (PLUMED's energy unit), as V gained them.
        biasf: (M,) bias factor; -1 without well-tempering; 1 leaves the height as it is.
        times: (M,) in ps (PLUMED's time unit).
        kernel: one of `KERNEL_TYPES`.
        clocks: (M,) seconds, the column of files of multiple walkers; None without it.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, widths that are not positive, or a bias
            factor other than -1 below 1.
    """

    names: tuple[str, ...]
    domains: tuple[tuple[float, float] | None, ...]
    centers: Tensor
    sigmas: Tensor
    heights: Tensor
    biasf: Tensor
    times: Tensor
    kernel: str = "stretched-gaussian"
    clocks: Tensor | None = None

    def __post_init__(self) -> None:
        m, d = len(self.heights), len(self.names)
        if not d or len(set(self.names)) != d or len(self.domains) != d:
            raise ValueError(f"hills: {list(self.names)} with {len(self.domains)} domains; names must be distinct")
        for what, wanted in (("centers", (m, d)), ("heights", (m,)), ("biasf", (m,)), ("times", (m,))):
            if tuple(getattr(self, what).shape) != wanted:
                raise ValueError(f"hills: {what} must be {wanted}, got {tuple(getattr(self, what).shape)}")
        if tuple(self.sigmas.shape) not in ((m, d), (m, d, d)):
            raise ValueError(f"hills: sigmas must be {(m, d)} or {(m, d, d)}, got {tuple(self.sigmas.shape)}")
        if self.clocks is not None and tuple(self.clocks.shape) != (m,):
            raise ValueError(f"hills: clocks must be {(m,)}, got {tuple(self.clocks.shape)}")
        if self.kernel not in KERNEL_TYPES:
            raise ValueError(f"hills: kernel {self.kernel!r} is none of {KERNEL_TYPES}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for what in ("centers", "sigmas", "heights", "biasf", "times"):
            if not bool(torch.isfinite(getattr(self, what)).all()):
                raise ValueError(f"hills: {what} holds numbers that are not finite")
        widths = self.sigmas.diagonal(dim1=-2, dim2=-1) if self.multivariate else self.sigmas
        if bool((widths <= 0).any()):
            raise ValueError("hills: widths must be positive")
        if self.multivariate and bool((self.sigmas.triu(1) != 0).any()):
            raise ValueError("hills: Cholesky factors must be lower triangular")
        if bool(((self.biasf < 1) & (self.biasf != -1)).any()):
            raise ValueError("hills: a bias factor is -1 (not well-tempered) or at least 1")

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def multivariate(self) -> bool:
        """Are the hills' covariances full matrices?"""
        return self.sigmas.ndim == 3

    @property
    def periods(self) -> tuple[float | None, ...]:
        """Length of each variable's circle, None for an open one."""
        return tuple(None if domain is None else domain[1] - domain[0] for domain in self.domains)

    @property
    def bias_factor(self) -> float | None:
        """Bias factor of the last hill; None without well-tempering or without a hill."""
        last = float(self.biasf[-1]) if len(self) else -1.0
        return None if last == -1.0 else last

    @property
    def file_heights(self) -> Tensor:
        """(M,) heights as the file stores them."""
        return self.heights * factor_of_file(self.biasf)

    def rows(self, index: slice | Tensor) -> HillsTable:
        """Some of the hills."""
        return replace(
            self,
            centers=self.centers[index],
            sigmas=self.sigmas[index],
            heights=self.heights[index],
            biasf=self.biasf[index],
            times=self.times[index],
            clocks=None if self.clocks is None else self.clocks[index],
        )

    def differs_from(self, other: HillsTable) -> str | None:
        """What keeps the hills of ``other`` out of one table with these, as a sentence; None if nothing does."""
        for what in ("names", "domains", "kernel", "multivariate"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs:
                return f"{what} change from {mine!r} to {theirs!r}"
        return None

    @classmethod
    def joined(cls, tables: Sequence[HillsTable]) -> HillsTable:
        """All hills of several tables in their order; clocks are kept if every table has them.

        Raises:
            ValueError: no table, or tables that differ in names, domains, kernel or kind of width.
        """
        if not tables:
            raise ValueError("hills: no table to join")
        first = tables[0]
        for table in tables[1:]:
            if difference := first.differs_from(table):
                raise ValueError(f"hills: {difference}")
        clocks = [table.clocks for table in tables if table.clocks is not None]
        return replace(
            first,
            centers=torch.cat([table.centers for table in tables]),
            sigmas=torch.cat([table.sigmas for table in tables]),
            heights=torch.cat([table.heights for table in tables]),
            biasf=torch.cat([table.biasf for table in tables]),
            times=torch.cat([table.times for table in tables]),
            clocks=torch.cat(clocks) if len(clocks) == len(tables) else None,
        )


def factor_of_file(biasf: Tensor) -> Tensor:
    """What a height is multiplied by in the file: gamma / (gamma - 1) for gamma > 1, otherwise 1.

    PLUMED 2.10, ``src/bias/MetaD.cpp``, ``writeGaussian``.
    """
    tempered = biasf > 1.0
    safe = torch.where(tempered, biasf, math.inf)
    return torch.where(tempered, 1.0 / (1.0 - 1.0 / safe), 1.0)
