"""Double wells with exact numbers.

The constants were obtained by quadrature to 30 digits; the tests of this package repeat it in double
precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BarrierWell", "DoubleWell", "ManyWell"]

_LOG_2PI_HALF = math.log(2 * math.pi) / 2


@dataclass(frozen=True)
class DoubleWell:
    """``E(x1, x2) = x1^4 + a x1^2 + b x1 + x2^2 / 2`` in kT: the pair of the many-well problem, or its
    symmetric cousin.

    Attributes:
        quadratic: a.
        linear: b.
    """

    quadratic: float = -6.0
    linear: float = -0.5

    @classmethod
    def asymmetric(cls) -> DoubleWell:
        """a = -6, b = -1/2, the pair of the many-well problem (Noe et al. 2019, Science 365; Midgley et al.
        2023)."""
        return cls()

    @classmethod
    def symmetric(cls) -> DoubleWell:
        """a = -4, b = 0."""
        return cls(-4.0, 0.0)

    @property
    def log_normalizer(self) -> float:
        """Of the two-dimensional density.

        Raises:
            NotImplementedError: for coefficients other than the two tabulated pairs.
        """
        table = {(-6.0, -0.5): 11784.5092651278, (-4.0, 0.0): 73.1858236819}
        if (self.quadratic, self.linear) not in table:
            raise NotImplementedError(f"no exact value is tabulated for {self}")
        return math.log(table[self.quadratic, self.linear]) + _LOG_2PI_HALF

    # Exact values of the asymmetric well.
    probability_left = 0.155692903789  #: P(x1 < 0)
    log_odds_right = 1.690630784864  #: ln(P(x1 > 0) / P(x1 < 0))
    mean = 1.187960983376  #: E[x1]
    second_moment = 2.959806090488  #: E[x1^2]

    def log_prob(self, x: Tensor) -> Tensor:
        """``(B, 2)`` -> ``(B,)``."""
        first, second = x[..., 0], x[..., 1]
        well = first**4 + self.quadratic * first.square() + self.linear * first
        return -(well + second.square() / 2)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` and ``(B, 2)``."""
        first, second = x[..., 0], x[..., 1]
        slope = 4 * first**3 + 2 * self.quadratic * first + self.linear
        return self.log_prob(x), -torch.stack([slope, second], dim=-1)


@dataclass(frozen=True)
class BarrierWell:
    """``E(x) = h (x^2 - 1)^2`` in kT, one dimension.

    Attributes:
        height: h, the barrier.
    """

    height: float

    @property
    def log_normalizer(self) -> float:
        """Tabulated for h = 1, 4, 8.

        Raises:
            NotImplementedError: for other heights.
        """
        table = {1.0: 0.679926242894, 4.0: -0.053571853616, 8.0: -0.439585545480}
        if float(self.height) not in table:
            raise NotImplementedError(f"no exact value is tabulated for height {self.height}")
        return table[float(self.height)]

    def log_prob(self, x: Tensor) -> Tensor:
        """``(B, 1)`` -> ``(B,)``."""
        return -self.height * (x[..., 0].square() - 1).square()

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` and ``(B, 1)``."""
        return self.log_prob(x), -4 * self.height * x * (x.square() - 1)


@dataclass(frozen=True)
class ManyWell:
    """d / 2 independent asymmetric double wells: ``2^(d/2)`` modes (Midgley et al. 2023, ICLR, section 4.2).

    Attributes:
        dimension: d, even.
    """

    dimension: int

    def __post_init__(self) -> None:
        if self.dimension < 2 or self.dimension % 2:
            raise ValueError(f"the many-well problem has an even dimension, got {self.dimension}")

    @property
    def log_normalizer(self) -> float:
        """d / 2 times that of one pair; 164.6956753132 for d = 32."""
        return self.dimension // 2 * DoubleWell().log_normalizer

    def log_prob(self, x: Tensor) -> Tensor:
        """``(B, d)`` -> ``(B,)``."""
        return DoubleWell().log_prob(self._pairs(x)).sum(dim=-1)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` and ``(B, d)``."""
        values, scores = DoubleWell().log_prob_and_score(self._pairs(x))
        return values.sum(dim=-1), scores.reshape(x.shape)

    def _pairs(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.dimension // 2, 2)
