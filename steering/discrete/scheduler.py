"""The one stepping point of masked diffusion, in the form of a diffusers scheduler."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..schedulers.levels import Level, SchedulerRule, register_scheduler
from ._diffusers import BaseOutput, ConfigMixin, SchedulerMixin, register_to_config
from .tokens import Generators, clean_tokens, draw_tokens, uniforms

__all__ = ["MaskedDiffusionScheduler", "MaskedDiffusionSchedulerOutput"]


@dataclass
class MaskedDiffusionSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """What :meth:`MaskedDiffusionScheduler.step` returns.

    Attributes:
        prev_sample: (B, L) int64 token ids after the step.
        pred_original_sample: (B, L) int64 likeliest clean sequence as seen before the step.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class MaskedDiffusionScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    r"""Ancestral sampling of absorbing-state diffusion on the linear schedule :math:`\alpha(t) = 1 - t`.

    On the grid :math:`t_k = 1 - k/T` a position that is masked at :math:`t_k` is revealed by step k with probability

    .. math:: \frac{t_k - t_{k+1}}{t_k} = \frac{1}{T - k},

    independently of the others, its token drawn from the model's law at that position; the last step reveals all that
    is left (Austin et al. 2021, "Structured denoising diffusion models in discrete state-spaces"; Sahoo et al. 2024,
    "Simple and effective masked diffusion language models"). Revealed tokens never change. A step is a function of
    its arguments alone: the scheduler keeps no history.

    Args:
        mask_token_id: of the absorbing state; may lie outside the model's vocabulary.
        num_inference_steps: T until :meth:`set_timesteps` is called.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, mask_token_id: int, num_inference_steps: int = 64) -> None:
        if mask_token_id < 0:
            raise ValueError(f"mask_token_id: got {mask_token_id}, expected a token id >= 0")
        self.set_timesteps(num_inference_steps)

    @property
    def mask_token_id(self) -> int:
        """Id of the absorbing state."""
        return int(self.config.mask_token_id)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay the grid t_k = 1 - k/T, k = 0..T-1 (float64; ``timesteps`` on ``device``).

        Raises:
            ValueError: fewer than one step.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps: got {num_inference_steps}, expected at least 1")
        self.num_inference_steps = num_inference_steps
        self._grid = [1.0 - k / num_inference_steps for k in range(num_inference_steps)]
        self.timesteps = torch.tensor(self._grid, dtype=torch.float64, device=device)

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """Position k of a time on the grid.

        Raises:
            ValueError: not a time of the grid.
        """
        t = float(timestep)
        index = round((1.0 - t) * self.num_inference_steps)
        if not 0 <= index < self.num_inference_steps or abs(self._grid[index] - t) > 1e-4 / self.num_inference_steps:
            raise ValueError(f"timestep: got {t}, expected one of the {self.num_inference_steps} entries of timesteps")
        return index

    def reveal_probability(self, index: int) -> float:
        """Probability 1/(T - k) that step k reveals a masked position."""
        return 1.0 / (self.num_inference_steps - index)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Tokens have no scale: ``sample``."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, Tensor]:
        """From tokens at one time to tokens at the next.

        Args:
            model_output: (B, L, V) logits of the clean tokens.
            timestep: an entry of ``timesteps``.
            sample: (B, L) int64 token ids.
            generator: one, or one a row. Two uniform numbers are drawn for every position, masked or not, so that a
                row's stream does not depend on the states.
            return_dict: an output object, or the tuple of its members.

        Raises:
            ValueError: shapes that do not fit, a time off the grid, a list of generators of another length.
        """
        _check(model_output, sample)
        draws = uniforms((sample.shape[0], 2, sample.shape[1]), generator, sample.device)
        probability = self.reveal_probability(self.index_for_timestep(timestep))
        revealed = (sample == self.mask_token_id) & (draws[:, 0] < probability)
        following = sample.clone()
        following[revealed] = self._draw(model_output[revealed], draws[:, 1][revealed], sample)
        clean = clean_tokens(model_output, sample, self.mask_token_id)
        if not return_dict:
            return following, clean
        return MaskedDiffusionSchedulerOutput(prev_sample=following, pred_original_sample=clean)

    def clean_samples(self, model_output: Tensor, sample: Tensor, n: int, generator: Generators = None) -> Tensor:
        """``n`` clean sequences (B, n, L) a row, every masked position drawn from the model's own law there.

        Raises:
            ValueError: n below one; otherwise as :meth:`step`.
        """
        if n < 1:
            raise ValueError(f"n: got {n}, expected at least 1")
        _check(model_output, sample)
        u = uniforms((sample.shape[0], n, sample.shape[1]), generator, sample.device)
        copies = sample[:, None].expand(-1, n, -1).clone()
        for i in range(n):  # one copy at a time: (masked positions, V) float64 is the large object here
            masked = sample == self.mask_token_id
            copies[:, i][masked] = self._draw(model_output[masked], u[:, i][masked], sample)
        return copies

    def add_noise(self, original: Tensor, t: float, generator: Generators = None) -> Tensor:
        """Mask each token of ``original`` (B, L) with probability ``t``: the forward process, for training.

        Raises:
            ValueError: t outside [0, 1].
        """
        if not 0.0 <= t <= 1.0:
            raise ValueError(f"t: got {t}, expected a number between 0 and 1")
        u = uniforms((original.shape[0], original.shape[1]), generator, original.device)
        return torch.where(u < t, self.mask_token_id, original)

    def _draw(self, logits: Tensor, u: Tensor, like: Tensor) -> Tensor:
        return draw_tokens(logits, u, self.mask_token_id).to(like.dtype)

    def __len__(self) -> int:
        """Number of steps T."""
        return int(self.num_inference_steps)


def _levels(scheduler: Any) -> tuple[Level, ...]:
    return tuple(Level(1.0 - t, t) for t in [*(float(t) for t in scheduler.timesteps), 0.0])


# What a control sees: alpha is the share of positions revealed, the output is the logits, clean states are tokens.
register_scheduler(
    "MaskedDiffusionScheduler",
    SchedulerRule(
        family="flow",
        levels=_levels,
        prediction=lambda scheduler: "sample",
        clips=lambda scheduler: False,
        stochastic=lambda scheduler, arguments: True,
        posterior_mean=False,
        clean=lambda scheduler, sample, output: clean_tokens(output, sample, scheduler.mask_token_id),
        draws=lambda scheduler, sample, output, n, generators: scheduler.clean_samples(output, sample, n, generators),
    ),
)


def _check(logits: Any, sample: Any) -> None:
    if sample.ndim != 2 or logits.ndim != 3 or logits.shape[:2] != sample.shape:
        raise ValueError(
            f"model_output and sample: got shapes {tuple(logits.shape)} and {tuple(sample.shape)}, "
            "expected (B, L, V) and (B, L)"
        )
