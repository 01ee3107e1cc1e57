r"""Guidance with the weight that it lacks.

Classifier-free guidance at scale g moves along the score of :math:`p_u^{1-g} p_c^g` at every noise level, but its
samples do not have that law. With the Gaussian step of :mod:`.kernel` at eta = 1 as the move, each expert's own
denoising kernel against the common noising kernel gives, for the move that is made,

.. math:: \Delta\log w = \frac{g(g-1)}{2}\,(r' - r)\,|D_c - D_u|^2,

r = (alpha/sigma)^2 before and r' after the move, D the two clean predictions: no term in the new sample, so it is known
before the move (Skreta et al. 2025, proposition 3.1, in discrete time). The last, noiseless move carries no weight. Law
and evidence are exact up to what the denoising kernels miss at a finite number of steps.
"""

from dataclasses import dataclass

import torch

from .context import FinalContext, StepContext
from .controls import Memory, Target, Weighed
from .errors import SteeringError
from .kernel import step_deviation

__all__ = ["Guidance"]


@dataclass(frozen=True)
class Guidance:
    """Corrects the guidance that a pipeline is called with: the target is p_u^(1-g) p_c^g.

    The scale g and both predictions are read off the denoiser's calls. Needs ``attach(transition="stochastic")`` with
    ``kernel_eta=1``, and guidance that is linear and on at every step. ``run.log_evidence`` is the log of the
    integral of the target.

    Attributes:
        name: for reports.
    """

    name: str = "guidance"
    records_branches = True
    weighs_guidance = True
    candidates = 1
    on = "latents"

    def begin(self, rows: int) -> Memory:
        """Nothing is remembered of a row."""
        return {}

    def weigh(self, context: StepContext, memory: Memory) -> Weighed | None:
        """The weight of the coming move.

        Raises:
            SteeringError: another move, or guidance that is not u + g (c - u) with g > 1.
        """
        level, following = context.level, context.following
        if following.sigma == 0.0:
            return None
        expected = step_deviation(level, following, 1.0)
        if abs(context.deviation - expected) > 1e-6 * expected:
            raise SteeringError('guidance: its weight is that of transition="stochastic" with kernel_eta=1')
        if context.branches is None:
            raise SteeringError("guidance: the denoiser's calls are not recorded")
        branches = context.branches()
        apart = context.clean_from(context.sample, branches.conditional)
        apart = apart - context.clean_from(context.sample, branches.unconditional)
        before, after = (level.alpha / level.sigma) ** 2, (following.alpha / following.sigma) ** 2
        scale = branches.guidance
        squares = apart.double().flatten(1).square().sum(dim=1).cpu()
        gain = 0.5 * scale * (scale - 1.0) * (after - before) * squares
        return Weighed(gain, memory, reward=squares.sqrt())

    def target(self, final: FinalContext, memory: Memory) -> Target:
        """What was weighed on the way is the target: nothing is left to correct."""
        return Target(final.applied, torch.zeros_like(final.applied))
