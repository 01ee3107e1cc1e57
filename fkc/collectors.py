"""What a run records step by step: small frozen objects, each a name and a function of the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .genealogy import distinct_roots

if TYPE_CHECKING:
    from .smc import State, StepInfo

__all__ = [
    "Ancestors",
    "Collector",
    "DistinctRoots",
    "EffectiveSampleSize",
    "LogEvidence",
    "NanCount",
    "Resampled",
    "Shared",
]


class Collector(Protocol):
    """Called after every step with the new state and the step's diagnostics; its records are stacked along
    axis 0."""

    @property
    def name(self) -> str:
        """Key of the record in ``SMCResult.collected``."""
        ...

    def __call__(self, state: State, info: StepInfo) -> Tensor:
        """A tensor whose first axis is P."""
        ...


@dataclass(frozen=True)
class EffectiveSampleSize:
    """ESS ``(P,)`` after the reweighting, in particles."""

    name: str = "ess"

    def __call__(self, state: State, info: StepInfo) -> Tensor:
        """See :class:`Collector`."""
        return state.population.ess


@dataclass(frozen=True)
class LogEvidence:
    """Log-evidence so far ``(P,)``, carried weights included."""

    name: str = "log_evidence"

    def __call__(self, state: State, info: StepInfo) -> Tensor:
        """See :class:`Collector`."""
        return state.population.log_evidence


@dataclass(frozen=True)
class Resampled:
    """``(P,)`` bool: which populations resampled in this step."""

    name: str = "resampled"

    def __call__(self, state: State, info: StepInfo) -> Tensor:
        """See :class:`Collector`."""
        return info.resampled


@dataclass(frozen=True)
class DistinctRoots:
    """Number of initial particles that still have a descendant, ``(P,)``."""

    name: str = "distinct_roots"

    def __call__(self, state: State, info: StepInfo) -> Tensor:
        """See :class:`Collector`."""
        return distinct_roots(state.population)


@dataclass(frozen=True)
class Ancestors:
    """Ancestors ``(P, K)`` of each step (the identity where nothing was resampled): the whole family tree."""

    name: str = "ancestors"

    def __call__(self, state: State, info: StepInfo) -> Tensor:
        """See :class:`Collector`."""
        if info.ancestors is not None:
            return info.ancestors
        shape = state.population.log_weights.shape
        return torch.arange(shape[1], device=state.population.roots.device).expand(shape).clone()


@dataclass(frozen=True)
class NanCount:
    """NaN increments so far, ``(P,)``."""

    name: str = "n_nan"

    def __call__(self, state: State, info: StepInfo) -> Tensor:
        """See :class:`Collector`."""
        return state.population.n_nan


@dataclass(frozen=True)
class Shared:
    """A per-population value of the model: ``"time"``, ``"acceptance"``, ``"step_size"`` of a tempered run.

    Attributes:
        key: name in ``Cloud.shared``, and of the record.
    """

    key: str

    @property
    def name(self) -> str:
        """See :class:`Collector`."""
        return self.key

    def __call__(self, state: State, info: StepInfo) -> Tensor:
        """See :class:`Collector`."""
        return state.cloud.shared[self.key]
