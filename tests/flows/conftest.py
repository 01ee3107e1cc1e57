"""Molecules of unequal size, with sensible thermal coordinates; shared as fixtures."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from feynkac.flows.internal_coordinates import InternalCoordinates

WATER = ([(0, 1), (0, 2)], "OHH")
PEROXIDE = ([(0, 1), (0, 2), (1, 3)], "OOHH")
METHANOL = ([(0, 1), (0, 2), (0, 3), (0, 4), (1, 5)], "COHHHH")
METHANOL_POSITIONS = [
    [0, 0, 0],
    [0.14, 0, 0],
    [-0.03, 0.1, 0],
    [-0.03, -0.05, 0.09],
    [-0.03, -0.05, -0.09],
    [0.17, 0.05, 0.08],
]
_REST = [(10, 13), (8, 14), (14, 15), (14, 16), (16, 17), (16, 18), (18, 19), (18, 20), (18, 21)]
ALANINE = (
    [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9), (8, 10), (10, 11), (10, 12), *_REST],
    "CHHHCONHCHCHHHCONHCHHH",
)
ALANINE_POSITIONS = """
-.0053 -.0042 .0041 / -.0455 .0969 .0007 / -.0422 -.0610 -.0812 / -.0367 -.0528 .0964 / .1458 .0009 -.0008 /
.2038 .1093 -.0078 / .2091 -.1164 .0031 / .1533 -.2004 .0076 / .3549 -.1311 -.0038 / .3996 -.0569 .0626 /
.3928 -.2698 .0498 / .5013 -.2805 .0514 / .3505 -.3474 -.0141 / .3549 -.2820 .1514 / .4117 -.1067 -.1457 /
.3430 -.1266 -.2467 / .5394 -.0664 -.1531 / .5899 -.0534 -.0663 / .6113 -.0399 -.2778 / .6147 -.1304 -.3389 /
.7134 -.0080 -.2563 / .5607 .0388 -.3341
"""


def _alanine_positions() -> Tensor:
    rows = [[float(v) for v in row.split()] for row in ALANINE_POSITIONS.split("/")]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors: a second thread costs more than it gives, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def alanine_positions() -> Tensor:
    """Alanine dipeptide (22, 3) nm, atoms in the order of OpenMM's Modeller."""
    return _alanine_positions()


@pytest.fixture
def molecules() -> dict[str, InternalCoordinates]:
    """Coordinates of molecules with 3, 4, 6 and 22 atoms."""
    return {
        "water": InternalCoordinates.from_bonds(*WATER),
        "peroxide": InternalCoordinates.from_bonds(*PEROXIDE),
        "methanol": InternalCoordinates.from_bonds(*METHANOL, positions=torch.tensor(METHANOL_POSITIONS)),
        "alanine": InternalCoordinates.from_bonds(*ALANINE, positions=_alanine_positions()),
    }


@pytest.fixture
def alanine(molecules) -> InternalCoordinates:
    return molecules["alanine"]


@pytest.fixture
def thermal() -> Callable[[InternalCoordinates, int, torch.Generator], Tensor]:
    """Draws coordinates (n, D): stiff bonds, softer angles and arcs about the reference, free torsions."""

    def draw(coordinates: InternalCoordinates, n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, coordinates.dimension, generator=generator, dtype=torch.float64)
        y = torch.empty_like(noise)
        for column, domain in enumerate(coordinates.domains):
            z = noise[:, column]
            if domain.kind == "bond":
                y[:, column] = 0.12 * torch.exp(0.03 * z)
            elif domain.kind == "angle":
                y[:, column] = 1.9 + 0.06 * z
            elif domain.kind == "circular":
                y[:, column] = math.pi * torch.erf(z)
            else:
                y[:, column] = coordinates.reference[column] + 0.08 * z
        return coordinates.wrap(y)

    return draw
