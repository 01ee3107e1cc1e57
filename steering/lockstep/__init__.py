"""Steering a pipeline that cannot batch, or whose batch does not fit: single-sample calls that meet at the scheduler.

with attach(pipe, FKSteering(reward, scale=2.0), particles=8, seed=0) as run:
    outputs = run_lockstep(pipe, rows=8, seed=0, prompt="a cat")
"""

from .run import run_lockstep

__all__ = ["run_lockstep"]
