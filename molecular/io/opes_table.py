"""Kernels and sums of OPES, as PLUMED's KERNELS and STATE files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["OpesState", "OpesTable"]


@dataclass(frozen=True)
class OpesState:
    """Running sums of OPES, with which a run goes on exactly.

    Attributes:
        zed: Z, the mean of the density over the kernels' centres.
        sum_weights: of all samples.
        sum_weights2: of their squares.
        counter: samples, plus one.
        adaptive: ``adaptive_counter``, ``av_cv_*`` and ``av_M2_*`` of adaptive widths; empty without.
    """

    zed: float
    sum_weights: float
    sum_weights2: float
    counter: int
    adaptive: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class OpesTable:
    """M kernels of OPES.

    Attributes:
        names: d variables.
        domains: ends (lower, upper) of each periodic variable; None for an open one.
        centers: (M, d) float64.
        sigmas: (M, d).
        heights: (M,) of the density's kernels.
        times: (M,) in ps.
        log_weights: (M,) V/kT of each sample, in KERNELS files; None in STATE files, whose kernels are merged.
        action: ``OPES_METAD`` or ``OPES_METAD_EXPLORE``.
        bias_factor: gamma; inf for a flat target.
        epsilon: regularisation, exp(-barrier / (prefactor kT)).
        kernel_cutoff: in widths.
        compression_threshold: in widths.
        state: sums of a STATE file; None for a KERNELS file.

    Raises:
        ValueError: shapes that do not fit.
    """

    names: tuple[str, ...]
    domains: tuple[tuple[float, float] | None, ...]
    centers: Tensor
    sigmas: Tensor
    heights: Tensor
    times: Tensor
    bias_factor: float
    epsilon: float
    kernel_cutoff: float
    compression_threshold: float
    log_weights: Tensor | None = None
    action: str = "OPES_METAD"
    state: OpesState | None = None

    def __post_init__(self) -> None:
        m, d = len(self.heights), len(self.names)
        if not d or len(self.domains) != d:
            raise ValueError(f"kernels: {list(self.names)} with {len(self.domains)} domains")
        logs = self.times if self.log_weights is None else self.log_weights
        found = [tuple(t.shape) for t in (self.centers, self.sigmas, self.heights, self.times, logs)]
        if found != [(m, d), (m, d), (m,), (m,), (m,)]:
            raise ValueError(f"kernels: centers, sigmas, heights, times, log_weights of the shapes {found} do not fit")

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def periods(self) -> tuple[float | None, ...]:
        """Length of each variable's circle, None for an open one."""
        return tuple(None if domain is None else domain[1] - domain[0] for domain in self.domains)

    @property
    def explore(self) -> bool:
        """Is the density that of the biased law?"""
        return self.action.endswith("EXPLORE")
