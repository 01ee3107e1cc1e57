"""Noise levels of diffusers' schedulers, by class."""

from . import families  # noqa: F401  (importing it registers diffusers' own classes)
from .levels import (
    Level,
    SchedulerRule,
    StepPosition,
    arrival_level,
    call_index,
    register_scheduler,
    registered_schedulers,
    rule_for,
    step_position,
)
from .paths import NoiseTable, diffusion_of, noise_table

__all__ = [
    "NoiseTable",
    "diffusion_of",
    "noise_table",
    "Level",
    "SchedulerRule",
    "StepPosition",
    "arrival_level",
    "call_index",
    "register_scheduler",
    "registered_schedulers",
    "rule_for",
    "step_position",
]
