"""From the config of `feynkac steer` to rewards and controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...steering import Control, FKSteering, SoftValueGuidance
from ...steering.rewards import Reward, load_reward
from ..errors import UserError, named_errors
from ..paths import resolve
from .config import SteerConfig
from .units import Condition

__all__ = ["build_controls", "build_rewards", "reward_options"]


def reward_options(config: SteerConfig, condition: Condition) -> list[dict[str, Any]]:
    """Options of the rewards for one condition, its prompt or label in its place.

    Raises:
        UserError: a reward asks for a prompt or label that there is not.
    """
    found = []
    for index, reward in enumerate(config.rewards):
        options = dict(reward.options)
        if reward.name == "clip_score":
            options.setdefault("prompt", "{prompt}")
        for kind in ("prompt", "label"):
            asked = any(isinstance(value, str) and f"{{{kind}}}" in value for value in options.values())
            if asked and (condition.kind != kind or condition.value is None):
                raise UserError(f"rewards[{index}] = {reward.name!r}: asks for the {kind}, {condition.title} has none")
        found.append(condition.filled(options))
    return found


def build_rewards(config: SteerConfig, condition: Condition) -> list[Reward]:
    """The rewards of one condition.

    Raises:
        UserError: unknown, or with options that cannot be used.
    """
    made = []
    for index, options in enumerate(reward_options(config, condition)):
        name = config.rewards[index].name
        with named_errors(f"rewards[{index}] = {name!r}"):
            placed = {k: str(resolve(v, Path())) if str(v).startswith("data:") else v for k, v in options.items()}
            made.append(load_reward(name, **placed))
    return made


def build_controls(config: SteerConfig, rewards: list[Reward]) -> list[Control]:
    """What steers to exp(sum of scale x reward), over the temperature where the method has one."""
    s, chunk = config.steering, config.steering.chunk_size
    scales = [reward.scale for reward in config.rewards]
    if s.method == "soft-value":
        assert s.temperature is not None
        assert s.candidates is not None
        temperatures = [s.temperature / scale for scale in scales]
        pairs = zip(rewards, temperatures, strict=True)
        chosen: list[Any] = [SoftValueGuidance(r, alpha, s.candidates, chunk_size=chunk) for r, alpha in pairs]
        return chosen
    if s.method == "best-of-n":
        return [FKSteering(r, scale, when=(), chunk_size=chunk) for r, scale in zip(rewards, scales, strict=True)]
    assert s.potential is not None
    return [
        FKSteering(r, scale, potential=s.potential, chunk_size=chunk) for r, scale in zip(rewards, scales, strict=True)
    ]
