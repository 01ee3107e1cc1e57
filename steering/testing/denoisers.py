"""Denoisers with closed-form answers, in the shape of diffusers' UNets: real pipelines become samplers of known laws.

Every pixel is independent and has the same prior (for :class:`GaussianDenoiser` possibly one a channel). With x =
alpha x0 + sigma eps the posterior mean E[x0 | x] is explicit, and so is whatever a denoiser may be asked to predict:

    epsilon        (x - alpha E[x0|x]) / sigma
    v_prediction   alpha eps - sigma E[x0|x]
    sample         E[x0|x]
    flow           eps - E[x0|x]

Arithmetic is float64 whatever the module's dtype is; the result has the sample's dtype.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..discrete._diffusers import BaseOutput, ConfigMixin, DDPMScheduler, ModelMixin, register_to_config

__all__ = ["AnalyticDenoiser", "DenoiserOutput", "GaussianDenoiser", "MixtureDenoiser"]

_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "sample", "flow_prediction": "flow"}


@dataclass
class DenoiserOutput(BaseOutput):  # type: ignore[misc]
    """``sample`` (B, C, H, W): the prediction."""

    sample: Tensor


class AnalyticDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """What the denoisers share: levels by timestep, and the four predictions. Subclasses give the posterior mean.

    A variance-exploding scheduler hands its denoiser the sample divided by sqrt(1 + sigma^2), which is a
    variance-preserving sample at the same timestep, so one table serves both. A flow has sigma = timestep / number of
    training steps.
    """

    def _prepare(self, prediction: str) -> None:
        if prediction not in set(_PREDICTIONS.values()):
            raise ValueError(f"prediction: got {prediction!r}, expected epsilon, v_prediction, sample or flow")
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)  # carries dtype and device
        self._table: Tensor | None = None

    @abstractmethod
    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | alpha x0 + sigma eps = x], shape of ``x``, float64; ``alpha`` and ``sigma`` broadcast against
        ``x``."""

    @classmethod
    def for_scheduler(cls, scheduler: Any, **prior: Any) -> Self:
        """The denoiser that belongs to a scheduler: its noise table and what it expects to be predicted.

        Args:
            scheduler: of diffusers, on a beta schedule or flow matching.
            prior: the remaining arguments of the class.

        Raises:
            ValueError: a beta schedule that is changed after the table is made, or given as a list.
        """
        config = scheduler.config
        if "beta_schedule" not in config:
            return cls(prediction="flow", num_train_timesteps=config.num_train_timesteps, **prior)
        if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
            raise ValueError("scheduler: trained_betas and rescale_betas_zero_snr are not supported here")
        prediction = _PREDICTIONS[config.get("prediction_type", "epsilon")]
        return cls(prediction=prediction, **{name: config[name] for name in _SCHEDULE}, **prior)

    def levels(self, timestep: float | Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) float64, shape of ``timestep``, of the sample that the denoiser is handed."""
        t = torch.as_tensor(timestep, device=self.anchor.device).double()
        if self.config.prediction == "flow":
            sigma = t / self.config.num_train_timesteps
            return 1.0 - sigma, sigma
        ratio = self._sigma_over_alpha(t)
        alpha = (1.0 + ratio.square()).rsqrt()
        return alpha, ratio * alpha

    def _sigma_over_alpha(self, t: Tensor) -> Tensor:
        """Linear between the entries of the table, as the schedulers with fractional timesteps have it."""
        if self._table is None:
            kept = DDPMScheduler(**{name: self.config[name] for name in _SCHEDULE}).alphas_cumprod.double()
            self._table = ((1.0 - kept) / kept).sqrt()
        table = self._table.to(t.device)
        below = t.floor().long().clamp(0, len(table) - 2)
        return torch.lerp(table[below], table[below + 1], t - below)

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
        **conditioning: Any,
    ) -> DenoiserOutput | tuple[Tensor]:
        """Prediction (B, C, H, W) for ``sample`` (B, C, H, W) at ``timestep``, a number or (B,). Conditioning is
        ignored."""
        alpha, sigma = self.levels(timestep)
        if alpha.ndim:
            alpha, sigma = (v.reshape(-1, *[1] * (sample.ndim - 1)) for v in (alpha, sigma))
        x = sample.double()
        clean = self.posterior_mean(x, alpha, sigma)
        noise = (x - alpha * clean) / sigma
        predictions = {"epsilon": noise, "sample": clean, "flow": noise - clean}
        kind = self.config.prediction
        output = alpha * noise - sigma * clean if kind == "v_prediction" else predictions[kind]
        result = output.to(sample.dtype)
        return DenoiserOutput(sample=result) if return_dict else (result,)


class GaussianDenoiser(AnalyticDenoiser):
    """Pixels N(``mean``, ``std``^2).

    Args:
        mean: a number, or one a channel.
        std: likewise.
        prediction: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.
        in_channels: C.
        sample_size: H = W, or (H, W).
        num_train_timesteps, beta_start, beta_end, beta_schedule: the noise table, as in diffusers' schedulers.
        time_cond_proj_dim: None; Stable Diffusion pipelines look for it.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        prediction: str = "epsilon",
        in_channels: int = 1,
        sample_size: int | tuple[int, int] = 1,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        time_cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        self._prepare(prediction)
        for name, value in (("mean", mean), ("std", std)):
            if not isinstance(value, int | float) and len(value) != in_channels:
                raise ValueError(f"{name}: got {len(value)} numbers, expected one or in_channels = {in_channels}")

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """m + alpha s^2 / (alpha^2 s^2 + sigma^2) (x - alpha m)."""
        mean, std = (self._by_channel(v, x) for v in (self.config.mean, self.config.std))
        gain = alpha * std**2 / (alpha.square() * std**2 + sigma.square())
        return mean + gain * (x - alpha * mean)

    @staticmethod
    def _by_channel(value: float | Sequence[float], x: Tensor) -> Tensor:
        tensor = torch.as_tensor(value, dtype=x.dtype, device=x.device)
        return tensor.reshape(-1, *[1] * (x.ndim - 2)) if tensor.ndim else tensor


class MixtureDenoiser(AnalyticDenoiser):
    """Pixels with the law sum_i ``weights``_i N(``means``_i, ``stds``_i^2).

    Args:
        weights: positive, normalised here.
        means: of the modes.
        stds: of the modes.
        prediction, in_channels, sample_size: as for :class:`GaussianDenoiser`.
        num_train_timesteps, beta_start, beta_end, beta_schedule, time_cond_proj_dim: likewise.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        weights: Sequence[float] = (0.5, 0.5),
        means: Sequence[float] = (-1.5, 1.5),
        stds: Sequence[float] = (0.3, 0.3),
        prediction: str = "epsilon",
        in_channels: int = 1,
        sample_size: int | tuple[int, int] = 1,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        time_cond_proj_dim: int | None = None,
    ) -> None:
        super().__init__()
        self._prepare(prediction)
        if not len(weights) == len(means) == len(stds) or min(weights) <= 0.0:
            raise ValueError(
                f"weights, means, stds: got {len(weights)}, {len(means)}, {len(stds)} entries, "
                f"weights {tuple(weights)}; expected as many of each, weights positive"
            )

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Average of the modes' posterior means, each weighted by its share of the density at ``x``."""
        config = self.config
        weights, means, stds = (x.new_tensor(values) for values in (config.weights, config.means, config.stds))
        alpha, sigma, x = alpha[..., None], sigma[..., None], x[..., None]
        variance = alpha.square() * stds.square() + sigma.square()
        shift = x - alpha * means
        share = (weights.log() - 0.5 * variance.log() - shift.square() / (2.0 * variance)).softmax(dim=-1)
        return (share * (means + alpha * stds.square() / variance * shift)).sum(dim=-1)
