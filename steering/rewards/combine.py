"""Several rewards as one: a weighted sum of normalised values.

    r(x) = sum_i w_i (r_i(x) - m_i) / s_i

The constants m_i and s_i are fixed before a run, by the user or from reference samples. Normalising within a batch
would make a sample's reward depend on its neighbours, and the tilted law exp(r)/Z would have no meaning.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .calls import Reward, evaluate, one_each, reward_name

__all__ = ["WeightedSum"]


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """Weighted sum of rewards of the same samples.

    Attributes:
        rewards: the terms.
        weights: one finite number a term, of either sign; a term of weight zero is not called.
        centers: m_i, zero if None.
        scales: s_i > 0, one if None.
    """

    rewards: Sequence[Reward]
    weights: Sequence[float]
    centers: Sequence[float] | None = None
    scales: Sequence[float] | None = None

    def __post_init__(self) -> None:
        n = len(self.rewards)
        if n == 0:
            raise ValueError("rewards: got none, expected at least one")
        for field in ("weights", "centers", "scales"):
            values = getattr(self, field)
            if values is None:
                object.__setattr__(self, field, (0.0 if field == "centers" else 1.0,) * n)
            elif len(values) != n:
                raise ValueError(f"{field}: got {len(values)} numbers, expected one a reward, {n}")
            elif not all(math.isfinite(value) and (field != "scales" or value > 0) for value in values):
                raise ValueError(f"{field}: got {list(values)}, expected finite numbers{' > 0' * (field == 'scales')}")

    @property
    def name(self) -> str:
        """The terms with their weights."""
        return " + ".join(f"{w:g}*{reward_name(r)}" for r, w in zip(self.rewards, self.weights, strict=True))

    def __call__(self, samples: Any) -> Tensor:
        """The sum (B,), float64."""
        total = torch.zeros(len(samples), dtype=torch.float64)
        for reward, weight, center, scale in self._terms():
            if weight != 0.0:
                values = one_each(reward(samples), reward_name(reward), len(samples))
                total = total + weight * (values - center) / scale
        return total

    def parts(self, samples: Any) -> dict[str, Tensor]:
        """Every term's own value (B,) before normalising and weighting, those of weight zero too; by name."""
        found: dict[str, Tensor] = {}
        for reward in self.rewards:
            name = reward_name(reward)
            key = name if name not in found else f"{name} #{len(found) + 1}"
            found[key] = evaluate(reward, samples, len(samples))
        return found

    def normalised_on(self, samples: Any) -> "WeightedSum":
        """The same sum with m_i and s_i the mean and standard deviation over ``samples``, say plain draws.

        Raises:
            ValueError: fewer than two samples, or a term that is not finite or constant over them.
        """
        if len(samples) < 2:
            raise ValueError(f"samples: got {len(samples)}, expected at least 2 to normalise on")
        centers, scales = [], []
        for name, values in self.parts(samples).items():
            center, scale = values.mean().item(), values.std().item()
            if not (math.isfinite(scale) and scale > 0.0):
                raise ValueError(f"reward {name}: standard deviation {scale} over the samples, expected finite and > 0")
            centers.append(center)
            scales.append(scale)
        return replace(self, centers=tuple(centers), scales=tuple(scales))

    @classmethod
    def of(cls, weights: Mapping[str, float], **options: Mapping[str, Any]) -> "WeightedSum":
        """A sum of rewards by name or ``package.module:attribute``; ``options`` of a built-in go by its name.

        >>> WeightedSum.of({"brightness": 1.0, "jpeg_size": 0.5}, jpeg_size={"quality": 75})
        """
        from .registry import load_reward

        unknown = set(options) - set(weights)
        if unknown:
            raise ValueError(f"options: got {sorted(unknown)}, expected names among {sorted(weights)}")
        rewards = [load_reward(name, **options.get(name, {})) for name in weights]
        return cls(rewards, tuple(weights.values()))

    def _terms(self) -> "zip[tuple[Callable[[Any], Any], float, float, float]]":
        assert self.centers is not None
        assert self.scales is not None
        return zip(self.rewards, self.weights, self.centers, self.scales, strict=True)
