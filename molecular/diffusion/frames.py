"""From frames of dynamics to what a denoiser is fitted on: centred, in a unit of unit variance, with scores."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..energies import Energy

__all__ = ["FitData", "fit_data", "unit_of"]

_CHUNK = 4096


class FitData(NamedTuple):
    """Frames of one law.

    Attributes:
        frames: (n, N, 3) float32 without centre of mass, in the unit.
        scores: (n, N, 3) float32, -grad U / kT in the unit; None without an energy.
    """

    frames: Tensor
    scores: Tensor | None


def unit_of(positions: Tensor) -> float:
    """The length, rounded to 0.1 pm, in which centred positions (n, N, 3) nm have unit variance a degree of freedom."""
    n_atoms = positions.shape[1]
    centred = positions.double() - positions.double().mean(1, keepdim=True)
    return round(float((centred.square().mean() * n_atoms / (n_atoms - 1)).sqrt()), 4)


def fit_data(positions: Tensor, unit: float, energy: Energy | None) -> FitData:
    """What :func:`fit_denoiser` takes, of positions (n, N, 3) nm; ``energy`` gives the scores.

    Raises:
        ValueError: a frame without finite forces.
    """
    centred = ((positions - positions.mean(1, keepdim=True)) / unit).float()
    if energy is None:
        return FitData(centred, None)
    forces = torch.cat([energy.energy_and_forces(part)[1].float().cpu() for part in torch.split(positions, _CHUNK)])
    if not math.isfinite(float(forces.double().square().sum())):
        raise ValueError("positions: a frame has no finite forces")
    return FitData(centred, forces * (unit / energy.kT))
