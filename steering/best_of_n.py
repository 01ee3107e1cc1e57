"""Best of n: the baseline that steering has to beat at equal cost.

n plain samples a prompt and the reward of each. With n = K M it costs as many denoiser calls as K particles with M
candidates. The best of n is not a draw from the tilted law; its own law is P(value <= u) = F(u)^n.
"""

from collections.abc import Sequence
from typing import Any

from .fk import FKSteering
from .rewards import Reward
from .run import Run
from .steer import steer
from .tilt import Space

__all__ = ["best_of_n"]


def best_of_n(
    pipe: Any,
    reward: Reward | Sequence[Reward],
    *,
    n: int,
    seed: int,
    on: Space = "images",
    scale: float = 1.0,
    **call: Any,
) -> tuple[Any, Run]:
    """Draw n samples a prompt without steering and judge them.

    Args:
        pipe: the pipeline; a deterministic scheduler is as good as any here.
        reward: samples -> one number each, or one such a prompt.
        n: samples a prompt.
        seed: of noise where the pipeline passes no generator.
        on: what the reward is given, as for :class:`~feynkac.steering.FKSteering`.
        scale: lambda of the weights that are kept beside (importance sampling to the tilted law).
        call: arguments of the pipeline and of :func:`feynkac.steering.attach`.

    Returns:
        The pipeline's output with all samples, and the run: ``run.best`` (P,) says which is the best of each prompt,
        ``run.rewards`` (P, n) how good each is, ``run.log_weights`` what it weighs under the tilted law.

    Raises:
        SteeringError: as :func:`feynkac.steering.steer`.
    """
    control = FKSteering(reward, scale=scale, on=on, when=())
    return steer(pipe, control, particles=n, seed=seed, **call)
