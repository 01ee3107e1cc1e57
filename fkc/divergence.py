"""Divergences of vector fields by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["field_and_divergence"]

_SMALL = 32
"""Coordinates up to which a divergence is exact unless told otherwise."""


def field_and_divergence(
    field: Callable[[Tensor], Tensor],
    y: Tensor,
    how: Literal["exact"] | int | None,
    signs: Callable[[int], Tensor],
) -> tuple[Tensor, Tensor]:
    """A field (B, *event) at ``y`` (B, *event), and its divergence (B,) float64.

    Args:
        field: row by row, differentiable by autograd.
        y: where.
        how: ``"exact"``: one backward pass a coordinate; n: the mean over n random signs z of z . J z, unbiased with
            variance 2/n times the sum of squares of the symmetrised Jacobian's entries off the diagonal (Hutchinson
            1989); None: exact up to 32 coordinates, else one probe.
        signs: n -> (n, B, *event).
    """
    dimension = y[0].numel()
    probes = how if isinstance(how, int) else None
    if how is None and dimension > _SMALL:
        probes = 1
    with torch.enable_grad():
        x = y.detach().requires_grad_()
        value = field(x)
        total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        if not value.requires_grad:  # a field that does not depend on y
            return value, total
        if probes is None:
            flat = value.flatten(1)
            for j in range(dimension):
                row = torch.autograd.grad(flat[:, j].sum(), x, retain_graph=j + 1 < dimension, materialize_grads=True)[
                    0
                ]
                total = total + row.flatten(1)[:, j].double()
        else:
            for n, z in enumerate(signs(probes)):
                row = torch.autograd.grad((value * z).sum(), x, retain_graph=n + 1 < probes, materialize_grads=True)[0]
                total = total + (row * z).double().flatten(1).sum(dim=1) / probes
    return value.detach(), total
