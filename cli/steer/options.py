"""Options of `feynkac steer` laid over a config file, or in its place; messages name the option that was wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..validation import PROVENANCE, validated
from ..yaml_lines import Loc, LocatedData, load_yaml, parse_value
from .config import SteerConfig

__all__ = ["steer_config"]

_SINGLE: Mapping[str, tuple[str, str]] = {
    "--model": ("model", "folder"),
    "--scheduler": ("model", "scheduler"),
    "--dtype": ("model", "dtype"),
    "--device": ("model", "device"),
    "--negative-prompt": ("call", "negative_prompt"),
    "--steps": ("call", "steps"),
    "--guidance-scale": ("call", "guidance_scale"),
    "--eta": ("call", "eta"),
    "--size": ("call", "size"),
    "--method": ("steering", "method"),
    "--particles": ("steering", "particles"),
    "--candidates": ("steering", "candidates"),
    "--temperature": ("steering", "temperature"),
    "--potential": ("steering", "potential"),
    "--transition": ("steering", "transition"),
    "--resampler": ("steering", "resampler"),
    "--ess-threshold": ("steering", "ess_threshold"),
    "--final": ("steering", "final"),
    "--chunk-size": ("steering", "chunk_size"),
    "--seed": ("sampling", "seed"),
    "--seeds": ("sampling", "seeds"),
}
"""Options that set one value each."""

_REWARD = re.compile(r"([\w.]+(?::[A-Za-z_][\w.]*(?=:|$))?)(?::(\w+=.*))?", re.DOTALL)
"""NAME or package.module:attribute, then perhaps :key=value,key=value."""


@dataclass
class _Options(LocatedData):
    """Data of which some values come from options.

    Attributes:
        options: path of a value -> the option that set it.
    """

    options: dict[Loc, str] = field(default_factory=dict)

    def where(self, loc: Loc) -> str:
        """The option that set the deepest part of ``loc`` that was set, or else the file's line."""
        for end in range(len(loc), 0, -1):
            if loc[:end] in self.options:
                return self.options[loc[:end]]
            if loc[:end] in self.lines or loc[:end] in self.overrides:
                break
        return super().where(loc)

    def put(self, loc: tuple[str, ...], value: Any, option: str) -> None:
        """Set a value in a section, made if missing."""
        section = self.data
        for key in loc[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise UserError(f"{self.where(loc[:1])}: {loc[0]}: expected 'key: value' lines, got {section!r}")
        section[loc[-1]] = value
        self.options[loc] = option


def steer_config(
    file: Path | None,
    overrides: Sequence[str],
    *,
    single: Mapping[str, Any],
    prompts: Sequence[str],
    labels: Sequence[str],
    rewards: Sequence[str],
    scales: Sequence[float],
) -> SteerConfig:
    """The config that a command line describes.

    Args:
        file: YAML config that options override, or None.
        overrides: assignments ``a.b=value``, applied last.
        single: option -> value, None where it was not given.
        prompts, labels, rewards, scales: those of the options that may be repeated.

    Raises:
        UserError: an option that cannot be read, or that is missing.
        ConfigError: a value that cannot be used; one line each.
    """
    if file is None:
        _refuse_missing(single, rewards)
    located = _Options("command line", {"job": "steer"}, {}) if file is None else _read(file)
    for option, loc in _SINGLE.items():
        if single.get(option) is not None:
            located.put(loc, single[option], option)
    if file is None:
        located.data["name"] = _run_name(str(single["--model"]))
    _put_conditions(located, prompts, labels)
    _put_rewards(located, rewards, scales)
    for assignment in overrides:
        located.override(assignment)
    return validated(located, SteerConfig, Path() if file is None else file.parent)


def _read(file: Path) -> _Options:
    read = load_yaml(file)
    read.data.pop(PROVENANCE, None)
    return _Options(read.source, read.data, read.lines)


def _refuse_missing(single: Mapping[str, Any], rewards: Sequence[str]) -> None:
    if single.get("--model") is None:
        raise UserError("--model: missing; expected the folder of a pipeline, or a CONFIG that names one")
    if not rewards:
        raise UserError("--reward: missing; expected NAME or NAME:key=value,..., or a CONFIG that has rewards")


def _run_name(model: str) -> str:
    name = Path(model.removeprefix("data:")).expanduser().resolve().name
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).lstrip("-._") or "steer"


def _put_conditions(located: _Options, prompts: Sequence[str], labels: Sequence[str]) -> None:
    """The option's kind replaces both kinds in the file."""
    if not prompts and not labels:
        return
    if isinstance(call := located.data.get("call"), dict):
        call.pop("prompts", None)
        call.pop("labels", None)
    if prompts:
        located.put(("call", "prompts"), list(prompts), "--prompt")
    if labels:
        located.put(("call", "labels"), [_label(text) for text in labels], "--label")


def _label(text: str) -> int | None:
    if text.lower() in ("none", "null"):
        return None
    if not text.isdigit():
        raise UserError(f"--label {text}: expected a class number from 0 on, or none for no class")
    return int(text)


def _put_rewards(located: _Options, rewards: Sequence[str], scales: Sequence[float]) -> None:
    if rewards:
        located.data["rewards"] = [_reward(text) for text in rewards]
        located.options[("rewards",)] = "--reward"
    known = located.data.get("rewards")
    count = len(known) if isinstance(known, list) else 0
    if scales and len(scales) != count:
        raise UserError(f"--scale: given {len(scales)} times for {count} rewards, expected once for each, in order")
    for index, scale in enumerate(scales):
        if isinstance(known, list) and isinstance(known[index], dict):
            known[index]["scale"] = scale
            located.options[("rewards", index, "scale")] = "--scale"


def _reward(text: str) -> dict[str, Any]:
    match = _REWARD.fullmatch(text)
    if match is None:
        raise UserError(f"--reward {text}: expected NAME or package.module:attribute, then perhaps :key=value,...")
    name, listed = match.groups()
    pairs = [pair.partition("=") for pair in re.split(r",(?=\w+=)", listed)] if listed else []
    options = {key: value if _placed(value) else parse_value(value, f"--reward {text}") for key, _, value in pairs}
    return {"name": name, "options": options}


def _placed(value: str) -> bool:
    """``{prompt}`` and ``{label}``, which YAML would read as mappings."""
    return "{prompt}" in value or "{label}" in value
