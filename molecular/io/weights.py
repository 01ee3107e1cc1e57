"""Weights and per-sample numbers as a NumPy archive of plain arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from .errors import FileFormatError

__all__ = ["read_weights", "write_weights"]


def write_weights(path: Path, arrays: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as ``.npz``: one plain array each, nothing pickled, equal input giving equal bytes.

    Raises:
        FileExistsError: if ``path`` exists.
    """
    with open(path, "xb") as file:
        np.savez(file, allow_pickle=False, **{name: t.detach().cpu().numpy() for name, t in arrays.items()})


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a ``.npz`` file.

    Raises:
        FileNotFoundError: if the file is missing.
        FileFormatError: if it is truncated, altered, or holds anything but plain numeric arrays.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (zipfile.BadZipFile, ValueError, EOFError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path}: truncated, or not an archive of plain arrays: {error}") from error
