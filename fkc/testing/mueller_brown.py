"""The Mueller-Brown surface with exact numbers.

The constants were obtained by Gauss-Legendre quadrature, stable under doubling of the grid; the tests repeat
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MuellerBrown", "MuellerBrownTruth"]

_HEIGHT = (-200.0, -100.0, -170.0, 15.0)
_XX = (-1.0, -1.0, -6.5, 0.7)
_XY = (0.0, 0.0, 11.0, 0.6)
_YY = (-10.0, -10.0, -6.5, 0.7)
_X0 = (1.0, 0.0, -0.5, -1.0)
_Y0 = (0.0, 0.5, 1.5, 1.0)


@dataclass(frozen=True)
class MuellerBrownTruth:
    """Exact values of the density ``exp(-beta V)``.

    Attributes:
        log_normalizer: log Z.
        mean_x: E[x].
        mean_y: E[y].
        mean_potential: E[V].
        probability_left: P(x < -0.2).
    """

    log_normalizer: float
    mean_x: float
    mean_y: float
    mean_potential: float
    probability_left: float

    @property
    def log_odds_left(self) -> float:
        """``ln(P(x < -0.2) / P(x > -0.2))``."""
        return math.log(self.probability_left / (1 - self.probability_left))


_TRUTH = {
    0.05: MuellerBrownTruth(5.36613324231, -0.4248936763, 1.165086171, -113.413627, 0.822164617068),
    0.10: MuellerBrownTruth(11.7295905583, -0.5436644273, 1.394512234, -134.9340441, 0.974563508741),
}


@dataclass(frozen=True)
class MuellerBrown:
    """Density ``exp(-beta V(x, y))`` on the standard four-term surface.

    Attributes:
        beta: inverse temperature, in the inverse unit of V.

    References:
        Mueller and Brown (1979), Theor. Chim. Acta 53, 75, table 1.
    """

    beta: float

    # (x, y, V)
    minima = (
        (-0.558224, 1.441726, -146.699517),
        (0.623499, 0.028038, -108.166724),
        (-0.050011, 0.466694, -80.767818),
    )
    saddles = ((-0.822002, 0.624313, -40.664844), (0.212487, 0.292988, -72.248940))

    @property
    def truth(self) -> MuellerBrownTruth:
        """Exact values, for beta 0.05 and 0.1.

        Raises:
            NotImplementedError: for other temperatures.
        """
        if self.beta not in _TRUTH:
            raise NotImplementedError(f"no exact values are tabulated for beta = {self.beta}")
        return _TRUTH[self.beta]

    @property
    def log_normalizer(self) -> float:
        """Log Z, for beta 0.04, 0.05 and 0.1."""
        return 4.2881627904 if self.beta == 0.04 else self.truth.log_normalizer

    def potential(self, x: Tensor) -> Tensor:
        """V, ``(B, 2)`` -> ``(B,)``."""
        return self._terms(x)[0].sum(dim=-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """``-beta V``, ``(B, 2)`` -> ``(B,)``."""
        return -self.beta * self.potential(x)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B,)`` and ``(B, 2)``."""
        terms, by_x, by_y = self._terms(x)
        gradient = torch.stack([(terms * by_x).sum(dim=-1), (terms * by_y).sum(dim=-1)], dim=-1)
        return -self.beta * terms.sum(dim=-1), -self.beta * gradient

    @staticmethod
    def _terms(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The four terms and the derivatives of their exponents, ``(B, 4)`` each."""
        height, xx, xy, yy, x0, y0 = (x.new_tensor(v) for v in (_HEIGHT, _XX, _XY, _YY, _X0, _Y0))
        dx, dy = x[..., 0:1] - x0, x[..., 1:2] - y0
        exponent = xx * dx.square() + xy * dx * dy + yy * dy.square()
        return height * exponent.exp(), 2 * xx * dx + xy * dy, xy * dx + 2 * yy * dy
