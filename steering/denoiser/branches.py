"""The branches of classifier-free guidance, read off a least-squares fit of the model output on what the denoiser said.

Guided outputs are sums of branches: u + g (c - u) (Ho, Salimans 2022), t + g (t - i) + ... with three (Brooks et al.
2023). So the recorded outputs of a step, cut into blocks of the batch's rows, and the coefficients that reproduce the
model output from them, name the branches whatever their order, batching and number of calls; a residual tells that
guidance was not linear.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SteeringError

__all__ = ["Branches", "Fit", "fit_branches", "tolerance"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
_UNIT = 1e-3  # how far from 1 a sum of coefficients may be, for branches as alike as those of two similar prompts


def tolerance(*tensors: Tensor) -> float:
    """Relative error that rounding may leave in a sum of a few branches, for the coarsest of the types."""
    return max(_TOLERANCE.get(tensor.dtype, 1e-5) for tensor in tensors)


@dataclass(frozen=True)
class Branches:
    """Predictions of the branches of one step, and how the model output is made of them.

    Attributes:
        predictions: one tensor of the model output's shape for each branch, in the order they were run.
        coefficients: of each branch, so that sum_i c_i predictions_i is the model output; (frames, branches) if
            guidance changes over the frames of a video.
        residual: relative size of what the sum leaves of the model output.
    """

    predictions: tuple[Tensor, ...]
    coefficients: tuple[float, ...] | Tensor
    residual: float

    @property
    def unconditional(self) -> Tensor:
        """The branch with coefficient 1 - g.

        Raises:
            SteeringError: there are not two branches u + g (c - u) with g > 1.
        """
        return self.predictions[1 - self._conditional()]

    @property
    def conditional(self) -> Tensor:
        """The branch with coefficient g, or the only one.

        Raises:
            SteeringError: as for :attr:`unconditional`.
        """
        return self.predictions[0] if len(self.predictions) == 1 else self.predictions[self._conditional()]

    @property
    def guidance(self) -> float:
        """g, averaged over frames if it changes; 1 for a single branch.

        Raises:
            SteeringError: as for :attr:`unconditional`.
        """
        return 1.0 if len(self.predictions) == 1 else self._means()[self._conditional()]

    def _means(self) -> list[float]:
        coefficients = self.coefficients
        return list(coefficients) if isinstance(coefficients, tuple) else coefficients.mean(dim=0).tolist()

    def _conditional(self) -> int:
        means = self._means()
        rounded = tuple(round(value, 4) for value in means)
        if len(means) != 2 or abs(sum(means) - 1.0) > _UNIT:
            raise SteeringError(
                f"branches: the model output is made of {len(means)} branches with coefficients {rounded}, not of an "
                "unconditional and a conditional one; name them yourself from predictions and coefficients"
            )
        if max(means) <= 1.0 + _UNIT:
            raise SteeringError(
                f"branches: coefficients {rounded} do not tell which branch is conditional (guidance scale between 0 "
                "and 1, or two equal branches); use a guidance scale above 1"
            )
        return means.index(max(means))


@dataclass(frozen=True)
class Fit:
    """How recorded outputs make up the model output.

    Attributes:
        blocks: (block, ...) outputs of the branches; block is the number of rows / tiles.
        coefficients: (n,) or (frames, n) float64 on the CPU.
        residual: relative.
        tiles: how often the rows are repeated in the model output.
        frame_axis: the axis along which the coefficients change, or None.
    """

    blocks: tuple[Tensor, ...]
    coefficients: Tensor
    residual: float
    tiles: int
    frame_axis: int | None

    def combined(self, blocks: Sequence[Tensor]) -> Tensor:
        """sum_i c_i blocks_i, repeated for the tiles; float32 at least."""
        total: Tensor | None = None
        for i, block in enumerate(blocks):
            wide = block.float() if block.dtype in (torch.float16, torch.bfloat16) else block
            weight = self.coefficients[..., i].to(wide)
            if self.frame_axis is not None:
                weight = weight.reshape(-1, *[1] * (block.ndim - 1 - self.frame_axis))
            total = wide * weight if total is None else total + wide * weight
        if total is None:
            raise SteeringError("no call of the denoiser was recorded")
        return torch.cat([total] * self.tiles) if self.tiles > 1 else total

    def branches(self) -> Branches:
        """As the public record; negated outputs (coefficients that sum to -1) are turned round."""
        sums = self.coefficients.sum(dim=-1)
        sign = -1.0 if bool(((sums + 1.0).abs() < _UNIT).all()) else 1.0
        predictions = tuple(torch.cat([block] * self.tiles) if self.tiles > 1 else block for block in self.blocks)
        if sign < 0.0:
            predictions = tuple(-prediction for prediction in predictions)
        coefficients = sign * self.coefficients
        public = tuple(coefficients.tolist()) if self.frame_axis is None else coefficients
        return Branches(predictions, public, self.residual)


def cut_blocks(outputs: Sequence[Tensor], rows: int, like: Tensor) -> tuple[Tensor, ...] | None:
    """Recorded outputs as blocks of ``rows`` rows and the shape of ``like``'s, learned variances dropped; None if they
    do not fit."""
    blocks: list[Tensor] = []
    for output in outputs:
        plain = output
        if plain.ndim == like.ndim and plain.ndim > 1 and plain.shape[1] == 2 * like.shape[1]:
            plain = plain.narrow(1, 0, like.shape[1])
        if plain.shape[1:] != like.shape[1:] or len(plain) % rows:
            return None
        blocks.extend(torch.split(plain, rows))
    return tuple(blocks)


def fit_branches(outputs: Sequence[Tensor], model_output: Tensor) -> Fit:
    """The fit of ``model_output`` (B, ...) on the outputs of the denoiser's calls of the same step.

    Tried in this order: blocks of B rows; blocks of B/2 where the two halves of the model output are equal (a pipeline
    that passes both branches through its scheduler); one fit a frame, for videos.

    Raises:
        SteeringError: nothing was recorded, shapes do not match, or the sum leaves more than rounding.
    """
    if not outputs:
        raise SteeringError(
            "no call of the denoiser was recorded for this step: make the tap with record=True, and ask before end_step"
        )
    tried: list[Fit] = []
    rows = len(model_output)
    limit = tolerance(model_output, *outputs)
    for tiles in (1, 2):
        like = model_output[: rows // tiles]
        if tiles == 2 and (rows % 2 or not torch.equal(like, model_output[rows // 2 :])):
            continue
        blocks = cut_blocks(outputs, rows // tiles, like)
        if blocks is not None and len(blocks) == 1 and torch.equal(blocks[0], like):
            return Fit(blocks, torch.ones(1, dtype=torch.float64), 0.0, tiles, None)
        for axis in (None, 1, 2) if blocks is not None and like.ndim == 5 and tiles == 1 else (None,):
            if blocks is not None:
                tried.append(_least_squares(blocks, like, tiles, axis))
                if tried[-1].residual <= limit:
                    return tried[-1]
    if not tried:
        shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
        raise SteeringError(
            f"branches: the model output of shape {tuple(model_output.shape)} is not made of the denoiser's outputs of "
            f"shapes {shapes}: the pipeline cuts or reshapes them; use prompts [A]*K + [B]*K without guidance instead"
        )
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise SteeringError("branches: the denoiser's outputs are not finite")
    raise SteeringError(
        f"branches: the model output is no sum of the denoiser's outputs (relative residual "
        f"{min(fit.residual for fit in tried):.1e}, at most {limit:.0e} expected), so guidance is not linear: switch "
        "off guidance rescaling, normalisation and projection, or use prompts [A]*K + [B]*K without guidance"
    )


def _least_squares(blocks: Sequence[Tensor], like: Tensor, tiles: int, axis: int | None) -> Fit:
    rows = torch.stack([_flat(block, axis) for block in blocks], dim=1)  # (groups, n, values)
    target = _flat(like, axis)[:, :, None]
    gram, moment = rows @ rows.mT, rows @ target
    scale = gram.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(torch.float64).tiny).sqrt()[:, :, None]
    inverse = torch.linalg.pinv(gram / (scale * scale.mT), hermitian=True, rtol=1e-13)
    found = inverse @ (moment / scale) / scale
    for _ in range(2):  # the normal equations square the condition number; refine on the residual
        rest = target - rows.mT @ found
        found = found + inverse @ (rows @ rest / scale) / scale
    rest, coefficients = target - rows.mT @ found, found[:, :, 0]
    size = float(target.norm())
    residual = float(rest.norm()) / size if size > 0.0 else float(rest.norm())
    shaped = coefficients[0] if axis is None else coefficients
    return Fit(tuple(blocks), shaped.cpu(), residual, tiles, axis)


def _flat(value: Tensor, axis: int | None) -> Tensor:
    """(groups, values) in float64: one group, or one a frame."""
    wide = value.detach().to("cpu" if value.device.type == "mps" else value.device).double()
    return wide.reshape(1, -1) if axis is None else wide.movedim(axis, 0).flatten(1)
