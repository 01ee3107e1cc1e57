"""Tests of random numbers: an estimate, its own standard error, and the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ZTest", "calibration"]


@dataclass(frozen=True)
class ZTest:
    """How many of its own standard errors an estimate is away from the truth.

    Attributes:
        estimate: what was found.
        std_error: its standard error, estimated from the same data.
        expected: the exact value.
        limit: largest ``|z|`` that passes. Five is exceeded by chance once in two million tests.
    """

    estimate: float
    std_error: float
    expected: float
    limit: float = 5.0

    @classmethod
    def from_samples(cls, samples: Tensor, expected: float, *, limit: float = 5.0) -> ZTest:
        """Test of the mean of independent samples ``(R,)``.

        Raises:
            ValueError: fewer than two samples.
        """
        values = samples.to(torch.float64).reshape(-1)
        if values.numel() < 2:
            raise ValueError("a z-test of a mean needs at least two samples")
        error = float(values.std()) / math.sqrt(values.numel())
        return cls(float(values.mean()), error, expected, limit)

    @property
    def z(self) -> float:
        """``(estimate - expected) / std_error``; an exact hit without spread is 0, a miss without spread
        infinite."""
        difference = self.estimate - self.expected
        if self.std_error == 0:
            return 0.0 if difference == 0 else math.copysign(math.inf, difference)
        return difference / self.std_error

    @property
    def passed(self) -> bool:
        """``|z|`` within the limit; False if anything is NaN."""
        return abs(self.z) <= self.limit

    def __str__(self) -> str:
        return f"{self.estimate:.6g} +- {self.std_error:.2g}, expected {self.expected:.6g}: z = {self.z:.2f}"


def calibration(zs: Tensor, *, limit: float = 5.0) -> ZTest:
    """Test that z-values have variance one, that is, that standard errors are neither too small nor too
    large.

    Args:
        zs: ``(R,)`` independent z-values, each an error divided by its own standard error.
        limit: of the test.

    Returns:
        A test of ``mean(z^2)`` against 1. Its standard error is ``sqrt(2 / R)``, exact for normal z.
    """
    values = zs.to(torch.float64).reshape(-1)
    return ZTest(float(values.square().mean()), math.sqrt(2 / values.numel()), 1.0, limit)
