"""Rewards by name: built in, installed (entry points ``feynkac.rewards``), or ``package.module:attribute``."""

import importlib
import inspect
from typing import Any

from ...fkc.plugins import entry_point_names, find_object
from .calls import Reward

__all__ = ["BUILT_IN", "GROUP", "available_rewards", "load_reward"]

GROUP = "feynkac.rewards"
"""Entry-point group; an entry is a factory(**options) -> reward."""

BUILT_IN = {
    "jpeg_size": "images:JpegSize",
    "brightness": "images:Brightness",
    "sharpness": "images:Sharpness",
    "class_log_prob": "images:ClassLogProb",
    "clip_score": "text_image:ClipScore",
    "qed": "molecules:QED",
    "logp": "molecules:LogP",
    "synthetic_accessibility": "molecules:SyntheticAccessibility",
}
"""Name -> module of this package and class."""


def available_rewards() -> list[str]:
    """Names that :func:`load_reward` knows, sorted; nothing is imported."""
    return sorted({*BUILT_IN, *entry_point_names(GROUP)})


def load_reward(name: str, **options: Any) -> Reward:
    """The reward called ``name``.

    Args:
        name: a built-in name or an entry point of ``feynkac.rewards``, either called with ``options``; or
            ``package.module:attribute``, which is the reward itself, except that a class, and anything if options are
            given, is called with them to make it. Built-in names win over entry points.
        options: of the factory.

    Raises:
        ValueError: no such reward, module or attribute, or options that its factory does not take.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return _made(name, getattr(importlib.import_module(f"{__package__}.{module}"), attribute), options)
    target = find_object(GROUP, name, also=BUILT_IN)
    made = ":" not in name or bool(options) or inspect.isclass(target)
    return _made(name, target, options) if made else _callable(name, target)


def _made(name: str, factory: Any, options: dict[str, Any]) -> Reward:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ValueError(f"reward {name!r}: {error}; it takes {inspect.signature(factory)}") from error
    return _callable(name, factory(**options))


def _callable(name: str, reward: Any) -> Reward:
    if not callable(reward):
        raise ValueError(f"reward {name!r}: got {type(reward).__name__}, expected a callable of a list of samples")
    return reward  # type: ignore[no-any-return]
