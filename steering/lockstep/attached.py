"""What an attachment expects of a batched call of the denoiser, set aside while single-sample calls run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..controller import Controller
from ..errors import SteeringError

__all__ = ["one_by_one"]


@contextmanager
def one_by_one(scheduler: Any) -> Iterator[None]:
    """Within the block the denoiser is called with one sample at a time: such a call is no population whose rows are
    to be compared (the two branches of its guidance would be taken for particles), and stands for no other row.

    Raises:
        SteeringError: what is attached needs batched calls: gradients through the denoiser, or a checkpoint inside
            the trajectory.
    """
    controller = _controller(scheduler)
    if controller is None:
        yield
        return
    if controller.tap.record:
        raise SteeringError(
            "gradient: through='denoiser' runs the denoiser again on all rows at once, which calls in lock-step do "
            "not have; use through='prediction'"
        )
    if controller.store is not None:
        raise SteeringError("checkpoint: a run in lock-step cannot be saved inside its trajectory")
    controller.tap.one_by_one = True
    try:
        yield
    finally:
        controller.tap.one_by_one = False


def _controller(scheduler: Any) -> Controller | None:
    attachment = vars(scheduler).get("_feynkac_attachment")
    listener = None if attachment is None else attachment.listener
    return listener if isinstance(listener, Controller) else None
