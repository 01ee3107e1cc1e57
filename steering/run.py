"""What a steered run leaves behind: weights, evidence, ancestry, rewards, counts."""

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..fkc import Population
from ..fkc.genealogy import distinct_roots, evidence_std_error
from .errors import SteeringWarning

__all__ = ["Calls", "Run", "StepRecord"]


@dataclass
class Calls:
    """How often the expensive parts ran, in samples.

    Attributes:
        denoiser: rows of particles that the denoiser was asked about (the branches of guidance count once).
        decoder: samples decoded for rewards.
        reward: samples judged.
    """

    denoiser: int = 0
    decoder: int = 0
    reward: int = 0


@dataclass(frozen=True, eq=False)
class StepRecord:
    """One move.

    Attributes:
        index: 0 for the first.
        population: weights (P, K) after weighing, before resampling.
        ancestors: (P, K) int64, or None where nothing was resampled.
        log_potential: (P, K) what the log-weights gained, or None where nothing was judged.
        rewards: by control, (P, K) as measured for the candidate that was kept; before resampling.
    """

    index: int
    population: Population
    ancestors: Tensor | None
    log_potential: Tensor | None
    rewards: dict[str, Tensor] = field(default_factory=dict)

    @property
    def ess(self) -> Tensor:
        """(P,) effective sample size."""
        return self.population.ess

    @property
    def log_evidence(self) -> Tensor:
        """(P,) log-evidence so far."""
        return self.population.log_evidence


@dataclass(eq=False, repr=False)
class Run:
    """Filled while the pipeline runs inside :func:`feynkac.steering.attach`; complete when it has returned.

    Attributes:
        population: weights and family tree now.
        records: one a move.
        calls: see :class:`Calls`.
        rewards_by_control: (P, K) reward of the final samples, by the controls' names.
        log_tilt: (P, K) log of the whole tilt at the final samples, or None before the end.
        scales: (P,) lambda of each control's target, by name; found ones are seen here.
        exact: False when something (an arg-max choice, ``final="best"``) makes the outputs biased draws; then
            ``notes`` says what.
        notes: what a reader of the numbers should know.
        collapses: (prompts, moves, K) of every call in the block in which prompts were left with impossible samples
            only.
    """

    population: Population | None = None
    records: list[StepRecord] = field(default_factory=list)
    calls: Calls = field(default_factory=Calls)
    rewards_by_control: dict[str, Tensor] = field(default_factory=dict)
    log_tilt: Tensor | None = None
    scales: dict[str, Tensor] = field(default_factory=dict)
    exact: bool = True
    notes: list[str] = field(default_factory=list)
    collapses: list[tuple[list[int], int, int]] = field(default_factory=list)
    _samples: Tensor | None = None

    def __repr__(self) -> str:
        """A few lines."""
        if self.population is None:
            return "Run(nothing has run yet)"
        shape = f"{self.population.n_populations} populations x {self.population.n_particles} particles"
        state = "finished" if self.finished else f"at move {len(self.records)}"
        ess = ", ".join(f"{value:.1f}" for value in self.ess.tolist()[:4])
        evidence = ", ".join(f"{value:.4g}" for value in self.log_evidence.tolist()[:4])
        more = ", ..." if self.population.n_populations > 4 else ""
        lines = [f"Run({shape}, {state}, exact={self.exact}", f"    ess: {ess}{more}"]
        lines += [f"    log_evidence: {evidence}{more}", f"    calls: {self.calls}"]
        return "\n".join([*lines, *(f"    note: {note}" for note in self.notes)]) + ")"

    def note(self, text: str, *, biased: bool = False, aloud: bool = False) -> None:
        """Keep a remark, once. ``aloud``: warn of it too; ``biased``: the outputs are no weighted draws."""
        if text not in self.notes:
            self.notes.append(text)
            if aloud:
                warnings.warn(text, SteeringWarning, stacklevel=2)
        if biased:
            self.exact = False

    def reset(self) -> None:
        """A call of the pipeline begins: what an earlier one in the same block left is forgotten, but for collapses."""
        self.population, self._samples, self.log_tilt = None, None, None
        self.calls, self.exact = Calls(), True
        self.records.clear()
        self.rewards_by_control.clear()
        self.scales.clear()
        self.notes.clear()

    def begin(self, population: Population) -> None:
        """Particles are there."""
        self.population = population

    def finish(self, population: Population, samples: Tensor) -> None:
        """The last step is made."""
        self.population, self._samples = population, samples
        dead = population.collapsed.nonzero().flatten().tolist()
        if dead:
            self.collapses.append((dead, len(self.records), population.n_particles))

    def _done(self) -> Population:
        if self.population is None:
            raise RuntimeError("nothing has run yet: call the pipeline inside the attach block first")
        return self.population

    @property
    def finished(self) -> bool:
        """The last step was made."""
        return self._samples is not None

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
    def rewards(self) -> Tensor | None:
        """(P, K) rewards of the final samples under the first control; None before the end or without a control."""
        return next(iter(self.rewards_by_control.values()), None)

    @property
    def best(self) -> Tensor:
        """(P,) int64: which of a population's samples has the largest reward.

        Raises:
            RuntimeError: there is no reward, or the run has not reached its end.
        """
        if self.rewards is None:
            raise RuntimeError("no rewards yet: steer with a control, and run the pipeline to its end")
        return self.rewards.argmax(dim=1)

    @property
    def ancestors(self) -> list[Tensor | None]:
        """Per move the ancestors (P, K), or None where nothing was resampled."""
        return [record.ancestors for record in self.records]

    @property
    def ess_trace(self) -> Tensor:
        """(moves, P) effective sample size before each move's resampling."""
        return torch.stack([record.ess for record in self.records])

    @property
    def log_evidence_trace(self) -> Tensor:
        """(moves, P) log-evidence of the potentials applied so far."""
        return torch.stack([record.log_evidence for record in self.records])

    def reward_trace(self, control: str | None = None) -> tuple[Tensor, Tensor]:
        """Scored moves (n,) int64 and the particles' rewards (n, P, K) there, before resampling.

        Args:
            control: name; the first one's if None.

        Raises:
            KeyError: no control of that name.
        """
        names = list(self.rewards_by_control) or list({n: None for r in self.records for n in r.rewards})
        name = control if control is not None else (names[0] if names else "")
        if name not in names and (control is not None):
            raise KeyError(f"control {control!r}: expected one of {names}")
        scored = [(r.index, r.rewards[name]) for r in self.records if name in r.rewards]
        if not scored:
            return torch.zeros(0, dtype=torch.int64), torch.zeros((0, *self.log_weights.shape), dtype=torch.float64)
        return torch.tensor([i for i, _ in scored]), torch.stack([values for _, values in scored])

    def samples(self) -> Tensor:
        """Final states (P * K, ...) before decoding, unclipped."""
        if self._samples is None:
            raise RuntimeError("the run has not reached its last step")
        return self._samples
