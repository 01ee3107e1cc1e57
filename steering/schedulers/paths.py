"""The Gaussian path of a diffusers scheduler, for correctors."""

import copy
from typing import Any

from ...fkc.diffusion import Diffusion
from .levels import rule_for

__all__ = ["diffusion_of"]


def diffusion_of(scheduler: Any, *, points: int = 1000) -> Diffusion:
    """alpha and sigma of a scheduler's own sample space, tabulated from data (t = 0) to noise (t = 1).

    Args:
        scheduler: of a registered class; it is copied, not touched.
        points: of the table, at most; the scheduler's training steps bound it.

    Raises:
        UnsupportedScheduler: the class is not known.
        ValueError: fewer than two distinct levels.
    """
    rule = rule_for(scheduler)
    own = copy.deepcopy(scheduler)
    own.set_timesteps(min(points, int(own.config.get("num_train_timesteps", points))))
    levels = [level for level in rule.levels(own) if level.sigma > 0.0 and level.alpha > 0.0][::-1]
    rising = [levels[0]] if levels else []
    for level in levels[1:]:
        if level.sigma / level.alpha > rising[-1].sigma / rising[-1].alpha:
            rising.append(level)
    return Diffusion.table([level.alpha for level in rising], [level.sigma for level in rising])
