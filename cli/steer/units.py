"""The units of a steering job: one population each, for a prompt (or label) and a seed, independent of all others."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import torch

from .config import SteerConfig

__all__ = ["Condition", "Unit", "conditions", "units"]


@dataclass(frozen=True)
class Condition:
    """What a population is conditioned on.

    Attributes:
        kind: ``"prompt"``, ``"label"`` or ``"none"``.
        value: text, class number, or None.
    """

    kind: str
    value: str | int | None = None

    @property
    def title(self) -> str:
        """For people."""
        return {"prompt": str(self.value), "label": f"label {'none' if self.value is None else self.value}"}.get(
            self.kind, "samples"
        )

    @property
    def slug(self) -> str:
        """For file names; different for different conditions."""
        if self.kind != "prompt":
            return self.title.replace(" ", "-")
        words = re.sub(r"[^a-z0-9]+", "-", str(self.value).lower()).strip("-")[:40].strip("-")
        digest = hashlib.sha256(str(self.value).encode()).hexdigest()[:6]
        return f"{words}-{digest}" if words else digest

    def filled(self, options: dict[str, Any]) -> dict[str, Any]:
        """Reward options with ``{prompt}`` or ``{label}`` in their place; a value that is nothing else becomes it."""
        place = f"{{{self.kind}}}"

        def fill(value: Any) -> Any:
            if not isinstance(value, str) or place not in value:
                return value
            return self.value if value == place else value.replace(place, str(self.value))

        return {name: fill(value) for name, value in options.items()}


@dataclass(frozen=True)
class Unit:
    """One population.

    Attributes:
        condition: its prompt or label.
        seed: its seed, as the user counts.
    """

    condition: Condition
    seed: int

    @property
    def name(self) -> str:
        """Folder of its samples and of its checkpoint."""
        return f"{self.condition.slug}/seed-{self.seed}"

    def stream(self, purpose: str) -> int:
        """A seed for ``purpose`` that depends on prompt and seed alone, not on what else the job runs."""
        text = json.dumps([purpose, self.seed, self.condition.kind, self.condition.value])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generator(self) -> torch.Generator:
        """For the pipeline: its starting noise, and its steps' where it passes it on."""
        return torch.Generator().manual_seed(self.stream("pipeline"))


def conditions(config: SteerConfig) -> list[Condition]:
    """One for each prompt or label; a single one for a pipeline that takes neither."""
    if config.call.prompts:
        return [Condition("prompt", text) for text in config.call.prompts]
    return [Condition("label", label) for label in config.call.labels] or [Condition("none")]


def units(config: SteerConfig) -> list[Unit]:
    """All populations, a condition's seeds one after the other."""
    first = config.sampling.seed
    return [Unit(c, first + i) for c in conditions(config) for i in range(config.sampling.seeds)]
