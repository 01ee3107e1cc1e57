"""Bicubic interpolation of torsion-pair correction maps (CMAP), with the natural choice of derivatives that OpenMM
makes.

The map is periodic; the derivatives at its nodes are those of periodic cubic splines along each axis, and every
patch is the bicubic polynomial with these values and derivatives.
"""

import numpy as np

from .tables import Floats

__all__ = ["bicubic_coefficients"]

# Cubic Hermite basis as powers of t: rows f(0), f(1), f'(0), f'(1).
_HERMITE = np.array(
    [[1.0, 0.0, -3.0, 2.0], [0.0, 0.0, 3.0, -2.0], [0.0, 1.0, -2.0, 1.0], [0.0, 0.0, -1.0, 1.0]],
)


def _periodic_spline_slopes(values: Floats) -> Floats:
    """Slopes, per grid step, of the periodic cubic spline through ``values`` along axis 0.

    Continuity of the second derivative: s[i-1] + 4 s[i] + s[i+1] = 3 (v[i+1] - v[i-1]).
    """
    n = len(values)
    matrix = 4.0 * np.eye(n) + np.roll(np.eye(n), 1, axis=1) + np.roll(np.eye(n), -1, axis=1)
    right = 3.0 * (np.roll(values, -1, axis=0) - np.roll(values, 1, axis=0))
    return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)


def bicubic_coefficients(grid: Floats) -> Floats:
    """Patch coefficients (G, G, 4, 4) of a periodic map ``grid`` (G, G) in kJ/mol.

    ``grid[i, j]`` is the value at angles 2 pi i / G and 2 pi j / G. On patch (i, j), with t and u in [0, 1) the
    fractions of a grid step, E = sum_ab coefficients[i, j, a, b] t^a u^b.
    """
    first = _periodic_spline_slopes(grid)
    second = _periodic_spline_slopes(grid.T).T
    cross = _periodic_spline_slopes(first.T).T

    def corners(array: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        right = np.roll(array, -1, axis=0)
        return array, np.roll(array, -1, axis=1), right, np.roll(right, -1, axis=1)

    data = np.empty((*grid.shape, 4, 4))
    for block, (row, column) in zip((grid, second, first, cross), ((0, 0), (0, 2), (2, 0), (2, 2)), strict=True):
        low_low, low_high, high_low, high_high = corners(block)
        data[..., row, column] = low_low
        data[..., row, column + 1] = low_high
        data[..., row + 1, column] = high_low
        data[..., row + 1, column + 1] = high_high
    return np.asarray(np.einsum("pa,ijpq,qb->ijab", _HERMITE, data, _HERMITE), dtype=np.float64)
