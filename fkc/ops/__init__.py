"""Operators with a plain torch implementation each: the reference, the CPU path and the truth of any kernel."""

from .cubic_spline import cubic_spline, spline_coefficients
from .kernel_sum import kernel_sum

__all__ = ["cubic_spline", "kernel_sum", "spline_coefficients"]
