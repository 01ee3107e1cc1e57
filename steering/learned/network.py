r"""A small network for soft values f(x_t, level), saved and loaded the way diffusers' models are.

.. math:: f = m + s\, g\big(x_t / \sqrt{\alpha^2 + \sigma^2},\ \log(\alpha^2 / \sigma^2)\big)

with m and s the offset and the scale of the training targets, so that g starts at zero and ends of order one. Where
``denoised`` is set, g also sees x0-hat, which the sampler's own denoiser has computed anyway: still a function of x_t,
and a far easier one to learn.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

try:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
except ImportError as error:
    raise ImportError("feynkac.steering.learned needs diffusers: pip install 'feynkac[diffusion]'") from error

__all__ = ["ValueNetwork"]

_LIMIT = 20.0
"""log(alpha^2 / sigma^2) is cut here: levels beyond are noise alone, or data alone."""

_FREQUENCIES = 5
_SYMBOL = 16
"""Length of the vector that stands for a token."""


class _Dense(nn.Module):
    """h + B silu(scale A h + shift), scale and shift given by the level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.level = nn.Linear(width, 2 * width)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.level(level).chunk(2, dim=1)
        moved: Tensor = self.outer(functional.silu(self.inner(functional.silu(h)) * (1.0 + scale) + shift))
        return h + moved


class _Convolution(nn.Module):
    """The same with convolutions 3 x 3 and group norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = math.gcd(8, width)
        self.first, self.second = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)
        self.inner, self.outer = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.level = nn.Linear(width, 2 * width)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.level(level)[:, :, None, None].chunk(2, dim=1)
        inner = self.second(self.inner(functional.silu(self.first(h)))) * (1.0 + scale) + shift
        moved: Tensor = self.outer(functional.silu(inner))
        return h + moved


class ValueNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Soft values of states at a noise level.

    Images (C, H, W) of at least 4 x 4 go through convolutions, halved until their shorter side is below 8; anything
    else is flattened.

    Args:
        shape: of a state, without the batch.
        tokens: symbols, the mask included, where states are sequences of tokens; None for continuous states.
        denoised: sees x0-hat beside x_t; continuous states only.
        width: of the layers.
        blocks: residual blocks, and of convolutions as many at every resolution.
        offset: m, in units of the reward.
        scale: s, in units of the reward.
        temperature: at which it was fitted; for the record.
        loss: with which it was fitted; for the record.
        reward: name of the reward; for the record.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        shape: Sequence[int] = (1,),
        tokens: int | None = None,
        denoised: bool = False,
        width: int = 64,
        blocks: int = 2,
        offset: float = 0.0,
        scale: float = 1.0,
        temperature: float = 1.0,
        loss: str = "exp",
        reward: str = "",
    ) -> None:
        super().__init__()
        if not shape or min(shape) < 1 or min(width, blocks) < 1:
            raise ValueError(f"shape, width, blocks: got {tuple(shape)}, {width}, {blocks}; expected positive numbers")
        if tokens is not None and denoised:
            raise ValueError("denoised: tokens have no x0-hat to add")
        self.level = nn.Sequential(nn.Linear(1 + 2 * _FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        inputs = 2 if denoised else 1
        self.symbols = None if tokens is None else nn.Embedding(tokens, _SYMBOL)
        self.convolves = tokens is None and len(shape) == 3 and min(shape[1:]) >= 4
        self.body = nn.ModuleList()
        if self.convolves:
            side = tuple(shape[1:])
            self.enter: nn.Module = nn.Conv2d(inputs * shape[0], width, 3, padding=1)
            self.halvings = max(0, int(math.log2(min(side) / 4)))
            self.body.extend(_Convolution(width) for _ in range(blocks * (self.halvings + 1)))
            cells = math.prod(s >> self.halvings for s in side)
            self.leave = nn.Sequential(nn.Flatten(), nn.SiLU(), nn.Linear(width * cells, width), nn.SiLU())
        else:
            size = math.prod(shape) * (_SYMBOL if tokens is not None else inputs)
            self.enter = nn.Linear(size, width)
            self.halvings = 0
            self.body.extend(_Dense(width) for _ in range(blocks))
            self.leave = nn.Sequential(nn.SiLU())
        self.head = nn.Linear(width, 1)

    @classmethod
    def drawn(cls, generator: torch.Generator, **config: Any) -> "ValueNetwork":
        """A network at its start, on the CPU: all parameters from ``generator``, the value ``offset`` everywhere."""
        with torch.device("meta"):  # torch's own start would draw from the global generator
            network: ValueNetwork = cls(**config)
        network.to_empty(device="cpu")
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                for parameter in module.parameters(recurse=False):
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)
            elif isinstance(module, nn.GroupNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, generator=generator)
        blocks = [module.outer for module in network.modules() if isinstance(module, _Dense | _Convolution)]
        for last in [network.head, *blocks]:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        return network

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state."""
        return tuple(self.config.shape)

    @property
    def denoised(self) -> bool:
        """Whether it sees x0-hat."""
        return bool(self.config.denoised)

    def forward(self, states: Tensor, levels: Tensor, clean: Tensor | None = None) -> Tensor:
        """Values (B,) in units of the reward.

        Args:
            states: (B, ``*shape``) x_t: floats, or tokens.
            levels: (B, 2) alpha and sigma.
            clean: (B, ``*shape``) x0-hat, where ``denoised``.

        Raises:
            ValueError: x0-hat is missing.
        """
        alpha, sigma = levels.to(self.head.weight.dtype).unbind(dim=1)
        h = self._entered(states, (alpha.square() + sigma.square()).rsqrt(), clean)
        level = self.level(_level_features(alpha, sigma))
        per = len(self.body) // (self.halvings + 1)
        for i, block in enumerate(self.body):
            if i and i % per == 0:
                h = functional.avg_pool2d(h, 2)
            h = block(h, level)
        values: Tensor = self.config.offset + self.config.scale * self.head(self.leave(h))[:, 0]
        return values

    def _entered(self, states: Tensor, gain: Tensor, clean: Tensor | None) -> Tensor:
        if self.symbols is not None:
            x: Tensor = self.symbols(states.long())
        else:
            x = states.to(gain) * gain.reshape(-1, *[1] * (states.ndim - 1))
            if self.denoised:
                if clean is None:
                    raise ValueError("clean: this network sees x0-hat too, got none")
                x = torch.cat([x, clean.to(x)], dim=1)
        entered: Tensor = self.enter(x if self.convolves else x.flatten(1))
        return entered


def _level_features(alpha: Tensor, sigma: Tensor) -> Tensor:
    """(B, 1 + 2 n) of the log signal-to-noise ratio: itself, and waves of periods 40, 20, 10, 5 and 2.5."""
    tiny = torch.finfo(alpha.dtype).tiny
    ratio = 2.0 * (alpha.clamp_min(tiny).log() - sigma.clamp_min(tiny).log()).clamp(-_LIMIT / 2, _LIMIT / 2)
    rates = math.pi / _LIMIT * 2.0 ** torch.arange(_FREQUENCIES, dtype=ratio.dtype, device=ratio.device)
    waves = ratio[:, None] * rates
    return torch.cat([ratio[:, None] / _LIMIT, waves.sin(), waves.cos()], dim=1)
