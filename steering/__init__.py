"""Steer diffusers pipelines with correct weights: a hook of three lines."""

from ..fkc.run_state import Checkpoint
from .attach import attach
from .best_of_n import best_of_n
from .composition import Annealed, Composition, Product
from .context import FinalContext, StepContext
from .controls import Control, Memory, Target, Weighed, When, every, near
from .errors import BatchLayoutError, DeterministicStep, SteeringError, SteeringWarning, UnsupportedScheduler
from .experts import expert_of
from .fk import FKSteering
from .gradient import Gradient
from .guidance import Guidance
from .lockstep import run_lockstep
from .projection import Projection
from .repel import RepelledBatches, repel
from .repulsion import Repulsion
from .run import Calls, Run, StepRecord
from .scales import Scheduled, TargetESS, TargetKL
from .schedulers import Level, SchedulerRule, register_scheduler, registered_schedulers
from .soft_value import SoftValueGuidance
from .spaces import MeanFree, effective_std
from .steer import steer
from .values import Draws

__all__ = [
    "attach",
    "steer",
    "best_of_n",
    "run_lockstep",
    "FKSteering",
    "SoftValueGuidance",
    "Repulsion",
    "repel",
    "RepelledBatches",
    "Projection",
    "Draws",
    "Gradient",
    "Guidance",
    "Annealed",
    "Product",
    "Composition",
    "expert_of",
    "MeanFree",
    "effective_std",
    "Scheduled",
    "TargetESS",
    "TargetKL",
    "Control",
    "Weighed",
    "Memory",
    "When",
    "Checkpoint",
    "Target",
    "StepContext",
    "FinalContext",
    "every",
    "near",
    "Run",
    "StepRecord",
    "Calls",
    "Level",
    "SchedulerRule",
    "register_scheduler",
    "registered_schedulers",
    "SteeringError",
    "SteeringWarning",
    "UnsupportedScheduler",
    "DeterministicStep",
    "BatchLayoutError",
]
