"""Unadjusted Langevin, made exact in expectation by the weight of a backward kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..density import GeometricPath, Point
from ..streams import normal
from .base import Move, per_particle

__all__ = ["UnadjustedLangevin", "langevin_proposal"]


def langevin_proposal(
    generators: Sequence[Generator], point: Point, path: GeometricPath, step_size: Tensor
) -> tuple[Point, Tensor]:
    r"""One Euler step of overdamped Langevin dynamics, and its log-ratio with the reversed step.

    .. math::
        y &= x + h \nabla\log\pi(x) + \sqrt{2h}\,\xi \\
        \text{log\_ratio} &= \log\pi(y) - \log\pi(x) + \log N(x; y + h\nabla\log\pi(y), 2h)
        - \log N(y; x + h\nabla\log\pi(x), 2h)

    The ratio is MALA's acceptance ratio and the weight of the unadjusted kernel: written once, here.

    Args:
        generators: P of them.
        point: with scores.
        path: the density pi.
        step_size: h, ``(P,)``, in the squared unit of x.

    Returns:
        The new point and ``(P, K)`` float64.
    """
    h = per_particle(step_size, point.x)
    noise = normal(generators, point.x.shape[1:], dtype=point.x.dtype).to(point.x.device)
    y = point.x + h * path.score(point) + (2 * h).sqrt() * noise
    new = path.evaluate(y, score=True)
    back = point.x - y - h * path.score(new)
    forward_exponent = _square(noise) / 2
    backward_exponent = _square(back) / (4 * step_size.to(torch.float64)[:, None])
    return new, path.log_prob(new) - path.log_prob(point) + forward_exponent - backward_exponent


@dataclass(frozen=True)
class UnadjustedLangevin:
    r"""Every proposal is kept and the log-ratio becomes a weight, so :math:`E[w f(y)] = E_\pi[f]` at any step
    size.

    Together with the tempering increment :math:`-U_{k}(x) + U_{k-1}(x)` the total weight of a step is
    :math:`-U_k(y) + U_{k-1}(x) + \log N(x; y - h\nabla U_k(y), 2h) - \log N(y; x - h\nabla U_k(x), 2h)`.
    ``step_size`` is h, in the squared unit of x. Leaving the weight out biases both the samples and the
    evidence.

    References:
        Del Moral, Doucet and Jasra (2006), JRSS B 68, 411, section 3.3, with the kernel's own reversal as
        backward kernel.
    """

    needs_score: bool = True
    exact: bool = False

    def __call__(self, generators: Sequence[Generator], point: Point, path: GeometricPath, step_size: Tensor) -> Move:
        """See :class:`feynkac.fkc.kernels.Kernel`."""
        new, log_ratio = langevin_proposal(generators, point, path, step_size)
        n_invalid = new.log_prob.isnan().any(dim=-1).sum(dim=-1)
        return Move(new, log_ratio, torch.ones_like(log_ratio, dtype=torch.bool), n_invalid)


def _square(values: Tensor) -> Tensor:
    """Squared norm over the event axes, ``(P, K)`` float64."""
    return values.to(torch.float64).square().reshape(*values.shape[:2], -1).sum(dim=-1)
