"""Steer diffusers pipelines with correct weights: a hook of three lines."""

from .attach import attach, steer
from .context import StepContext
from .controls import Control, Weighed, every
from .errors import BatchLayoutError, DeterministicStep, SteeringError, UnsupportedScheduler
from .fk import FKSteering
from .run import Calls, Run, StepRecord
from .schedulers import Level, SchedulerRule, register_scheduler, registered_schedulers
from .soft_value import SoftValueGuidance

__all__ = [
    "attach",
    "steer",
    "FKSteering",
    "SoftValueGuidance",
    "Control",
    "Weighed",
    "StepContext",
    "every",
    "Run",
    "StepRecord",
    "Calls",
    "Level",
    "SchedulerRule",
    "register_scheduler",
    "registered_schedulers",
    "SteeringError",
    "UnsupportedScheduler",
    "DeterministicStep",
    "BatchLayoutError",
]
