"""What a corrected run has found: numbers with errors and exact answers, and warnings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fkc import SMCResult, distinct_roots, generator_for, resample
from ...fkc.pooling import joint_weights, merged, pooled_evidence
from ...fkc.testing.quadrature import ExactTarget
from ..results import Number
from .config import TargetConfig

__all__ = ["Outcome", "joint_draws", "mode_masses", "numbers", "warnings_of"]

_FEW = 0.1
"""Below this share of distinct roots, or of effective samples, a warning is due."""

_LEAST_SHARE = 0.02
"""Classes below this share are left out of the numbers."""

_DRAWN = 2**30 + 1  # a stream that no population has


@dataclass(frozen=True, eq=False)
class Outcome:
    """One target.

    Attributes:
        name: of the target.
        section: of the config.
        weighted: result with weights.
        unweighted: result of the same moves without them, or None.
        truth: exact answers, where they are known.
        classes: by way, the class (P, K) that the classifier sees in each sample; empty without a classifier.
        n_classes: of the classifier.
        seed: of the run.
        rates: the weights are rates, not those of kernels.
    """

    name: str
    section: TargetConfig
    weighted: SMCResult
    unweighted: SMCResult | None
    truth: ExactTarget | None
    classes: dict[str, Tensor]
    n_classes: int
    seed: int
    rates: bool

    def ways(self) -> Iterator[tuple[str, SMCResult]]:
        """The results by name."""
        yield "weighted", self.weighted
        if self.unweighted is not None:
            yield "unweighted", self.unweighted

    def shares(self, way: str) -> tuple[Tensor, Tensor]:
        """Share of each class (C,), and its standard error."""
        result = self.weighted if way == "weighted" else self.unweighted
        assert result is not None
        hot = torch.nn.functional.one_hot(self.classes[way], self.n_classes).double()
        return merged(result, lambda _: hot, alike=way == "unweighted")

    @property
    def is_image(self) -> bool:
        """The samples are images (C, H, W) in [-1, 1]."""
        shape = self.weighted.x.shape[2:]
        return len(shape) == 3 and shape[0] in (1, 3)


# --- estimates ------------------------------------------------------------------------------------------------------


def joint_draws(outcome: Outcome, way: str, count: int) -> Tensor:
    """Places (count,) of equally weighted draws among the P K samples, in random order."""
    result = outcome.weighted if way == "weighted" else outcome.unweighted
    assert result is not None
    weights = joint_weights(result, alike=way == "unweighted")
    generator = generator_for(outcome.seed, _DRAWN)
    order = torch.randperm(len(weights), generator=generator)[: min(count, len(weights))]
    return resample(weights.log()[None], "systematic", [generator])[0][order]


def mode_masses(outcome: Outcome, way: str) -> tuple[Tensor, Tensor]:
    """Share of the samples nearest to each mode (m,), and its standard error.

    Raises:
        ValueError: no modes are known.
    """
    result = outcome.weighted if way == "weighted" else outcome.unweighted
    if outcome.truth is None or result is None:
        raise ValueError("modes are known of mixtures only")
    modes = outcome.truth.modes
    nearest = torch.cdist(result.x.double(), modes.expand(len(result.x), -1, -1)).argmin(dim=2)
    hot = torch.nn.functional.one_hot(nearest, len(modes)).double()
    return merged(result, lambda _: hot, alike=way == "unweighted")


def floor(masses: Tensor, draws: int, seed: int) -> float:
    """Total variation between masses and the shares among as many exact draws, on average over 20 repeats."""
    generator = generator_for(seed, _DRAWN)
    places = torch.multinomial(masses, draws * 20, replacement=True, generator=generator).reshape(20, draws)
    counts = torch.nn.functional.one_hot(places, len(masses)).double().mean(dim=1)
    return float(0.5 * (counts - masses).abs().sum(dim=1).mean())


# --- numbers --------------------------------------------------------------------------------------------------------


def numbers(outcomes: Sequence[Outcome]) -> list[Number]:
    """Everything that a run has computed, target by target, in the order in which it is shown."""
    found = []
    for outcome in outcomes:
        several = len(outcomes) > 1
        for n in _of_one(outcome):
            key, label = (f"{outcome.name}.{n.key}", f"{outcome.name}: {n.label}") if several else (n.key, n.label)
            found.append(Number(key, label, n.value, n.error, n.unit, n.remark))
    seconds = sum(float(r.collected["seconds"][:, 0].sum()) for outcome in outcomes for _, r in outcome.ways())
    return [*found, Number("seconds", "seconds of sampling", round(seconds, 1))]


def _of_one(outcome: Outcome) -> Iterator[Number]:
    result = outcome.weighted
    value, error = pooled_evidence(result)
    truth = outcome.truth
    remark = _compared(value, error, None if truth is None else truth.log_integral) or "no exact answer is known"
    if outcome.rates:
        remark += "; the error of rates at this number of steps is not in the bar: compare with twice as many"
    yield Number("log_evidence", "log Z", value, error, remark=remark)
    size, count = result.log_weights.shape[1], len(result.ess)
    least = f"least of {count} populations, of {size}" if count > 1 else f"of {size}"
    yield Number("ess", "effective samples", round(float(result.ess.min()), 1), remark=least)
    yield Number("distinct_roots", "distinct roots", int(distinct_roots(result.population).min()), remark=least)
    yield Number("resamplings", "resamplings", int(result.population.n_resamplings.max()))
    for way, each in outcome.ways():
        yield from _moments(outcome, way, each)
        if truth is not None and truth.masses is not None:
            distance = 0.5 * float((mode_masses(outcome, way)[0] - truth.masses).abs().sum())
            draws = each.log_weights.numel()
            remark = f"total variation; {draws:,} exact draws: {floor(truth.masses, draws, outcome.seed):.3f}"
            yield Number(f"{way}.modes", f"masses of the modes off by, {_SAID[way]}", round(distance, 4), remark=remark)
        if way in outcome.classes:
            yield from _class_numbers(outcome, way)


_SAID = {"weighted": "weighted", "unweighted": "without weights"}


def _moments(outcome: Outcome, way: str, result: SMCResult) -> Iterator[Number]:
    """Means of the coordinates and of the square, for vectors of up to three dimensions."""
    if result.x.ndim != 3 or result.x.shape[2] > 3:
        return
    alike, truth = way == "unweighted", outcome.truth
    means, errors = merged(result, lambda x: x, alike=alike)
    for i, (mean, error) in enumerate(zip(means.tolist(), errors.tolist(), strict=True)):
        remark = _compared(mean, error, None if truth is None else float(truth.mean[i]))
        yield Number(f"{way}.mean_{i + 1}", f"mean of x{i + 1}, {_SAID[way]}", mean, error, remark=remark)
    square, error = (float(v) for v in merged(result, lambda x: x.double().square().sum(dim=2), alike=alike))
    remark = _compared(square, error, None if truth is None else truth.square)
    yield Number(f"{way}.square", f"mean of |x|², {_SAID[way]}", square, error, remark=remark)


def _class_numbers(outcome: Outcome, way: str) -> Iterator[Number]:
    every = [outcome.shares(name)[0] for name in outcome.classes]
    shown = torch.stack(every).amax(dim=0) >= _LEAST_SHARE
    values, errors = outcome.shares(way)
    for c in shown.nonzero().reshape(-1).tolist():
        value, error = float(values[c]), float(errors[c])
        certain = min(value, 1.0 - value) < 1e-9  # all samples agree, from which no error can be told
        remark = ("every sample" if value > 0.5 else "no sample") if certain else ""
        label = f"share of class {c}, {_SAID[way]}"
        yield Number(f"{way}.class_{c}", label, round(value, 9), None if certain else error, remark=remark)


def _compared(value: float, error: float, exact: float | None) -> str:
    if exact is None:
        return ""
    z = f", z = {(value - exact) / error:+.1f}" if math.isfinite(error) and error > 0.0 else ""
    return f"exact {exact:.5g}{z}"


def warnings_of(outcomes: Sequence[Outcome]) -> list[str]:
    """What a reader of the numbers should know."""
    notes = []
    for outcome in outcomes:
        result, size = outcome.weighted, outcome.weighted.log_weights.shape[1]
        dead = int(result.population.collapsed.sum())
        if dead:
            notes.append(f"{outcome.name}: {dead} of {len(result.ess)} populations have no weight left")
        roots = int(distinct_roots(result.population).min())
        if roots < _FEW * size:
            notes.append(
                f"{outcome.name}: all samples descend from {roots} of the {size} particles; the errors are too small "
                "and the samples too much alike: use more particles"
            )
        elif float(result.ess.min()) < _FEW * size:
            notes.append(f"{outcome.name}: {float(result.ess.min()):.1f} effective samples of {size}")
    return notes
