"""Noise levels of diffusers' schedulers, by class."""

from .levels import Level, SchedulerRule, register_scheduler, registered_schedulers, rule_for

__all__ = ["Level", "SchedulerRule", "register_scheduler", "registered_schedulers", "rule_for"]
