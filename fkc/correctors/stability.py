"""How much noise keeps weighted particles at their target."""

from __future__ import annotations

import math

from .model import CorrectedModel
from .moves import Transition

__all__ = ["noise_bound"]


def noise_bound(model: CorrectedModel) -> float:
    r"""What the noise multiplier must exceed for the truth to be attracting, by the experts' claimed variances v_i.

    For Gaussian experts the target is N(m, P) with :math:`1/P = \Lambda = \sum_i a_i/v_i`. Let the guide have variance
    P_g and stand-ins of variance u_i, and the control a coefficient theta along the score. The variance of weighted
    particles then follows a Riccati equation with P as a solution, which attracts iff

    .. math:: \kappa > 1 + \frac1\Lambda\Bigl(\frac{\dot P_g}{P_g} - \frac{\dot P}{P} - \sum_i\frac{a_i}{u_i}
        + \theta\bigl(\Lambda - \sum_i \frac{a_i}{u_i}\bigr)\Bigr),

    dots for derivatives in the noise variance. For one expert and no guide this is 1 - 1/A; for the right guide, or a
    control along the score of one expert, 0. The largest over the moves; least squares has no theta beforehand and is
    taken for 0.
    """
    if model.control == "least_squares":
        return 0.0
    bounds = [_of_move(model, model.transition(step)) for step in range(1, model.n_steps + 1)]
    largest = max([bound for bound in bounds if bound is not None], default=0.0)
    return largest if largest > 1e-6 else 0.0


def _of_move(model: CorrectedModel, move: Transition) -> float | None:
    if move.fall <= 0.0:
        return None
    first, last = move.first.reference, move.last.reference
    variance = float(first.variance)
    own = math.log(variance / float(last.variance)) / move.fall
    if model.gauge == "fitted":  # one Gaussian of the target's own variance
        stand_ins = 1.0 / variance
        guide = stand_ins / sum(move.first.powers)
    else:
        before, after = float(move.before.precision), float(move.after.precision)
        guide = math.log(after / before) / move.fall if before > 0.0 else 0.0
        falls = (a - b for a, b in zip(move.first.variances, move.last.variances, strict=True))
        shares = zip(move.first.powers, falls, move.before.precisions, strict=True)
        stand_ins = sum(a * fall / move.fall * float(p) for a, fall, p in shares)
    theta = 0.0
    if move.control is not None and move.control.score is not None:
        theta = float(move.control.score)
    return 1.0 + variance * (guide - own - stand_ins + theta * (1.0 / variance - stand_ins))
