"""Regressed value networks: soft values learned from rollouts of the sampler, in place of the reward of x0-hat.

value, history = fit_value(
    pipe, reward, temperature=0.5, rollouts=2000, seed=0, call={"num_inference_steps": 50, "eta": 1.0}
)
FKSteering(reward, scale=2.0, value=value)
"""

from typing import TYPE_CHECKING, Any

from .collecting import Recorder, collect_rollouts
from .quality import LevelQuality, assess
from .regression import FitProgress, Fitting, fit_network, fit_value, regression_loss
from .rollouts import Rollouts
from .value import LearnedValue

if TYPE_CHECKING:
    from .network import ValueNetwork

__all__ = [
    "fit_value",
    "LearnedValue",
    "ValueNetwork",
    "Rollouts",
    "Recorder",
    "collect_rollouts",
    "Fitting",
    "FitProgress",
    "fit_network",
    "regression_loss",
    "LevelQuality",
    "assess",
]


def __getattr__(name: str) -> Any:
    """The network is a diffusers model, so diffusers is imported when it is first asked for."""
    if name == "ValueNetwork":
        from .network import ValueNetwork

        return ValueNetwork
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
