"""What a steering job has found: numbers with errors, arrays for other programs, what to be warned of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...fkc.genealogy import mean_std_error
from ...fkc.weights import log_mean_exp
from ...steering import Run
from ..results import Number
from .units import Condition

__all__ = ["Result", "numbers", "result_of", "warnings_of", "weight_arrays"]

_FEW = 0.2
"""Below this share of effective samples, or of roots, a warning is due."""


@dataclass(frozen=True, eq=False)
class Result:
    """One prompt or label.

    Attributes:
        condition: which.
        seeds: S of them.
        run: S populations, one a seed.
        pictures: by seed, the K samples in the pipeline's order (of videos the middle frames).
        seconds: that the populations took.
        std_error: (S,) of the log-evidences, each from its own family tree; infinite where it is not known.
    """

    condition: Condition
    seeds: list[int]
    run: Run
    pictures: list[list[Any]]
    seconds: float
    std_error: Tensor

    @property
    def log_evidence(self) -> Number:
        """Log of the mean evidence; its error from the spread of the seeds, or the one run's family tree."""
        values = self.run.log_evidence
        mean = float(log_mean_exp(values))
        if len(values) == 1:
            return Number("log_evidence", "log-evidence", mean, float(self.std_error[0]), remark="error of the one run")
        relative = (values - mean).exp()
        error = float(relative.std() / math.sqrt(len(values))) if math.isfinite(mean) else math.inf
        return Number("log_evidence", "log-evidence", mean, error, remark=f"of the mean over {len(values)} seeds")

    def reward(self, name: str) -> Number:
        """Mean of a reward under the target: weights of all seeds, their evidences included."""
        values = self.run.rewards_by_control[name]
        possible = torch.where(self.run.weights > 0, values, 0.0)
        means = (self.run.weights * possible).sum(dim=1)
        shares = (self.run.log_evidence - torch.logsumexp(self.run.log_evidence, 0)).exp()
        mean, count = float((shares * means).sum()), len(means)
        if count > 1:
            error = math.sqrt(float((shares * (means - mean)).square().sum()) * count / (count - 1))
        else:
            assert self.run.population is not None
            error = float(mean_std_error(self.run.population, possible)[0])
        return Number("reward", f"mean of {name}, weighted", mean, error)


def result_of(condition: Condition, seeds: list[int], run: Run, pictures: list[list[Any]], seconds: float) -> Result:
    """A result; the standard errors are worked out."""
    alone = run.log_weights.shape[1] < 2
    error = torch.full_like(run.log_evidence, math.inf) if alone else run.log_evidence_std_error
    return Result(condition, seeds, run, pictures, seconds, error)


def numbers(results: Sequence[Result]) -> list[Number]:
    """Everything that a job has computed, prompt by prompt, in the order in which it is shown."""
    found = []
    for result in results:
        several = len(results) > 1
        key = f"{result.condition.slug}." if several else ""
        label = f"{result.condition.title[:40]}: " if several else ""
        for n in _of_one(result):
            found.append(Number(key + n.key, label + n.label, n.value, n.error, n.unit, n.remark))
    calls = [sum(getattr(r.run.calls, name) for r in results) for name in ("denoiser", "decoder", "reward")]
    names = ("samples asked of the denoiser", "samples decoded for rewards", "samples judged")
    keys = ("denoiser_calls", "decoder_calls", "reward_calls")
    found += [Number(key, name, count) for key, name, count in zip(keys, names, calls, strict=True)]
    return [*found, Number("seconds", "seconds of sampling", round(sum(r.seconds for r in results), 1))]


def _of_one(result: Result) -> list[Number]:
    run, size = result.run, result.run.log_weights.shape[1]
    found = [result.log_evidence]
    if len(result.seeds) > 1:
        spread = float(run.log_evidence.std())
        remark = "standard deviation of one population's"
        found.append(Number("log_evidence_spread", "spread of log-evidence over seeds", spread, remark=remark))
    ess, roots = run.ess, run.distinct_roots
    every = f"least of {len(ess)} seeds; " if len(ess) > 1 else ""
    found += [
        Number("ess", "effective samples", float(ess.min()), remark=f"{every}{float(ess.min()) / size:.0%} of {size}"),
        Number("distinct_roots", "distinct roots", int(roots.min()), remark=f"{every}of {size}"),
    ]
    for index, (name, values) in enumerate(run.rewards_by_control.items()):
        mean = result.reward(name)
        suffix = f"_{index}" if index else ""
        found.append(Number(f"reward{suffix}", mean.label, mean.value, mean.error))
        found.append(Number(f"reward_best{suffix}", f"best {name}", float(values.max())))
    return found


def warnings_of(results: Sequence[Result]) -> list[str]:
    """What a reader of the numbers should know, each once."""
    notes = [note for result in results for note in result.run.notes]
    for result in results:
        size, where = result.run.log_weights.shape[1], result.condition.title
        if float(result.run.ess.min()) < _FEW * size:
            notes.append(f"{where}: few effective samples are left of {size}; use more particles or a smaller scale")
        elif int(result.run.distinct_roots.min()) < _FEW * size:
            notes.append(f"{where}: all samples descend from few of the {size} particles; errors are too small")
    return list(dict.fromkeys(notes))


def weight_arrays(results: Sequence[Result]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays with leading axes (prompts, seeds); K particles, n moves, C rewards.

    ``log_weights``, ``weights``, ``log_tilt`` (.., K); ``rewards`` (.., C, K); ``log_evidence``,
    ``log_evidence_std_error``, ``ess``, ``distinct_roots`` (..); ``ancestors`` (.., n, K), the identity where nothing
    was resampled; ``ess_trace``, ``log_evidence_trace`` (.., n); ``reward_trace`` (.., n, C, K), NaN where nothing was
    judged; ``conditions`` (prompts,) and ``reward_names`` (C,) text; ``seeds``.
    """
    stacked = [_arrays(result) for result in results]
    arrays = {name: np.stack([part[name] for part in stacked]) for name in stacked[0]}
    arrays["conditions"] = np.array([result.condition.title for result in results])
    arrays["seeds"] = np.array(results[0].seeds, dtype=np.int64)
    arrays["reward_names"] = np.array(list(results[0].run.rewards_by_control))
    return arrays


def _arrays(result: Result) -> dict[str, np.ndarray[Any, Any]]:
    run = result.run
    shape = run.log_weights.shape
    identity = torch.arange(shape[1]).expand(shape)
    blank = torch.full(shape, torch.nan, dtype=torch.float64)
    names = list(run.rewards_by_control)
    ancestors = [identity if a is None else a for a in run.ancestors]
    traces = [torch.stack([record.rewards.get(name, blank) for name in names], dim=1) for record in run.records]
    assert run.log_tilt is not None
    found = {
        "log_weights": run.log_weights,
        "weights": run.weights,
        "log_tilt": run.log_tilt,
        "rewards": torch.stack([run.rewards_by_control[name] for name in names], dim=1),
        "log_evidence": run.log_evidence,
        "log_evidence_std_error": result.std_error,
        "ess": run.ess,
        "distinct_roots": run.distinct_roots,
        "ancestors": torch.stack(ancestors, dim=1),
        "ess_trace": run.ess_trace.T,
        "log_evidence_trace": run.log_evidence_trace.T,
        "reward_trace": torch.stack(traces, dim=1),
    }
    return {name: values.contiguous().numpy() for name, values in found.items()}
