"""Free-energy surfaces of MBAR's weights, with errors that include those of the rounds' free energies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .axis import Axis
from .mbar import Mbar
from .surface import FreeEnergySurface, free_energy_surface

__all__ = ["mbar_surface"]

_CELLS_AT_ONCE = 64


def mbar_surface(result: Mbar, values: Tensor, *, kT: float, axes: Sequence[Axis]) -> FreeEnergySurface:
    """Histogram surface along one or two variables of the pooled samples of `mbar`.

    `free_energy_surface` on ``result.log_weights`` gives the same surface; its bootstrap takes the weights as given.

    Args:
        result: of `mbar`.
        values: (n, d) or (n,) values of the variables, in the order of the samples.
        kT: kJ/mol.
        axes: d axes.

    Returns:
        The surface; its errors are first order, ``bootstrap`` is 0.

    Raises:
        ValueError: see `free_energy_surface`.
    """
    surface = free_energy_surface(values, result.log_weights, kT=kT, axes=axes, bootstrap=0)
    errors = result.errors
    columns = values.detach().cpu().double().reshape(len(values), -1)[errors.kept]
    cells = torch.stack([axis.cell(columns[:, k]) for k, axis in enumerate(surface.axes)])
    flat = torch.zeros(cells.shape[1], dtype=torch.long)
    for axis, cell in zip(surface.axes, cells, strict=True):
        flat = flat * axis.bins + cell
    flat = torch.where((cells >= 0).all(0), flat, -1)
    filled = (surface.density.reshape(-1) > 0).nonzero().reshape(-1)
    sd = torch.full((surface.density.numel(),), math.nan, dtype=torch.float64)
    for part in torch.split(filled, _CELLS_AT_ONCE):
        member = (flat[:, None] == part).double()
        share = errors.weights @ member
        influence = errors.through_rounds(errors.weights[:, None] * (member / share - 1.0))
        sd[part] = errors.variance(influence).diagonal().clamp_min(0).sqrt()
    return replace(surface, std_error=kT * sd.reshape(surface.density.shape))
