"""The rotation that lays one set of points best onto another, with its derivatives."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["optimal_rotation"]


def optimal_rotation(covariance: torch.Tensor) -> torch.Tensor:
    r"""The proper rotations R that maximise trace(R^T H): those of Kabsch (Acta Cryst. A32, 922 (1976)).

    For :math:`H = \sum_i w_i y_i x_i^T` of centred points, R lays x onto y: R x_i is nearest to y_i.  Reflections are
    excluded by the sign of the last singular value.  With S = R^T H, dR = R [omega] where
    (tr(S) - S) omega is the axial vector of R^T dH; only where two singular values (the last with its sign) cancel,
    as for points on a line, is R not unique: there its derivative is returned as 0.  Differentiable any number of
    times.  Non-finite H gives NaN.

    Args:
        covariance: H, (..., 3, 3).

    Returns:
        R, (..., 3, 3), in the dtype of H.
    """
    rotation: torch.Tensor = _Rotation.apply(covariance)  # type: ignore[no-untyped-call]
    return rotation


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, covariance: torch.Tensor) -> torch.Tensor:
        finite = torch.isfinite(covariance).flatten(-2).all(-1)[..., None, None]
        safe = torch.where(finite, covariance, torch.zeros_like(covariance)).double()
        u, s, vh = torch.linalg.svd(safe)
        sign = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(u)
        flip = torch.stack((torch.ones_like(sign), torch.ones_like(sign), sign), -1)
        rotation = torch.where(finite, (u * flip[..., None, :]) @ vh, torch.nan).to(covariance)
        # the smallest eigenvalue of tr(S) - S: zero where the rotation is not unique
        smallest = s[..., 1] + sign * s[..., 2]
        unique = smallest > 1e3 * torch.finfo(covariance.dtype).eps * s[..., 0]
        ctx.save_for_backward(covariance, rotation, unique)
        return rotation

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        covariance, rotation, unique = ctx.saved_tensors
        keep = unique[..., None]
        # from dL = <G, R [omega]> and (tr(S) - S) omega = axial(R^T dH), solved the other way around
        stretch = rotation.mT @ covariance
        identity = torch.eye(3).to(stretch)
        trace = stretch.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        system = trace * identity - 0.5 * (stretch + stretch.mT)
        system = torch.where(keep[..., None], system, identity)
        torque = torch.where(keep, _axial(rotation.mT @ gradients[0]), 0.0)
        omega = torch.linalg.solve(system, torque[..., None])[..., 0]
        pulled: torch.Tensor = rotation @ _skew(omega)
        return pulled


def _axial(matrix: torch.Tensor) -> torch.Tensor:
    """The vector v with <matrix, skew(w)> = v . w for all w."""
    return torch.stack(
        (
            matrix[..., 2, 1] - matrix[..., 1, 2],
            matrix[..., 0, 2] - matrix[..., 2, 0],
            matrix[..., 1, 0] - matrix[..., 0, 1],
        ),
        -1,
    )


def _skew(vector: torch.Tensor) -> torch.Tensor:
    """The matrix of the cross product with ``vector``."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(*vector.shape, 3)
