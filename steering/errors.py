"""Errors of steering: what cannot be done exactly is refused, by name and with the remedy."""

__all__ = ["BatchLayoutError", "DeterministicStep", "SteeringError", "SteeringWarning", "UnsupportedScheduler"]


class SteeringError(RuntimeError):
    """Something about a pipeline, its scheduler or a control makes exact steering impossible."""


class UnsupportedScheduler(SteeringError):
    """The noise levels of a scheduler class are not known."""


class DeterministicStep(SteeringError):
    """The scheduler adds no noise, so that copies of a particle would stay copies."""


class BatchLayoutError(SteeringError):
    """The rows of the batch are not P prompts x K particles with a prompt's particles side by side."""


class SteeringWarning(UserWarning):
    """The law that is steered is not the one a user would expect; the run's notes say the same."""
