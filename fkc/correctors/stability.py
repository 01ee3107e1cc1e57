"""How much noise keeps weighted particles at their target."""

from __future__ import annotations

import itertools

from .guides import guides_between
from .model import CorrectedModel

__all__ = ["noise_bound"]


def noise_bound(model: CorrectedModel) -> float:
    r"""What the noise multiplier must exceed for the truth to be attracting.

    For Gaussian experts of variance v and a guide that takes them for variance v_g, the variance p of weighted
    particles, in units of v and per unit of log-signal-to-noise, follows

    .. math:: dp/du = \kappa - [A(1+\kappa) - 1 - (A-1)r]\,p + A(A-1)(1-r)\,p^2, \qquad r = v/v_g,

    whose fixed point 1/A attracts iff :math:`\kappa > (1 - 1/A)(1 - r)`. Without a guide r = 0; with the right one, or
    with a control along the score, every kappa > 0 will do. The largest over the levels, 0 where A <= 1.
    """
    if model.control in ("score", "least_squares") or model.gauge in ("reference", "fitted"):
        return 0.0
    bound = 0.0
    for first, last in itertools.pairwise(model.levels):
        total = sum(first.powers)
        if total <= 1.0 or last.h >= first.h:
            continue
        before, _ = guides_between(model.gauge, model.target, first, last)
        shares = [float(v * p) for v, p in zip(first.reference.variances, before.precisions, strict=True)]
        bound = max(bound, (1.0 - 1.0 / total) * (1.0 - min(shares)))
    return bound
