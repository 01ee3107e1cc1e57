"""What a steered run leaves behind: weights, evidence, ancestry, counts."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..fkc import Population
from ..fkc.genealogy import distinct_roots, evidence_std_error

__all__ = ["Calls", "Run", "StepRecord"]


@dataclass
class Calls:
    """How often the expensive parts ran, in samples: ``denoiser`` rows, ``decoder`` and ``reward`` samples."""

    denoiser: int = 0
    decoder: int = 0
    reward: int = 0


@dataclass(frozen=True)
class StepRecord:
    """One move: ESS (P,), log-evidence so far (P,), ancestors (P, K) or None, reward-scale potentials (P, K) or
    None."""

    index: int
    ess: Tensor
    log_evidence: Tensor
    ancestors: Tensor | None
    log_potential: Tensor | None


@dataclass(eq=False)
class Run:
    """Filled while the pipeline runs inside :func:`feynkac.steering.attach`; complete when it has returned.

    Attributes:
        population: weights and family tree now. records: one a move. calls: see :class:`Calls`. rewards: (P, K) log
        of the tilt at the final samples, or None before the end. exact: False when something (an arg-max choice,
        ``final="best"``) makes the outputs biased draws; then ``notes`` says what.
    """

    population: Population | None = None
    records: list[StepRecord] = field(default_factory=list)
    calls: Calls = field(default_factory=Calls)
    rewards: Tensor | None = None
    exact: bool = True
    notes: list[str] = field(default_factory=list)
    _samples: Tensor | None = None

    def _done(self) -> Population:
        if self.population is None:
            raise RuntimeError("nothing has run yet: call the pipeline inside the attach block first")
        return self.population

    @property
    def log_weights(self) -> Tensor:
        """(P, K) float64 log-weights of the outputs, in the order the pipeline returned them."""
        return self._done().log_weights

    @property
    def weights(self) -> Tensor:
        """(P, K) normalised weights."""
        return self._done().weights

    @property
    def log_evidence(self) -> Tensor:
        """(P,) log of the unbiased estimate of E_p[exp(tilt)]."""
        return self._done().log_evidence

    @property
    def log_evidence_std_error(self) -> Tensor:
        """(P,) standard error of ``log_evidence``, from the family tree of the one run."""
        return evidence_std_error(self._done())

    @property
    def ess(self) -> Tensor:
        """(P,) effective sample size of the final weights."""
        return self._done().ess

    @property
    def distinct_roots(self) -> Tensor:
        """(P,) how many of the K initial particles still have a descendant."""
        return distinct_roots(self._done())

    @property
    def ancestors(self) -> list[Tensor | None]:
        """Per move the ancestors (P, K), or None where nothing was resampled."""
        return [record.ancestors for record in self.records]

    @property
    def ess_trace(self) -> Tensor:
        """(moves, P) effective sample size before each move's resampling."""
        return torch.stack([record.ess for record in self.records])

    def samples(self) -> Tensor:
        """Final states (P * K, ...) before decoding, unclipped."""
        if self._samples is None:
            raise RuntimeError("the run has not reached its last step")
        return self._samples
