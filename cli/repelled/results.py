"""What a repelled run has found: coverage, weights undone, class shares against those of plain draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...fkc.bias import RepulsionBias
from ...fkc.bias.rounds import PooledRounds, Round, occupied_cells, pool_rounds
from ...fkc.weights import log_mean_exp, normalize
from ..results import Number
from .build import Plane

__all__ = ["Batches", "Outcome", "numbers", "warnings_of"]

_FEW = 0.2
_CELL = 0.5
"""Of a kernel's width: the side of a cell whose occupation is counted."""


@dataclass(frozen=True, eq=False)
class Batches:
    """All batches of one way, repelled or plain; B of them, of P populations of K.

    Attributes:
        rounds: with values, weights of the biased law, and biases.
        classes: (B, P, K) that the classifier sees.
        images: (B, P, K, ...) uint8.
        ess: (B, P) of the biased law's weights.
        seconds: of each batch.
        notes: of the runs.
    """

    rounds: tuple[Round[None], ...]
    classes: Tensor
    images: NDArray[np.uint8]
    ess: Tensor
    seconds: tuple[float, ...]
    notes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, P, K)."""
        b, p, k = self.classes.shape
        return b, p, k

    @property
    def values(self) -> Tensor:
        """(B, P, K, 2)."""
        return torch.stack([one.drawn.values for one in self.rounds]).reshape(*self.shape, -1)

    @property
    def biased_log_weights(self) -> Tensor:
        """(B, P, K) of each batch's biased law."""
        return torch.stack([one.drawn.log_weights for one in self.rounds]).reshape(self.shape)

    @property
    def log_weights(self) -> Tensor:
        """(B, P, K) of the law without the bias."""
        return torch.stack([one.log_weights for one in self.rounds]).reshape(self.shape)

    @property
    def bias(self) -> RepulsionBias:
        """The last one."""
        return self.rounds[-1].following

    def pooled(self) -> PooledRounds:
        """All samples as one of the law without the bias."""
        return pool_rounds(self.rounds)

    def evidence(self) -> tuple[float, float]:
        """Log of the integral without the bias and its error, from the spread of populations and batches."""
        each = log_mean_exp(self.log_weights).reshape(-1)
        mean = float(log_mean_exp(each))
        relative = (each - mean).exp()
        return mean, float(relative.std() / math.sqrt(len(relative)))

    def class_shares(self, count: int) -> tuple[Tensor, Tensor]:
        """Share (C,) of each class without the bias, and its error: NaN for a class that no sample with a weight is
        of, or that all are, of which samples say no error."""
        pooled = self.pooled()
        hot = torch.nn.functional.one_hot(self.classes.reshape(-1), count).double()
        seen, alive = hot[pooled.log_weights > -math.inf].sum(dim=0), int((pooled.log_weights > -math.inf).sum())
        errors = torch.where((seen > 0) & (seen < alive), pooled.std_error(hot), math.nan)
        return pooled.mean(hot), errors

    def biased_shares(self, batch: int, count: int) -> Tensor:
        """Share (C,) of each class under the biased law of a batch."""
        weights = normalize(self.biased_log_weights[batch].reshape(-1))
        return torch.zeros(count, dtype=torch.float64).index_add(0, self.classes[batch].reshape(-1), weights)

    def entropies(self, count: int) -> list[float]:
        """Of the classes in all samples after each batch, in nats; each sample by its weight in its batch."""
        shares = torch.stack([self.biased_shares(batch, count) for batch in range(self.shape[0])])
        so_far = shares.cumsum(dim=0) / torch.arange(1, len(shares) + 1)[:, None]
        found: list[float] = (-torch.xlogy(so_far, so_far).sum(dim=1)).tolist()
        return found

    def occupied(self, widths: Sequence[float]) -> list[int]:
        """Cells that hold a sample, after each batch."""
        every = self.values.flatten(1, 2)
        return [occupied_cells(every[: i + 1].flatten(0, 1), widths) for i in range(len(every))]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run.

    Attributes:
        plane: of the features.
        repelled: batches under the bias.
        plain: as many without, or None.
        n_classes: of the classifier.
        steered: rewards steer beside the bias.
        frozen: batches that deposited nothing, at the end.
    """

    plane: Plane
    repelled: Batches
    plain: Batches | None
    n_classes: int
    steered: bool
    frozen: int

    def ways(self) -> list[tuple[str, Batches]]:
        """By name."""
        return [("repelled", self.repelled), *([("plain", self.plain)] if self.plain is not None else [])]

    @property
    def cells(self) -> list[float]:
        """Sides of a cell."""
        return [_CELL * sigma for sigma in self.repelled.bias.sigmas]


# --- numbers ----------------------------------------------------------------------------------------------------------


def numbers(outcome: Outcome) -> list[Number]:
    """Everything that a run has computed, in the order in which it is shown."""
    repelled, plain, count = outcome.repelled, outcome.plain, outcome.n_classes
    b, p, k = repelled.shape
    found = [Number("samples", "samples", b * p * k, remark=f"{b} batches of {p} x {k}")]
    cells, entropies = repelled.occupied(outcome.cells), repelled.entropies(count)
    other = "" if plain is None else f"without the bias {plain.occupied(outcome.cells)[-1]:,}"
    found.append(Number("cells", "cells of the plane with a sample", cells[-1], remark=other))
    text = f"all classes alike {math.log(count):.3f}"
    if plain is not None:
        text = f"without the bias {plain.entropies(count)[-1]:.3f}, {text}"
    found.append(Number("entropy", "entropy of the classes", round(entropies[-1], 4), remark=text))
    pooled = repelled.pooled()
    found.append(
        Number("ess", "effective samples, bias undone", round(pooled.ess, 1), remark=f"{pooled.ess / (b * p * k):.1%}")
    )
    found.append(_evidence(outcome))
    found += _shares(outcome)
    found.append(Number("hills", "hills", repelled.bias.counts.hills))
    top = float(repelled.bias(outcome.plane.values).max() - repelled.bias(outcome.plane.values).min())
    found.append(Number("bias_range", "range of the bias over the model's draws", round(top, 3), unit="kT"))
    seconds = sum(sum(batches.seconds) for _, batches in outcome.ways())
    return [*found, Number("seconds", "seconds of sampling", round(seconds, 1))]


def _evidence(outcome: Outcome) -> Number:
    value, error = outcome.repelled.evidence()
    if not outcome.steered:
        remark = "exact 0" + _score(value, error)
    elif outcome.plain is not None:
        other, spread = outcome.plain.evidence()
        remark = f"without the bias {other:.4g} ± {spread:.2g}{_score(value - other, math.hypot(error, spread))}"
    else:
        remark = "of the rewards alone"
    return Number("log_evidence", "log Z, bias undone", value, error, remark=remark)


def _shares(outcome: Outcome) -> list[Number]:
    values, errors = outcome.repelled.class_shares(outcome.n_classes)
    plain = None if outcome.plain is None else outcome.plain.class_shares(outcome.n_classes)
    found, scores = [], []
    for c in range(outcome.n_classes):
        value, error = float(values[c]), float(errors[c])
        known = not math.isnan(error)
        remarks = [] if known else [_extreme(value)]
        if plain is not None:
            other, spread = float(plain[0][c]), float(plain[1][c])
            both = math.hypot(error, spread)  # NaN where either is: no score
            text = _extreme(other) if math.isnan(spread) else f"{other:.3f} ± {spread:.3f}"
            remarks.append(f"without the bias {text}{_score(value - other, both)}")
            scores += [(value - other) / both] if both > 0.0 else []
        label, remark = f"share of class {c}, bias undone", "; ".join(remarks)
        found.append(Number(f"class_{c}", label, value, error if known else None, remark=remark))
    if scores:
        worst = max(scores, key=abs)
        text = f"of {len(scores)} classes; by chance about {_expected_worst(len(scores)):.1f}"
        found.append(Number("largest_z", "largest difference of a share, in errors", round(worst, 2), remark=text))
    return found


def _extreme(share: float) -> str:
    """A share without an error, in words."""
    return "none seen" if share < 0.5 else "no other seen"


def _expected_worst(count: int) -> float:
    """Median of the largest of ``count`` independent |z|."""
    each = 0.5 ** (1.0 / count)
    return float(torch.special.ndtri(torch.tensor(0.5 + each / 2.0, dtype=torch.float64)))


def _score(difference: float, error: float) -> str:
    return f", z = {difference / error:+.1f}" if error > 0.0 and math.isfinite(error) else ""


def warnings_of(outcome: Outcome) -> list[str]:
    """What a reader of the numbers should know."""
    repelled, notes = outcome.repelled, list(outcome.repelled.notes)
    total = math.prod(repelled.shape)
    ess = repelled.pooled().ess
    if ess < _FEW * total:
        notes.append(f"{ess:.0f} effective samples of {total} are left when the bias is undone: use a weaker one")
    counts = repelled.bias.counts
    if counts.outside:
        notes.append(f"{counts.outside} of {counts.hills} samples were outside the bias's grid, where it is flat")
    if counts.invalid:
        notes.append(f"{counts.invalid} samples had no finite features, and weigh nothing")
    return notes
