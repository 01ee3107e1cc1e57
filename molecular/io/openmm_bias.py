"""Bias files of OpenMM's ``app.Metadynamics``: ``bias_<id>_<index>.npy``.

Each walker keeps one file of the bias it deposited itself, in kJ/mol (V, not -F); the total is the sum over walkers.
The array's axes are the variables in reverse order, each with both ends included, also on a circle.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import FileFormatError
from .grid import PlumedGrid, grid_axis

__all__ = ["OpenMMBias", "read_openmm_bias", "write_openmm_bias"]

_NAME = re.compile(r"bias_(\d+)_(\d+)\.npy")


@dataclass(frozen=True, eq=False)
class OpenMMBias:
    """The bias that OpenMM's walkers have deposited.

    Attributes:
        total: (n_1, ..., n_d) V in kJ/mol, axes in the order of the variables, both ends included.
        walkers: id of each walker.
        indices: index of the file of each.
    """

    total: Tensor
    walkers: tuple[int, ...]
    indices: tuple[int, ...]

    def free_energy(self, bias_factor: float) -> Tensor:
        """F (n_1, ..., n_d) = -gamma / (gamma - 1) V in kJ/mol, as ``Metadynamics.getFreeEnergy`` has it.

        Raises:
            ValueError: a bias factor that is not above 1.
        """
        if not bias_factor > 1.0:
            raise ValueError(f"bias_factor: got {bias_factor!r}, expected a number above 1")
        return -self.total / (1.0 - 1.0 / bias_factor)

    def grid(
        self,
        names: Sequence[str],
        lower: Sequence[float],
        upper: Sequence[float],
        *,
        periodic: bool,
        label: str = "metad",
    ) -> PlumedGrid:
        """The total as a grid, without the last point of periodic axes, which repeats the first.

        Args:
            names: of the d variables.
            lower: ``minValue`` of each.
            upper: ``maxValue`` of each.
            periodic: OpenMM has variables all periodic or all open.
            label: the column is ``<label>.bias``.

        Raises:
            ValueError: another number of variables.
        """
        d = self.total.ndim
        if not len(names) == len(lower) == len(upper) == d:
            raise ValueError(f"the bias has {d} variables, got {len(names)} names, {len(lower)} and {len(upper)} ends")
        values = self.total
        if periodic:
            values = values[tuple(slice(0, n - 1) for n in values.shape)]
        axes = tuple(
            grid_axis(name, low, high, n, periodic=periodic)
            for name, low, high, n in zip(names, lower, upper, values.shape, strict=True)
        )
        return PlumedGrid(axes, {f"{label}.bias": values.contiguous()})


def read_openmm_bias(directory: Path) -> OpenMMBias:
    """Sum the bias files of a directory: the newest of each walker.

    Raises:
        FileNotFoundError: if the directory is missing or has no bias file.
        FileFormatError: naming the file: truncated, not a plain array of finite floats, or of another shape than the
            rest.
    """
    newest: dict[int, tuple[int, Path]] = {}
    for path in sorted(Path(directory).iterdir()):
        if match := _NAME.fullmatch(path.name):
            walker, index = int(match[1]), int(match[2])
            if walker not in newest or index > newest[walker][0]:
                newest[walker] = (index, path)
    if not newest:
        raise FileNotFoundError(f"{directory}: no file bias_<id>_<index>.npy")
    walkers = sorted(newest)
    arrays = [_array(newest[walker][1]) for walker in walkers]
    for walker, array in zip(walkers, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise FileFormatError(
                f"{newest[walker][1]}: shape {array.shape}, but {newest[walkers[0]][1].name} has {arrays[0].shape}"
            )
    total = torch.from_numpy(np.sum(arrays, axis=0))
    return OpenMMBias(
        total=total.permute(*range(total.ndim)[::-1]).contiguous(),
        walkers=tuple(walkers),
        indices=tuple(newest[walker][0] for walker in walkers),
    )


def write_openmm_bias(directory: Path, values: Tensor, *, periodic: bool, walker: int, index: int = 0) -> Path:
    """Write a bias as that of one more walker, which running ``Metadynamics`` in the directory then add to theirs.

    Args:
        directory: ``biasDir``.
        values: (n_1, ..., n_d) V in kJ/mol, axes in the order of the variables. Open axes have both ends; periodic
            ones leave out the last point, as grids do, and the file repeats the first one there.
        periodic: OpenMM has variables all periodic or all open.
        walker: id; OpenMM draws its own at random below 2**31.
        index: of the file.

    Returns:
        The file.

    Raises:
        FileExistsError: if the file exists.
        ValueError: for values that are not finite, or negative numbers.
    """
    if walker < 0 or index < 0:
        raise ValueError(f"walker {walker} and index {index} must not be negative")
    if not 1 <= values.ndim <= 3 or not bool(torch.isfinite(values).all()):
        raise ValueError(f"values must be finite, on one to three variables, got {tuple(values.shape)}")
    path = Path(directory) / f"bias_{walker}_{index}.npy"
    array = values.detach().cpu().double().permute(*range(values.ndim)[::-1]).contiguous().numpy()
    if periodic:
        array = np.pad(array, (0, 1), mode="wrap")
    with open(path, "xb") as file:
        np.save(file, array, allow_pickle=False)
    return path


def _array(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FileFormatError(f"{path}: truncated, or no plain array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not 1 <= array.ndim <= 3:
        raise FileFormatError(f"{path}: no array of floating point on one to three variables")
    if not np.isfinite(array).all():
        raise FileFormatError(f"{path}: holds numbers that are not finite")
    return array.astype(np.float64)
