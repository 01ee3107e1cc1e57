"""How a denoiser is fitted, and what an evaluation of the fit saw."""

from dataclasses import dataclass

__all__ = ["FitProgress", "FitSettings"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a denoiser is fitted.

    Attributes:
        steps: of the optimiser.
        batch_size: frames a step.
        learning_rate: at the top of the cosine.
        warmup: steps in which the rate rises.
        lowest, highest: range of w that is trained on.
        centre, spread: most of a batch has log w normal about log ``centre`` with this standard deviation: there the
            shape is decided, hand and torsions.
        share_uniform: share of a batch spread log-uniformly over the whole range.
        weight_decay: of AdamW.
        clip_norm: of the gradient.
        ema_decay: of the running average of the parameters.
        evaluate_every: steps between evaluations, reports and checkpoints.
        fast: hidden layers in bfloat16 while training.
        seed: of frames, levels and noise.
    """

    steps: int
    batch_size: int = 1024
    learning_rate: float = 2e-3
    warmup: int = 200
    lowest: float = 0.0015
    highest: float = 40.0
    centre: float = 0.45
    spread: float = 0.9
    share_uniform: float = 0.25
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    evaluate_every: int = 500
    fast: bool = True
    seed: int = 0


@dataclass(frozen=True)
class FitProgress:
    """What one evaluation saw.

    Attributes:
        step: of the optimiser.
        seconds: spent so far in steps.
        train: mean loss since the last report.
        held_out: loss of the averaged parameters on held-out frames, the mean of ``held_out_by_level``.
        levels: (L) the w of ``held_out_by_level``.
        held_out_by_level: mean square error of F a degree of freedom, the target's own noise included.
    """

    step: int
    seconds: float
    train: float
    held_out: float
    levels: tuple[float, ...]
    held_out_by_level: tuple[float, ...]
