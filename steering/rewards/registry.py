"""Rewards by name: built in, installed (entry points ``feynkac.rewards``), or ``package.module:attribute``."""

import difflib
import importlib
import inspect
from importlib.metadata import entry_points
from typing import Any

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
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


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
    if ":" in name:
        target = _imported(name)
        return _made(name, target, options) if options or inspect.isclass(target) else _callable(name, target)
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return _made(name, getattr(importlib.import_module(f"{__package__}.{module}"), attribute), options)
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        known = available_rewards()
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"reward: got {name!r}, expected one of {', '.join(known)} or package.module:attribute{hint}")
    try:
        factory = points[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward {name!r}: {points[name].value} cannot be imported: {error}") from error
    return _made(name, factory, options)


def _imported(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"reward {path!r}: module {module_name!r} cannot be imported: {error}") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise ValueError(f"reward {path!r}: {module_name} has no {attribute!r}")
        target = getattr(target, part)
    return target


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
