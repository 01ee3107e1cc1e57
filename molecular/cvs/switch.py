"""The rational switching function: 1 at contact, 0 far away."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch

__all__ = ["RationalSwitch"]


@dataclass(frozen=True)
class RationalSwitch:
    r"""Rational switch :math:`s(r) = (1 - x^n) / (1 - x^m)` of :math:`x = (r - d_0) / r_0`, and 1 below :math:`d_0`.

    Both polynomials have the factor 1 - x.  It is divided out, with the powers that n and m have in common, so that
    the function and its derivatives are exact at r = d0 + r0, where its value is n/m, and cannot overflow far away.

    Args:
        r0: length in nm over which contacts fade.
        d0: length in nm up to which a contact is whole.
        n, m: exponents, whole numbers with n < m; m is 2 n by default, which makes s = 1/(1 + x^n).

    Raises:
        ValueError: for lengths or exponents out of range.
    """

    r0: float
    d0: float = 0.0
    n: int = 6
    m: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.r0) and self.r0 > 0):
            raise ValueError(f"r0 must be a positive length in nm, got {self.r0}")
        if not (math.isfinite(self.d0) and self.d0 >= 0):
            raise ValueError(f"d0 must be a length in nm from 0 on, got {self.d0}")
        n = _whole("n", self.n)
        m = 2 * n if self.m is None else _whole("m", self.m)
        if not 0 < n < m:
            raise ValueError(f"the exponents must be whole numbers with 0 < n < m, got n = {n}, m = {m}")
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "m", m)

    def __call__(self, distances: torch.Tensor) -> torch.Tensor:
        """Values in [0, 1] of distances in nm, of any shape."""
        m = int(self.m or 0)
        common = math.gcd(self.n, m)
        top, bottom = self.n // common, m // common
        x = ((distances - self.d0) / self.r0).clamp(min=0.0)
        far = x > 1
        # x or its inverse, whichever is at most 1
        u = torch.where(far, 1 / torch.where(far, x, 1.0), x) ** common
        ratio = _geometric(u, top) / _geometric(u, bottom)
        return torch.where(far, u ** (bottom - top) * ratio, ratio)


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Real) or not float(value).is_integer():
        raise ValueError(f"the exponent {name} must be a whole number, got {value!r}")
    return int(float(value))


def _geometric(u: torch.Tensor, terms: int) -> torch.Tensor:
    """1 + u + ... with that many terms."""
    total = torch.ones_like(u)
    for _ in range(terms - 1):
        total = 1 + u * total
    return total
